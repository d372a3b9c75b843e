"""One exchange over HTTP with nothing in between: a header as it is spelled, a path as it is written.

httpx tidies both (it refuses a value with spaces around it, and resolves `..`), and who may ask is a matter of
spelling.
"""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from tasks.release import Endpoint, ToolingError

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Heard:
    """What came back: the status, the headers as they came, and the body's bytes."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Wire:
    """Asks one endpoint, over one connection for as long as the server keeps it; a context manager. Sends no key.

    `exchanges` gets what was asked and the status. Headers are not kept: some are all of a key but a character.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float, exchanges: list[dict[str, Any]] | None = None) -> None:
        self._exchanges = [] if exchanges is None else exchanges
        at = urlsplit(endpoint.base_url)
        kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
        self.base_url, self._prefix = endpoint.base_url, at.path.rstrip("/")
        self._connection = kind(at.hostname or "", at.port, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def ask(self, method: str, target: str, headers: Headers = (), body: bytes | Sequence[bytes] = b"") -> Heard:
        """One exchange; a body in several parts is sent in chunks. Raises ToolingError when nothing came back."""
        kept: dict[str, Any] = {"method": method, "path": target, "request": None}
        self._exchanges.append(kept)
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
        self._send(method, target, headers, body)
        response = self._connection.getresponse()
        response.read1(1)
        return response.status

    def _exchange(self, method: str, target: str, headers: Headers, body: bytes | Sequence[bytes]) -> Heard:
        self._send(method, target, headers, body)
        response = self._connection.getresponse()
        return Heard(response.status, tuple(response.getheaders()), response.read())

    def _send(self, method: str, target: str, headers: Headers, body: bytes | Sequence[bytes]) -> None:
        chunked = not isinstance(body, bytes)
        self._connection.putrequest(method, f"{self._prefix}{target}", skip_accept_encoding=True)
        length = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
        for name, value in (("Content-Type", "application/json"), length, *headers):
            self._connection.putheader(name, value)
        self._connection.endheaders(body or None, encode_chunked=chunked)
