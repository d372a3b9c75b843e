"""Real servers asked as their clients ask: well ones, and ones with each fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tasks.contracts.promises import Server
from tasks.contracts.scripted import build as build_model
from tasks.contracts.scripted import thinks_then_answers
from tasks.contracts.trials import trial_release
from tasks.doctor import Seen, Severity
from tasks.doctor.live import checks
from tasks.platforms.local import LocalPlatform
from tasks.release import BadInput, Build, Endpoint, Problem, Release, ReleaseFailed, ToolingError
from tasks.settings import Settings
from tests.contracts.breaking_proxy import Ask, Breakage, Reply, broken
from tests.contracts.conftest import platform, release_of
from tests.platforms.conftest import platform_at, stand_of

pytestmark = pytest.mark.real
__all__ = ["platform"]  # the fixture

Found = dict[str, str | Seen | Problem]
Serve = Callable[..., AbstractContextManager[Endpoint]]


def asked(endpoint: Endpoint) -> Found:
    found: Found = {}
    for name, look in checks(endpoint, wait_s=60):
        try:
            found[name] = look()
        except Problem as problem:
            found[name] = problem
    return found


@pytest.fixture(scope="module")
def serve(
    platform: LocalPlatform, build_at: Callable[[str], Build], smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Serve:
    """Gives a server of a tag with a scripted model, and with further words in its argv."""

    @contextmanager
    def serving(tag: str, server: Server, *more: str, build: Build | None = None) -> Iterator[Endpoint]:
        release = release_of(platform, build or build_at(tag), smollm2)
        runs: Release = trial_release(platform.store, release, server, tmp_path_factory.mktemp("script"))
        with platform.trial(runs.model_copy(update={"argv": (*runs.argv, *more)})) as endpoint:
            yield endpoint

    return serving


@pytest.fixture(scope="module")
def thinking(serve: Serve) -> Iterator[Endpoint]:
    with serve("b11434", "scripted") as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def calling(serve: Serve) -> Iterator[Endpoint]:
    with serve("b11434", "calling") as endpoint:
        yield endpoint


def test_a_server_that_thinks_is_well_and_its_budget_has_an_effect(thinking: Endpoint) -> None:
    found = asked(thinking)
    assert list(found) == ["health", "key", "thoughts", "budget", "responses"]
    assert found["key"] == "taken, and a wrong one refused"
    assert found["thoughts"] == "60 words of thought, apart from the answer"
    assert "60 without" in str(found["budget"])


@pytest.mark.parametrize("tag", ["b8672", "b11434"])
def test_a_tool_round_trip_of_an_agent_is_whole(tag: str, serve: Serve) -> None:
    with serve(tag, "calling") as endpoint:
        found = asked(endpoint)
    assert "get_weather called, also as a stream" in str(found["responses"])
    thoughts = found["thoughts"]
    assert isinstance(thoughts, Seen)
    assert thoughts.severity is Severity.NOTE


def test_a_budget_without_effect_is_found_by_asking_twice_and_the_patch_mends_it(
    serve: Serve, unpatched_at: Callable[[str], Build]
) -> None:
    with serve("b8672", "scripted", build=unpatched_at("b8672")) as endpoint:
        found = asked(endpoint)["budget"]
    assert isinstance(found, ReleaseFailed)
    assert found.what == "thinking_budget_tokens changes nothing: 60 words with and without it"
    with serve("b8672", "scripted") as endpoint:
        assert "60 without" in str(asked(endpoint)["budget"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--reasoning-format", "none"), "thoughts stand in the content"),
        (("--reasoning-budget", "0"), "--reasoning-budget 0"),
        (("--chat-template-kwargs", '{"enable_thinking": false}'), "only when asked to"),
    ],
)
def test_thoughts_that_the_servers_parameters_hide_are_a_warning_that_names_them(
    argv: tuple[str, ...], said: str, serve: Serve
) -> None:
    with serve("b11434", "scripted", *argv) as endpoint:
        found = asked(endpoint)["thoughts"]
    assert isinstance(found, Seen)
    assert found.severity is Severity.WARNING
    assert said in found.evidence


def test_a_model_whose_template_knows_nothing_of_thinking_is_a_warning(
    platform: LocalPlatform, build: Build, smollm2: Path
) -> None:
    with platform.trial(release_of(platform, build, smollm2)) as endpoint:
        found = asked(endpoint)
    thoughts, responses = found["thoughts"], found["responses"]
    assert isinstance(thoughts, Seen)
    assert "template knows nothing of thinking" in thoughts.evidence
    assert isinstance(responses, Seen)
    assert "calls no tool, neither here nor in a chat" in responses.evidence


class LosesCalls(Breakage):
    """/v1/responses without its function_call items."""

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path != "/v1/responses":
            return reply
        body = json.loads(reply.body)
        body["output"] = [item for item in body["output"] if item["type"] != "function_call"]
        return Reply(reply.status, json.dumps(body).encode())


class RefusesResults(Breakage):
    """/v1/responses that knows no function_call_output."""

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return Reply(400, b'{"error": {"code": 400}}') if b'"function_call_output"' in ask.body else reply


class ForgetsResults(Breakage):
    """/v1/responses that answers a tool's result with nothing."""

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if b'"function_call_output"' not in ask.body:
            return reply
        return Reply(200, json.dumps(json.loads(reply.body) | {"output": []}).encode())


class StreamsNoItems(Breakage):
    """A stream without the event that holds the whole call."""

    def line(self, _ask: Ask, line: bytes) -> bytes:
        return b"" if b"response.output_item.done" in line else line


@pytest.mark.parametrize(
    ("breakage", "said"),
    [
        (LosesCalls(), "a chat calls ['get_weather'], /v1/responses calls nothing"),
        (RefusesResults(), "/v1/responses answered 400 to a conversation with tools"),
        (ForgetsResults(), "the tool's result was answered with nothing"),
        (StreamsNoItems(), "the stream holds no whole function_call"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Breakage) else "",
)
def test_an_incomplete_round_trip_is_found_whatever_it_lacks(breakage: Breakage, said: str, calling: Endpoint) -> None:
    with broken(calling, breakage) as endpoint:
        found = asked(endpoint)["responses"]
    assert isinstance(found, ReleaseFailed)
    assert found.what == said


@pytest.mark.parametrize("key", ["not-it", None])
def test_a_key_that_the_server_refuses_is_found_and_nothing_else_is_asked(key: str | None, calling: Endpoint) -> None:
    found = asked(Endpoint(base_url=calling.base_url, api_key=key))
    assert list(found) == ["health", "key"]
    assert isinstance(found["key"], BadInput)
    assert ". ./.env" in found["key"].todo
    assert "not-it" not in str(found["key"])


def test_where_nothing_listens_one_check_says_so(calling: Endpoint) -> None:
    with broken(calling, Breakage()) as gone:
        pass
    found = asked(gone)
    assert list(found) == ["health"]
    assert isinstance(found["health"], ToolingError)


def test_a_server_that_sleeps_is_woken_and_waited_for(base: Settings, build: Build, tmp_path: Path) -> None:
    model = build_model(thinks_then_answers(), tmp_path / "m.gguf")
    with stand_of(platform_at(tmp_path / "store", idle_s=600), base, build, model) as stand:
        endpoint = stand.serve(stand.first)
        stand.platform.idle("staging")
        assert stand.servers() == []
        found = asked(endpoint)
    assert str(found["health"]).startswith(endpoint.base_url)
    assert "60 words of thought" in str(found["thoughts"])
