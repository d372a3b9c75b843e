"""The activator of one stage: a reverse proxy on a stable port whose server comes up on a request and goes when idle.

    python -m tasks.platforms.local.activator --store ROOT --stage staging --host 127.0.0.1 --port 8081 ...

The API key comes in the environment (LLAMA_API_KEY) or over the control socket, and is never written down.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from modal_app.redaction import hide, redact
from modal_app.warmup import AGENT
from tasks.console import visible
from tasks.platforms.local.activator_log import ActivatorLog
from tasks.platforms.local.control import (
    KEY_VARIABLE,
    Deployment,
    Prepared,
    Status,
    activator_log_path,
    load_deployment,
    pointer_to_socket,
    problem_json,
    save_deployment,
    save_wake,
    socket_path,
)
from tasks.platforms.local.door import Door, Room, room_here
from tasks.platforms.local.proc import bind, descendants, is_alive
from tasks.platforms.local.proxy import Body, forward, refusal, session
from tasks.platforms.local.replica import Replica, ended
from tasks.platforms.local.server import DYING_S, EXECUTABLE, bound_log
from tasks.platforms.local.snapshot import Wanted, folder_name, snapshots_folder, sweep
from tasks.release import Problem, StageName, ToolingError, Wake
from tasks.store import Store, keep_reserve, with_reserve
from tasks.troubles import Troubles

log = logging.getLogger("activator")

LEASE_S = 30 * 60.0
"""How long a prepared server waits for its commit."""
DRAIN_S = 30.0
TICK_S = 0.5
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
CONTROL_ROOM = Room(connections=64, requests=32)
"""Whoever may move the stage is not many; theirs are none of the clients' descriptors (door.RESERVED)."""


class ServerDied(Exception):
    """A server died while it had a request; the message is for the client."""


@dataclass(frozen=True)
class Options:
    """What an activator is told when it starts."""

    store: Path
    stage: StageName
    host: str
    port: int
    idle_s: float
    start_timeout_s: float
    wanted: Wanted


@dataclass(frozen=True)
class Candidate:
    """A prepared server that waits for commit or abort, and who prepared it."""

    replica: Replica
    deployer: int
    until: float


class Activator:
    """What one stage serves now, what is prepared to be next, and what still finishes its last requests."""

    def __init__(self, options: Options, store: Store, port: int, key: str | None, client: aiohttp.ClientSession):
        self.options, self.store, self.port, self.client = options, store, port, client
        self.current: Replica | None = None
        self.candidate: Candidate | None = None
        self.leaving: set[Replica] = set()
        self.troubles = Troubles(store.root)
        self.done = asyncio.Event()
        self.drain_s = DRAIN_S
        self.answered = self.errors = 0
        self.connections: Callable[[], int] = lambda: 0
        self._tasks: set[asyncio.Task[None]] = set()
        deployment = load_deployment(store.root, options.stage)
        if deployment is not None and deployment.release is not None:
            self.current = self._replica(deployment.release, key, deployment.generation)
        if deployment is None or deployment.port != port:
            self._save(self.current)
        with self.outlived("removing old snapshots"):
            self._sweep(half_taken=True)

    # -- requests -----------------------------------------------------------------------------------

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Any request of a client: held until the server is up, then passed through."""
        replica = self.current
        if replica is None:
            return refusal(503, f"no release has been deployed to {self.options.stage}")
        if replica.server is None and not replica.starting:
            request["woke"] = (replica.release.id, time.monotonic())
        with replica.in_use():
            try:
                return await self._pass_on(request, replica)
            except Problem as problem:
                reason = problem.evidence.splitlines()[:1]
                return refusal(503, ": ".join(["the server can't start", problem.what, *reason]))
            except ServerDied as died:
                return refusal(502, str(died), "server_error")
            except aiohttp.ClientError as error:
                return _broken(error)

    async def _pass_on(self, request: web.Request, replica: Replica) -> web.StreamResponse:
        """The server's answer; once more from the next server when this one died before it answered.

        Raises ServerDied when there is no second try, or when it dies of that too.
        """
        body = Body(request)
        try:
            return await self._answer(request, body, replica)
        except ServerDied:
            if not body.replayable:
                raise
        return await self._answer(request, body, replica)

    async def _answer(self, request: web.Request, body: Body, replica: Replica) -> web.StreamResponse:
        server = await replica.up()
        try:
            return await forward(self.client, request, body, server.port)
        except aiohttp.ClientError as error:
            if not await ended(server, DYING_S):
                raise
            await replica.check()  # the boot record is there before anybody hears of it
            raise ServerDied(f"the server died before it answered: {server.ending}") from error

    async def note(self, request: web.Request, answer: web.StreamResponse) -> None:
        """What the restore watch goes by; called with every answer before its first byte goes out."""
        probe = request.headers.get("User-Agent") == AGENT
        if not probe:
            self.answered += 1
            self.errors += answer.status >= 500
        if woke := request.get("woke"):
            release, began = woke
            wake = Wake(
                stage=self.options.stage, release=release, status=answer.status,
                first_byte_s=round(time.monotonic() - began, 3), probe=probe,
            )  # fmt: skip
            self._spawn(self._record(wake))  # no answer waits for the disk

    async def _record(self, wake: Wake) -> None:
        with self.outlived("recording a wake"):
            await asyncio.to_thread(save_wake, self.store.root, wake)

    # -- deployment ---------------------------------------------------------------------------------

    async def prepare(self, release: str, key: str | None, generation: str, deployer: int) -> Prepared:
        """A server of this release beside the current one, healthy. Raises what keeps it from coming up."""
        replica = self._replica(release, key, generation)
        if self.current is not None and self.current.serves(replica):
            return Prepared(serving=True)
        await self._give_up_orphan()
        if self.candidate is not None:
            raise ToolingError(
                f"another release is being deployed to {self.options.stage}",
                evidence=f"{self.candidate.replica.release.label}, by pid {self.candidate.deployer}",
                todo="wait for it, or stop it",
            )
        self.candidate = Candidate(replica, deployer, time.monotonic() + LEASE_S)
        try:
            server = await replica.up()
        except BaseException:
            await asyncio.shield(self.abort())
            raise
        return Prepared(base_url=server.endpoint.base_url)

    def commit(self, release: str) -> None:
        """From here on new requests go to the prepared server; the old one finishes what it has and ends."""
        candidate = self.candidate
        if candidate is None or candidate.replica.release.id != release or candidate.replica.server is None:
            raise ToolingError(
                f"the server that was prepared of release {release} is gone", todo="read its log, deploy it again"
            )
        self._save(candidate.replica)
        old, self.current, self.candidate = self.current, candidate.replica, None
        self.current.last_used = time.monotonic()
        log.info("%s serves %s", self.options.stage, self.current.release.label)
        if old is not None:
            self.leaving.add(old)
            self._spawn(self._let_go(old))
        with self.outlived("removing old snapshots"):
            self._sweep()

    async def abort(self) -> None:
        """The prepared server is gone."""
        candidate, self.candidate = self.candidate, None
        if candidate is not None:
            log.info("gave up %s", candidate.replica.release.label)
            await candidate.replica.close()

    async def _let_go(self, replica: Replica) -> None:
        while not await replica.drained(60.0):
            log.info("%d requests are still with %s", replica.in_flight, replica.release.label)
        while True:
            with self.outlived("ending the earlier release"):
                await replica.close()
                self.leaving.discard(replica)
                return
            await asyncio.sleep(TICK_S)

    async def _give_up_orphan(self) -> None:
        candidate = self.candidate
        if candidate is not None and (not is_alive(candidate.deployer) or time.monotonic() > candidate.until):
            log.warning("pid %d never decided about %s", candidate.deployer, candidate.replica.release.label)
            await self.abort()

    # -- rest ---------------------------------------------------------------------------------------

    async def idle(self, limit_s: float, answered: int | None = None) -> int:
        """Stop the server when no request is in flight, waiting up to `limit_s`; processes left.

        `answered`: only if no user's request has come since there were so many.
        """
        if answered is not None and answered != self.answered:
            return self.count()
        deadline = time.monotonic() + limit_s
        for replica in filter(None, [*self.leaving, self.current]):
            if await replica.drained(deadline - time.monotonic()):
                await replica.down()
        self._sweep()
        return self.count()

    async def look_after(self) -> None:
        """For ever: notice crashes, stop what is idle, give up what no one will commit, keep within the disk."""
        steps = {
            "giving up what nobody commits": self._give_up_orphan,
            "looking for crashes": self._check,
            "stopping what is idle": self._rest,
            "keeping room on the disk": self._bound,
        }
        while True:
            await asyncio.sleep(min(TICK_S, self.options.idle_s / 4))
            for what, step in steps.items():
                with self.outlived(what):
                    await step()

    async def _check(self) -> None:
        if self.current is not None:
            await self.current.check()

    async def _rest(self) -> None:
        replica = self.current
        if replica is not None and replica.server is not None and replica.idle_for_s >= self.options.idle_s:
            await replica.down()
            self._sweep()

    async def _bound(self) -> None:
        keep_reserve(self.store.root)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, ActivatorLog):
                handler.tell_repeats()
        for replica in filter(None, [*self.leaving, self.current]):
            if replica.server is not None:
                await asyncio.to_thread(bound_log, replica.server.log)

    def outlived(self, what: str) -> contextlib.AbstractContextManager[None]:
        """What goes wrong in the block ends nothing: see Troubles."""
        return self.troubles.outlived(f"activator of {self.options.stage}, {what}")

    async def close(self) -> None:
        """Wait for what is in flight, then end every server."""
        replicas = [*self.leaving, *filter(None, [self.current])]
        await asyncio.gather(*(replica.drained(self.drain_s) for replica in replicas))
        await asyncio.gather(self.abort(), *(replica.close() for replica in replicas))

    def stop(self, limit_s: float) -> None:
        """End soon: wait for in-flight requests up to `limit_s` seconds."""
        self.drain_s = limit_s
        self.done.set()

    def count(self) -> int:
        """llama-server processes below this one, as the kernel sees them, less those that are suspended."""
        suspended = {replica.suspended for replica in filter(None, [*self.leaving, self.current])}
        return len(set(descendants(os.getpid(), EXECUTABLE)) - suspended)

    def status(self) -> Status:
        replica = self.current
        server = replica.server if replica is not None else None
        return Status(
            stage=self.options.stage,
            pid=os.getpid(),
            port=self.port,
            release=replica.release.id if replica is not None else None,
            generation=replica.generation if replica is not None else "",
            state=self._state(),
            server_pid=server.pid if server is not None else None,
            server_url=server.endpoint.base_url if server is not None else None,
            answered=self.answered,
            errors=self.errors,
            in_flight=sum(r.in_flight for r in filter(None, [replica, *self.leaving])),
            connections=self.connections(),
            prepared=self.candidate.replica.release.id if self.candidate is not None else None,
            servers=self.count(),
        )

    def _state(self) -> Literal["empty", "idle", "starting", "up"]:
        if self.current is None:
            return "empty"
        if self.current.server is not None:
            return "up"
        return "starting" if self.current.starting else "idle"

    def has_key(self, key: str | None) -> bool:
        """Whether what is served knows this API key; a stage that serves nothing contradicts no key."""
        return self.current is None or self.current.has_key(key)

    def _replica(self, release: str, key: str | None, generation: str) -> Replica:
        found, options = self.store.get_release(release), self.options
        return Replica(self.store, options.stage, found, key, options.wanted, options.start_timeout_s, generation)

    def _sweep(self, *, half_taken: bool = False) -> None:
        """Remove the snapshots of releases that this stage neither serves nor retains, and those with another key."""
        pointer = self.store.pointer(self.options.stage)
        replicas = [self.current, self.candidate.replica if self.candidate else None]
        keep = {folder_name(r.release.id, r.key, r.generation) for r in replicas if r}
        if self.current is not None:
            retained = filter(None, (pointer.release, *pointer.retained))
            key = self.current.key
            keep |= {folder_name(release, key, pointer.generation(release)) for release in retained}
        sweep(snapshots_folder(self.store.root, self.options.stage), keep, half_taken=half_taken)

    def _save(self, replica: Replica | None) -> None:
        served = {"release": replica.release.id, "generation": replica.generation} if replica is not None else {}
        save_deployment(self.store.root, self.options.stage, Deployment(port=self.port, **served))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """`work` outlives by itself what goes wrong in it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _broken(error: aiohttp.ClientError) -> web.Response:
    """The answer where the server gave none."""
    if getattr(error, "errno", None) in SCARCE:
        return refusal(503, "too many connections at once, try again")
    return refusal(502, f"the server broke off before it answered ({type(error).__name__})", "server_error")


# -- control --------------------------------------------------------------------------------------------


def control_app(activator: Activator) -> web.Application:
    """The verbs of the control socket. A Problem is answered with 409 and its parts."""

    async def status(_: dict[str, Any]) -> Any:
        return activator.status().model_dump()

    async def prepare(body: dict[str, Any]) -> Any:
        prepared = await activator.prepare(body["release"], body["key"], body["generation"], body["pid"])
        return prepared.model_dump()

    async def has_key(body: dict[str, Any]) -> Any:
        return {"same": activator.has_key(body["key"])}

    async def commit(body: dict[str, Any]) -> Any:
        activator.commit(body["release"])

    async def abort(_: dict[str, Any]) -> Any:
        await activator.abort()

    async def idle(body: dict[str, Any]) -> Any:
        return {"left": await activator.idle(body["limit_s"], body.get("answered"))}

    async def stop(body: dict[str, Any]) -> Any:
        activator.stop(body["limit_s"])

    app = web.Application()
    app.router.add_get("/status", _verb(status))
    for verb in (prepare, commit, abort, has_key, idle, stop):
        app.router.add_post(f"/{verb.__name__}", _verb(verb))
    return app


def _verb(
    act: Callable[[dict[str, Any]], Awaitable[Any]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return web.json_response(await act(await request.json() if request.can_read_body else {}) or {})
        except Problem as problem:
            return web.json_response(problem_json(problem), status=409)

    return handle


# -- process --------------------------------------------------------------------------------------------


def _control_socket(store: Store, stage: StageName) -> socket.socket:
    """A listening socket of mode 0600; one that a killed activator left is replaced (we hold its lock)."""
    path, pointer = socket_path(store.root, stage), pointer_to_socket(store.root, stage)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(64)
    pointer.unlink(missing_ok=True)
    with_reserve(pointer, lambda: pointer.symlink_to(path))
    return listener


def _public_app(activator: Activator) -> web.Application:
    app = web.Application()
    app.on_response_prepare.append(activator.note)
    app.router.add_route("*", "/{path:.*}", activator.serve)
    return app


async def run(options: Options, store: Store, key: str | None, ready: Callable[[], None]) -> None:
    """Serve until told to stop. `ready` is called once both sockets listen."""
    deployment = load_deployment(store.root, options.stage)
    port = options.port or (deployment.port if deployment is not None else 0)
    listener = bind(options.host, port)
    async with session() as client:
        activator = Activator(options, store, listener.getsockname()[1], key, client)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, activator.stop, DRAIN_S)
        control = _control_socket(store, options.stage)
        async with (
            Door(control_app(activator), control, CONTROL_ROOM, lambda what: activator.outlived(f"control, {what}")),
            Door(_public_app(activator), listener, room_here(), activator.outlived) as public,
        ):
            activator.connections = public.count
            upkeep = asyncio.create_task(activator.look_after())
            log.info("%s answers on %s port %d", options.stage, options.host, activator.port)
            ready()
            await activator.done.wait()
            upkeep.cancel()
            await public.close()
            await activator.close()
    for path in (socket_path(store.root, options.stage), pointer_to_socket(store.root, options.stage)):
        path.unlink(missing_ok=True)


class LogLines(logging.Formatter):
    """Lines without a secret, and nothing in them that a terminal obeys.

    What a client sent is not in them: aiohttp's parser quotes the header or the address line that it could not read
    (3.14), with whatever key is in it, so of its errors only the name is told.
    """

    def format(self, record: logging.LogRecord) -> str:
        return visible(redact(super().format(record)))

    def formatException(self, ei: Any) -> str:
        error, seen = ei[1], set[int]()
        while error is not None and id(error) not in seen:  # an exception may be its own cause
            seen.add(id(error))
            if isinstance(error, HttpProcessingError):
                return type(error).__name__
            error = error.__cause__ or error.__context__
        return super().formatException(ei)


def say(message: dict[str, Any]) -> None:
    """Tell whoever started us, once, over stdout; from then on stdout goes nowhere."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main(argv: list[str] | None = None) -> int:
    """Run one activator; 0 when it was told to stop, else the exit code of the Problem."""
    options = _options(argv)
    logging.raiseExceptions = False  # a log that a full disk does not take stops nothing, and is no news
    _log_to(logging.StreamHandler(sys.stderr))
    logging.getLogger("httpx").setLevel(logging.WARNING)
    key = os.environ.pop(KEY_VARIABLE, None)
    hide(key)
    alone = False
    try:
        store = Store(options.store)
        with store.lock(f"activator-{options.stage}", holder={"stage": options.stage, "what": "activator"}):
            alone = True
            _log_to(ActivatorLog(activator_log_path(store.root, options.stage)))
            asyncio.run(run(options, store, key, lambda: say({"ready": True})))
    except Problem as problem:
        log.error("%s", problem)
        say({"problem": problem_json(problem), "alone": alone})
        return problem.exit_code
    return 0


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(LogLines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _options(argv: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="activator", description="serve one stage")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--stage", choices=("staging", "production"), required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: the port it had, or any free one")
    parser.add_argument("--idle-s", type=float, required=True)
    parser.add_argument("--start-timeout-s", type=float, required=True)
    parser.add_argument("--snapshots", choices=("auto", "off"), default="off")
    parser.add_argument("--snapshot-depth", choices=("memory", "disk"), default="disk")
    parser.add_argument("--criu", default="criu")
    given = parser.parse_args(argv)
    wanted = Wanted(given.snapshots == "auto", given.snapshot_depth, given.criu)
    return Options(
        given.store, cast(StageName, given.stage), given.host, given.port, given.idle_s, given.start_timeout_s, wanted
    )


if __name__ == "__main__":
    sys.exit(main())
