"""One release of a stage with at most one server process, which comes up when asked for."""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from modal_app.redaction import hide
from tasks.cuda_checkpoint import CudaFailed
from tasks.platforms.local.boot import Boot, Booted, resume, suspend
from tasks.platforms.local.control import run_folder
from tasks.platforms.local.proc import cpu_ticks
from tasks.platforms.local.server import STOP_GRACE_S, Server, answers
from tasks.platforms.local.snapshot import NoSnapshot, Wanted
from tasks.release import BootKind, BootRecord, Problem, Release, StageName, ToolingError
from tasks.store import Store, timed_name, write_atomic

log = logging.getLogger(__name__)

STILL_S = 5.0
"""A server with requests that uses no CPU time for so long is asked whether it lives."""


class Watch:
    """Tells a server that hangs from one that waits for a slow client or is too busy to answer /health."""

    def __init__(self) -> None:
        self._ticks = -1
        self._since = 0.0

    def __call__(self, server: Server) -> bool:
        """Whether it hangs. Asked again and again while the server has requests."""
        ticks = cpu_ticks(server.pid)
        if ticks != self._ticks:
            self._ticks, self._since = ticks, time.monotonic()
        if time.monotonic() - self._since < STILL_S:
            return False
        if answers(server.endpoint):
            self._since = time.monotonic()
            return False
        return True

    def __str__(self) -> str:
        return f"no CPU time used for {time.monotonic() - self._since:.0f} s, and no answer of /health"


class Replica:
    """Lives in one event loop. Its server is started and stopped under one lock, so there are never two."""

    def __init__(
        self,
        store: Store,
        stage: StageName,
        release: Release,
        key: str | None,
        wanted: Wanted,
        start_timeout_s: float,
        generation: str = "",
    ) -> None:
        self.store, self.stage, self.release, self.generation = store, stage, release, generation
        self.in_flight = 0
        self.last_used = time.monotonic()
        self.key = key
        hide(key)
        self._halt = threading.Event()
        self._boot = Boot(store, stage, release, key, wanted, start_timeout_s, self._halt, generation)
        self._booted: Booted | None = None
        self._asleep = False
        self._watch = Watch()
        self._starting: asyncio.Task[Server] | None = None
        self._changing = asyncio.Lock()

    @property
    def server(self) -> Server | None:
        """The running server, if there is one."""
        return self._booted.server if self._booted and not self._asleep and self._booted.server.alive else None

    @property
    def suspended(self) -> int | None:
        """Pid of the server that is kept in RAM, its GPU emptied, while idle."""
        return self._booted.server.pid if self._booted and self._asleep else None

    @property
    def starting(self) -> bool:
        return self._starting is not None and not self._starting.done()

    @property
    def idle_for_s(self) -> float:
        """Seconds since the last request ended; 0 while one is in flight."""
        return 0.0 if self.in_flight else time.monotonic() - self.last_used

    def has_key(self, key: str | None) -> bool:
        return hmac.compare_digest((key or "").encode(), (self.key or "").encode())

    def serves(self, other: Replica) -> bool:
        """Whether it is what another one would be."""
        same = (self.release.id, self.generation) == (other.release.id, other.generation)
        return same and self.has_key(other.key)

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
        """Stop the server (or suspend it, where that is its snapshot) unless a request is in flight."""
        async with self._changing:
            await self._note_crash()
            if self.in_flight or self.server is None:
                return
            if self._booted is not None and self._booted.stays:
                await self._suspend()
            else:
                await self._stop()

    async def close(self) -> None:
        """Stop the server for good, also in the middle of its start. That it had crashed before is on record then."""
        self._halt.set()
        async with self._changing:
            await self._note_crash()
            await self._stop()

    async def check(self) -> None:
        """Notice a server that has crashed, or that hangs while it has requests: it is ended."""
        if self._booted is None or self._asleep or self._changing.locked():
            return
        async with self._changing:
            await self._note_crash()
            if (server := self.server) is not None and self.in_flight and await asyncio.to_thread(self._watch, server):
                await self._record(BootKind.CRASHED, f"it hangs: {self._watch}", server.pid)
                await self._stop(grace_s=0.1)

    async def _start(self) -> Server:
        async with self._changing:
            refused = await self._resume() if self._asleep else ""
            await self._note_crash()
            if self.server is not None:
                return self.server
            try:
                booted = await asyncio.to_thread(self._booted_up, refused)
            except Problem as problem:
                log.warning("%s", problem)
                await self._record(BootKind.CRASHED, f"did not come up: {problem.what}")
                raise
            await self._came_up(booted)
            return booted.server

    def _booted_up(self, refused: str) -> Booted:
        """Raises Problem."""
        try:
            return self._boot(refused)
        except OSError as error:
            raise _unable(self.release, error) from error

    async def _came_up(self, booted: Booted) -> None:
        self._booted, self._asleep = booted, False
        self.last_used = time.monotonic()
        await self._record(booted.kind, booted.reason, booted.server.pid, booted.health_s, booted.snapshot)

    async def _suspend(self) -> None:
        assert self._booted is not None
        log.info("suspending %s, pid %d", self.release.label, self._booted.server.pid)
        self._asleep = True
        try:
            await asyncio.to_thread(suspend, self._booted.server)
        except (CudaFailed, OSError) as error:
            log.warning("%s can't be suspended: %s", self.release.label, error)
            await self._stop()

    async def _resume(self) -> str:
        """Why the suspended server could not be used; '' when it is up."""
        assert self._booted is not None
        try:
            await self._came_up(await asyncio.to_thread(resume, self._booted))
        except (CudaFailed, NoSnapshot, OSError) as error:
            await self._stop()
            return str(error)
        return ""

    async def _stop(self, grace_s: float = STOP_GRACE_S) -> None:
        booted, asleep = self._booted, self._asleep
        self._booted, self._asleep = None, False
        if booted is not None:
            log.info("stopping %s, pid %d", self.release.label, booted.server.pid)
            await asyncio.to_thread(booted.server.stop, 0.0 if asleep else grace_s)

    async def _note_crash(self) -> None:
        if self._booted is not None and not self._asleep and not self._booted.server.alive:
            server, self._booted = self._booted.server, None
            await self._record(BootKind.CRASHED, await asyncio.to_thread(lambda: server.cause_of_death), server.pid)

    async def _record(
        self,
        kind: BootKind,
        reason: str,
        pid: int | None = None,
        health_s: float | None = None,
        snapshot: str | None = None,
    ) -> None:
        record = BootRecord(
            stage=self.stage,
            release=self.release.id,
            generation=self.generation,
            kind=kind,
            reason=reason,
            pid=pid,
            health_s=health_s,
            snapshot=snapshot,
        )
        log.info("boot record of %s: %s (%s)", self.release.label, kind, reason)
        path = run_folder(self.store.root, self.stage) / "boots" / timed_name(record.at)
        try:
            await asyncio.to_thread(write_atomic, path, record.model_dump_json(indent=1) + "\n")
        except ToolingError as error:  # whoever waits for the server is served all the same
            log.error("%s", error)


def _unable(release: Release, error: OSError) -> ToolingError:
    return ToolingError(
        f"llama-server of {release.label} can't be started: {error.strerror}",
        evidence=str(error),
        todo="free what is short: room on the disk, or open files (`ulimit -n`)",
    )


async def ended(server: Server, limit_s: float) -> bool:
    """Whether the process has ended, or does within `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while server.alive and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return not server.alive
