"""How a server of a release comes up: from its snapshot, or cold, and then why.

The first boot of a release is cold: it is warmed up, asked its golden answers, snapshotted, and handed out. Later ones
are restored. A snapshot that can't be used is replaced, so that only one boot pays for it.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from modal_app.warmup import LOUD, Golden, NoAnswer, answer_again, differences, warm_up
from tasks import criu, cuda_checkpoint
from tasks.criu import CriuFailed
from tasks.criu_images import leave_out_zeros
from tasks.cuda_checkpoint import CudaFailed
from tasks.platforms.local import server as servers
from tasks.platforms.local import snapshot
from tasks.platforms.local.control import run_folder
from tasks.platforms.local.proc import connections
from tasks.platforms.local.server import Server
from tasks.platforms.local.snapshot import Ability, Manifest, NoSnapshot, Wanted
from tasks.release import BootKind, Build, Endpoint, Release, StageName
from tasks.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

DUMP_LIMIT_S = 600.0
CUDA_LIMIT_S = 300.0
CLOSE_LIMIT_S = 5.0
"""How long the last connection of the warm-up may take to be gone."""

_REASONS = (NoSnapshot, NoAnswer, CriuFailed, CudaFailed, OSError, ValueError, LookupError)


@dataclass(frozen=True)
class Booted:
    """A healthy server and how it came up."""

    server: Server
    kind: BootKind
    reason: str
    health_s: float
    """Seconds from start to a 200 of /health."""
    snapshot: str | None = None
    """Which one it took, or came back from."""
    stays: bool = False
    """Whether it is suspended and not ended when idle."""


@dataclass(frozen=True)
class Boot:
    """The boots of one release with one key on one stage."""

    store: Store
    stage: StageName
    release: Release
    key: str | None
    wanted: Wanted
    timeout_s: float
    """Seconds until a server must be healthy; and as many for its warm-up."""
    halt: threading.Event
    """Gives a boot up."""
    generation: str = ""

    def __call__(self, refused: str = "") -> Booted:
        """A healthy server. `refused`: why the one that was kept could not be used.

        Raises what `server.start` and `wait_healthy` raise; no process is left then.
        """
        began = time.monotonic()
        ability = self.ability(servers.command(self.store, self.release))
        if self.wanted.on and ability.kind != "memory" and (self.folder / "images").is_dir():
            try:
                return self._restored(ability, began)
            except _REASONS as reason:
                refused = str(reason)
                log.warning("%s is not restored: %s", self.release.label, refused)
        server = self._cold(walled=ability.kind == "cold")
        health_s = time.monotonic() - began
        if ability.kind == "cold":
            return Booted(server, BootKind.FELL_BACK if refused else BootKind.COLD, refused or ability.why, health_s)
        try:
            server, taken = self._taken(server, ability)
        except _REASONS as reason:
            log.warning("no snapshot of %s: %s", self.release.label, reason)
            server.stop()  # it may have been left with half of CRIU's or the driver's work in it
            reasons = "; ".join(filter(None, (refused, f"no snapshot was taken: {reason}")))
            return Booted(self._cold(walled=True), BootKind.FELL_BACK, reasons, time.monotonic() - began)
        except BaseException:
            server.stop()
            raise
        kind = BootKind.FELL_BACK if refused else BootKind.CREATED
        return Booted(server, kind, refused or str(ability), health_s, taken, stays=ability.kind == "memory")

    @property
    def folder(self) -> Path:
        name = snapshot.folder_name(self.release.id, self.key, self.generation)
        return snapshot.snapshots_folder(self.store.root, self.stage) / name

    @property
    def build(self) -> Build | None:
        return self.store.build(self.release.build)

    @property
    def gpu(self) -> bool:
        return self.build is not None and self.build.recipe.backend == "cuda"

    def ability(self, argv: list[str]) -> Ability:
        if snapshot.maps_its_model(argv):
            return Ability("cold", "the server maps its model file: set server.memory_map = false")
        ability = snapshot.snapshots_here(self.wanted, gpu=self.gpu)
        if ability.kind == "disk" and self.build is not None and uses_amx(self.build):
            return Ability(
                "cold", f"the build uses AMX, whose tiles {ability.why} does not put back: local.amx decides"
            )
        return ability

    @property
    def _logs(self) -> Path:
        return run_folder(self.store.root, self.stage) / "servers"

    def _cold(self, *, walled: bool) -> Server:
        """A fresh server. Neither CRIU 4.2 nor the driver brings one back into the namespaces of a wall."""
        began = time.monotonic()
        server = servers.start(self.store, self.release, self.key, self._logs, self.timeout_s, self.halt, walled=walled)
        servers.wait_healthy(server, self.timeout_s - (time.monotonic() - began), self.halt)
        return server

    def _machine(self) -> dict[str, str]:
        return snapshot.machine(criu.version(self.wanted.criu), gpu=self.gpu)

    # -- taking one ---------------------------------------------------------------------------------

    def _taken(self, server: Server, ability: Ability) -> tuple[Server, str]:
        """(the server that runs on, the id of the new snapshot) of a fresh server.

        A snapshot on disk is tried before it counts: the server that runs on is what came out of it, and it has
        answered as before. A process that was dumped may look well until it computes: with CRIU 4.2.1 one that has
        used AMX dies of SIGILL at its next tile instruction, dumped or restored (criu#1448).
        """
        golden = self._warmed(server)
        folder = snapshot.begin(self.folder)
        try:
            if ability.kind == "memory":
                taken = secrets.token_hex(6)
            else:
                self._dump(server, folder / "images")
                manifest = snapshot.write_manifest(folder, self.release, self._machine(), server.port, server.log)
                taken = manifest.id
                server.stop()  # its port is needed
                server = self._brought_back(folder, manifest)
            try:
                if ability.kind != "memory":
                    self._check_answers(server, golden)
                snapshot.publish(folder, self.folder, golden)
            except BaseException:
                server.stop()
                raise
            return server, taken
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _check_answers(self, server: Server, golden: Golden) -> None:
        """Raises NoSnapshot when a restored server does not answer as it did before."""
        address, key = server.endpoint.base_url, server.endpoint.api_key
        try:
            answers = self._while_alive(server, lambda: answer_again(address, key, golden))
        except NoAnswer as error:
            raise NoSnapshot(f"what came out of it does not answer: {error}") from error
        if wrong := list(differences(golden, answers, LOUD)):
            raise NoSnapshot(f"what came out of it answers otherwise: {wrong[0]}")

    def _warmed(self, server: Server) -> Golden:
        """Raises NoAnswer, also when the warm-up is given up or hangs (the server is gone then)."""
        vision = "mmproj" in self.release.files
        address, key = server.endpoint.base_url, server.endpoint.api_key
        return self._while_alive(server, lambda: warm_up(address, key, vision=vision))

    def _while_alive(self, server: Server, ask: Callable[[], T]) -> T:
        """What asking a server gives. Raises NoAnswer; the server is ended when it takes too long or is given up."""
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            deadline = time.monotonic() + self.timeout_s
            while not _over(asking):
                if self.halt.is_set() or not server.alive or time.monotonic() > deadline:
                    server.stop()  # which ends the asking, too
        try:
            return asking.result()
        except NoAnswer as error:
            server.gone_within(servers.DYING_S)  # a connection breaks a moment before its process has ended
            raise NoAnswer(f"{error} (the server: {server.cause_of_death})") from error

    def _dump(self, server: Server, images: Path) -> None:
        images.mkdir(mode=0o700)
        deadline = time.monotonic() + CLOSE_LIMIT_S
        while connections(server.pid):
            if time.monotonic() > deadline:
                raise NoSnapshot("a connection of the warm-up does not end")
            time.sleep(0.01)
        if self.gpu:
            cuda_checkpoint.suspend(server.pid, timeout_s=CUDA_LIMIT_S)
        criu.dump(self.wanted.criu, server.pid, images, timeout_s=DUMP_LIMIT_S)
        leave_out_zeros(images)

    # -- coming back --------------------------------------------------------------------------------

    def _restored(self, ability: Ability, began: float) -> Booted:
        if ability.kind != "disk":
            raise NoSnapshot(ability.why)
        manifest = snapshot.usable(self.folder, self.release, self._machine())
        server = self._brought_back(self.folder, manifest)
        return Booted(server, BootKind.RESTORED, str(ability), time.monotonic() - began, manifest.id)

    def _brought_back(self, folder: Path, manifest: Manifest) -> Server:
        """The server that was dumped into a folder. Raises NoSnapshot, CriuFailed or CudaFailed."""
        output = servers.new_log(self._logs, self.release)
        said = output.with_suffix(".criu.log")
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(snapshot.check_pages, folder, manifest)
            try:
                server = servers.restore(
                    criu.restore_argv(self.wanted.criu, folder / "images", said, manifest.output),
                    self.release,
                    Endpoint(base_url=f"http://127.0.0.1:{manifest.port}", api_key=self.key),
                    output,
                    self.timeout_s,
                    self.halt,
                    reading,
                    said,
                )
            except NoSnapshot:
                reading.result()  # damage says more than what CRIU made of it
                raise
        if self.gpu:
            try:
                cuda_checkpoint.resume(server.pid, timeout_s=CUDA_LIMIT_S)
            except BaseException:
                server.stop()
                raise
        return server


def uses_amx(build: Build) -> bool:
    """Whether the code of a build may use AMX."""
    return "amx_tile" in build.toolchain.get("cpu", "").split()


def _over(work: Future[T]) -> bool:
    """Whether it is, after a moment's wait."""
    try:
        work.exception(timeout=0.1)
    except TimeoutError:
        return False
    return True


# -- depth `memory`: the process stays -----------------------------------------------------------------


def suspend(server: Server) -> None:
    """Empty its GPU and stop it. Raises CudaFailed: it must be ended then."""
    cuda_checkpoint.suspend(server.pid, timeout_s=CUDA_LIMIT_S)
    os.kill(server.pid, signal.SIGSTOP)


def resume(booted: Booted) -> Booted:
    """It runs and answers again. Raises CudaFailed, NoSnapshot or OSError: it must be ended then."""
    began, server = time.monotonic(), booted.server
    if not server.alive:
        raise NoSnapshot(f"the suspended server is gone: {server.ending}")
    os.kill(server.pid, signal.SIGCONT)
    cuda_checkpoint.resume(server.pid, timeout_s=CUDA_LIMIT_S)
    if not servers.answers(server.endpoint):
        raise NoSnapshot(f"the resumed server does not answer /health ({server.ending})")
    return replace(
        booted, kind=BootKind.RESTORED, reason="memory: the process stayed", health_s=time.monotonic() - began
    )
