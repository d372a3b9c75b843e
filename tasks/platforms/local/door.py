"""The door of an HTTP server: how many clients are let in, how many are answered at once, who has to leave."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from tasks.platforms.local.proxy import refusal

log = logging.getLogger(__name__)

RESERVED = 96
"""Descriptors that are no client's: an idle activator has 12 open, and 64 connections may be at its control socket. The
rest is for starts: pipes, logs, what a snapshot is read from."""
MOST = 1536
"""Descriptors for clients, however many there could be: of each connection the activator and aiohttp keep about 15 KB,
and llama-server, with a limit of its own, has a few slots for all of them."""
HEAD_S = 60.0
"""From the connection, or from the last answer, to the end of a request's head: as long as nginx waits by default
(client_header_timeout), and longer than the clients of OpenAI and httpx keep an idle connection (5 s)."""
LOOK_S = 1.0
PAUSE_S = 0.2
"""Between two tries to let somebody in when all are being answered, or the kernel has no descriptor left."""


Outlived = Callable[[str], AbstractContextManager[None]]
"""Makes what goes wrong in a block end nothing: `Troubles.outlived`."""


@dataclass(frozen=True)
class Room:
    """How many connections there may be, and how many of them may be answered at once."""

    connections: int
    requests: int


def room_here() -> Room:
    """What this process's RLIMIT_NOFILE leaves: a request has its client's descriptor and its server's, and there are
    as many connections again for those that are told to come back, and those that are yet to ask."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    left = MOST if limit == resource.RLIM_INFINITY else min(MOST, limit - RESERVED)
    requests = max(1, left // 3)
    return Room(2 * requests, requests)


class Door:
    """A listening socket and the application behind it; an async context manager.

    A request too many is answered with 503 and Retry-After. A connection too many takes the place of the one that has
    waited longest without asking anything: so clients that only connect keep nobody out. A connection whose request is
    being answered is never closed from here, however long its server thinks.
    """

    def __init__(
        self, app: web.Application, listener: socket.socket, room: Room, outlived: Outlived, head_s: float = HEAD_S
    ) -> None:
        app.middlewares.append(self._answer)
        listener.setblocking(False)
        self._listener, self._room, self._outlived, self._head_s = listener, room, outlived, head_s
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, auto_decompress=False, shutdown_timeout=1.0
        )
        self._answering = 0
        self._waiting: dict[web.RequestHandler, float] = {}
        """Connections that ask nothing just now, and since when; who waits longest comes first."""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        self._tasks = [asyncio.create_task(self._let_in()), asyncio.create_task(self._look_round())]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
        await self._runner.cleanup()

    async def close(self) -> None:
        """Nobody is let in any more; who is being answered stays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()

    def count(self) -> int:
        """How many connections there are just now."""
        return self._answering + sum(each.transport is not None for each in self._waiting)

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._answering >= self._room.requests:
            log.warning("a request was told to come back: %d are being answered", self._room.requests)
            return refusal(503, "too many requests at once, try again")
        self._answering += 1
        self._waiting.pop(request.protocol, None)
        try:
            return await handler(request)
        finally:
            self._answering -= 1
            self._waiting[request.protocol] = time.monotonic()

    # asyncio's own server tries `backlog` times more after EMFILE, says each, and plans as many new tries each time
    # (`_accept_connection` in asyncio/selector_events.py, 3.11 to 3.13): soon its loop does nothing else
    async def _let_in(self) -> None:
        while True:
            with self._outlived("letting clients in"):
                await self._let_one_in()
                continue
            await asyncio.sleep(PAUSE_S)

    async def _let_one_in(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._runner.server is not None
        await self._make_room()
        client, _ = await loop.sock_accept(self._listener)
        _, protocol = await loop.connect_accepted_socket(self._runner.server, client)
        self._waiting[protocol] = time.monotonic()

    async def _make_room(self) -> None:
        while self._answering + len(self._waiting) >= self._room.connections:
            longest = next(iter(self._waiting), None)
            if longest is None:
                await asyncio.sleep(PAUSE_S)
            elif longest.transport is None:  # it left by itself
                del self._waiting[longest]
            else:
                log.warning("a connection that asked nothing made room for another, of %d", self._room.connections)
                self._show_out(longest)

    async def _look_round(self) -> None:
        """For ever: who has asked nothing for too long has to leave."""
        while True:
            await asyncio.sleep(min(LOOK_S, self._head_s / 4))
            with self._outlived("showing silent clients out"):
                late = time.monotonic() - self._head_s
                for protocol, since in list(self._waiting.items()):
                    if protocol.transport is None or since < late:
                        self._show_out(protocol)

    def _show_out(self, protocol: web.RequestHandler) -> None:
        del self._waiting[protocol]
        if protocol.transport is not None:
            protocol.transport.abort()  # close() would wait for a client that takes nothing of what is left for it
