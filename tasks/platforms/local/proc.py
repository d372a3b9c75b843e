"""Ports, processes and the GPU of this machine, as Linux tells them in /proc, or psutil where there is none."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

from tasks.linux import has_proc
from tasks.process import run
from tasks.release import BadInput, ToolingError

if has_proc():  # Linux has cheaper answers: a restore asks every 5 ms
    from tasks.platforms.local.procfs import (
        children,
        connections,
        cpu_ticks,
        descendants,
        holder,
        is_alive,
        listener,
        owns_loopback_port,
    )
else:
    from tasks.platforms.local.portable import (
        children,
        connections,
        cpu_ticks,
        descendants,
        holder,
        is_alive,
        listener,
        owns_loopback_port,
    )

__all__ = [
    "bind", "children", "connections", "cpu_ticks", "descendants", "free_port", "gpu_memory_mb", "holder", "is_alive",
    "lasting_port", "listener", "owns_loopback_port",
]  # fmt: skip

LOWEST_PORT = 16_000
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_OUTGOING = 32_768
"""Linux's own default (ip(7)); macOS and the BSDs begin at 49152 (net.inet.ip.portrange.first; RFC 6335, 6)."""


def free_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """A TCP port that nothing listens on just now, or this one; another process may take it at any time.

    Raises OSError when this one is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises BadInput that names the port and who has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise BadInput(
            f"port {port} of {host} can't be had: {error.strerror}",
            evidence=f"it is held by {holder(port)}",
            todo="stop that process, or set another port (local.staging_port, local.production_port)",
        ) from error
    return listener


def lasting_port(host: str = "127.0.0.1") -> int:
    """A free TCP port that the kernel gives to no outgoing connection: it is likely to be free later, too."""
    low = _lowest_outgoing()
    for _ in range(100):
        port = LOWEST_PORT + secrets.randbelow(max(1, low - LOWEST_PORT))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    return free_port(host)


def _lowest_outgoing() -> int:
    """The lowest port that an outgoing connection gets."""
    try:
        return int(_OUTGOING.read_text().split()[0])
    except OSError:
        return _LOWEST_OUTGOING


def gpu_memory_mb() -> tuple[int, int] | None:
    """(used, total) memory of the first GPU, MiB; None where nvidia-smi does not tell."""
    argv = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        used, total = run(argv, timeout_s=30).stdout.splitlines()[0].split(",")
        return int(used), int(total)
    except (ToolingError, ValueError, IndexError):
        return None
