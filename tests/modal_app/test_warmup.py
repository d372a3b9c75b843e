"""The warm-up against real servers: what it leaves in one, what another can't have, and what goes wrong on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modal_app import warmup
from modal_app.warmup import Answer, Golden, NoAnswer, Seen, Token, ask_again, record, warm_up
from tasks.contracts.scripted import Script
from tasks.contracts.scripted import build as build_model
from tasks.platforms.local import LocalPlatform
from tasks.release import Build, Endpoint, Release
from tasks.settings import Settings
from tests.conftest import build_of
from tests.contracts.breaking_proxy import Ask, Breakage, Reply, broken

real = pytest.mark.real
Servers = Callable[[str, int], Release]


@pytest.fixture(scope="module")
def platform(base: Settings) -> LocalPlatform:
    return LocalPlatform(base)


@pytest.fixture(scope="module")
def servers(
    platform: LocalPlatform, base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """Releases of an upstream tag with so many slots, whose model is a script (with a sliding window)."""
    folder = tmp_path_factory.mktemp("warmup")
    (folder / "series").touch()
    model = platform.store.put_file(build_model(Script(("model\nThe answer is forty-two.<turn|>",)), folder / "m.gguf"))

    def release(tag: str, slots: int) -> Release:
        made = build if tag == "b11434" else build_of(base.model_copy(update={"patches": folder}), tag)
        load = ("--load-mode", "none") if made.source.upstream.build >= 10884 else ("--no-mmap",)  # upstream b10884
        return Release(
            upstream=made.source.upstream, tree=made.source.tree, build=made.digest, alias="script",
            argv=("--model", "{model}", "--ctx-size", str(4096 * slots), "--parallel", str(slots), *load, "--jinja",
                  "--threads", "1"),
            files={"model": model},
        )  # fmt: skip

    yield release


def asked(endpoint: Endpoint, golden: Golden) -> Seen:
    return ask_again(endpoint.base_url, endpoint.api_key, golden, patience_s=30)


@real
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("tag", ["b8672", "b11434"])
def test_only_the_server_that_was_warmed_up_has_the_nonce(
    platform: LocalPlatform, servers: Servers, tag: str, slots: int
) -> None:
    release = servers(tag, slots)
    with platform.trial(release) as endpoint:
        golden = warm_up(endpoint.base_url, endpoint.api_key, vision=False)
        again = asked(endpoint, golden)
    assert (again.nonce.found, again.warm.found, again.control.found) == (True, True, False)
    assert again.answers == golden.first == golden.second
    with platform.trial(release) as endpoint:
        cold = asked(endpoint, golden)
    assert (cold.nonce.found, cold.warm.found, cold.control.found) == (False, True, False)
    assert cold.nonce.cached_tokens == cold.control.cached_tokens == 0
    assert cold.answers == golden.first


@real
def test_a_real_model_shows_it_too(platform: LocalPlatform, servers: Servers, smollm2: Path) -> None:
    release = servers("b11434", 2).model_copy(update={"files": {"model": platform.store.put_file(smollm2)}})
    with platform.trial(release) as endpoint:
        golden = record(endpoint.base_url, endpoint.api_key, vision=False)
        again = asked(endpoint, golden)
    assert (again.nonce.found, again.warm.found, again.control.found) == (True, True, False)
    assert again.answers == golden.first
    assert min(len(answer.tokens) for answer in golden.first) == warmup.ANSWER_TOKENS
    assert all(-30 < p < 0 for a in golden.first for t in a.tokens for _, p in t.top[:1])


@pytest.fixture(scope="module")
def running(platform: LocalPlatform, servers: Servers) -> Iterator[Endpoint]:
    with platform.trial(servers("b11434", 1)) as endpoint:
        yield endpoint


@real
def test_a_server_that_keeps_nothing_gives_no_golden_record(running: Endpoint) -> None:
    class Forgetful(Breakage):
        def line(self, ask: Ask, line: bytes) -> bytes:
            if line.startswith(b"data:") and b'"cache_n"' in line:
                said = json.loads(line[5:])
                said["timings"]["cache_n"] = 0
                return b"data: " + json.dumps(said).encode() + b"\n"
            return line

    with broken(running, Forgetful()) as endpoint, pytest.raises(NoAnswer, match="did not keep enough"):
        record(endpoint.base_url, endpoint.api_key, vision=False)


@real
@pytest.mark.parametrize("path", ["/props", "/v1/chat/completions", "/completion"])
def test_a_path_that_does_not_answer_is_named(running: Endpoint, path: str) -> None:
    class Refusing(Breakage):
        def reply(self, ask: Ask, reply: Reply) -> Reply:
            return Reply(500, b"out of kernels") if ask.path == path else reply

    with broken(running, Refusing()) as endpoint, pytest.raises(NoAnswer, match=f"{path}: 500 out of kernels"):
        warm_up(endpoint.base_url, endpoint.api_key, vision=False)


@real
def test_a_server_that_still_comes_up_is_asked_again(running: Endpoint) -> None:
    class Starting(Breakage):
        refusals = 2

        def ask(self, ask: Ask, right_key: str) -> Ask:
            self.refusals -= 1
            return replace(ask, path="/not-yet") if self.refusals >= 0 else ask

        def reply(self, ask: Ask, reply: Reply) -> Reply:
            return Reply(503, b"loading") if ask.path == "/not-yet" else reply

    golden = record(running.base_url, running.api_key, vision=False)
    with broken(running, Starting()) as endpoint:
        seen = asked(endpoint, golden)
    assert seen.nonce.found
    assert seen.nonce.first_token_s > 2 * warmup.RETRY_S
    with broken(running, Starting()) as endpoint, pytest.raises(NoAnswer, match="503 loading"):
        ask_again(endpoint.base_url, endpoint.api_key, golden, patience_s=0.2)


@real
def test_a_first_request_that_broke_off_is_never_sent_again(running: Endpoint) -> None:
    """It may have planted the nonce: a second one would find it on a server that booted cold."""
    sent: list[str] = []

    class BreakingOff(Breakage):
        def line(self, ask: Ask, line: bytes) -> bytes:
            sent.append(ask.path)
            raise OSError("the connection is gone")

    golden = record(running.base_url, running.api_key, vision=False)
    with broken(running, BreakingOff()) as endpoint, pytest.raises(NoAnswer):
        asked(endpoint, golden)
    assert sent == ["/completion"]


def test_nobody_there_is_no_answer() -> None:
    with pytest.raises(NoAnswer, match="ConnectError"):
        record("http://127.0.0.1:1", None, vision=False)


def test_a_golden_record_survives_json_and_nothing_else_is_one() -> None:
    answer = Answer("The sea", False, (Token(1, ((1, -0.1), (2, -2.5))),))
    golden = Golden(nonce=(5, 6), tail=(7,), first=(answer,), second=(answer,))
    assert Golden.from_json(golden.to_json()) == golden
    for wrong in ("", "[]", "{}", '{"nonce": 1, "tail": [], "first": [], "second": []}'):
        with pytest.raises(ValueError):
            Golden.from_json(wrong)
