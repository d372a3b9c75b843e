"""The environment of every child process, made from an allow-list of names. Used in containers and on a machine.

A variable that is on no list reaches no child, whatever it is called. What is on one reaches it only if it holds no
secret (modal_app/redaction.py), but for the lists of programs that are given theirs: pip, Modal's, Prefect's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from modal_app.redaction import is_secret


@dataclass(frozen=True)
class Names:
    """What a kind of program reads of its environment."""

    pattern: str
    may_be_secret: bool = False

    def admits(self, name: str, value: str) -> bool:
        return bool(re.fullmatch(self.pattern, name)) and (self.may_be_secret or not is_secret(name, value))


PROGRAM = Names(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|TZ|TZDIR|TMPDIR|LOCPATH|LOCALE_ARCHIVE|LD_LIBRARY_PATH|DYLD_\w*LIBRARY_PATH"
    r"|(LC|XDG)_\w+"
)
"""What any program may need."""
DEVICES = Names(r"(CUDA|NVIDIA|GGML|OMP|GOMP|HIP|HSA|ROCR|VK|MALLOC)_\w+")
"""What llama-server, the libraries under it and the drivers read. No LLAMA_*: a release is served as it is."""
COMPILERS = Names(
    r"CC|CXX|CPP|LD|AR|AS|NM|RANLIB|STRIP|OBJCOPY|CUDACXX|CUDAHOSTCXX|CUDAARCHS|HIPCXX|(C|CXX|CPP|CUDA|HIP|LD|ARCH)FLAGS"
    r"|CPATH|(C|CPLUS)_INCLUDE_PATH|LIBRARY_PATH|COMPILER_PATH|GCC_EXEC_PREFIX|LD_RUN_PATH|SOURCE_DATE_EPOCH|MAKEFLAGS"
    r"|(CMAKE|PKG_CONFIG|CCACHE|NVCC|CUDA|HIP|ROCM|GGML|NIX|CONDA|GCC|CLANG|MKL|ONEAPI|VULKAN|MACOSX|SCCACHE_C)_\w+"
    r"|(BLAS|OpenBLAS|CURL|OpenSSL|OPENSSL|CUDAToolkit|Vulkan)_(DIR|ROOT|ROOT_DIR)|MKLROOT|SDKROOT|DEVELOPER_DIR"
)
"""What CMake, Ninja and compilers read."""
PYTHON = Names(r"PYTHON\w*|VIRTUAL_ENV|LLAMA_RELEASE_\w+")
"""What a Python of ours reads, and the settings."""
TLS = Names(r"SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
PROXY = Names(r"(?i:(https?|all|no|ftp)_proxy)", may_be_secret=True)
PIP = Names(r"PIP_\w+|NETRC|KEYRING_\w+", may_be_secret=True)
MODAL = Names(r"MODAL_\w+", may_be_secret=True)
PREFECT = Names(r"PREFECT_\w+|PG[A-Z]+", may_be_secret=True)
"""Its database may be PostgreSQL, whose driver reads PG*."""
HUGGING_FACE = Names(r"(HF|HUGGING_?FACE)_\w+", may_be_secret=True)


def environment(*lists: Names) -> dict[str, str]:
    """What a child is given of this process's environment: what any program may need, and what is on these lists."""
    return {
        name: value for name, value in os.environ.items() if any(each.admits(name, value) for each in (PROGRAM, *lists))
    }


def serving(folder: Path) -> dict[str, str]:
    """What upstream's server sees of this process's environment: the libraries in its folder first, and no secret."""
    env = environment(DEVICES)
    return env | {"LD_LIBRARY_PATH": ":".join(filter(None, (str(folder), env.get("LD_LIBRARY_PATH"))))}


def everything() -> dict[str, str]:
    """The whole environment, secrets too: for a process that runs our own flows, or to read what a file names of it."""
    return dict(os.environ)
