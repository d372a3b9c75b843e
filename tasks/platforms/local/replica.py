"""One release of a stage with at most one server process, which comes up when asked for."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.platforms.local.control import run_folder
from tasks.platforms.local.server import Server, come_up
from tasks.release import BootKind, BootRecord, Problem, Release, StageName
from tasks.store import Store, write_atomic

log = logging.getLogger(__name__)


class Replica:
    """Lives in one event loop. Its server is started and stopped under one lock, so there are never two."""

    def __init__(
        self, store: Store, stage: StageName, release: Release, key: str | None, start_timeout_s: float
    ) -> None:
        self.store, self.stage, self.release = store, stage, release
        self.in_flight = 0
        self.last_used = time.monotonic()
        self._key = key
        self._start_timeout_s = start_timeout_s
        self._server: Server | None = None
        self._starting: asyncio.Task[Server] | None = None
        self._changing = asyncio.Lock()
        self._halt = threading.Event()

    @property
    def server(self) -> Server | None:
        """The running server, if there is one."""
        return self._server if self._server is not None and self._server.alive else None

    @property
    def starting(self) -> bool:
        return self._starting is not None and not self._starting.done()

    @property
    def idle_for_s(self) -> float:
        """Seconds since the last request ended; 0 while one is in flight."""
        return 0.0 if self.in_flight else time.monotonic() - self.last_used

    def serves(self, release: Release, key: str | None) -> bool:
        return release.id == self.release.id and hmac.compare_digest((key or "").encode(), (self._key or "").encode())

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a request is in flight the server isn't stopped."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self.last_used = time.monotonic()

    async def up(self) -> Server:
        """A healthy server; however many ask, it's one start. Raises the Problem that kept it from coming up."""
        if (server := self.server) is not None:
            return server
        if not self.starting:
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        assert self._starting is not None
        return await asyncio.shield(self._starting)

    async def drained(self, limit_s: float) -> bool:
        """Wait until nothing is in flight; False when there still is after `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return not self.in_flight

    async def down(self) -> None:
        """Stop the server unless a request is in flight."""
        async with self._changing:
            await self._note_crash()
            if not self.in_flight:
                await self._stop()

    async def close(self) -> None:
        """Stop the server for good, also in the middle of its start."""
        self._halt.set()
        async with self._changing:
            await self._stop()

    async def check(self) -> None:
        """Notice a server that has crashed."""
        if self._server is not None and not self._changing.locked():
            async with self._changing:
                await self._note_crash()

    async def _start(self) -> Server:
        async with self._changing:
            await self._note_crash()
            if self._server is not None:
                return self._server
            folder = run_folder(self.store.root, self.stage) / "servers"
            try:
                booted = await asyncio.to_thread(
                    come_up, self.store, self.release, self._key, folder, self._start_timeout_s, self._halt
                )
            except Problem as problem:
                log.warning("%s", problem)
                await self._record(BootKind.CRASHED, f"did not come up: {problem.what}")
                raise
            self._server = booted.server
            self.last_used = time.monotonic()
            await self._record(booted.kind, booted.reason, booted.server.pid, booted.health_s)
            return self._server

    async def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            log.info("stopping %s, pid %d", self.release.label, server.pid)
            await asyncio.to_thread(server.stop)

    async def _note_crash(self) -> None:
        server = self._server
        if server is not None and not server.alive:
            self._server = None
            await self._record(BootKind.CRASHED, server.ending, server.pid)

    async def _record(self, kind: BootKind, reason: str, pid: int | None = None, health_s: float | None = None) -> None:
        record = BootRecord(
            stage=self.stage, release=self.release.id, kind=kind, reason=reason, pid=pid, health_s=health_s
        )
        log.info("boot record of %s: %s (%s)", self.release.label, kind, reason)
        name = f"{record.at.strftime('%Y%m%dT%H%M%S.%fZ')}-{secrets.token_hex(3)}.json"
        path = run_folder(self.store.root, self.stage) / "boots" / name
        await asyncio.to_thread(write_atomic, path, record.model_dump_json(indent=1) + "\n")


async def ended(server: Server, limit_s: float) -> bool:
    """Whether the process has ended, or does within `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while server.alive and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return not server.alive
