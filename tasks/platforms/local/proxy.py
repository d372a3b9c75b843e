"""Passing one HTTP request through to a server, chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

HOP_BY_HOP = (
    "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "TE", "Trailer",
    "Transfer-Encoding", "Upgrade", "Expect",
)  # fmt: skip
"""RFC 9110 section 7.6.1, and Expect, which aiohttp has already answered."""

REPLAY_BYTES = 1 << 20
"""A larger body is not kept for a second try."""

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


class Body:
    """A request's body, passed on as it arrives, and again from its beginning while it was small so far."""

    def __init__(self, request: web.Request) -> None:
        self.exists = request.body_exists
        self._content = request.content
        self._sent: list[bytes] = []
        self._size = 0

    @property
    def replayable(self) -> bool:
        return self._size <= REPLAY_BYTES

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in list(self._sent):
            yield chunk
        while chunk := await self._content.readany():
            self._size += len(chunk)
            if self.replayable:
                self._sent.append(chunk)
            else:
                self._sent.clear()
            yield chunk


async def forward(client: aiohttp.ClientSession, request: web.Request, body: Body, port: int) -> web.StreamResponse:
    """The server's answer, passed on as it arrives.

    Raises aiohttp.ClientError when the server broke off before it answered. When it breaks off later, the client's
    connection is broken off too.
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
                await response.write(chunk)
            await response.write_eof()
            return response
    except aiohttp.ClientError:
        if response is None or not response.prepared:
            raise
        if request.transport is not None:
            request.transport.abort()
        return response


def refusal(status: int, message: str, kind: str = "unavailable_error") -> web.Response:
    """An error in the shape that OpenAI's clients read."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return web.json_response(body, status=status, headers={"Retry-After": "5"} if status == 503 else None)
