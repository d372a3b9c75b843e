"""A machine that lacks something: other programs on PATH, and file systems of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MOUNT, _UMOUNT = shutil.which("mount") or "", shutil.which("umount") or ""  # PATH may be changed later
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")


def path_of(folder: Path, *names: str) -> Path:
    """A folder for PATH that has these programs of this machine and no others."""
    folder.mkdir(exist_ok=True)
    for name in names:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return folder


def script(path: Path, *lines: str) -> Path:
    """A program of these lines."""
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory, mounted at this folder with these options."""
    folder.mkdir()
    subprocess.run([_MOUNT, "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run([_UMOUNT, "--lazy", folder], check=True)


def fill(root: Path, name: str = "filler") -> Path:
    """A file that takes every byte that is left."""
    path = root / name
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with pytest.raises(OSError, match="No space left on device"):
                while True:
                    file.write(bytes(size))
    assert free_bytes(root) == 0
    return path


def free_bytes(root: Path) -> int:
    """What is left for a user who is not root."""
    found = os.statvfs(root)
    return found.f_bavail * found.f_frsize


@contextmanager
def taken_port() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])
