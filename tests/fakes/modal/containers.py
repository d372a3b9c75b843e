"""All containers: scaled as Modal would, snapshotted and restored, listed and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
import traceback
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .container import Container, Snapshot, calling
from .functions import Result, Service
from .lifecycle import Worker
from .logs import SYSTEM, Source
from .objects import new_id, not_found

if TYPE_CHECKING:
    from .server import FakeModal

RESTORE_FAILED = 222  # gpu_memory_snapshot.SNAPSHOT_RESTORE_FAILED_EXIT_CODE
STDOUT, STDERR = api_pb2.FILE_DESCRIPTOR_STDOUT, api_pb2.FILE_DESCRIPTOR_STDERR
TICK_S = 0.05
LONG_POLL_S = 20.0
EXIT_S = 10.0  # for exit methods, after which a container is killed
TRY_AGAIN_S = 3.0  # after a container that did not come up


class Containers:
    """Every container there was, by task id."""

    def __init__(self, fake: FakeModal) -> None:
        self._fake = fake
        self._all: dict[str, Container] = {}
        self._snapshots: dict[tuple[str, Worker], Snapshot] = {}  # of each definition, for each kind of worker
        self._tried: dict[str, float] = {}  # service id -> when a container of it did not come up
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._scaling = asyncio.ensure_future(self._scale())

    async def close(self) -> None:
        self._scaling.cancel()
        for container in self.live():
            container.stopping = True
            container.kill(signal.SIGKILL)
        await asyncio.gather(*(c.watch for c in self._all.values() if c.watch))

    def live(self, service: Service | None = None, app_id: str = "") -> list[Container]:
        """Those that have not exited, of a service, of an app, or all."""
        return [
            c
            for c in self._all.values()
            if not c.finished_at
            and (service is None or c.service is service)
            and (not app_id or c.service.app_id == app_id)
        ]

    def all(self) -> list[Container]:
        """All that there ever were."""
        return list(self._all.values())

    def fail_restores(self, times: int = 1, code: int = RESTORE_FAILED) -> None:
        """The next restores end with an exit code (see Lifecycle.failing)."""
        self._fake.lifecycle.failing += [code] * times

    def crash(self, task_id: str, exit_code: int) -> None:
        """Kills a container as a segmentation fault (139) or the memory limit (137) does."""
        container = self[task_id]
        container.exit_code = exit_code
        if exit_code == 137:
            self._say(container, "Container ran out of memory and was killed.")
        container.kill(signal.SIGKILL)

    def freeze(self, task_id: str) -> None:
        """A container that hangs: it takes requests, and answers none."""
        for process in self[task_id].processes():
            os.kill(int(process.name), signal.SIGSTOP)

    def __getitem__(self, task_id: str) -> Container:
        if task_id not in self._all:
            raise not_found(f"Container {task_id}")
        return self._all[task_id]

    # Scaling

    async def _scale(self) -> None:
        while True:
            for service in self._fake.functions.all():
                try:
                    (self._scale_server if service.url else self._scale_function)(service)
                except Exception:
                    self._fake.failures.append(f"scaling {service.name} broke: {traceback.format_exc()}")
            await asyncio.sleep(TICK_S)

    def _scale_server(self, service: Service) -> None:
        """Keeps `min_containers`, replaces those of an older definition, stops idle ones."""
        live = [c for c in self.live(service) if not c.stopping]
        definition_id = self._fake.functions.live_definition(service)
        settings = self._fake.functions.settings(service)
        now, old = time.time(), [c for c in live if c.definition_id != definition_id]
        current = [c for c in live if c not in old]
        wanted = max(settings.min_containers, 1 if old else 0) if definition_id else 0
        # what is up counts, of whatever version: with max_containers=1 no replacement ever comes up (guide on Servers)
        room = not settings.max_containers or len(self.live(service)) < settings.max_containers
        if len(current) < wanted and room and now - self._tried.get(service.id, 0) > TRY_AGAIN_S:
            self.launch(service)
        for container in live:
            started_late = not container.ready and now - container.enqueued_at > _startup_s(container)
            idle = container.ready and not container.in_flight and now - container.used_at > _window_s(settings)
            replaced = container in old and any(c.ready for c in current) and self._fake.lifecycle.replaces_old
            if started_late:
                self._say(container, f"Container did not start within {_startup_s(container)} s.")
            if started_late or replaced or not definition_id or (idle and len(live) > settings.min_containers):
                self._soon(self.stop(container))

    def _scale_function(self, service: Service) -> None:
        """A container for each waiting input up to `max_containers`; an input that takes too long is ended."""
        if not self._fake.functions.live_definition(service):
            return
        live = [c for c in self.live(service) if not c.stopping]
        settings = self._fake.functions.settings(service)
        free = [c for c in live if self._fake.functions.running_on(c) is None]
        most = settings.max_containers or len(live) + 1
        if len(self._fake.functions.waiting(service)) > len(free) and len(live) < most:
            self.launch(service)
        for container in live:
            one = self._fake.functions.running_on(container)
            if one and time.time() - one.started_at > (container.definition.timeout_secs or 300):
                one.finish(Result(status=Result.GENERIC_STATUS_TIMEOUT, exception="Task's current input timed out"))
                container.stopping = True
                container.kill(signal.SIGKILL)

    def _soon(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(doing)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._fake.failures.append(f"a container broke the fake: {task.exception()!r}")

    # One container's life

    def launch(self, service: Service, cold: bool = False) -> Container:
        """A new container, from the snapshot of its definition where there is one; `cold`: without any."""
        definition_id = self._fake.functions.live_definition(service)
        definition = self._fake.functions.definitions[definition_id]
        task_id = new_id("ta")
        folder = self._fake.folder / "containers" / task_id
        folder.mkdir(parents=True)
        snapshots = definition.checkpointing_enabled and not cold
        worker = self._fake.lifecycle.next_worker()
        snapshot = self._snapshots.get((definition_id, worker)) if snapshots else None
        container = Container(task_id, service, definition_id, definition, folder, snapshots, snapshot, worker)
        container.restoring = snapshot is not None
        self._all[task_id] = container
        container.watch = asyncio.ensure_future(self._live(container))
        return container

    async def _live(self, container: Container) -> None:
        """From its start to its end, and what follows from the end."""
        door = await self._fake.listen(container, container.control_socket())
        try:
            container.furnish(self._fake)
            process = await container.start()
            assert process.stdout and process.stderr
            await asyncio.gather(
                self._collect(container, process.stdout, STDOUT), self._collect(container, process.stderr, STDERR)
            )
            code = await process.wait()
            if container.exit_code is None:
                container.exit_code = code if code >= 0 else 128 - code
        except Exception as error:
            self._fake.failures.append(f"container {container.task_id} could not be started: {error!r}")
            container.exit_code = 1
        door.close()
        container.clear()
        crashed = bool(container.exit_code) and not container.stopping
        if container.restoring and not container.stopping:
            for text, source in container.unsaid:
                self._say(container, text, source)
        if crashed and container.died_restoring and self._fake.lifecycle.unlogged:
            self._fake.lifecycle.unlogged -= 1
        elif crashed:
            self._say(container, f"Runner failed with exit code: {container.exit_code}")
        container.finished_at = time.time()
        if not container.ready and not container.stopping:
            self._tried[container.service.id] = time.time()
        if crashed and container.exit_code == RESTORE_FAILED:
            if self._fake.functions.live_definition(container.service):
                self.launch(container.service, cold=True)
            return
        result = container.result
        if crashed and result is None:
            result = Result(
                status=Result.GENERIC_STATUS_FAILURE, exception=f"Runner failed with exit code: {container.exit_code}"
            )
        self._fake.functions.lost(container, result)
        if result is not None and not container.ready:  # it did not even get to its first input: none will ever run
            for one in self._fake.functions.waiting(container.service):
                one.finish(result)

    async def _collect(self, container: Container, stream: asyncio.StreamReader, source: Source) -> None:
        """Its lines go to the logs. What it says before it is restored was said already: it counts if it fails."""
        async for line in stream:
            text = line.decode(errors="replace").rstrip("\n")
            if container.restoring:
                container.unsaid.append((text, source))
            elif not text.startswith("unshare: "):
                self._say(container, text, source)

    def _say(self, container: Container, text: str, source: Source = SYSTEM) -> None:
        one, service = self._fake.functions.running_on(container), container.service
        self._fake.logs.write(text, source, service.app_id, service.id, container.task_id, one.call_id if one else "")

    async def stop(self, container: Container, *, cancels: bool = False) -> None:
        """Asks it to end, which runs its exit methods, and ends it if it does not; its input goes to another one.

        No request reaches it from then on; those that did go on while its exit methods run, for as long as its
        `exit_grace_period`. Whether Modal runs them before or after that is nowhere said: here it is before.
        `cancels`: what it answers is broken off at once, of one that ends already, too.
        """
        if container.finished_at:
            return
        if cancels:
            container.cancels = True
        if container.stopping:
            return
        container.stopping = True
        container.kill(signal.SIGTERM if container.server else signal.SIGINT)
        honoured = container.server and self._fake.lifecycle.exit_grace
        grace_s = container.definition.http_config.exit_grace_period if honoured else 0
        end = time.time() + (EXIT_S + grace_s if container.ready else 0)
        while not container.finished_at and time.time() < end:
            if container.cancels and container.in_flight:
                break
            await asyncio.sleep(TICK_S)
        container.kill(signal.SIGKILL)
        if container.watch:
            await container.watch

    async def stop_all(self, app_id: str) -> None:
        await asyncio.gather(*(self.stop(container) for container in self.live(app_id=app_id)))

    # What clients ask

    def TaskList(self, request: api_pb2.TaskListRequest) -> api_pb2.TaskListResponse:
        where = self._fake.environments.name(request.environment_name)
        apps = {c.service.app_id: self._fake.apps[c.service.app_id] for c in self.live()}
        return api_pb2.TaskListResponse(
            tasks=[
                api_pb2.TaskStats(
                    task_id=c.task_id,
                    app_id=c.service.app_id,
                    app_description=apps[c.service.app_id].name,
                    started_at=c.started_at,
                    enqueued_at=c.enqueued_at,
                )
                for c in self.live(app_id=request.app_id)
                if request.app_id or apps[c.service.app_id].environment == where
            ]
        )

    def TaskGetInfo(self, request: api_pb2.TaskGetInfoRequest) -> api_pb2.TaskGetInfoResponse:
        container = self[request.task_id]
        info = api_pb2.TaskInfo(
            id=container.task_id,
            enqueued_at=container.enqueued_at,
            started_at=container.started_at,
            finished_at=container.finished_at,
            gpu_config=container.definition.resources.gpu_config,
        )
        if container.exit_code:
            info.result.exitcode = container.exit_code
        return api_pb2.TaskGetInfoResponse(app_id=container.service.app_id, info=info)

    def ContainerStop(self, request: api_pb2.ContainerStopRequest) -> api_pb2.ContainerStopResponse:
        """Running inputs are cancelled, unless it is `graceful`, which no Server is [sdk: cli/container.py]."""
        self._soon(self.stop(self[request.task_id], cancels=True))
        return api_pb2.ContainerStopResponse()

    # What containers say

    def ContainerHello(self, _: Message) -> None:
        return None

    def ContainerHeartbeat(self, _: Message) -> api_pb2.ContainerHeartbeatResponse:
        container = _caller()
        ids, container.cancelled = container.cancelled, []
        if not ids:
            return api_pb2.ContainerHeartbeatResponse()
        return api_pb2.ContainerHeartbeatResponse(cancel_input_event=api_pb2.CancelInputEvent(input_ids=ids))

    def ContainerCheckpoint(self, _: api_pb2.ContainerCheckpointRequest) -> None:
        """The container waits at its checkpoint: a new one goes on at once, a restored one as who it now is."""
        container = _caller()
        if container.snapshot is None:
            snapshot = Snapshot(container.task_id, container.environment)
            self._snapshots[container.definition_id, container.worker] = snapshot
            self._say(container, "Snapshot created.")
            self._continue(container, "resume")
            return
        container.restoring = False
        self._say(container, f"Restoring from the snapshot of {container.snapshot.task_id}.")
        code = self._fake.lifecycle.next_restore()
        if not code:
            self._continue(container, "restore")
        elif code == RESTORE_FAILED and container.definition.resources.gpu_config.gpu_type:
            self._continue(container, "error")  # at which the SDK itself exits with 222
        else:
            if code != RESTORE_FAILED:
                del self._snapshots[container.definition_id, container.worker]
                container.died_restoring = True
            self.crash(container.task_id, code)

    def _continue(self, container: Container, word: str) -> None:
        """The files by which Modal's runtime tells the SDK that the container goes on, and as which one."""
        container.write_environ(container.environment)
        (container.folder / "checkpoint").write_text(word)
        state = container.folder / "restore-state.part"
        state.write_text(json.dumps({"task_id": container.task_id, "function_id": container.service.id}))
        state.rename(container.folder / "restore-state.json")

    def ContainerServerLifecycleReady(self, _: Message) -> None:
        self._soon(self._answers(_caller()))

    async def _answers(self, container: Container) -> None:
        """A server is ready once its port accepts connections."""
        loop = asyncio.get_running_loop()
        while not container.finished_at:
            with contextlib.suppress(OSError), container.socket_inside() as probe:
                probe.setblocking(False)
                await loop.sock_connect(probe, ("127.0.0.1", container.definition.http_config.port))
                container.ready, container.used_at = True, time.time()
                return
            await asyncio.sleep(TICK_S)

    def TaskResult(self, request: api_pb2.TaskResultRequest) -> None:
        _caller().result = request.result

    async def FunctionGetInputs(self, _: api_pb2.FunctionGetInputsRequest) -> api_pb2.FunctionGetInputsResponse:
        """The next input; the word to exit once the container is stopped, idle for too long, or of an old version."""
        container = _caller()
        container.ready, container.used_at = True, time.time()
        end = time.monotonic() + LONG_POLL_S
        while time.monotonic() < end:
            live = self._fake.functions.live_definition(container.service)
            window = _window_s(self._fake.functions.settings(container.service))
            if container.stopping or container.definition_id != live or time.time() - container.used_at > window:
                container.stopping = True
                return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
            one = self._fake.functions.take(container)
            if one:
                item = api_pb2.FunctionGetInputsItem(
                    input_id=one.id,
                    input=one.message,
                    function_call_id=one.call_id,
                    function_call_invocation_type=one.invocation,
                )
                return api_pb2.FunctionGetInputsResponse(inputs=[item])
            await asyncio.sleep(TICK_S)
        return api_pb2.FunctionGetInputsResponse()


def _caller() -> Container:
    container = calling.get()
    if container is None:
        raise GRPCError(Status.PERMISSION_DENIED, "Only a container may say this")
    return container


def _window_s(settings: api_pb2.AutoscalerSettings) -> float:
    return settings.scaledown_window or 60


def _startup_s(container: Container) -> float:
    return container.definition.startup_timeout_secs or 300
