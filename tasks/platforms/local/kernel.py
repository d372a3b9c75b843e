"""What the kernel's log says of how a llama-server ended."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

from tasks.process import run
from tasks.release import ToolingError

KMSG = "/dev/kmsg"
COMM = "llama-server"
SLACK_S, OWN_SLACK_S = 1.0, 60.0
"""How far the log's clock may be from ours, for a line that may be another server's, and for one with this very pid."""
_RECORD_BYTES = 8192  # the most that one read of /dev/kmsg gives (Linux, Documentation/ABI/testing/dev-kmsg)
_STAMP = re.compile(r"\[ *([\d.]+)\] (.*)")

# Linux 6.18, arch/x86/kernel/traps.c and mm/fault.c (arm64: kernel/traps.c), mm/oom_kill.c, mm/memory-failure.c. Of a
# signal that a program or a person sends nothing is written; of the others at most ten lines in five seconds.
_WORDS = {
    signal.SIGSEGV: r"segfault at |general protection fault|trap stack segment|unhandled .*fault \(11\)",
    signal.SIGILL: r"trap invalid opcode|undefined instruction",
    signal.SIGBUS: r"trap alignment check|due to hardware memory corruption|unhandled .*fault \(7\)",
    signal.SIGFPE: r"trap divide error|trap (simd|x87) exception",
    signal.SIGKILL: r"Killed process \d+",
}
_NAMED = rf"\b{COMM}(?:\[|:)(\d+)|Killed process (\d+) \({COMM}\)"


def last_word(pid: int, since_s: float, by: signal.Signals | None = None) -> str:
    """The kernel's latest line about how a llama-server ended; '' when there is none.

    `since_s`: when it was started, by `clock_s`. `by`: the signal, where it is known: only a line that fits is taken.
    A line with this very pid is preferred. But the kernel names the *thread* that died, by its id in the first pid
    namespace: so, without one, it is the latest of any llama-server, and the line is given as it stands.
    Raises ToolingError when the log can't be read by this user.
    """
    fits = re.compile(_WORDS.get(by, "(?!)") if by else "|".join(_WORDS.values()))
    own, others = [""], [""]
    for at, line in _lines():
        if at > since_s - OWN_SLACK_S and fits.search(line) and (named := re.search(_NAMED, line)):
            if str(pid) in named.groups():
                own.append(line)
            elif at > since_s - SLACK_S:
                others.append(line)
    return own[-1] or others[-1]


def clock_s() -> float:
    """Now, on the clock that is nearest to the log's: neither is steered by NTP, which is seconds after some weeks."""
    return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)


def signal_in(line: str) -> signal.Signals | None:
    """The signal that the kernel sent when it wrote this line; None for a line about anything else."""
    return next((by for by, words in _WORDS.items() if re.search(words, line)), None)


def writes_of(by: signal.Signals) -> bool:
    """Whether the kernel may have written a line when it sent this signal."""
    return by in _WORDS


def _lines() -> Iterator[tuple[float, str]]:
    """(seconds on the log's clock, text) of each line."""
    try:
        records = list(_records())
    except OSError:  # no such device in many containers, where dmesg still has syslog(2)
        return (yield from _of_dmesg())
    for record in records:
        head, _, text = record.partition(";")
        with suppress(IndexError, ValueError):
            yield int(head.split(",")[2]) / 1e6, text.split("\n")[0]


def _records() -> Iterator[str]:
    file = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                yield os.read(file, _RECORD_BYTES).decode(errors="replace")
            except BlockingIOError:
                return
            except BrokenPipeError:  # overwritten before it was read
                continue
    finally:
        os.close(file)


def _of_dmesg() -> Iterator[tuple[float, str]]:
    done = run(["dmesg"], timeout_s=10, check=False)
    if done.code:
        raise ToolingError("the kernel's log can't be read", evidence=done.stderr, todo="read it as root: `dmesg`")
    for line in done.stdout.splitlines():
        if found := _STAMP.fullmatch(line):
            yield float(found[1]), found[2]
