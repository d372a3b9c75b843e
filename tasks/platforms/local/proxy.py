"""Passing one HTTP request through to a server, chunk by chunk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

log = logging.getLogger(__name__)

HOP_BY_HOP = (
    "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "TE", "Trailer",
    "Transfer-Encoding", "Upgrade", "Expect",
)  # fmt: skip
"""RFC 9110 section 7.6.1, and Expect, which aiohttp has already answered."""

REPLAY_BYTES = 1 << 20
"""A larger body is not kept for a second try."""

STALLED_S = 60.0
"""A client that sends nothing of its request, or takes nothing of its answer, for so long is given up; as nginx does
(client_body_timeout, send_timeout). A server may take as long as it likes: minutes to read a long prompt."""

_OURS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


def session() -> aiohttp.ClientSession:
    """A client that adds nothing, undoes no encoding and never waits in vain.

    Each request has its own loopback connection: llama-server closes kept ones after 100 requests or 5 s, and a
    request sent into such a close is lost.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_OURS,
    )


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers that are meant for the other end."""
    named = [name.strip() for value in headers.getall("Connection", []) for name in value.split(",")]
    kept = CIMultiDict(headers)
    for name in {n.title() for n in (*HOP_BY_HOP, *named) if n}:
        kept.popall(name, None)
    return kept


class Stalled(Exception):
    """A client sends nothing more of a request's body."""


class Body:
    """A request's body, passed on as it arrives, and again from its beginning while it was small so far."""

    def __init__(self, request: web.Request, stalled_s: float = STALLED_S) -> None:
        self.exists = request.body_exists
        self.stalled = False
        """Whether the client was given up in the middle of it."""
        self._stalled_s = stalled_s
        self._content = request.content
        self._sent: list[bytes] = []
        self._size = 0

    @property
    def replayable(self) -> bool:
        return self._size <= REPLAY_BYTES

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in list(self._sent):
            yield chunk
        while chunk := await self._next():
            self._size += len(chunk)
            if self.replayable:
                self._sent.append(chunk)
            else:
                self._sent.clear()
            yield chunk

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(self._stalled_s):
                return await self._content.readany()
        except TimeoutError:
            self.stalled = True
            raise Stalled from None


async def forward(
    client: aiohttp.ClientSession, request: web.Request, body: Body, port: int, stalled_s: float = STALLED_S
) -> web.StreamResponse:
    """The server's answer, passed on as it arrives; 408 to a client whose request stalls.

    Raises aiohttp.ClientError when the server broke off before it answered. When it breaks off later, or the client
    takes nothing of the answer, the client's connection is broken off too.
    """
    response: web.StreamResponse | None = None
    try:
        async with client.request(
            request.method,
            URL.build(
                scheme="http", host="127.0.0.1", port=port, encoded=True,
                path=request.rel_url.raw_path, query_string=request.rel_url.raw_query_string,
            ),
            headers=end_to_end(request.headers),
            data=aiter(body) if body.exists else None,
            allow_redirects=False,
        ) as upstream:  # fmt: skip
            response = web.StreamResponse(
                status=upstream.status, reason=upstream.reason, headers=end_to_end(upstream.headers)
            )
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                async with asyncio.timeout(stalled_s):
                    await response.write(chunk)
            async with asyncio.timeout(stalled_s):
                await response.write_eof()
            return response
    except (aiohttp.ClientError, TimeoutError) as error:
        if response is None or not response.prepared:
            if body.stalled:
                return refusal(408, "the rest of the request did not come", "invalid_request_error")
            raise
        if isinstance(error, TimeoutError):
            log.info("a client took nothing of its answer for %.0f s", stalled_s)
        if request.transport is not None:
            request.transport.abort()
        return response


def refusal(status: int, message: str, kind: str = "unavailable_error") -> web.Response:
    """An error in the shape that OpenAI's clients read."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return web.json_response(body, status=status, headers={"Retry-After": "5"} if status == 503 else None)
