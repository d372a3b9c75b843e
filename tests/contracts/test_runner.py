"""The runner: verdicts, redaction, and servers that never come up. No server but a stub on loopback."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tasks import contracts
from tasks.contracts.promises import CONTRACTS, Context, Contract, Recorder, Unmet, clipped, expect, verify
from tasks.contracts.wire import Headers
from tasks.release import (
    BadInput,
    Endpoint,
    Problem,
    Release,
    ReleaseFailed,
    ToolingError,
    UpstreamRelease,
    Verdict,
    Verification,
)
from tasks.store import Store
from tests.contracts.standins import NothingComesUp
from tests.fakes.listening import Answering, listening

KEY = "a-very-secret-key"
Check = Callable[[Context], str]
RELEASE = Release(upstream=UpstreamRelease(build=1), tree="t", build="b", argv=("--alias", "m"), files={}, alias="m")


class _Echo(Answering):
    """Answers everything with 200 and what it was sent, the key too."""

    def do_GET(self) -> None:
        self.say(f'{{"you sent": "{self.headers.get("Authorization")}"}}'.encode())

    def do_POST(self) -> None:
        """Fails on the words `fail`, and the first time on `once`."""
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        fails = b"fail" in sent or (b"once" in sent and not self.server.__dict__.setdefault("failed", False))
        self.server.__dict__["failed"] = True
        body = b'{"error": {"message": "out of luck"}}' if fails else b'{"choices": []}'
        self.say(body, 500 if fails else 200)


@pytest.fixture
def echo() -> Iterator[Endpoint]:
    with listening(_Echo) as url:
        yield Endpoint(base_url=url, api_key=KEY)


@pytest.fixture
def nobody() -> Endpoint:
    with listening(_Echo) as url:
        pass
    return Endpoint(base_url=url, api_key=KEY)


def contract(check: Check) -> Contract:
    return Contract("contracts.subject.promise", "it works", "a guide", "model", check)


def run(check: Check, endpoint: Endpoint) -> Verification:
    with Recorder(endpoint) as client:
        return verify(contract(check), client, RELEASE, subject=RELEASE, basis="0")


def test_a_kept_promise_passes_with_its_source(echo: Endpoint) -> None:
    done = run(lambda _: "fine", echo)
    assert (done.verdict, done.summary, done.promise) == (Verdict.PASSED, "fine", "it works (source: a guide)")


def test_an_unmet_promise_fails(echo: Endpoint) -> None:
    def check(_: Context) -> str:
        raise Unmet("it does not")

    done = run(check, echo)
    assert (done.verdict, done.summary) == (Verdict.FAILED, "it does not")


def test_what_a_slot_has_no_room_for_is_not_held_against_the_server(echo: Endpoint) -> None:
    def check(_: Context) -> str:
        raise Unmet("a chat answered 400")

    def asked(room: int, *argv: str) -> Verification:
        small = RELEASE.model_copy(update={"argv": argv})
        with Recorder(echo) as client:
            return verify(replace(contract(check), room=room), client, small, subject=small, basis="0")

    two_slots = ("--ctx-size", "512", "--parallel", "2")
    assert [asked(room, *two_slots).verdict for room in (0, 256, 257)] == ["failed", "failed", "passed"]
    assert asked(257, *two_slots).summary == "a slot of 256 tokens is too small to tell"
    assert asked(257).verdict is asked(257, *two_slots, "--kv-unified").verdict is Verdict.FAILED


def test_our_own_mistake_is_errored_while_the_server_lives(echo: Endpoint) -> None:
    nothing: dict[str, str] = {}
    done = run(lambda _: nothing["oops"], echo)
    assert done.verdict is Verdict.ERRORED
    assert "KeyError" in done.summary


def test_no_answer_is_asked_for_again_once_and_told(echo: Endpoint) -> None:
    asked: list[Context] = []

    def silent_at_first(ctx: Context) -> str:
        asked.append(ctx)
        if len(asked) == 1:
            raise ToolingError("no answer from there")
        return "fine"

    done = run(silent_at_first, echo)
    assert (done.verdict, len(asked)) == (Verdict.PASSED, 2)
    assert done.summary == "fine; only when asked again: no answer from there"
    assert "no answer from there" in done.evidence["first_try"]


def test_no_answer_two_times_over_is_errored(echo: Endpoint) -> None:
    def silent(_: Context) -> str:
        raise ToolingError("no answer from there")

    assert run(silent, echo).verdict is Verdict.ERRORED


def test_a_5xx_that_comes_each_time_is_a_wrong_answer_with_its_words(echo: Endpoint) -> None:
    done = run(lambda ctx: str(ctx.client.chat("fail").body["choices"]), echo)
    assert (done.verdict, done.summary) == (Verdict.FAILED, "/v1/chat/completions answered 500: out of luck")
    assert done.evidence["unmet"] == done.summary


def test_a_5xx_that_does_not_come_again_is_no_wrong_answer(echo: Endpoint) -> None:
    assert run(lambda ctx: str(ctx.client.chat("once").body["choices"]), echo).verdict is Verdict.ERRORED


def test_what_is_not_kept_can_be_asked_by_anybody_and_the_command_holds_no_key(echo: Endpoint) -> None:
    def check(ctx: Context) -> str:
        expect(ctx.client.chat("it's", max_tokens=1).body["choices"], "it says nothing")
        return ""

    asked = run(check, echo).evidence["ask_it"]
    words = shlex.split(asked.replace("$KEY", "k").replace("$URL", "u"))
    assert json.loads(words[words.index("-d") + 1]) == {
        "messages": [{"role": "user", "content": "it's"}], "max_tokens": 1,
    }  # fmt: skip
    assert words[-1] == "u/v1/chat/completions"
    assert KEY not in asked


BODY = {"content": "Hi"}
RIGHT, WRONG = "$KEY", "not-the-key"


def _wire(headers: Headers, path: str = "/tokenize", method: str = "POST") -> Callable[[Context], object]:
    def ask(ctx: Context) -> object:
        with ctx.client.wire() as wire:
            return wire.ask(method, path, headers, json.dumps(BODY).encode() if method == "POST" else b"")

    return ask


@pytest.mark.parametrize(
    ("ask", "key", "body"),
    [
        (lambda ctx: ctx.client.get("/props"), RIGHT, None),
        (lambda ctx: ctx.client.get("/props", key=None), None, None),
        (lambda ctx: ctx.client.post("/tokenize", BODY, key="no"), WRONG, BODY),
        (lambda ctx: ctx.client.request("POST", "/tokenize", content=b'{"content": "Hi"}'), RIGHT, BODY),
        (_wire([]), None, BODY),
        (_wire([("Authorization", f"Bearer {KEY}")]), RIGHT, BODY),
        (_wire([("x-api-key", KEY)]), RIGHT, BODY),
    ],
    ids=["the key", "no key", "a wrong key", "raw", "wire: none", "wire: the key", "wire: the key, otherwise"],
)
def test_the_command_sends_the_key_and_the_body_that_were_sent(
    ask: Callable[[Context], object], key: str | None, body: object, echo: Endpoint
) -> None:
    def check(ctx: Context) -> str:
        expect(not ask(ctx), "it answers")
        return ""

    words = shlex.split(run(check, echo).evidence["ask_it"].replace("$URL", "u"))
    assert [words[n + 1] for n, word in enumerate(words) if word == "--oauth2-bearer"] == ([key] if key else [])
    assert json.loads(words[words.index("-d") + 1] if "-d" in words else "null") == body


@pytest.mark.parametrize(
    "ask",
    [
        _wire([("Authorization", f"Bearer {KEY[:-1]}")]),
        _wire([("Cookie", f"api_key={KEY}")]),
        _wire([], f"/props?api_key={KEY}"),
        _wire([], "/props#/health", "GET"),
        lambda ctx: ctx.client.chat("x" * 5000),
    ],
    ids=["all of a key but a character", "the key elsewhere", "the key in the path", "a fragment", "too long to show"],
)
def test_what_no_command_can_send_has_none(ask: Callable[[Context], object], echo: Endpoint) -> None:
    def check(ctx: Context) -> str:
        expect(not ask(ctx), "it answers")
        return ""

    done = run(check, echo)
    assert (done.verdict, done.evidence["ask_it"]) == (Verdict.FAILED, "")


def test_the_command_is_that_of_the_exchange_that_is_meant_and_of_none_among_several_at_once(echo: Endpoint) -> None:
    def meant(ctx: Context) -> str:
        ctx.client.get("/first", key=None)
        first = ctx.client.exchanges[-1]
        ctx.client.get("/second")
        expect(False, "the first is wrong", shown=first)
        return ""

    def none(ctx: Context) -> str:
        ctx.client.get("/first")
        expect(False, "they differ", shown=None)
        return ""

    def at_once(ctx: Context) -> str:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ctx.client.get, ("/a", "/b")))
        expect(False, "one of them is wrong")
        return ""

    asked = [run(check, echo).evidence["ask_it"] for check in (meant, none, at_once)]
    assert asked == ['curl -sS -X GET "$URL/first"', "", ""]


def test_a_dead_server_is_a_failure_with_the_exchange_that_killed_it(nobody: Endpoint) -> None:
    done = run(lambda ctx: str(ctx.client.get("/metrics").status), nobody)
    assert (done.verdict, done.summary) == (Verdict.FAILED, "the server died")
    assert done.evidence["exchanges"][0]["path"] == "/metrics"


def test_a_key_that_the_server_echoes_is_not_kept(echo: Endpoint) -> None:
    done = run(lambda ctx: f"got {ctx.client.get('/x').body}", echo)
    assert KEY not in done.model_dump_json()
    assert "[key]" in done.summary
    assert "[key]" in str(done.evidence)


def test_long_strings_are_cut() -> None:
    assert clipped({"a": ["x" * 5000]}, None)["a"][0].endswith("... (5000 characters)")


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ReleaseFailed("it crashed", evidence="GGML_ASSERT"), "failed"),
        (BadInput("no GGUF"), "failed"),
        (ToolingError("no port"), "errored"),
    ],
)
def test_a_server_that_does_not_come_up_decides_every_promise(error: Problem, verdict: str, store: Store) -> None:
    found = contracts.run_all(NothingComesUp(store, error), RELEASE, lambda *_: None)
    assert tuple(v.name for v in found) == contracts.required()
    assert {v.verdict for v in found} == {verdict}
    assert {v.evidence["server_said"] for v in found} == {error.evidence}


def test_every_promise_says_what_and_who_says_so() -> None:
    assert all(c.text and c.source for c in CONTRACTS.values())
    assert contracts.required() == tuple(sorted(CONTRACTS))
    assert {c.name.split(".")[1] for c in CONTRACTS.values()} == {
        s.__name__.rsplit(".", 1)[1] for s in contracts.SUBJECTS
    }
