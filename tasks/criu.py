"""CRIU: a running process into files, and back. Standard library only, so that it can be measured anywhere.

A process is restored into a pid namespace of its own, where its pid is free. CRIU stays as the init of that
namespace: the kernel ends everything in it when CRIU dies, CRIU dies with `unshare`, and `unshare` is told to die
with whoever started it (a restored process has lost what it was told itself: PR_SET_PDEATHSIG is not restored).
Between the fork and that word CRIU outlives an `unshare` that is killed alone: whoever gives one up kills its group.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
from functools import cache
from pathlib import Path

from modal_app.child import environment
from tasks.linux import NO_SNAPSHOTS, has_proc

NEW_KERNEL, NEEDED_THERE = (6, 16), (4, 2)
"""Linux 6.16 no longer answers what older versions of CRIU ask of its sockets."""
CHECK_LIMIT_S = 20.0

_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_MEMORY = Path("/dev/shm/llama-release-criu")
_ERROR = re.compile(r"^(?:\([\d.]+\))?\s*(?:pie: )?(?:\d+: )?Error \([^)]*\): (.*)$", re.MULTILINE)
_HARMLESS = re.compile(r"RLIMIT_NOFILE")


class CriuFailed(Exception):
    """CRIU is not here, too old, or did not do it; the message says which, in CRIU's own words."""


def find(wanted: str, cache: Path) -> str:
    """The CRIU to use: `wanted` when it is a path, else the one that `.ci/install-criu` put there, else on PATH."""
    installed = cache / "criu" / "criu"
    if "/" in wanted:
        return wanted
    return str(installed) if installed.exists() else shutil.which(wanted) or wanted


def version(criu: str) -> str:
    """The version of a CRIU that works on this machine. Raises CriuFailed."""
    if not has_proc():  # before all else: no Mac has `unshare`, and no root helps there
        raise CriuFailed(NO_SNAPSHOTS)
    if os.geteuid() != 0:
        raise CriuFailed("CRIU needs root")
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        raise CriuFailed("CRIU needs unshare and setpriv of util-linux")
    path = shutil.which(criu)
    if path is None:
        raise CriuFailed(f"there is no CRIU ({criu}): .ci/install-criu puts one into the cache")
    found, kernel = _says(path, os.stat(path).st_mtime_ns), os.uname().release
    if _numbers(kernel) >= NEW_KERNEL and _numbers(found) < NEEDED_THERE:
        raise CriuFailed(f"CRIU {found} doesn't work on Linux {kernel}: 4.2 or newer does (.ci/install-criu)")
    _check(path, os.stat(path).st_mtime_ns)
    return found


@cache
def _says(criu: str, _mtime_ns: int) -> str:
    """The version that an executable says it is; asked once while it is the same file."""
    said = _run([criu, "--version"])
    found = re.search(r"Version: (\S+)", said.stdout)
    if found is None:
        raise CriuFailed(f"{criu} doesn't say its version: {(said.stdout + said.stderr).strip()[:200]}")
    return found[1]


@cache
def _check(criu: str, _mtime_ns: int) -> None:
    """Raises CriuFailed when CRIU or a pid namespace may not do here what they must (in most containers)."""
    said = _run([*_NAMESPACE, *_with_a_memory(), criu, "check"])
    if said.returncode:
        lines = (said.stderr + said.stdout).strip().splitlines()
        raise CriuFailed(f"CRIU can't work here: {lines[-1] if lines else f'exit code {said.returncode}'}")


def _run(
    argv: list[str], timeout_s: float = CHECK_LIMIT_S, failed: str = "CRIU can't be run"
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv, env=environment(), capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CriuFailed(f"{failed}: {error}") from error


def dump(criu: str, pid: int, images: Path, *, timeout_s: float) -> None:
    """Write a process into the folder `images`; it is stopped meanwhile and runs on afterwards.

    It must lead its own session and have no open connection. Raises CriuFailed; the process is in no state to be
    used then, as CRIU may have been killed while its own code ran in it.
    """
    argv = [
        "setpriv", "--pdeathsig", "KILL", criu, "dump", "--tree", str(pid), "--images-dir", str(images),
        "--leave-running", "--tcp-close", "--manage-cgroups=ignore", "--log-file", "dump.log", "-v2",
    ]  # fmt: skip
    done = _run(argv, timeout_s, "CRIU did not dump")
    if code := done.returncode:
        ending = done.stderr.strip() or (f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}")
        raise CriuFailed(f"CRIU did not dump: {complaint(images / 'dump.log', ending)}")


def restore_argv(criu: str, images: Path, log: Path, output_was: Path) -> list[str]:
    """What brings the process back and lives as long as it does.

    The process is left stopped, see `waits`: SIGCONT sets it going. CRIU writes to `log`. The restored process
    writes to the starter's stdout where it wrote to the file `output_was`.
    """
    return [
        *_NAMESPACE, *_with_a_memory(),
        criu, "restore", "--images-dir", str(images),
        "--leave-stopped", "--tcp-close", "--manage-cgroups=ignore",
        "--inherit-fd", f"fd[1]:{str(output_was).lstrip('/')}",
        "--work-dir", str(log.parent), "--log-file", log.name, "-v2",
    ]  # fmt: skip


def waits(pid: int) -> bool:
    """Whether a restored process is complete: CRIU has let go of it, stopped."""
    states = [_state(task / "status") for task in threads(pid)]
    return bool(states) and all(state == ("T", "0") for state in states)


def threads(pid: int) -> list[Path]:
    """The folders of a process's threads; none when it is gone, also when it goes just now."""
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _state(status: Path) -> tuple[str, str]:
    """(state, pid of the tracer) of a thread."""
    try:
        said = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
    except OSError:
        return "", ""
    return said["State"][0], said["TracerPid"]


def _with_a_memory() -> list[str]:
    """What gives CRIU a tmpfs as /run where it has none (in a container), for its own mount namespace only.

    There it keeps what the kernel can do. It would find that out anew each time, with network namespaces among other
    things, which takes as long as a small restore.
    """
    mounted = {tuple(line.split()[1:3]) for line in Path("/proc/mounts").read_text().splitlines()}
    if ("/run", "tmpfs") in mounted or (str(_MEMORY.parent), "tmpfs") not in mounted:
        return []
    _MEMORY.mkdir(mode=0o700, exist_ok=True)
    found = _MEMORY.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        return []
    return ["sh", "-c", 'mount --bind "$0" /run && exec "$@"', str(_MEMORY)]


def complaint(log: Path, ending: str) -> str:
    """What CRIU has to say of a failure, and how it ended: its words may be of what followed when it was killed."""
    text = log.read_text(errors="replace") if log.exists() else ""
    errors = [line for line in _ERROR.findall(text) if not _HARMLESS.search(line)]
    return f"{'; '.join(errors[:2])} ({ending})" if errors else ending


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])
