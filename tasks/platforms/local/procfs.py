"""What Linux says in /proc about ports and processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tasks.criu import threads

_LISTEN = "0A"
_LOOPBACK = "0100007F"


def owns_loopback_port(pid: int, port: int) -> bool:
    """Whether this process, and no other, listens on 127.0.0.1:port."""
    inodes = {inode for address, inode in _listeners(port) if address == _LOOPBACK}
    return bool(inodes) and inodes <= _sockets(pid)


def holder(port: int) -> str:
    """Who listens on a port, for a person: `pid 123 (python3)`, or that it can't be seen from here."""
    pid = listener(port)
    return f"pid {pid} ({_comm(pid)})" if pid else "a process that can't be seen from here"


def listener(port: int) -> int | None:
    """The process that listens on a port; None where it can't be seen from here."""
    inodes = {inode for _, inode in _listeners(port)}
    return next((pid for pid in _pids() if inodes & _sockets(pid)), None)


def descendants(pid: int, comm: str) -> list[int]:
    """Pids of the living processes named `comm` anywhere below a process."""
    parents = {child: _parent(child) for child in _pids()}
    found, frontier = [], {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        found += [child for child in frontier if _comm(child) == comm]
    return found


def children(pid: int) -> list[int]:
    """Pids of a process's children."""
    found = []
    for task in threads(pid):
        found += [int(word) for word in _read(str(task / "children")).split()]
    return found


def connections(pid: int) -> int:
    """TCP sockets of a process that do anything but listen."""
    mine = _sockets(pid)
    return sum(state != _LISTEN and inode in mine for _, _, state, inode in _tcp())


def cpu_ticks(pid: int) -> int:
    """CPU time that a process has used, in clock ticks; 0 when it is gone."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) if fields else 0


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie doesn't)."""
    return _parent(pid) is not None


def _listeners(port: int) -> list[tuple[str, str]]:
    """(local address as /proc writes it, socket inode) of each listening TCP socket on a port."""
    return [(address, inode) for address, at, state, inode in _tcp() if state == _LISTEN and at == port]


def _tcp() -> Iterator[tuple[str, int, str, str]]:
    """(local address as /proc writes it, local port, state, inode) of each TCP socket."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _read(table).splitlines()[1:]:
            words = line.split()
            address, _, hex_port = words[1].rpartition(":")
            yield address, int(hex_port, 16), words[3], words[9]


def _sockets(pid: int) -> set[str]:
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except OSError:  # gone meanwhile, or another user's
        return set()
    found = set()
    for fd in descriptors:
        try:
            target = os.readlink(f"{folder}/{fd}")
        except OSError:  # closed meanwhile, as that of the listing itself always is
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _parent(pid: int) -> int | None:
    """The parent's pid; None for a process that is gone or a zombie."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if fields and fields[0] not in "ZX" else None


def _comm(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
