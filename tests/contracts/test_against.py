"""The promises asked of anybody's server: what is asked, how it is shown, and that no key is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from flows.__main__ import app
from flows.contracts import as_junit, ask_and_show
from tasks.contracts.auth import wrong_spellings
from tasks.contracts.promises import CONTRACTS, Context, Recorder, Server, Unmet, verification
from tasks.contracts.twins import NATIVE, agree
from tasks.endpoint import base_url
from tasks.release import BadInput, Endpoint, Release, UpstreamRelease, Verdict
from tests.contracts.breaking_proxy import broken
from tests.contracts.broken_kinds import Lets
from tests.contracts.conftest import Serving
from tests.fakes.listening import Answering, listening

RELEASE = Release(upstream=UpstreamRelease(build=1), tree="t", build="b", argv=(), files={}, alias="m")
NAMES = ("contracts.chat.usage", "contracts.health.ok", "contracts.twins.chat")


def test_a_junit_report_has_a_case_a_promise_and_says_what_is_not_kept() -> None:
    verdicts = (Verdict.PASSED, Verdict.FAILED, Verdict.ERRORED)
    found = [
        verification(CONTRACTS[name], RELEASE, verdict, "so <it> \x1b is", evidence={"ask_it": "curl"}, basis="")
        for name, verdict in zip(NAMES, verdicts, strict=True)
    ]
    suite = ElementTree.fromstring(as_junit(found))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [case.get("name") for case in suite] == ["usage", "ok", "chat"]
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["error"]]
    assert suite[1][0].get("message") == "so <it> \ufffd is"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://host", "http://", "http://ho st:x"])
def test_what_is_no_url_of_a_server_is_bad_input(url: str) -> None:
    with pytest.raises(BadInput):
        base_url(url)


def test_v1_is_not_part_of_the_base() -> None:
    assert base_url("http://host:1/v1/") == base_url("http://host:1") == "http://host:1"


@contextmanager
def somebody_elses() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that is not ours and wants a key, and the headers that it gets to see."""
    seen: list[str] = []

    class Handler(Answering):
        def do_GET(self) -> None:
            seen.append(str(self.headers))
            self.say(status=401)

    with listening(Handler) as url:
        yield url, seen


def test_productions_key_goes_to_no_server_that_it_was_not_given_for() -> None:
    with somebody_elses() as (url, seen):
        done = CliRunner().invoke(
            app, ["contracts", "--against", url], env={"LLAMA_RELEASE_API_KEY": "the-key-of-production"}
        )
    assert isinstance(done.exception, BadInput)
    assert done.exception.todo == "give --key"
    assert seen and not [headers for headers in seen if "the-key-of-production" in headers]


@pytest.mark.parametrize("key", ["1234567890", "7", "null", "*", "Abc-1"])
def test_the_right_key_is_no_wrong_spelling_of_itself(key: str) -> None:
    assert ("Authorization", f"Bearer {key}") not in [
        header for sent in wrong_spellings(key).values() for header in sent
    ]


class Words:
    """A llama-server that says these texts one after the other, whole and streamed, over and over."""

    def __init__(self, whole: Sequence[str], streamed: Sequence[str], read_streamed: int = 3) -> None:
        self.texts = {False: cycle(whole), True: cycle(streamed)}
        self.read = {False: 3, True: read_streamed}

    def answer(self, asked: dict[str, Any]) -> tuple[str, bytes]:
        streams = bool(asked.get("stream"))
        body = json.dumps({
            "content": next(self.texts[streams]), "stop": True, "stop_type": "limit", "stopping_word": "", "model": "m",
            "tokens_evaluated": self.read[streams], "tokens_predicted": 5,
        })  # fmt: skip
        return ("text/event-stream", f"data: {body}\n\n".encode()) if streams else ("application/json", body.encode())


@contextmanager
def saying(words: Words) -> Iterator[Context]:
    class Handler(Answering):
        def do_POST(self) -> None:
            kind, body = words.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.say(body, headers={"Content-Type": kind})

    with listening(Handler) as url, Recorder(Endpoint(base_url=url)) as client:
        yield Context(client, RELEASE)


@pytest.mark.parametrize(
    "words",
    [
        Words(["a b", "a c"], ["a c", "a b"]),
        Words(["a b"], ["a c", "a b"]),
        Words(["w4 w5 "], ["w4 "]),  # what might begin the stop sequence is held back at the limit (stops.held_back)
    ],
    ids=["says another text each time", "says one now and then", "holds back at the limit"],
)
def test_what_is_no_fault_of_a_stream_is_not_held_against_it(words: Words) -> None:
    with saying(words) as context:
        assert agree(context, NATIVE, [{"prompt": "p", "stop": ["w5 w7"]}])


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (Words(["a b"], ["a c"]), "content"),
        (Words(["a b"], ["a c", "a d"]), "content"),
        (Words(["a b", "a c"], ["a c", "a b"], read_streamed=4), "read"),
        (Words(["w4 w5 "], ["w4"]), "content"),
    ],
    ids=["another text", "other texts", "another count", "less than is held back"],
)
def test_what_a_stream_says_otherwise_each_time_is_unmet(words: Words, field: str) -> None:
    with saying(words) as context, pytest.raises(Unmet, match=f"differ in {field}: "):
        agree(context, NATIVE, [{"prompt": "p", "stop": ["w5 w7"]}])


@pytest.mark.real
@pytest.mark.parametrize(("model", "keyless"), [("counting", False), ("scripted", False), ("scripted", True)])
def test_an_intact_server_of_any_model_keeps_all_that_is_asked_of_anybody(
    model: Server, keyless: bool, serving: Serving, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    endpoint, _ = serving(model)
    if keyless:
        with broken(endpoint, Lets(lambda *_: True)) as open_to_all:
            assert ask_and_show(open_to_all.base_url, "", as_json=False, junit=None) == 0
        return
    assert endpoint.api_key
    assert ask_and_show(endpoint.base_url, endpoint.api_key, as_json=False, junit=tmp_path / "junit.xml") == 0
    said = capsys.readouterr().out
    asked = sum(contract.anywhere for contract in CONTRACTS.values())
    assert f"{asked} of {asked} promises kept" in said
    assert endpoint.api_key not in said + (tmp_path / "junit.xml").read_text()
