"""A loopback proxy in front of a real llama-server that breaks exactly one thing.

What it is not told to change it passes on as it came: methods, paths, headers, bytes.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from tasks.release import Endpoint
from tests.fakes.listening import Answering, listening

Headers = tuple[tuple[str, str], ...]
ANY = "any"
_OF_THE_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date", "server"}


@dataclass(frozen=True)
class Ask:
    """A request on its way to the server. `key` is what follows `Bearer`; any other Authorization is in the headers."""

    method: str
    path: str
    body: bytes
    key: str | None
    headers: Headers = ()


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: Headers = ()


class Breakage:
    """A server with nothing wrong; a subclass overrides the one thing that is."""

    right_key = ""
    """The key of the server behind it."""
    buffers = False
    """Whether a stream is held back until it is complete."""
    drains: str | None = None
    """The route on which the server works on when its client has gone; `ANY` for each."""

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

    class Handler(Answering):
        def do_GET(self) -> None:
            self._pass_on()

        def do_POST(self) -> None:
            self._pass_on()

        def do_DELETE(self) -> None:
            self._pass_on()

        def do_HEAD(self) -> None:
            self._pass_on()

        def do_OPTIONS(self) -> None:
            self._pass_on()

        def do_PUT(self) -> None:
            self._pass_on()

        def _pass_on(self) -> None:
            ask = breakage.ask(self._ask())
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
            headers = (*ask.headers, *((("Authorization", f"Bearer {ask.key}"),) if ask.key is not None else ()))
            try:
                connection.putrequest(ask.method, ask.path, skip_accept_encoding=True)
                for name, value in (*headers, ("Content-Length", str(len(ask.body)))):
                    connection.putheader(name, value)
                connection.endheaders(ask.body or None)
                response = connection.getresponse()
                kept = tuple(each for each in response.getheaders() if each[0].lower() not in _OF_THE_HOP)
                if response.headers.get_content_type() == "text/event-stream":
                    self._stream(ask, response, kept)
                else:
                    self._answer(breakage.reply(ask, Reply(response.status, response.read(), kept)))
            except (OSError, http.client.HTTPException):
                self._answer(breakage.reply(ask, Reply(502, b"{}")))
            finally:
                connection.close()

        def _ask(self) -> Ask:
            headers = tuple(each for each in self.headers.items() if each[0].lower() not in _OF_THE_HOP)
            said = [value for name, value in headers if name.lower() == "authorization"]
            key = said[0].removeprefix("Bearer ") if len(said) == 1 and said[0].startswith("Bearer ") else None
            rest = headers if key is None else tuple(h for h in headers if h[0].lower() != "authorization")
            path = self.requestline.split()[1]  # http.server makes one slash of two
            return Ask(self.command, path, self._body(), key, rest)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            sent = b""
            while size := int(self.rfile.readline(), 16):
                sent += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return sent

        def _answer(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in (*reply.headers, ("Content-Length", str(len(reply.body)))):
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        def _stream(self, ask: Ask, response: http.client.HTTPResponse, headers: Headers) -> None:
            self.send_response(response.status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            lines = (breakage.line(ask, line) for line in response)
            try:
                for line in [b"".join(lines)] if breakage.buffers else lines:
                    self.wfile.write(line)
                    self.wfile.flush()
            except ConnectionError:  # the client has gone
                if breakage.drains in (ANY, ask.path):
                    response.read()
            finally:
                breakage.ended(ask)

    with listening(Handler) as url:
        yield Endpoint(base_url=url, api_key=upstream.api_key)
