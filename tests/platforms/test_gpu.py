"""A server on a GPU, with a libcuda that only writes down what it is asked: the order of things, and both depths.

The driver is the fake here, at its own interface; the server (a CPU build that calls itself CUDA), the signals, the
process of its own that makes the calls, and CRIU are real.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks import criu, cuda_checkpoint
from tasks.contracts.scripted import build as build_model
from tasks.contracts.scripted import thinks_then_answers
from tasks.cuda_checkpoint import CudaFailed
from tasks.platforms.local.proc import is_alive
from tasks.platforms.local.replica import Replica
from tasks.platforms.local.server import Server
from tasks.platforms.local.snapshot import Depth, Wanted, snapshots_here
from tasks.release import BootKind, BootRecord, Build, StageName
from tasks.settings import Settings
from tests.platforms.conftest import platform_at, stand_of
from tests.platforms.stand import Stand, until

LIBCUDA = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int note(const char *name, int pid) {
    FILE *file = fopen(getenv("CUDA_FAKE_CALLS"), "a");
    fprintf(file, "%s %d\n", name, pid);
    fclose(file);
    const char *failing = getenv("CUDA_FAKE_FAILS");
    return failing && !strcmp(failing, name) ? 801 : 0;
}
int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int *version) { *version = atoi(getenv("CUDA_FAKE_VERSION")); return 0; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_NOT_SUPPORTED"; return 0; }
int cuCheckpointProcessLock(int pid, unsigned *args) { return args[0] == 30000 ? note("lock", pid) : 1; }
int cuCheckpointProcessCheckpoint(int pid, void *args) { return args ? 1 : note("checkpoint", pid); }
int cuCheckpointProcessRestore(int pid, void *args) { return args ? 1 : note("restore", pid); }
int cuCheckpointProcessUnlock(int pid, void *args) { return args ? 1 : note("unlock", pid); }
"""


@dataclass
class Driver:
    """What the driver was asked, and what it is told to answer."""

    patch: pytest.MonkeyPatch
    log: Path

    def calls(self) -> list[tuple[str, int]]:
        """(call, pid) since the last time, oldest first."""
        lines = self.log.read_text().split("\n")[:-1] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [(name, int(pid)) for name, pid in map(str.split, lines)]

    def fails(self, call: str) -> None:
        self.patch.setenv("CUDA_FAKE_FAILS", call)


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(LIBCUDA)
    argv = ["cc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(folder / "cuda.c")]
    subprocess.run(argv, check=True, timeout=60)
    gpu = folder / "nvidia" / "gpus" / "0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: \t NVIDIA L40S\nIRQ:   10\nGPU UUID: \t GPU-1\n")
    (folder / "nvidia" / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1\nGCC\n")
    return folder


@pytest.fixture
def driver(libcuda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(cuda_checkpoint, "_GPUS", libcuda / "nvidia" / "gpus")
    monkeypatch.setattr(cuda_checkpoint, "LIBRARY", str(libcuda / "libcuda.so.1"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libcuda))
    monkeypatch.setenv("CUDA_FAKE_VERSION", "12080")
    log = tmp_path / "calls"
    monkeypatch.setenv("CUDA_FAKE_CALLS", str(log))
    return Driver(monkeypatch, log)


def test_a_gpu_is_emptied_under_lock_and_filled_before_it_is_unlocked(driver: Driver) -> None:
    assert cuda_checkpoint.why_not() == ""
    assert cuda_checkpoint.suspend(17, timeout_s=20) >= 0
    assert cuda_checkpoint.resume(17, timeout_s=20) >= 0
    assert driver.calls() == [("lock", 17), ("checkpoint", 17), ("restore", 17), ("unlock", 17)]
    driver.fails("checkpoint")
    with pytest.raises(CudaFailed, match=r"cuCheckpointProcessCheckpoint: CUDA_ERROR_NOT_SUPPORTED \(801\)"):
        cuda_checkpoint.suspend(17, timeout_s=20)


@pytest.mark.usefixtures("driver")
def test_a_snapshot_is_of_one_driver_and_the_very_gpu() -> None:
    assert cuda_checkpoint.hardware() == (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module 580.1 | Model: NVIDIA L40S | GPU UUID: GPU-1"
    )


def test_an_older_driver_is_cold_and_says_why(driver: Driver) -> None:
    driver.patch.setenv("CUDA_FAKE_VERSION", "12040")
    ability = snapshots_here(Wanted(True, "memory", "criu"), gpu=True)
    assert str(ability) == "cold: the NVIDIA driver is of CUDA 12.04: process checkpoints begin with 12.8 (570)"


# -- a replica ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand(base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("gpu")
    model = build_model(thinks_then_answers(), folder / "scripted.gguf")
    with stand_of(platform_at(folder / "store"), base, build, model) as made:
        path = made.platform.store.build_dir(build.digest) / "manifest.json"
        text = path.read_text().replace('"backend": "cpu"', '"backend": "cuda"')
        path.unlink()  # it is a hard link
        path.write_text(text)
        yield made


def _with_replica(stand: Stand, depth: Depth, act: Callable[[Replica], Awaitable[None]]) -> list[BootRecord]:
    """Boot records of a replica whose idle server is brought back from this depth."""

    stage: StageName = "production" if depth == "disk" else "staging"

    async def run() -> None:
        replica = Replica(
            stand.platform.store,
            stage,
            stand.first,
            secrets.token_hex(8),
            Wanted(True, depth, criu.find("criu", Settings().cache)),
            60.0,
        )
        try:
            await act(replica)
        finally:
            await replica.close()

    before = len(stand.platform.boots(stage))
    asyncio.run(run())
    assert stand.servers() == []
    return stand.platform.boots(stage)[before:]


def _stopped(server: Server) -> bool:
    return Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.real
def test_at_depth_memory_the_same_process_comes_back(stand: Stand, driver: Driver) -> None:
    async def act(replica: Replica) -> None:
        server = await replica.up()
        await replica.down()
        assert replica.server is None and replica.suspended == server.pid
        assert until(lambda: _stopped(server))
        assert driver.calls() == [("lock", server.pid), ("checkpoint", server.pid)]
        assert (await replica.up()).pid == server.pid and replica.suspended is None
        assert driver.calls() == [("restore", server.pid), ("unlock", server.pid)]

    created, restored = _with_replica(stand, "memory", act)
    assert (created.kind, restored.kind) == (BootKind.CREATED, BootKind.RESTORED)
    assert created.snapshot == restored.snapshot and created.pid == restored.pid


@pytest.mark.real
@pytest.mark.parametrize("how", ["the driver fails", "the process is killed"])
def test_a_process_that_cannot_be_resumed_is_replaced(stand: Stand, driver: Driver, how: str) -> None:
    async def act(replica: Replica) -> None:
        server = await replica.up()
        await replica.down()
        if how == "the driver fails":
            driver.fails("restore")
        else:
            os.kill(server.pid, signal.SIGKILL)
            while server.alive:  # in /proc it is a zombie while its other threads still end
                await asyncio.sleep(0.01)
            driver.fails("nothing")
        assert (await replica.up()).pid != server.pid
        assert not is_alive(server.pid)

    created, fell_back = _with_replica(stand, "memory", act)
    assert (created.kind, fell_back.kind) == (BootKind.CREATED, BootKind.FELL_BACK)
    assert "cuCheckpointProcessRestore" in fell_back.reason or "gone: killed by SIGKILL" in fell_back.reason


@pytest.mark.real
def test_a_process_that_cannot_be_suspended_is_ended(stand: Stand, driver: Driver) -> None:
    async def act(replica: Replica) -> None:
        server = await replica.up()
        driver.fails("checkpoint")
        await replica.down()
        assert replica.server is None and replica.suspended is None and not is_alive(server.pid)

    assert [b.kind for b in _with_replica(stand, "memory", act)] == [BootKind.CREATED]


@pytest.mark.real
def test_at_depth_disk_the_gpu_is_emptied_for_the_dump_and_filled_after_the_restore(
    stand: Stand, driver: Driver
) -> None:
    async def act(replica: Replica) -> None:
        first = (await replica.up()).pid
        calls = driver.calls()
        dumped = calls[0][1]
        assert calls == [("lock", dumped), ("checkpoint", dumped), ("restore", first), ("unlock", first)]
        assert first != dumped, "what serves is what came out of the snapshot"
        await replica.down()
        assert not is_alive(first) and not is_alive(dumped)
        assert driver.calls() == []
        again = (await replica.up()).pid
        assert driver.calls() == [("restore", again), ("unlock", again)]
        await replica.down()
        driver.fails("unlock")
        assert not (await replica.up()).restored

    kinds = [b.kind for b in _with_replica(stand, "disk", act)]
    assert kinds == [BootKind.CREATED, BootKind.RESTORED, BootKind.FELL_BACK]
