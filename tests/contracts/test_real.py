"""The promises against a real llama-server, and against the same server with one thing broken."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from tasks import contracts
from tasks.contracts import schemas, slots
from tasks.contracts.auth import private_routes, routes_to_close
from tasks.contracts.promises import CONTRACTS, Context, Recorder, Routes, Server, verify
from tasks.contracts.scripted import COUNTED, thinks_forever
from tasks.contracts.scripted import build as build_model
from tasks.contracts.trials import trial_release, with_model
from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform
from tasks.release import UNMET, Build, Endpoint, Release, Verdict, Verification
from tasks.settings import Settings
from tasks.sources import Sources
from tests.contracts.breakages import BROKEN, LIVE, BuffersStreams, FailsWhileLoading, HealthyTooEarly, edited, title
from tests.contracts.breaking_proxy import Ask, Breakage, Reply, broken
from tests.contracts.broken_kinds import KINDS, Broken, Lets
from tests.contracts.conftest import Serving

pytestmark = pytest.mark.real
SHORTCOMINGS = {
    "errors.unknown_model", "errors.wrong_tools", "messages.thinking_disabled", "schemas.bad", "schemas.of_tools",
    "schemas.refused", "stops.held_back", "stops.limit_of_response", "stops.nothing_asked", "stops.reason_of_message",
    "tools.none_clean",
}  # fmt: skip
"""What b11434 does not keep."""
OF_ANY_TEXT = {"tokens.pieces", "tokens.round_trip", "tokens.streamed"}
"""What takes a model that has tokens for any text: a scripted one has those of its script."""
TAKEN_FOR_GRANTED = {"type_object", "additional_properties"}
"""Keywords that llama-server holds an answer to where the schema lacks them, too (b11434)."""
SPELLED = {
    "type_null": "type",
    "type_number": "type",
    "type_object": "type",
    "type_array": "type",
    "nullable": "type",
    "minimum_negative": "minimum",
    "maximum_large": "maximum",
    "exclusive_minimum": "exclusiveMinimum",
    "exclusive_maximum": "exclusiveMaximum",
    "between": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "pattern_of_classes": "pattern",
    "format_date": "format",
    "format_time": "format",
    "format_date_time": "format",
    "format_uuid": "format",
    "additional_properties": "additionalProperties",
    "additional_of_type": "additionalProperties",
    "min_items": "minItems",
    "max_items": "maxItems",
    "prefix_items": "prefixItems",
    "any_of": "anyOf",
    "one_of": "oneOf",
    "all_of": "allOf",
    "ref": "$ref",
    "ref_to_itself": "$ref",
    "nested": "enum",
}
"""Keyword of schemas.KEYWORDS -> how a schema spells it, where that is another word."""
SHORT = {min(group, key=lambda b: b.what).what for group in (
    [b for b in KINDS if b.kind == kind] for kind in {b.kind for b in KINDS}
)}  # fmt: skip
"""One of each kind."""


def names_of(*servers: Server) -> list[str]:
    """The promises that are checked on these kinds of servers."""
    return [name.removeprefix("contracts.") for name, contract in CONTRACTS.items() if contract.server in servers]


def check(endpoint: Endpoint, release: Release, names: Iterable[str]) -> dict[str, str]:
    """Subject.promise -> summary of each of these promises that the endpoint does not keep."""
    return dict(unkept(endpoint, release, names))


def unkept(endpoint: Endpoint, release: Release, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """As `check`, one by one as they are found. A proxy that fails is no server that is caught: it makes an error."""
    with Recorder(endpoint) as client:
        for name in sorted(names):
            done = verify(CONTRACTS[f"contracts.{name}"], client, release, subject=release, basis="0")
            assert endpoint.api_key and endpoint.api_key not in done.model_dump_json()
            assert done.verdict is not Verdict.ERRORED, f"{name}: {done.summary}"
            if UNMET in done.evidence:
                yield name, done.summary


def watched(server: Server, changed: Iterable[str]) -> set[str]:
    """The promises that are checked on this kind of server: all of the subjects of `changed`, or of all subjects."""
    names = set(names_of("model", server) if server == "scripted" else names_of(server)) - {LIVE} - OF_ANY_TEXT
    subjects = {name.split(".")[0] for name in changed}
    return {name for name in names if name.split(".")[0] in subjects} if subjects else names


@pytest.mark.parametrize(("breakage", "server", "changed"), BROKEN, ids=[f"{b[1]}: {title(b[0])}" for b in BROKEN])
def test_a_broken_server_breaks_its_promise_and_no_other_of_the_subject(
    breakage: Breakage, server: Server, changed: tuple[str, ...], serving: Serving
) -> None:
    endpoint, runs = serving(server)
    names = watched(server, changed)
    with broken(endpoint, breakage) as proxied:
        assert set(check(proxied, runs, names)) == set(changed) ^ (SHORTCOMINGS & names)


@pytest.mark.parametrize(
    "each", [pytest.param(b, marks=() if b.what in SHORT else pytest.mark.long, id=b.what) for b in KINDS]
)
def test_a_server_that_is_wrong_in_a_way_of_its_kind_is_caught(each: Broken, serving: Serving) -> None:
    endpoint, runs = serving(each.server)
    servers = ("model", "scripted") if each.server == "scripted" else (each.server,)
    names = {n for n in names_of(*servers) if n.split(".")[0] in each.caught_by} - SHORTCOMINGS - {LIVE}
    with broken(endpoint, each.breakage) as proxied:
        assert next(unkept(proxied, runs, names), None)


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "servers"),
    [
        pytest.param({"--ctx-size": "512"}, ("scripted", "calling", "counting", "seeing"), id="slots of 256 tokens"),
        pytest.param({"--ctx-size": "1024"}, ("counting", "seeing"), id="slots of 512 tokens"),
        pytest.param(
            {"--presence-penalty": "1.5", "--top-k": "1", "-n": "16", "--seed": "0"}, ("counting",), id="other samplers"
        ),
    ],
)
def test_a_right_server_is_found_right_whatever_it_is_set_to(
    settings: dict[str, str], servers: tuple[Server, ...], platform: LocalPlatform, release: Release, tmp_path: Path
) -> None:
    changed = release.model_copy(update={"argv": with_settings(release.argv, settings)})
    for server in servers:
        runs = trial_release(platform.store, changed, server, tmp_path)
        with platform.trial(runs) as endpoint:
            assert set(check(endpoint, runs, names_of(server))) <= SHORTCOMINGS


def with_settings(argv: Sequence[str], settings: dict[str, str]) -> tuple[str, ...]:
    """The command line with these values, where it has the flag and where it has not."""
    kept = list(argv)
    for flag, value in settings.items():
        if flag in kept:
            kept[kept.index(flag) + 1] = value
        else:
            kept += [flag, value]
    return tuple(kept)


class EndsIncomplete(Breakage):
    """Nothing is broken: a response that the limit ended says so, as OpenAI's does."""

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path != "/v1/responses" or reply.status != 200:
            return reply
        return edited(reply, lambda body: self._end(body, json.loads(ask.body).get("max_output_tokens")))

    def line(self, ask: Ask, line: bytes) -> bytes:
        if ask.path != "/v1/responses" or b"response.completed" not in line:
            return line
        if line.startswith(b"event:"):
            return b""  # it is told with its data
        event = json.loads(line[6:])
        self._end(event["response"], json.loads(ask.body).get("max_output_tokens"))
        event["type"] = f"response.{event['response']['status']}"
        return f"event: {event['type']}\ndata: {json.dumps(event)}\n".encode()

    def _end(self, response: Any, most: int) -> None:
        if response["usage"]["output_tokens"] == most <= COUNTED:  # of one more, the last is the end of its turn
            response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}


class KnowsItsModel(Breakage):
    """Nothing is broken: a model that is not served is not found."""

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        named = re.search(rb'"model": ?"([^"]+)"', ask.body)
        return replace(reply, status=404) if named and named[1] != b"smollm2" else reply


class OneStreamAtATime(Breakage):
    """Streams come one after the other, each when the one before it is over."""

    def __init__(self) -> None:
        self.lock = Lock()

    def ask(self, ask: Ask) -> Ask:
        if b'"stream":true' in ask.body.replace(b" ", b""):
            self.lock.acquire()
        return ask

    def ended(self, _ask: Ask) -> None:
        self.lock.release()


class RefusesStreams(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return replace(ask, body=b"{}") if b'"stream":true' in ask.body.replace(b" ", b"") else ask


class ServesItsPage(Breakage):
    """Nothing is told: whatever path is no route gets the web page that everybody gets."""

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        routes = {path for _, path in private_routes()} | {"/health"}
        pages = ask.method in ("GET", "HEAD") and ask.path.partition("?")[0] not in routes
        return Reply(200, b"<html>ours</html>", (("Content-Type", "text/html"),)) if pages else reply


@pytest.mark.parametrize(
    ("mended", "server", "names", "known"),
    [
        (EndsIncomplete(), "counting", ("stops.limit", "responses.answers"), "stops.limit_of_response"),
        (EndsIncomplete(), "scripted", ("twins.responses",), ""),
        (KnowsItsModel(), "scripted", ("twins.spellings", "messages.usage"), "errors.unknown_model"),
        (ServesItsPage(), "scripted", ("auth.every_way",), ""),
        (BuffersStreams(), "counting", ("slots.streams_do_not_mix",), ""),  # as on a machine too busy to see them meet
    ],
    ids=["incomplete: counting", "incomplete: scripted", "unknown model", "a page for any path", "streams held back"],
)
def test_what_is_right_or_may_be_mended_is_held_against_no_release(
    mended: Breakage, server: Server, names: tuple[str, ...], known: str, serving: Serving
) -> None:
    endpoint, runs = serving(server)
    with broken(endpoint, mended) as proxied:
        assert check(proxied, runs, [*names, *filter(None, [known])]) == {}


@pytest.mark.parametrize(
    ("breakage", "verdict", "said"),
    [
        (OneStreamAtATime(), Verdict.ERRORED, "no two of 12 streams were seen side by side"),
        (RefusesStreams(), Verdict.FAILED, "a stream answered 400"),
    ],
    ids=["one at a time", "refused"],
)
def test_streams_that_were_not_seen_together_are_no_fault_and_those_refused_are(
    breakage: Breakage, verdict: Verdict, said: str, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "_MEETINGS", 1)
    endpoint, runs = serving("counting")
    with broken(endpoint, breakage) as proxied, Recorder(proxied) as client:
        found = verify(CONTRACTS["contracts.slots.streams_do_not_mix"], client, runs, subject=runs, basis="0")
    assert found.verdict is verdict
    assert said in found.summary


@pytest.mark.parametrize("keyword", schemas.KEYWORDS, ids=[keyword.name for keyword in schemas.KEYWORDS])
def test_what_a_model_wants_breaks_the_keyword_that_is_to_keep_it_from_it(
    keyword: schemas.Keyword, serving: Serving
) -> None:
    endpoint, runs = serving("counting")
    free = without(keyword.schema, SPELLED.get(keyword.name, keyword.name))
    with Recorder(endpoint) as client:
        ctx = Context(client, runs)
        _, said = schemas.answer_to(ctx, free, schemas.bias_of(ctx, keyword), schemas.WAYS[0])
    assert bool(schemas.misfit(said, keyword.schema)) is (keyword.name not in TAKEN_FOR_GRANTED)


def without(schema: Any, keyword: str) -> Any:
    """A schema without this keyword, at every depth."""
    if isinstance(schema, list):
        return [without(each, keyword) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: without(value, keyword) for name, value in schema.items() if name != keyword}


def test_a_server_that_holds_its_streams_back_is_caught(platform: LocalPlatform, release: Release) -> None:
    names = [LIVE, "chat.stream_same_text"]
    with platform.trial(release) as server:
        with broken(server, Breakage()) as endpoint:
            assert check(endpoint, release, names) == {}
        with broken(server, BuffersStreams()) as endpoint:
            assert set(check(endpoint, release, names)) == {LIVE}


@pytest.mark.parametrize(
    ("breakage", "name", "said"),
    [
        (HealthyTooEarly(), "health.never_early", "first request got"),
        (FailsWhileLoading(), "health.loading", "a chat got 500"),
    ],
)
def test_a_server_that_starts_badly_is_caught(
    breakage: Breakage, name: str, said: str, platform: LocalPlatform, release: Release
) -> None:
    with platform.trial(release, wait=False) as loading, broken(loading, breakage) as endpoint:
        summaries = check(endpoint, release, [name])
    assert list(summaries) == [name]
    assert said in summaries[name]


def test_a_real_server_keeps_every_promise_but_the_known_ones(platform: LocalPlatform, release: Release) -> None:
    told: list[tuple[int, int, str]] = []
    found = contracts.run_all(platform, release, lambda *step: told.append(step))
    assert tuple(v.name for v in found) == contracts.required()
    broken = {v.name.removeprefix("contracts."): v for v in found if v.verdict is not Verdict.PASSED}
    assert set(broken) == SHORTCOMINGS
    assert all(CONTRACTS[v.name].known and v.evidence["unmet"] == v.summary for v in broken.values())
    assert {v.release for v in found} == {release.id}
    assert told[-1][:2] == (len(found), len(found))


@pytest.mark.parametrize(
    "tag", ["b8672", *(pytest.param(t, marks=pytest.mark.long) for t in ("b9105", "b10605")), "b11434"]
)
def test_every_route_in_upstreams_code_is_asked_for_a_key(
    tag: str, base: Settings, build_at: Callable[[str], Build]
) -> None:
    build_at(tag)  # its source is here then
    code = Sources(base.cache).git("show", f"refs/upstream/{tag}:tools/server/server.cpp").stdout
    found = re.findall(r'ctx_http\.(get|post|del) *\("([^"]+)"', code)
    routes = [({"del": "DELETE"}.get(how, how.upper()), path) for how, path in found]
    assert len(routes) > 30
    assert routes_to_close(routes) == private_routes()


def test_a_route_that_came_with_a_build_is_asked_for_a_key_too(serving: Serving) -> None:
    endpoint, runs = serving("scripted")
    registered = [("GET", "/health"), ("POST", "/v1/new/:id")]
    opens = Lets(lambda _came, _key, ask: ask.path == "/v1/new/0")

    def asked(of: Endpoint, routes: Routes) -> Verification:
        with Recorder(of, routes=routes) as client:
            return verify(CONTRACTS["contracts.auth.no_key"], client, runs, subject=runs, basis="0")

    with broken(endpoint, opens) as proxied:
        assert "not refused: {'POST /v1/new/0': 404}" in asked(proxied, registered).evidence[UNMET]
        assert asked(proxied, ()).verdict is Verdict.PASSED
    assert asked(endpoint, registered).verdict is Verdict.PASSED


def test_thinking_for_ever_is_ended_by_a_budget_and_by_nothing_else(
    platform: LocalPlatform, release: Release, tmp_path: Path
) -> None:
    runs = with_model(platform.store, release, build_model(thinks_forever(), tmp_path / "forever.gguf"))
    with platform.trial(runs) as endpoint, Client(endpoint) as client:
        free = client.chat("Think.", max_tokens=300).body["choices"][0]
        bounded = client.chat("Think.", max_tokens=300, thinking_budget_tokens=6).body["choices"][0]
    assert (free["finish_reason"], free["message"]["content"]) == ("length", "")
    assert (bounded["finish_reason"], bounded["message"]["content"]) == ("stop", "The answer is forty-two.")
    assert len(bounded["message"]["reasoning_content"].split()) <= 6
