"""The promises asked of anybody's server: what is asked, how it is shown, and that no key is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from flows.__main__ import app
from flows.contracts import as_junit, ask_and_show, base_url
from tasks.contracts.promises import CONTRACTS, verification
from tasks.release import BadInput, Release, UpstreamRelease, Verdict
from tests.contracts.conftest import Serving

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

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(str(self.headers))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
        server.shutdown()


def test_productions_key_goes_to_no_server_that_it_was_not_given_for() -> None:
    with somebody_elses() as (url, seen):
        done = CliRunner().invoke(
            app, ["contracts", "--against", url], env={"LLAMA_RELEASE_API_KEY": "the-key-of-production"}
        )
    assert isinstance(done.exception, BadInput)
    assert done.exception.todo == "give --key"
    assert seen and not [headers for headers in seen if "the-key-of-production" in headers]


@pytest.mark.real
def test_an_intact_server_of_any_model_keeps_all_that_is_asked_of_anybody(
    serving: Serving, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    endpoint, _ = serving("counting")
    assert endpoint.api_key
    assert ask_and_show(endpoint.base_url, endpoint.api_key, as_json=False, junit=tmp_path / "junit.xml") == 0
    said = capsys.readouterr().out
    asked = sum(contract.anywhere for contract in CONTRACTS.values())
    assert f"{asked} of {asked} promises kept" in said
    assert endpoint.api_key not in said + (tmp_path / "junit.xml").read_text()
