"""A loopback proxy in front of a real llama-server that breaks exactly one thing."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

from tasks.release import Endpoint


@dataclass(frozen=True)
class Ask:
    """A request on its way to the server. `key` is what follows `Bearer`."""

    method: str
    path: str
    body: bytes
    key: str | None


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes


class Breakage:
    """A server with nothing wrong; a subclass overrides the one thing that is."""

    right_key = ""
    """The key of the server behind it."""
    buffers = False
    """Whether a stream is held back until it is complete."""
    drains = False
    """Whether the server works on when its client has gone."""

    def ask(self, ask: Ask) -> Ask:
        return ask

    def reply(self, _ask: Ask, reply: Reply) -> Reply:
        return reply

    def line(self, _ask: Ask, line: bytes) -> bytes:
        """One line of an event stream; b'' drops it."""
        return line

    def ended(self, ask: Ask) -> None:
        """A stream is over."""


@contextmanager
def broken(upstream: Endpoint, breakage: Breakage) -> Iterator[Endpoint]:
    """An endpoint that passes everything on to `upstream`, but for the breakage. 502 when nothing answers there."""
    address = urlsplit(upstream.base_url)
    breakage.right_key = upstream.api_key or ""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on()

        def do_POST(self) -> None:
            self._pass_on()

        def do_DELETE(self) -> None:
            self._pass_on()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _pass_on(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            ask = breakage.ask(Ask(self.command, self.path, sent, key))
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
            headers = {"Content-Type": "application/json", "User-Agent": self.headers.get("User-Agent", "")}
            headers |= {"Authorization": f"Bearer {ask.key}"} if ask.key else {}
            try:
                connection.request(ask.method, ask.path, ask.body or None, headers)
                response = connection.getresponse()
                if response.headers.get_content_type() == "text/event-stream":
                    self._stream(ask, response)
                else:
                    self._answer(breakage.reply(ask, Reply(response.status, response.read())))
            except (OSError, http.client.HTTPException):
                self._answer(breakage.reply(ask, Reply(502, b"{}")))
            finally:
                connection.close()

        def _answer(self, reply: Reply) -> None:
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def _stream(self, ask: Ask, response: http.client.HTTPResponse) -> None:
            self.send_response(response.status)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            lines = (breakage.line(ask, line) for line in response)
            try:
                for line in [b"".join(lines)] if breakage.buffers else lines:
                    self.wfile.write(line)
                    self.wfile.flush()
            except ConnectionError:  # the client has gone
                if breakage.drains:
                    response.read()
            finally:
                breakage.ended(ask)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Endpoint(base_url=f"http://127.0.0.1:{server.server_address[1]}", api_key=upstream.api_key)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
