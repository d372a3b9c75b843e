"""The CUDA driver's process checkpoint: a process's GPU memory into its own RAM, and back. Standard library only.

    python -m tasks.cuda_checkpoint suspend PID
    python -m tasks.cuda_checkpoint resume PID

Driver 570 (CUDA 12.8) and newer: "CUDA Checkpointing" in the driver API's reference. A suspended process holds no
GPU memory, no device file and no mapping of one, so CRIU can dump it; until it is resumed, its CUDA calls wait.

The calls are made in a process of their own: libcuda can't be unloaded, and a call that hangs can't be given up.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from pathlib import Path

from modal_app.child import DEVICES, PYTHON, environment
from tasks.linux import NO_SNAPSHOTS, has_proc

LIBRARY = "libcuda.so.1"
NEEDED = 12080
"""CUDA 12.8, as cuDriverGetVersion counts: the first that has the calls."""
LOCK_LIMIT_MS = 30_000
"""How long CUDA work that is under way may take to end."""
_GPUS = Path("/proc/driver/nvidia/gpus")
_ROOT = Path(__file__).parents[1]


class CudaFailed(Exception):
    """The driver can't, or did not, checkpoint; the message says which call and what it answered."""


def why_not() -> str:
    """Why no process can be checkpointed here; '' when one can."""
    if not has_proc():
        return NO_SNAPSHOTS
    if not _GPUS.is_dir() or not any(_GPUS.iterdir()):
        return "there is no NVIDIA GPU"
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError as error:
        return f"there is no NVIDIA driver: {error}"
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    if version.value < NEEDED or not hasattr(cuda, "cuCheckpointProcessLock"):
        return f"the NVIDIA driver is of CUDA {version.value / 1000:.2f}: process checkpoints begin with 12.8 (570)"
    return ""


def hardware() -> str:
    """Driver and GPUs: a process comes back only on the ones it was suspended on."""
    driver = _GPUS.with_name("version").read_text().splitlines()[0]
    gpus = [(folder / "information").read_text() for folder in sorted(_GPUS.iterdir())]
    lines = [line for text in gpus for line in text.splitlines() if line.startswith(("Model", "GPU UUID"))]
    return " | ".join(" ".join(line.split()) for line in [driver, *lines])


def suspend(pid: int, *, timeout_s: float) -> float:
    """Empty the GPU of a process; seconds that the driver took. Raises CudaFailed: the process is of no use then."""
    return _in_a_process("suspend", pid, timeout_s)


def resume(pid: int, *, timeout_s: float) -> float:
    """The process has its GPU memory back and runs on; seconds. Raises CudaFailed: it is of no use then."""
    return _in_a_process("resume", pid, timeout_s)


def _in_a_process(action: str, pid: int, timeout_s: float) -> float:
    argv = [
        "setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tasks.cuda_checkpoint", action, str(pid),
    ]  # fmt: skip
    try:
        env = environment(PYTHON, DEVICES)
        done = subprocess.run(argv, cwd=_ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CudaFailed(f"CUDA did not {action}: {error}") from error
    if done.returncode:
        raise CudaFailed(f"CUDA did not {action}: {(done.stderr or done.stdout).strip()[-300:]}")
    return float(done.stdout)


# -- in the process of its own ----------------------------------------------------------------------------


class _LockArgs(ctypes.Structure):
    """CUcheckpointLockArgs; the other calls' arguments are optional."""

    _fields_ = (("timeoutMs", ctypes.c_uint), ("reserved0", ctypes.c_uint), ("reserved1", ctypes.c_uint64 * 7))


def _call(cuda: ctypes.CDLL, name: str, *arguments: object) -> None:
    result = getattr(cuda, name)(*arguments)
    if result:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(result, ctypes.byref(text))
        raise CudaFailed(f"{name}: {(text.value or b'').decode()} ({result})")


def main(action: str, pid: int) -> float:
    """Do it; seconds. Raises CudaFailed."""
    cuda = ctypes.CDLL(LIBRARY)
    _call(cuda, "cuInit", 0)
    start = time.monotonic()
    if action == "suspend":
        lock = _LockArgs(timeoutMs=LOCK_LIMIT_MS)
        _call(cuda, "cuCheckpointProcessLock", pid, ctypes.byref(lock))
        _call(cuda, "cuCheckpointProcessCheckpoint", pid, None)
    else:
        _call(cuda, "cuCheckpointProcessRestore", pid, None)
        _call(cuda, "cuCheckpointProcessUnlock", pid, None)
    return time.monotonic() - start


if __name__ == "__main__":
    try:
        print(main(sys.argv[1], int(sys.argv[2])))
    except (CudaFailed, OSError) as error:
        sys.exit(str(error))
