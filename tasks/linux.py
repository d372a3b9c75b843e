"""Whether this machine is a Linux, with the /proc that snapshots and the local platform read. Standard library only."""

from __future__ import annotations

import sys
from pathlib import Path

NO_SNAPSHOTS = "snapshots need Linux and its /proc"
"""What a person is told where `has_proc` is false."""


def has_proc() -> bool:
    """Whether processes are seen in /proc as proc(5) of Linux says: macOS has no such folder, FreeBSD another one."""
    return sys.platform == "linux" and Path("/proc/self/stat").exists()
