"""Containers: real processes that run the SDK's own entrypoint, scaled as Modal would, snapshotted and restored."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .functions import Input, Result, Service
from .objects import new_id, not_found

if TYPE_CHECKING:
    from .server import FakeModal

HERE = Path(__file__).parent
RESTORE_FAILED = 222  # gpu_memory_snapshot.SNAPSHOT_RESTORE_FAILED_EXIT_CODE
STDOUT, STDERR, SYSTEM = 1, 2, 3  # api_pb2.FileDescriptor
TICK_S = 0.05
LONG_POLL_S = 20.0
EXIT_S = 10.0  # for exit methods, after which a container is killed
TRY_AGAIN_S = 3.0  # after a container that did not come up
CLONE_NEWNET = 0x40000000

calling: ContextVar[Container | None] = ContextVar("calling", default=None)  # the container that asks, if one does


@dataclass(frozen=True)
class Snapshot:
    """What a restore starts from: the container that was snapshotted, with the environment that is in its memory."""

    task_id: str
    environment: dict[str, str]


@dataclass
class Container:
    task_id: str
    service: Service
    definition_id: str
    definition: api_pb2.Function
    folder: Path
    environment: dict[str, str]
    snapshot: Snapshot | None  # that it is restored from
    enqueued_at: float = field(default_factory=time.time)
    started_at: float = 0
    finished_at: float = 0
    ready: bool = False  # a server answers, a function asks for inputs
    restoring: bool = False  # still the snapshotted container, booting up to its checkpoint
    stopping: bool = False
    in_flight: int = 0
    used_at: float = field(default_factory=time.time)
    cancelled: list[str] = field(default_factory=list)  # input ids that it is to be told of
    exit_code: int | None = None
    result: api_pb2.GenericResult | None = None  # what it said of its own failure
    process: asyncio.subprocess.Process | None = None
    watch: asyncio.Task[None] | None = None

    def pid(self) -> int | None:
        """Of its first process, as this machine numbers it."""
        if self.process is None:
            return None
        own = self.process.pid
        with contextlib.suppress(FileNotFoundError):
            for child in Path(f"/proc/{own}/task/{own}/children").read_text().split():
                return int(child)
        return None

    def kill(self, number: signal.Signals) -> None:
        """Signals its first process. The one that makes the namespaces dies with it, and all in them with that one."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid() or self.process.pid, number)

    def handles(self) -> Iterator[Path]:
        """What its processes have open, as links."""
        own = os.readlink(f"/proc/{self.pid()}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns" / "pid") == own:
                    yield from (process / "fd").iterdir()

    def socket(self, _: Any = None) -> socket.socket:
        """A socket in the container's own network."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.pid()}/ns/net") as theirs, open("/proc/thread-self/ns/net") as ours:
            if libc.setns(theirs.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                return socket.socket()
            finally:
                libc.setns(ours.fileno(), CLONE_NEWNET)


class Containers:
    """Every container there was, by task id."""

    def __init__(self, fake: FakeModal) -> None:
        self._fake = fake
        self._all: dict[str, Container] = {}
        self._snapshots: dict[str, Snapshot] = {}  # by definition id: a new definition needs a new one
        self._failing_restores = 0
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

    def fail_restores(self, times: int = 1) -> None:
        """The next restores end with 222, and their containers are started again without the snapshot."""
        self._failing_restores = times

    def crash(self, task_id: str, exit_code: int) -> None:
        """Kills a container as a segmentation fault (139) or the memory limit (137) does."""
        container = self[task_id]
        container.exit_code = exit_code
        if exit_code == 137:
            self._say(container, "Container ran out of memory and was killed.")
        container.kill(signal.SIGKILL)

    def __getitem__(self, task_id: str) -> Container:
        if task_id not in self._all:
            raise not_found(f"Container {task_id}")
        return self._all[task_id]

    # Scaling

    async def _scale(self) -> None:
        while True:
            for service in self._fake.functions.all():
                if service.url:
                    self._scale_server(service)
                else:
                    self._scale_function(service)
            await asyncio.sleep(TICK_S)

    def _scale_server(self, service: Service) -> None:
        """Keeps `min_containers`, replaces those of an older definition, stops idle ones."""
        live = [c for c in self.live(service) if not c.stopping]
        definition_id = self._fake.functions.live_definition(service)
        settings = self._fake.functions.settings(service)
        now, old = time.time(), [c for c in live if c.definition_id != definition_id]
        current = [c for c in live if c not in old]
        wanted = max(settings.min_containers, 1 if old else 0) if definition_id else 0
        if len(current) < wanted and now - self._tried.get(service.id, 0) > TRY_AGAIN_S:
            self.launch(service)
        for container in live:
            started_late = not container.ready and now - container.enqueued_at > _startup_s(container)
            idle = container.ready and not container.in_flight and now - container.used_at > _window_s(settings)
            replaced = container in old and any(c.ready for c in current)
            if started_late:
                self._say(container, f"Container did not start within {_startup_s(container)} s.")
            if started_late or replaced or not definition_id or (idle and len(current) > settings.min_containers):
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

    def _soon(self, doing: Any) -> None:
        task = asyncio.ensure_future(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # One container's life

    def launch(self, service: Service, cold: bool = False) -> Container:
        """A new container, from the snapshot of its definition where there is one; `cold`: without any."""
        definition_id = self._fake.functions.live_definition(service)
        definition = self._fake.functions.definitions[definition_id]
        task_id = new_id("ta")
        folder = self._fake.folder / "containers" / task_id
        for part in ("files", "root"):
            (folder / part).mkdir(parents=True)
        snapshots = definition.checkpointing_enabled and not cold
        snapshot = self._snapshots.get(definition_id) if snapshots else None
        environment = self._environment(task_id, service, definition, snapshots)
        container = Container(task_id, service, definition_id, definition, folder, environment, snapshot)
        container.restoring = snapshot is not None
        self._all[task_id] = container
        container.watch = asyncio.ensure_future(self._live(container, snapshots))
        return container

    async def _live(self, container: Container, snapshots: bool) -> None:
        """From its start to its end, and what follows from the end."""
        door = await self._fake.listen(container, sock=_unix_socket(container.folder, "control.sock"))
        try:
            self._furnish(container, snapshots)
            container.exit_code = await self._run(container) if container.exit_code is None else container.exit_code
        except Exception as error:
            self._fake.failures.append(f"container {container.task_id} could not be started: {error!r}")
        door.close()
        for part in ("files", "root"):
            shutil.rmtree(container.folder / part)
        if container.exit_code and not container.stopping:
            self._say(container, f"Runner failed with exit code: {container.exit_code}")
        container.finished_at = time.time()
        if not container.ready and not container.stopping:
            self._tried[container.service.id] = time.time()
        if container.exit_code == RESTORE_FAILED and not container.stopping:
            self.launch(container.service, cold=True)
        result = container.result
        if container.exit_code and not container.stopping and result is None:
            result = Result(
                status=Result.GENERIC_STATUS_FAILURE,
                exception=f"Runner failed with exit code: {container.exit_code}",
                exitcode=container.exit_code,
            )
        self._fake.functions.lost(container, result)
        if result is not None and not container.ready:  # it did not even get to its first input: none will ever run
            for one in self._fake.functions.waiting(container.service):
                one.finish(result)

    async def _run(self, container: Container) -> int:
        """Runs its process until it ends. Returns the exit code, 128 + the signal if it was killed by one."""
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        if container.definition.is_server:  # two servers may have the same port
            namespaces.append("--net")
        booted_as = container.snapshot.environment if container.snapshot else container.environment
        process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", "unshare", *namespaces,
            "sh", str(HERE / "enter.sh"), str(container.folder), str(container.folder / "mounts"),
            sys.executable, "-P", str(HERE / "entrypoint.py"),
            env=booted_as, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, limit=2**24,
        )  # fmt: skip
        container.process, container.started_at = process, time.time()
        if container.stopping:
            container.kill(signal.SIGKILL)
        assert process.stdout and process.stderr
        await asyncio.gather(
            self._collect(container, process.stdout, STDOUT), self._collect(container, process.stderr, STDERR)
        )
        code = await process.wait()
        if container.exit_code is not None:
            return container.exit_code
        return code if code >= 0 else 128 - code

    async def _collect(self, container: Container, stream: asyncio.StreamReader, source: int) -> None:
        """Its lines go to the logs; not what it says before it is restored, which the snapshotted one has said."""
        async for line in stream:
            if not container.restoring and not line.startswith(b"unshare: "):
                one = self._fake.functions.running_on(container)
                self._write(container, line.decode(errors="replace").rstrip("\n"), source, one)

    def _say(self, container: Container, text: str) -> None:
        self._write(container, text, SYSTEM, None)

    def _write(self, container: Container, text: str, source: int, one: Input | None) -> None:
        service = container.service
        self._fake.logs.write(text, source, service.app_id, service.id, container.task_id, one.call_id if one else "")

    def _environment(
        self, task_id: str, service: Service, definition: api_pb2.Function, snapshots: bool
    ) -> dict[str, str]:
        """The machine's, then the image's, then the secrets', then Modal's own."""
        own = {
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": task_id,
            "MODAL_IMAGE_ID": definition.image_id,
            "MODAL_ENVIRONMENT": self._fake.apps[service.app_id].environment,
            "MODAL_SERVER_URL": "unix:/__modal/control.sock",
            "MODAL_CONTAINER_ARGUMENTS_PATH": "/__modal/arguments",
            "MODAL_RESTORE_STATE_PATH": "/__modal/restore-state.json",
            "MODAL_HEARTBEAT_INTERVAL": "1",
            "MODAL_REGION": "us-east-1",
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
            "PYTHONUNBUFFERED": "1",
        }
        if snapshots:
            own["MODAL_ENABLE_SNAP_RESTORE"] = "1"
        machine = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/root:/pkg",
        }
        secrets = [self._fake.secrets.values(id_) for id_ in definition.secret_ids]
        environment = machine | self._fake.machine | self._fake.images.environment(definition.image_id)
        for values in secrets:
            environment |= values
        return environment | own

    def _furnish(self, container: Container, snapshots: bool) -> None:
        """Writes what the container finds: its arguments, the uploaded files, its volumes, its environment."""
        if os.geteuid():
            raise PermissionError("containers are made of namespaces and mounts: run the tests as root")
        definition = api_pb2.Function()
        definition.CopyFrom(container.definition)
        definition.is_checkpointing_function = snapshots
        definition._experimental_enable_gpu_snapshot = (
            definition.experimental_options.get("enable_gpu_snapshot", "").lower() == "true"
        )
        app = self._fake.apps[container.service.app_id]
        arguments = api_pb2.ContainerArguments(
            task_id=container.snapshot.task_id if container.snapshot else container.task_id,
            function_id=container.service.id,
            app_id=app.id,
            function_def=definition,
            environment_name=app.environment,
            checkpoint_id=new_id("ch") if snapshots else None,
            app_layout=self._fake.apps.layout(app),
        )
        for dependency in definition.object_dependencies:
            known = api_pb2.Object(object_id=dependency.object_id)
            if dependency.object_id.startswith("vo-"):
                known.volume_metadata.CopyFrom(self._fake.volumes.metadata(dependency.object_id))
            arguments.app_layout.objects.append(known)
        (container.folder / "arguments").write_bytes(arguments.SerializeToString())
        (container.folder / "checkpoint").touch()
        _write_environ(container, container.snapshot.environment if container.snapshot else container.environment)
        layers = self._fake.images.layers(definition.image_id)
        copied = [image.context_mount_id for image in layers if image.context_mount_id]
        for mount_id in [*copied, *definition.mount_ids]:
            for file in self._fake.mounts.files[mount_id]:
                path = container.folder / "files" / file.filename.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._fake.blobs.path(file.sha256_hex), path)
                path.chmod(file.mode or 0o644)
        rows = [
            (
                str(self._fake.volumes.by_id(mount.volume_id).path(mount.sub_path)),
                mount.mount_path,
                "ro" if mount.read_only else "rw",
            )
            for mount in definition.volume_mounts
        ]
        (container.folder / "mounts").write_text("".join("\t".join(row) + "\n" for row in rows))

    async def stop(self, container: Container) -> None:
        """Asks it to end, which runs its exit methods, and ends it if it does not; its input goes to another one."""
        if container.stopping or container.finished_at:
            return
        container.stopping = True
        http = container.definition.http_config
        drained = time.time() + http.exit_grace_period
        while container.in_flight and time.time() < drained:
            await asyncio.sleep(TICK_S)
        container.kill(signal.SIGTERM if container.definition.is_server else signal.SIGINT)
        end = time.time() + (EXIT_S if container.ready else 0)
        while not container.finished_at and time.time() < end:
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
        self._soon(self.stop(self[request.task_id]))
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
            self._snapshots[container.definition_id] = Snapshot(container.task_id, container.environment)
            self._say(container, "Snapshot created.")
            self._continue(container, "resume")
            return
        container.restoring = False
        self._say(container, f"Restoring from the snapshot of {container.snapshot.task_id}.")
        if not self._failing_restores:
            self._continue(container, "restore")
            return
        self._failing_restores -= 1
        if container.definition.resources.gpu_config.gpu_type:
            self._continue(container, "error")  # at which the SDK itself exits with 222
        else:
            self.crash(container.task_id, RESTORE_FAILED)

    def _continue(self, container: Container, word: str) -> None:
        """The files by which Modal's runtime tells the SDK that the container goes on, and as which one."""
        _write_environ(container, container.environment)
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
            with container.socket() as probe, contextlib.suppress(OSError):
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
                    function_call_invocation_type=one.invocation,  # type: ignore[arg-type]
                )
                return api_pb2.FunctionGetInputsResponse(inputs=[item])
            await asyncio.sleep(TICK_S)
        return api_pb2.FunctionGetInputsResponse()


def _caller() -> Container:
    container = calling.get()
    if container is None:
        raise GRPCError(Status.PERMISSION_DENIED, "Only a container may say this")
    return container


def _unix_socket(folder: Path, name: str) -> socket.socket:
    """Bound to a path that may be longer than the 107 bytes that an address holds."""
    handle = os.open(folder, os.O_PATH)
    try:
        made = socket.socket(socket.AF_UNIX)
        made.bind(f"/proc/self/fd/{handle}/{name}")
        return made
    finally:
        os.close(handle)


def _window_s(settings: api_pb2.AutoscalerSettings) -> float:
    return settings.scaledown_window or 60


def _startup_s(container: Container) -> float:
    return container.definition.startup_timeout_secs or 300


def _write_environ(container: Container, environment: dict[str, str]) -> None:
    (container.folder / "spec_environ").write_text("\0".join(f"{k}={v}" for k, v in environment.items()))
