"""Subprocesses: a list, a timeout, and the output back; never a shell string."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modal_app import wall
from modal_app.child import environment, serving
from tasks.release import ToolingError

ASK_LIMIT_S = 60.0


class TimedOut(ToolingError):
    """A command was still running when its time was over, and was ended."""


@dataclass(frozen=True)
class Output:
    """What a finished command said."""

    code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return (self.stdout + self.stderr).strip()


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    check: bool = True,
    behind: wall.Walled | None = None,
    exact: bool = False,
) -> Output:
    """Run a command to its end. `env` is its whole environment; without it, it has what any program needs.
    `behind` makes the argv that runs it behind a wall. `exact` keeps the line ends of what it says as they are.

    Raises TimedOut when it runs past `timeout_s`, ToolingError when it cannot be started or (with `check`) exits
    non-zero.
    """
    words = [str(a) for a in argv]
    env = environment() if env is None else env
    try:
        done = subprocess.run(
            behind(words, env) if behind else words, cwd=cwd, env=env,
            input=stdin.encode(errors="replace"), capture_output=True, timeout=timeout_s, preexec_fn=die_with_parent,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ToolingError(f"{words[0]} is not on this machine", evidence=str(error), todo="install it") from error
    except OSError as error:  # a file that may not be run, or lies where nothing may (noexec)
        raise ToolingError(f"{words[0]} can't be started", evidence=str(error), todo="mend that") from error
    except subprocess.TimeoutExpired as error:
        raise TimedOut(
            f"{words[0]} ran past {timeout_s:.0f} s", evidence=" ".join(words)[:300], todo="try again"
        ) from error
    output = Output(done.returncode, *(_text(said, exact) for said in (done.stdout, done.stderr)))
    if check and output.code:
        raise ToolingError(
            f"{Path(words[0]).name} exited with {output.code}",
            evidence=f"{' '.join(words)[:300]}\n{output.text[-1500:]}",
        )
    return output


def _text(said: bytes, exact: bool) -> str:
    text = said.decode(errors="replace")
    return text if exact else text.replace("\r\n", "\n").replace("\r", "\n")


def ask(binary: Path, *argv: str, hide: Iterable[Path]) -> Output:
    """What a binary of upstream's says to an argv that ends it at once, such as `--version`: it runs behind the wall,
    with `hide` hidden from it too, and sees what a server does of the environment. Raises ToolingError as `run` does.
    """
    binary = binary.absolute()
    output = run(
        [binary, *argv], timeout_s=ASK_LIMIT_S, env=serving(binary.parent), check=False,
        behind=partial(wall.behind, hide=hide),
    )  # fmt: skip
    return started(binary, output)


def started(binary: str | Path, output: Output) -> Output:
    """What a binary said that was to run behind the wall. Raises ToolingError when it was not run at all."""
    if output.code in wall.NOT_STARTED:
        raise ToolingError(f"{binary} can't be started", evidence=output.text, todo="mend that")
    return output


def is_there(pid: int) -> bool:
    """Whether this machine has a process of this number, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# Linux alone has it: in glibc and musl, not in the C library of macOS or the BSDs, where the look-up of a name that is
# not there raises AttributeError (dlsym(3)). Asked once: in a child before exec an exception could not be told.
_prctl = getattr(ctypes.CDLL(None), "prctl", None)
_PR_SET_PDEATHSIG = 1

ENDS_WITH_PARENT = _prctl is not None
"""Whether a child that called `die_with_parent` ends when its parent is killed."""


def die_with_parent() -> None:
    """In a child before exec: the kernel kills it when the thread that started it dies (Linux, prctl(2)).

    Elsewhere nothing happens, and a child outlives a parent that is killed; one that ends in order ends its children.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
