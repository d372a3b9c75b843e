"""One container: a real process that runs the SDK's own entrypoint, and what it finds around itself."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
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

from modal_proto import api_pb2

from .functions import Service
from .lifecycle import Worker
from .logs import Source
from .objects import new_id
from .views import View

if TYPE_CHECKING:
    from .server import FakeModal

HERE = Path(__file__).parent
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
    snapshots: bool  # it makes a snapshot, or comes from one
    snapshot: Snapshot | None  # that it is restored from
    worker: Worker = field(default_factory=Worker)
    environment: dict[str, str] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)  # by volume id
    enqueued_at: float = field(default_factory=time.time)
    started_at: float = 0
    finished_at: float = 0
    ready: bool = False  # a server answers, a function asks for inputs
    restoring: bool = False  # still the snapshotted container, booting up to its checkpoint
    died_restoring: bool = False  # killed in its restore
    stopping: bool = False
    cancels: bool = False  # told to end by a stop that cancels what it answers
    in_flight: int = 0
    used_at: float = field(default_factory=time.time)
    cancelled: list[str] = field(default_factory=list)  # input ids that it is to be told of
    exit_code: int | None = None
    result: api_pb2.GenericResult | None = None  # what it said of its own failure
    unsaid: list[tuple[str, Source]] = field(default_factory=list)  # lines of a boot that is not told: (text, source)
    process: asyncio.subprocess.Process | None = None
    watch: asyncio.Task[None] | None = None

    @property
    def server(self) -> bool:
        return self.definition.is_server

    async def start(self) -> asyncio.subprocess.Process:
        """Its process, in namespaces of its own that end with it, as it does with the fake."""
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        if self.server:  # two servers may have the same port
            namespaces.append("--net")
        self.process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", "unshare", *namespaces,
            "sh", str(HERE / "enter.sh"), str(self.folder), str(self.folder / "mounts"),
            sys.executable, "-P", str(HERE / "entrypoint.py"),
            env=self.snapshot.environment if self.snapshot else self.environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=2**24,
        )  # fmt: skip
        self.started_at = time.time()
        if self.stopping:
            self.kill(signal.SIGKILL)
        return self.process

    def pid(self) -> int | None:
        """Of its first process, as this machine numbers it."""
        if self.process is not None:
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

    def processes(self) -> Iterator[Path]:
        """Their folders in this machine's /proc."""
        own = os.readlink(f"/proc/{self.pid()}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns" / "pid") == own:
                    yield process

    def handles(self) -> Iterator[Path]:
        """What its processes have open, as links."""
        for process in self.processes():
            with contextlib.suppress(OSError):
                yield from (process / "fd").iterdir()

    def socket_inside(self, _: Any = None) -> socket.socket:
        """A socket in the container's own network."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.pid()}/ns/net") as theirs, open("/proc/thread-self/ns/net") as ours:
            if libc.setns(theirs.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                return socket.socket()
            finally:
                libc.setns(ours.fileno(), CLONE_NEWNET)

    def control_socket(self) -> socket.socket:
        """Where it finds the control plane. Bound through a handle: a path may be longer than an address."""
        handle = os.open(self.folder, os.O_PATH)
        try:
            made = socket.socket(socket.AF_UNIX)
            made.bind(f"/proc/self/fd/{handle}/control.sock")
            return made
        finally:
            os.close(handle)

    def write_environ(self, environment: dict[str, str]) -> None:
        """The environment that Modal's runtime says it has, which the SDK reads again after a restore."""
        (self.folder / "spec_environ").write_text("\0".join(f"{k}={v}" for k, v in environment.items()))

    def furnish(self, fake: FakeModal) -> None:
        """Writes what it finds: its arguments, its environment, the uploaded files, the list of its volumes."""
        if os.geteuid():
            raise PermissionError("containers are made of namespaces and mounts: run the tests as root")
        for part in ("files", "root"):
            (self.folder / part).mkdir()
        (self.folder / "checkpoint").touch()
        (self.folder / "arguments").write_bytes(self._arguments(fake).SerializeToString())
        self.environment = self._environment(fake)
        self.write_environ(self.snapshot.environment if self.snapshot else self.environment)
        layers = fake.images.layers(self.definition.image_id)
        mounts = [*(layer.context_mount_id for layer in layers if layer.context_mount_id), *self.definition.mount_ids]
        for file in (file for mount_id in mounts for file in fake.mounts.files[mount_id]):
            path = self.folder / "files" / file.filename.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fake.blobs.path(file.sha256_hex), path)
            path.chmod(file.mode or 0o644)
        with (self.folder / "mounts").open("w") as rows:
            for mount in self.definition.volume_mounts:
                view = View(fake.volumes.by_id(mount.volume_id).folder, self.folder / "volumes" / mount.volume_id)
                self.views[mount.volume_id] = view
                folder, access = view.folder / mount.sub_path.lstrip("/"), "ro" if mount.read_only else "rw"
                print(folder, mount.mount_path, access, sep="\t", file=rows)

    def clear(self) -> None:
        for part in ("files", "root", "volumes"):
            shutil.rmtree(self.folder / part, ignore_errors=True)

    def _arguments(self, fake: FakeModal) -> api_pb2.ContainerArguments:
        definition = api_pb2.Function()
        definition.CopyFrom(self.definition)
        definition.is_checkpointing_function = self.snapshots
        wanted = definition.experimental_options.get("enable_gpu_snapshot", "")
        definition._experimental_enable_gpu_snapshot = wanted.lower() == "true"
        app = fake.apps[self.service.app_id]
        layout = fake.apps.layout(app)
        for dependency in definition.object_dependencies:
            known = api_pb2.Object(object_id=dependency.object_id)
            if dependency.object_id.startswith("vo-"):
                known.volume_metadata.CopyFrom(fake.volumes.metadata(dependency.object_id))
            layout.objects.append(known)
        return api_pb2.ContainerArguments(
            task_id=self.snapshot.task_id if self.snapshot else self.task_id, function_id=self.service.id,
            app_id=app.id, app_layout=layout, environment_name=app.environment, function_def=definition,
            checkpoint_id=new_id("ch") if self.snapshots else None,
        )  # fmt: skip

    def _environment(self, fake: FakeModal) -> dict[str, str]:
        """The machine's, then the image's, then the secrets', then Modal's own."""
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/root:/pkg",
        }
        environment |= fake.machine | fake.images.environment(self.definition.image_id)
        for secret_id in self.definition.secret_ids:
            environment |= fake.secrets.values(secret_id)
        return (
            environment
            | {
                "MODAL_IS_REMOTE": "1",
                "MODAL_TASK_ID": self.task_id,
                "MODAL_IMAGE_ID": self.definition.image_id,
                "MODAL_ENVIRONMENT": fake.apps[self.service.app_id].environment,
                "MODAL_SERVER_URL": "unix:/__modal/control.sock",
                "MODAL_CONTAINER_ARGUMENTS_PATH": "/__modal/arguments",
                "MODAL_RESTORE_STATE_PATH": "/__modal/restore-state.json",
                "MODAL_HEARTBEAT_INTERVAL": "1",
                "MODAL_REGION": self.worker.region,
                "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
                "PYTHONUNBUFFERED": "1",
                "NVIDIA_FAKE_DRIVER": self.worker.driver,  # what the machine's nvidia-smi tells
            }
            | ({"MODAL_ENABLE_SNAP_RESTORE": "1"} if self.snapshots else {})
        )
