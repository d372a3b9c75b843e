"""The wire on a server that does not end what it says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tasks.contracts.wire import Wire
from tasks.release import Endpoint
from tests.fakes.listening import Answering, listening

_TOO_LONG_S = 8.0


class _Endless(Answering):
    """Goes on with what the path says: a byte at a time, in chunks, nothing at all, or more than anybody wants."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        chunked = self.path == "/chunks"
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(64 << 20))))
        self.end_headers()
        ends = time.monotonic() + _TOO_LONG_S
        with suppress(ConnectionError):
            while time.monotonic() < ends:
                said = b"x" * (1 << 20) if self.path == "/much" else b"" if self.path == "/silent" else b"x"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(said), said) if chunked else said)
                self.wfile.flush()
                time.sleep(0.05)
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command == "POST":
            self.wfile.write(b"{}")


@pytest.fixture(scope="module")
def endless() -> Iterator[Endpoint]:
    with listening(_Endless) as url:
        yield Endpoint(base_url=url)


@pytest.mark.parametrize("path", ["/drips", "/chunks", "/silent", "/much"])
def test_an_answer_without_end_is_left_and_its_status_told(path: str, endless: Endpoint) -> None:
    start = time.monotonic()
    with Wire(endless, timeout_s=1.0) as wire:
        heard = wire.ask("GET", path)
        took = time.monotonic() - start
        assert (heard.status, len(heard.body) <= 1 << 20, took < _TOO_LONG_S / 2) == (200, True, True)
        assert wire.ask("POST", "/after").body == b"{}"


def test_one_connection_serves_for_answers_that_end(endless: Endpoint) -> None:
    with Wire(endless, timeout_s=5.0) as wire:
        heard = [wire.ask(method, "/") for method in ("POST", "HEAD", "POST", "HEAD", "POST")]
    assert [each.body for each in heard] == [b"{}", b"", b"{}", b"", b"{}"]
