"""The operator's own machine that is no Linux: no /proc, no prctl in the C library. A stand-in for the platform.

What runs in it is in a mount namespace where an empty tmpfs lies over /proc; files, loopback and processes are this
machine's. The rest is in `sitecustomize`. What else a Mac has not (`unshare`, `setpriv`) is still there: nothing may
ask for it before it has asked for /proc.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_HERE = Path(__file__).parent
# $0: where the real /proc is to be seen, for psutil alone
_HIDE = 'mount --bind /proc "$0" && mount -t tmpfs none /proc && exec "$@"'


@cache
def why_not() -> str:
    """Why this machine can't hide its /proc from a process; '' when it can."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "to hide /proc takes root and unshare"
    hide = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /proc"]
    done = subprocess.run(hide, capture_output=True, text=True, timeout=30)
    return f"/proc can't be hidden here: {done.stderr.strip()}" if done.returncode else ""


def laptop_in(folder: Path, env: Mapping[str, str]) -> Laptop:
    """A laptop whose window is in this folder."""
    (window := folder / "proc").mkdir()
    return Laptop(window, env)


@dataclass(frozen=True)
class Laptop:
    """Runs the command line of a user, and any Python, without /proc and prctl."""

    window: Path
    """An empty folder: inside, the real /proc is seen there."""
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """Of what runs in it, but for what makes it a laptop."""

    def python(self, *words: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """A Python process, run to its end; what it printed is its stdout, also what went to stderr."""
        with self._start(words) as process:
            try:
                said, _ = process.communicate(timeout=timeout_s)
            finally:
                process.kill()
        return subprocess.CompletedProcess(words, process.returncode, said)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command of llama-release that goes on running."""
        return self._start(("-m", "flows", *words))

    def _start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        path = os.pathsep.join((str(_HERE), str(REPOSITORY)))
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", _HIDE, str(self.window), sys.executable, *words],
            env={**self.env, "PYTHONPATH": path, "PYTHON_LAPTOP_PROC": str(self.window)}, cwd=REPOSITORY, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *words: str, code: int = 0, timeout_s: float = 300.0) -> str:
        """Run a command of llama-release; what it printed. Fails when the exit code is another or it traces back."""
        done = self.python("-m", "flows", *words, timeout_s=timeout_s)
        assert done.returncode == code, f"{words} exited {done.returncode}:\n{done.stdout}"
        assert "Traceback" not in done.stdout and "the check itself broke" not in done.stdout, done.stdout
        return done.stdout
