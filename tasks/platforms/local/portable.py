"""What psutil says about ports and processes, where there is no /proc of Linux: the same questions as `procfs`.

psutil and not `ps` or `lsof`: it asks the kernel itself (on macOS libproc and sysctl: psutil/arch/osx in its source),
without a child of ours. On macOS only root sees the sockets of other users (psutil's documentation, net_connections):
who of them holds a port can't be said there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil

_LOOPBACK = "127.0.0.1"
NOT_SEEN = "a process that can't be seen from here"


def owns_loopback_port(pid: int, port: int) -> bool:
    """Whether this process, and no other that can be seen, listens on 127.0.0.1:port."""
    if (_LOOPBACK, port) not in _listens_on(pid):
        return False  # the usual answer while a server starts: no need to look at all others
    return all(other == pid for other in psutil.pids() if (_LOOPBACK, port) in _listens_on(other))


def holder(port: int) -> str:
    """Who listens on a port, for a person: `pid 123 (python3)`, or that it can't be seen from here."""
    pid = listener(port)
    return f"pid {pid} ({_name(pid)})" if pid else NOT_SEEN


def listener(port: int) -> int | None:
    """The process that listens on a port; None where it can't be seen from here."""
    return next((pid for pid in psutil.pids() if any(at == port for _, at in _listens_on(pid))), None)


def descendants(pid: int, comm: str) -> list[int]:
    """Pids of the living processes named `comm` anywhere below a process."""
    return [child for child in _below(pid, recursive=True) if _name(child) == comm and is_alive(child)]


def children(pid: int) -> list[int]:
    """Pids of a process's children."""
    return _below(pid, recursive=False)


def connections(pid: int) -> int:
    """TCP sockets of a process that do anything but listen."""
    return sum(status != psutil.CONN_LISTEN for _, status in _tcp(pid))


def cpu_ticks(pid: int) -> int:
    """CPU time that a process has used, in clock ticks; 0 when it is gone."""
    try:
        used = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0
    seconds: float = used.user + used.system
    return round(seconds * os.sysconf("SC_CLK_TCK"))


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie doesn't)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def _below(pid: int, *, recursive: bool) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=recursive)]
    except psutil.Error:
        return []


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return ""


def _listens_on(pid: int) -> set[tuple[str, int]]:
    """(address, port) of each listening TCP socket of a process."""
    return {address for address, status in _tcp(pid) if status == psutil.CONN_LISTEN}


def _tcp(pid: int) -> Iterator[tuple[tuple[str, int], str]]:
    """((local address, local port), status) of each TCP socket of a process; none of one that may not be looked at."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return
    for each in found:
        if each.laddr:
            yield (each.laddr.ip, each.laddr.port), each.status
