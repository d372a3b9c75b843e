"""Who is let in to a server of ours, over real sockets."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tasks.platforms.local.door import MOST, RESERVED, Door, Room, room_here
from tasks.platforms.local.proc import bind
from tasks.troubles import Troubles, load_troubles

ASK = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
Talk = Callable[[Door, int], Awaitable[None]]


def test_clients_that_only_connect_keep_nobody_out(tmp_path: Path) -> None:
    async def talk(door: Door, port: int) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        assert await _status(port) == 200
        assert door.count() <= 8
        assert await silent[0][0].read() == b""
        for _, writer in silent:
            writer.close()

    _behind_a_door(talk, tmp_path, Room(connections=8, requests=4))


def test_a_request_too_many_is_told_when_to_come_back_and_those_before_it_are_answered(tmp_path: Path) -> None:
    async def talk(_: Door, port: int) -> None:
        held = [await _asked(port, b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n") for each in range(4)]
        while await _status(port) == 200:
            await asyncio.sleep(0.01)
        assert b"\r\nRetry-After: 5\r\n" in await _answer(port)
        release.set()
        assert [(await reader.readline()).split()[1] for reader, _ in held] == [b"200"] * 4
        assert await _status(port) == 200

    release = asyncio.Event()
    _behind_a_door(talk, tmp_path, Room(connections=8, requests=4), release=release)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: h\r\n"], ids=["nothing", "half a head"])
def test_a_client_that_asks_nothing_has_to_leave(sent: bytes, tmp_path: Path) -> None:
    async def talk(door: Door, port: int) -> None:
        reader, writer = await _asked(port, sent)
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        assert await _until(lambda: door.count() == 0)

    _behind_a_door(talk, tmp_path, head_s=0.3)


def test_a_client_that_sends_its_head_letter_by_letter_has_to_leave(tmp_path: Path) -> None:
    async def talk(_: Door, port: int) -> None:
        reader, writer = await _asked(port, b"GET / HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"X")
                await writer.drain()
                await asyncio.sleep(0.05)
        assert reader.at_eof() or reader.exception()

    _behind_a_door(talk, tmp_path, head_s=0.3)


def test_an_answer_may_take_longer_than_a_client_may_be_silent(tmp_path: Path) -> None:
    async def talk(_: Door, port: int) -> None:
        reader, writer = await _asked(port, b"GET /held HTTP/1.1\r\nHost: h\r\n\r\n")
        await asyncio.sleep(1.0)
        release.set()
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()

    release = asyncio.Event()
    _behind_a_door(talk, tmp_path, head_s=0.2, release=release)


def test_without_a_descriptor_left_it_waits_says_so_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(door: Door, port: int) -> None:
        assert await _status(port) == 200  # so that what is loaded at first use is loaded
        assert await _until(lambda: door.count() == 0)
        with socket.create_connection(("127.0.0.1", port)) as late, _no_descriptor_left():
            late.sendall(ASK)
            await asyncio.sleep(1.5)
        assert await _status(port) == 200

    caplog.set_level("INFO")
    _behind_a_door(talk, tmp_path)
    said = [record.getMessage() for record in caplog.records if "letting clients in" in record.getMessage()]
    assert len(said) == 2 and "Too many open files" in said[0] and said[1].endswith("well again")
    (trouble,) = load_troubles(tmp_path)
    assert trouble.over and "Too many open files" in trouble.error


def test_the_bounds_are_those_of_the_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = {}
    try:
        for limit in (256, 1024, min(hard, 100_000)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            room = found[limit] = room_here()
            assert room.connections + room.requests <= min(limit - RESERVED, MOST)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [room.requests for room in found.values()] == [53, 309, 512]


def _behind_a_door(
    talk: Talk, root: Path, room: Room | None = None, *, head_s: float = 60.0, release: asyncio.Event | None = None
) -> None:
    """Talk to a server that holds requests of /held until `release` is set."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/held" and release is not None:
            await release.wait()
        return web.Response(text="ok")

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        async with Door(app, listener, room or Room(64, 32), Troubles(root).outlived, head_s) as door:
            await asyncio.wait_for(talk(door, port), 60)

    asyncio.run(run())


async def _asked(port: int, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def _answer(port: int) -> bytes:
    reader, writer = await _asked(port, ASK)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head


async def _status(port: int) -> int:
    return int((await _answer(port)).split()[1])


async def _until(true: Callable[[], bool]) -> bool:
    for _ in range(600):
        if true():
            return True
        await asyncio.sleep(0.05)
    return False


@contextmanager
def _no_descriptor_left() -> Iterator[None]:
    """What this process has open stays open, and nothing more can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest:
        free = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
