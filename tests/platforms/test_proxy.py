"""The proxy between a real HTTP client and a real HTTP server, both on loopback."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from tasks.platforms.local.proxy import REPLAY_BYTES, STALLED_S, Body, forward, session

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def test_a_body_of_many_megabytes_comes_through_whole() -> None:
    async def length(request: web.Request) -> web.Response:
        return web.json_response([len(await request.read()), request.headers.get("Content-Length")])

    async def talk(http: aiohttp.ClientSession, url: str) -> Any:
        async with http.post(url, data=b"x" * 9_000_000) as answer:
            return await answer.json()

    assert _through(length, talk) == [9_000_000, "9000000"]


def test_a_chunked_request_stays_chunked() -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=request.headers["Transfer-Encoding"].encode() + await request.read())

    async def chunks() -> AsyncIterator[bytes]:
        yield b" one"
        yield b" two"

    async def talk(http: aiohttp.ClientSession, url: str) -> bytes:
        async with http.put(url, data=chunks()) as answer:
            return await answer.read()

    assert _through(echo, talk) == b"chunked one two"


def test_an_encoding_is_left_as_it_is_both_ways() -> None:
    packed = gzip.compress(b"hello")

    async def echo(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "gzip"
        return web.Response(body=await request.read(), headers={"Content-Encoding": "gzip"})

    async def talk(http: aiohttp.ClientSession, url: str) -> bytes:
        headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
        async with http.post(url, data=packed, headers=headers) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            return await answer.read()

    assert _through(echo, talk) == packed


def test_each_chunk_is_passed_on_as_it_comes() -> None:
    read = asyncio.Semaphore(1)  # a chunk is written when the one before it has been read: what held it back would hang

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(4):
            await asyncio.wait_for(read.acquire(), 60)
            await response.write(b"data: x\n\n")
        return response

    async def talk(http: aiohttp.ClientSession, url: str) -> list[bytes]:
        chunks = []
        async with http.get(url) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            async for chunk in answer.content.iter_any():
                chunks.append(chunk)
                read.release()
        return chunks

    assert _through(slow, talk) == [b"data: x\n\n"] * 4


def test_hop_by_hop_headers_end_here_and_others_go_on() -> None:
    async def said(request: web.Request) -> web.Response:
        headers = {"Connection": "X-Private", "X-Private": "1", "X-Public": "2"}
        return web.json_response(sorted(request.headers), headers=headers)

    async def talk(http: aiohttp.ClientSession, url: str) -> tuple[set[str], set[str]]:
        headers = {"Connection": "keep-alive, X-Mine", "X-Mine": "1", "X-Yours": "2", "TE": "trailers"}
        async with http.get(url, headers=headers, skip_auto_headers=["Accept", "User-Agent"]) as answer:
            return set(await answer.json()), set(answer.headers)

    asked, answered = _through(said, talk)
    assert "X-Yours" in asked and asked.isdisjoint({"X-Mine", "TE", "Accept", "User-Agent"})
    assert "X-Public" in answered and "X-Private" not in answered


@pytest.mark.parametrize("target", ["/a%2Fb//c?q=%20&r", "/", "/../x?a=1&a=2"])
def test_a_request_target_is_not_touched(target: str) -> None:
    async def path(request: web.Request) -> web.Response:
        return web.Response(text=request.raw_path)

    async def talk(_: aiohttp.ClientSession, url: str) -> str:
        port = URL(url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        said = (await reader.read()).decode()
        writer.close()
        return said.rpartition("\r\n\r\n")[2]

    assert _through(path, talk) == target


def test_a_client_that_leaves_is_missed_by_the_server() -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def wait(_: web.Request) -> web.Response:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return web.Response()

    async def talk(http: aiohttp.ClientSession, url: str) -> None:
        client = asyncio.create_task(http.post(url, json={}))
        await asyncio.wait_for(entered.wait(), 60)
        client.cancel()
        await asyncio.wait_for(left.wait(), 60)

    _through(wait, talk)


def test_an_answer_that_breaks_off_breaks_off_for_the_client_too() -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    async def talk(http: aiohttp.ClientSession, url: str) -> None:
        async with http.get(url) as answer:
            assert answer.status == 200
            with pytest.raises(aiohttp.ClientError):
                await answer.read()

    _through(break_off, talk)


def test_a_client_that_takes_nothing_of_its_answer_is_given_up() -> None:
    left = asyncio.Event()

    async def pours(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 100_000)
        finally:
            left.set()

    async def talk(_: aiohttp.ClientSession, url: str) -> None:
        writer = (await asyncio.open_connection("127.0.0.1", URL(url).port, limit=1))[1]  # which reads 2 bytes
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await asyncio.wait_for(left.wait(), 30)
        writer.close()

    _through(pours, talk, stalled_s=0.5)


def test_a_client_that_sends_half_of_its_request_is_given_up() -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def talk(_: aiohttp.ClientSession, url: str) -> bytes:
        half, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf")
        said = await asyncio.wait_for(half.readline(), 30)
        writer.close()
        return said

    assert _through(echo, talk, stalled_s=0.3) == b"HTTP/1.1 408 Request Timeout\r\n"


def test_a_server_may_be_silent_for_longer_than_a_client() -> None:
    async def thinks(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1.0)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one ")
        await asyncio.sleep(1.0)
        await response.write(b"two")
        return response

    async def talk(http: aiohttp.ClientSession, url: str) -> bytes:
        async with http.post(url, data=b"think") as answer:
            return await answer.read()

    assert _through(thinks, talk, stalled_s=0.2) == b"one two"


def test_a_body_can_be_sent_again_from_its_beginning() -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def talk(http: aiohttp.ClientSession, url: str) -> bytes:
        async with http.post(url, data=b"abc") as answer:
            return await answer.read()

    assert _through(echo, talk, tries=2) == b"abc"


@pytest.mark.parametrize(("size", "whole"), [(REPLAY_BYTES, True), (REPLAY_BYTES + 1, False)])
def test_a_larger_body_is_not_kept_to_be_sent_again(size: int, whole: bool) -> None:
    async def reads_twice(request: web.Request) -> web.Response:
        body = Body(request)
        assert body.replayable
        lengths = [sum([len(chunk) async for chunk in body]) for _ in range(2)]
        return web.json_response([lengths, body.replayable])

    async def ask() -> Any:
        async with (
            _serving(reads_twice) as port,
            aiohttp.ClientSession() as http,
            http.post(f"http://127.0.0.1:{port}/", data=b"x" * size) as answer,
        ):
            return await answer.json()

    assert asyncio.run(ask()) == [[size, size if whole else 0], whole]


def _through(
    handler: Handler,
    talk: Callable[[aiohttp.ClientSession, str], Awaitable[Any]],
    tries: int = 1,
    stalled_s: float = STALLED_S,
) -> Any:
    """What `talk` gets from `handler` through the proxy."""

    async def run() -> Any:
        async with _serving(handler) as server, session() as client:

            async def proxy(request: web.Request) -> web.StreamResponse:
                body = Body(request, stalled_s)
                for _ in range(tries - 1):
                    assert [chunk async for chunk in body]
                return await forward(client, request, body, server, stalled_s)

            async with _serving(proxy) as port, aiohttp.ClientSession(auto_decompress=False) as http:
                return await talk(http, f"http://127.0.0.1:{port}/")

    return asyncio.run(run())


@asynccontextmanager
async def _serving(handler: Handler) -> AsyncIterator[int]:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, auto_decompress=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
