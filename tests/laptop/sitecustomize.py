"""What a Mac's C library and psutil are like, for the Python processes of a test that have no /proc (`tests.laptop`).

The C library has no prctl. psutil still knows the processes, as it does on macOS, where it asks the kernel and no
/proc: here it is shown the real one, which lies elsewhere.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import psutil

psutil.PROCFS_PATH = os.environ["PYTHON_LAPTOP_PROC"]


class _CLibrary(ctypes.CDLL):
    """As dlsym(3) answers there: the name is not known, and ctypes says AttributeError."""

    def __getattr__(self, name: str) -> Any:
        if name == "prctl":
            raise AttributeError("dlsym(RTLD_DEFAULT, prctl): symbol not found")
        return super().__getattr__(name)


ctypes.CDLL = _CLibrary  # type: ignore[misc]
