"""One exchange over HTTP with nothing in between: a header as it is spelled, a path as it is written.

httpx tidies both (it refuses a value with spaces around it, and resolves `..`), and who may ask is a matter of
spelling.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from tasks.release import Endpoint, ToolingError

Headers = Sequence[tuple[str, str]]
MOST_BYTES = 1 << 20
"""What is read of a body: more than any answer that a promise reads."""


@dataclass(frozen=True)
class Heard:
    """What came back: the status, the headers as they came, and the body's bytes."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Wire:
    """Asks one endpoint, over one connection for as long as the server keeps it; a context manager. Sends no key.

    `exchanges` gets what was asked, whether with the key, and the status. Headers are not kept: some are all of a key
    but a character.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float, exchanges: list[dict[str, Any]] | None = None) -> None:
        self._exchanges = [] if exchanges is None else exchanges
        self._key, self._timeout_s = endpoint.api_key or "", timeout_s
        at = urlsplit(endpoint.base_url)
        kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
        self.base_url, self._prefix = endpoint.base_url, at.path.rstrip("/")
        self._connection = kind(at.hostname or "", at.port, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def ask(self, method: str, target: str, headers: Headers = (), body: bytes | Sequence[bytes] = b"") -> Heard:
        """One exchange; a body in several parts is sent in chunks. Raises ToolingError when nothing came back.

        Of the body no more than MOST_BYTES are read, and for no longer than an answer may take: a stream that is left
        open, or comes a byte at a time, has no end.
        """
        kept = self._keep(method, target, headers, body)
        try:
            try:
                heard = self._exchange(method, target, headers, body)
            except (http.client.RemoteDisconnected, ConnectionError):  # llama-server ends a kept connection unasked
                self._connection.close()
                heard = self._exchange(method, target, headers, body)
            kept["status"] = heard.status
            return heard
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            kept["error"] = type(error).__name__
            raise ToolingError(
                f"no answer from {self.base_url}{target}",
                evidence=f"{type(error).__name__}: {error}",
                todo="look at the server's log; retry when it is up",
            ) from error

    def begin(self, method: str, target: str, headers: Headers, body: bytes) -> int:
        """Send a request and read its status and first bytes alone: for a client that does not stay for the rest."""
        kept = self._keep(method, target, headers, body)
        self._send(method, target, headers, body)
        response = self._connection.getresponse()
        kept["status"] = response.status
        response.read1(1)
        return response.status

    def _keep(self, method: str, target: str, headers: Headers, body: bytes | Sequence[bytes]) -> dict[str, Any]:
        whole = body if isinstance(body, bytes) else b"".join(body)
        kept = {
            "method": method, "path": target, "request": whole.decode(errors="replace") or None,
            "sent_key": self._sent_key(target, headers),
        }  # fmt: skip
        self._exchanges.append(kept)
        return kept

    def _sent_key(self, target: str, headers: Headers) -> str:
        right = [("authorization", f"Bearer {self._key}"), ("x-api-key", self._key)]
        if not headers and not (self._key and self._key in target):
            return "none"
        return "right" if len(headers) == 1 and (headers[0][0].lower(), headers[0][1]) in right else "another"

    def _exchange(self, method: str, target: str, headers: Headers, body: bytes | Sequence[bytes]) -> Heard:
        self._send(method, target, headers, body)
        response = self._connection.getresponse()
        return Heard(response.status, tuple(response.getheaders()), self._read(response))

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """The body, or what has come of it until its time or room is over; the connection is closed then."""
        deadline, read = time.monotonic() + self._timeout_s, b""
        while len(read) < MOST_BYTES and time.monotonic() < deadline:
            try:
                more = response.read1(MOST_BYTES - len(read))
            except TimeoutError:
                break
            if not more:
                response.close()  # read1 leaves it open, and the connection with it
                return read
            read += more
        self._connection.close()
        return read

    def _send(self, method: str, target: str, headers: Headers, body: bytes | Sequence[bytes]) -> None:
        chunked = not isinstance(body, bytes)
        self._connection.putrequest(method, f"{self._prefix}{target}", skip_accept_encoding=True)
        length = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
        for name, value in (("Content-Type", "application/json"), length, *headers):
            self._connection.putheader(name, value)
        self._connection.endheaders(body or None, encode_chunked=chunked)
