"""CMake and Ninja: a source tree becomes a llama-server and its libraries. Used in Modal's builder and on a machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modal_app import wall
from modal_app.child import COMPILERS, environment

CONFIGURE_TIMEOUT_S = 300
CACHE_START_S = 30.0

Progress = Callable[[int, int, str], None]
"""Called with (objects done, objects in all, what)."""

BeforeExec = Callable[[], None] | None
"""Runs in a child before exec; how a child is tied to its parent's life is the caller's business."""

_OURS = (
    "No space left on device", "Killed signal", "Cannot allocate memory", "unrecognized command-line option",
    "unrecognized command line option", "unknown argument:", "No CMAKE_CXX_COMPILER", wall.NO_WALL,
)  # fmt: skip


class CompileFailed(Exception):
    """It does not compile; the message is the compiler's own words."""

    def __init__(self, words: str, log: str = "", machine: str = "") -> None:
        super().__init__(words)
        self.words = words
        self.machine = machine or next((sign for sign in _OURS if sign in log), "")
        """What this machine lacks, when that is the reason."""


@dataclass(frozen=True)
class Compiled:
    """What came of it."""

    objects: int
    cache_hits: int


def tool(name: str) -> Path:
    """A tool that came as a wheel with this environment."""
    return Path(sysconfig.get_path("scripts")) / name


def compile_target(
    source: Path,
    out: Path,
    target: str,
    definitions: Mapping[str, str],
    *,
    log: Path,
    cache: Path,
    progress: Progress,
    cpu_flags: Sequence[str] = (),
    hide: Sequence[Path] = (),
    before_exec: BeforeExec = None,
) -> Compiled:
    """Compile one target of a source tree; what is built lies in `out`/bin. Raises CompileFailed.

    `cpu_flags` are further compiler flags of the code that is compiled for this very CPU, and of no other: so the
    compiler cache knows all else again when they change. An `out` that is there already is brought up to date.
    Upstream's code, which CMake and the compilers run and read, is behind the wall; `hide` is hidden from it, too.
    """
    walled = partial(wall.behind, hide=hide, keep=(source, out.parent))
    try:
        cache.mkdir(parents=True, exist_ok=True)  # behind the wall, a folder that is not there yet can't be seen later
        # The path of a Unix socket is 107 bytes at most (unix(7)), which a cache's folder may be by itself.
        with (
            tempfile.TemporaryDirectory(prefix="llama-release-") as short,
            CompilerCache(cache, Path(short, "sccache.sock"), walled, before_exec) as compiler,
        ):
            progress(0, 1, "configuring")
            hook = out.with_name("cpu_flags.cmake")
            hook.write_text(_HOOK.replace("@FLAGS@", " ".join(f'"{flag}"' for flag in cpu_flags)))
            _configure(source, out, {**definitions, "CMAKE_PROJECT_TOP_LEVEL_INCLUDES": str(hook)}, log, compiler)
            objects = _ninja(out, target, log, compiler, progress, before_exec)
            return Compiled(objects, compiler.hits())
    except (OSError, subprocess.SubprocessError) as error:  # a tool that is not there or hangs, a disk that is full
        raise CompileFailed(f"{type(error).__name__}: {error}", machine=str(error)) from error


# Included by upstream's first project(). Its own hook for flags would be CMAKE_CXX_FLAGS, which all 195 objects have;
# GGML_NATIVE has -march=native for the target ggml-cpu alone, and so have these, behind it (gcc and clang: the last
# word on a feature counts). The target is there in every tree since b4200; where it is not, no code is native.
_HOOK = """\
set(LLAMA_RELEASE_CPU_FLAGS @FLAGS@)
function(llama_release_cpu_flags)
  if(TARGET ggml-cpu AND LLAMA_RELEASE_CPU_FLAGS)
    target_compile_options(ggml-cpu PRIVATE ${LLAMA_RELEASE_CPU_FLAGS})
  endif()
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL llama_release_cpu_flags)
"""


def _configure(source: Path, out: Path, definitions: Mapping[str, str], log: Path, compiler: CompilerCache) -> None:
    given = dict(definitions) | {
        "CMAKE_C_COMPILER_LAUNCHER": str(compiler.binary),
        "CMAKE_CXX_COMPILER_LAUNCHER": str(compiler.binary),
        "CMAKE_MAKE_PROGRAM": str(tool("ninja")),
    }
    if definitions.get("GGML_CUDA") == "ON":
        given["CMAKE_CUDA_COMPILER_LAUNCHER"] = str(compiler.binary)
    words = [f"-D{name}={value}" for name, value in sorted(given.items())]
    argv: list[str | Path] = [tool("cmake"), "-S", source, "-B", out, "-G", "Ninja", *words]
    done = subprocess.run(
        compiler.walled(argv, compiler.env), env=compiler.env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, errors="replace", timeout=CONFIGURE_TIMEOUT_S,
    )  # fmt: skip
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        words_said = done.stderr[max(done.stderr.find("CMake Error"), 0) :][:1500]
        raise CompileFailed(words_said, log.read_text(errors="replace"))


def _ninja(
    out: Path, target: str, log: Path, compiler: CompilerCache, progress: Progress, before_exec: BeforeExec
) -> int:
    total = 0
    with (
        open(log, "a") as file,
        subprocess.Popen(
            compiler.walled([tool("ninja"), "-C", out, target], compiler.env),
            env={**compiler.env, "NINJA_STATUS": "[%f/%t] "}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            preexec_fn=before_exec,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if match := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
                total = int(match[2])
                progress(int(match[1]), total, match[3].split("/")[-1].strip())
    if process.returncode:
        text = log.read_text(errors="replace")
        raise CompileFailed(first_error(text), text)
    return total


def first_error(text: str) -> str:
    """The first thing that went wrong in a build log, with the lines that explain it."""
    lines = text.splitlines()
    for pattern in (r"(fatal )?error:", r"undefined reference", r"^FAILED:"):
        for at, line in enumerate(lines):
            if re.search(pattern, line):
                return "\n".join(lines[at : at + 6])
    return "\n".join(lines[-12:])


MANIFEST = "manifest.json"


def collect(bin_folder: Path, target: str, out: Path) -> dict[str, str]:
    """Put the finished binary and its libraries into a folder; name -> sha256 of the files that are in it then.

    A running server may have mapped what is there. So a build that is whole stays as it is, whatever came out this
    time, and so does each file that is the same; one that is not is written beside the other and renamed over it, as to
    write into a mapped file changes the code that runs (a Volume of Modal's: the last writer of a file wins).
    Raises OSError.
    """
    if known := whole(out):
        return known
    out.mkdir(parents=True, exist_ok=True)
    made = products(bin_folder, target)
    for name, file in made.items():
        place = out / name
        if not place.is_file() or sha256_of(place) != sha256_of(file):
            part = place.with_name(f".{name}.part")
            shutil.copy(file, part)
            os.replace(part, place)
    for left in out.iterdir():
        if left.name not in (*made, MANIFEST):
            left.unlink()
    return {name: sha256_of(out / name) for name in sorted(made)}


def products(bin_folder: Path, target: str) -> dict[str, Path]:
    """Name -> what was built: the binary and its libraries."""
    return {file.name: file for file in [bin_folder / target, *bin_folder.glob("*.so*")]}


def whole(folder: Path) -> dict[str, str]:
    """Name -> sha256 of a build's files when all are there as its manifest says; {} when not, or it has none."""
    try:
        files: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return files if all(sha256_of(folder / name) == known for name, known in files.items()) else {}
    except (OSError, ValueError, KeyError):
        return {}


def sha256_of(path: Path) -> str:
    """Of a file's content, 64 hex characters. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_hash(folder: Path) -> str:
    """The hash that git gives the tree of a folder's files, computed without git.

    Source: git-scm.com/book, Git Internals, Git Objects: names in byte order, a folder sorted as if it ended in `/`.
    """
    entries = []
    for path in folder.iterdir():
        name = os.fsencode(path.name)
        if path.is_symlink():
            entries.append((name, b"120000", _git_object(b"blob", os.fsencode(os.readlink(path)))))
        elif path.is_dir():
            entries.append((name + b"/", b"40000", bytes.fromhex(tree_hash(path))))
        else:
            mode = b"100755" if path.stat().st_mode & 0o100 else b"100644"
            entries.append((name, mode, _git_object(b"blob", path.read_bytes())))
    body = b"".join(mode + b" " + name.rstrip(b"/") + b"\0" + sha for name, mode, sha in sorted(entries))
    return _git_object(b"tree", body).hex()


def _git_object(kind: bytes, body: bytes) -> bytes:
    return hashlib.sha1(kind + b" %d\0" % len(body) + body, usedforsecurity=False).digest()


class CompilerCache:
    """sccache with a server of its own for one build; a context manager."""

    def __init__(self, folder: Path, socket: Path, walled: wall.Walled, before_exec: BeforeExec = None) -> None:
        self.binary = tool("sccache")
        self.walled = walled
        self.env = environment(COMPILERS) | {
            "SCCACHE_DIR": str(folder),
            "SCCACHE_CACHE_SIZE": "5G",
            "SCCACHE_SERVER_UDS": str(socket),
            "SCCACHE_IDLE_TIMEOUT": "0",
        }
        self._socket = socket
        self._before_exec = before_exec

    def __enter__(self) -> CompilerCache:
        foreground = {"SCCACHE_START_SERVER": "1", "SCCACHE_NO_DAEMON": "1"}
        # Behind the wall itself: it is this process that starts the compilers, and a source may include any file.
        self._server = subprocess.Popen(
            self.walled([self.binary], self.env), env=self.env | foreground, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=self._before_exec,
        )  # fmt: skip
        deadline = time.monotonic() + CACHE_START_S
        while not self._socket.exists():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self._server.kill()
                raise CompileFailed("the compiler cache's server did not start", machine=f"{self.binary} does not run")
            time.sleep(0.05)
        return self

    def hits(self) -> int:
        """Objects taken from the cache in this build."""
        argv = [str(self.binary), "--show-stats", "--stats-format", "json"]
        said = subprocess.run(argv, env=self.env, capture_output=True, timeout=60, check=True).stdout
        return sum(json.loads(said)["stats"]["cache_hits"]["counts"].values())

    def __exit__(self, *exc: object) -> None:
        argv = [str(self.binary), "--stop-server"]
        subprocess.run(argv, env=self.env, capture_output=True, timeout=60, check=False)
        self._server.kill()
        self._server.wait()
