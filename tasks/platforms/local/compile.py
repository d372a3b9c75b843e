"""CMake and Ninja on this machine: a source tree becomes a build in the store."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

from tasks.platforms import Progress
from tasks.process import die_with_parent, run
from tasks.release import Build, Problem, Recipe, ReleaseFailed, SourceTree, ToolingError, digest_of, now
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.store import Store, hold, sha256_of

CONFIGURE_TIMEOUT_S = 300
SERVER_START_S = 30.0
LEAN = {
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_CURL": "OFF",
    # new trees, then old ones: both would fetch a web page's files while compiling
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_WEBUI": "OFF",
    "GGML_CCACHE": "OFF",
}
BACKEND = {
    "cpu": {"GGML_NATIVE": "ON"},
    "cuda": {"GGML_CUDA": "ON", "GGML_NATIVE": "OFF", "GGML_CUDA_NCCL": "OFF"},
}


def build(source: SourceTree, recipe: Recipe, store: Store, settings: Settings, progress: Progress) -> Build:
    """The build of this source tree, compiled or taken whole from the store.

    Raises ReleaseFailed with the compiler's first error when upstream's code does not compile or the binary
    names another build, ToolingError when this machine could not do it.
    """
    tools = toolchain(recipe)
    digest = Build.identity(source, recipe, tools)
    if found := _intact(store, digest):
        return found
    with hold(settings.cache / "compile.lock", holder={"source": source.upstream.tag}, wait=True):
        if found := _intact(store, digest):
            return found
        return _compile(digest, source, recipe, tools, store, settings.cache, progress)


def finished(source: SourceTree, recipe: Recipe, store: Store) -> Build | None:
    """The build of this source tree in the store, when it is there and whole."""
    return _intact(store, Build.identity(source, recipe, toolchain(recipe)))


def _intact(store: Store, digest: str) -> Build | None:
    found = store.build(digest)
    return found if found and not store.damaged(found) else None


def toolchain(recipe: Recipe) -> dict[str, str]:
    """Tool -> version of everything that decides what comes out; with native code also this CPU.

    Raises ToolingError when a tool is missing.
    """
    found = {
        "cmake": run([tool("cmake"), "--version"], timeout_s=60).stdout.splitlines()[0],
        "ninja": run([tool("ninja"), "--version"], timeout_s=60).stdout.strip(),
        "c++": run([os.environ.get("CXX", "c++"), "--version"], timeout_s=60).stdout.splitlines()[0],
        "machine": f"{platform.system()} {platform.machine()}",
    }
    if recipe.backend == "cuda":
        found["cuda"] = run(["nvcc", "--version"], timeout_s=60).stdout.splitlines()[-1]
    if definitions(recipe).get("GGML_NATIVE") == "ON":
        found["cpu"] = _cpu_flags()
    return found


def _cpu_flags() -> str:
    text = Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return digest_of(sorted(flags[1].split()) if flags else platform.processor())[:12]


def tool(name: str) -> Path:
    """A tool that came as a wheel with this environment."""
    return Path(sysconfig.get_path("scripts")) / name


def definitions(recipe: Recipe) -> dict[str, str]:
    """CMake definitions of a recipe: lean, then the backend's, then the recipe's own."""
    return {"CMAKE_BUILD_TYPE": recipe.build_type, **LEAN, **BACKEND[recipe.backend], **recipe.cmake}


def _compile(
    digest: str,
    source: SourceTree,
    recipe: Recipe,
    tools: dict[str, str],
    store: Store,
    cache: Path,
    progress: Progress,
) -> Build:
    start = time.monotonic()
    # Always the same folder: the compiler cache then knows the neighbouring release's objects.
    work = cache / "compile"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    progress(0, 1, "writing the source tree")
    Sources(cache).export(source.tree, work / "src")
    log = store.root / "logs" / f"build-{source.upstream.tag}-{digest}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with CompilerCache(cache / "sccache", work / "sccache.sock") as compiler:
        progress(0, 1, "configuring")
        _configure(source, recipe, work, log, compiler)
        objects = _ninja(recipe, work, log, compiler, progress)
        hits = compiler.hits()
    out = _collect(work / "out" / "bin", recipe, store.root / "builds" / f".making-{digest}")
    made = Build(
        digest=digest,
        source=source,
        recipe=recipe,
        toolchain=tools,
        version=check_version(out / recipe.target, source),
        files={p.name: sha256_of(p) for p in sorted(out.iterdir())},
        seconds=round(time.monotonic() - start, 1),
        objects=objects,
        cache_hits=hits,
        built_at=now(),
    )
    store.publish_build(made, out)
    shutil.rmtree(work, ignore_errors=True)
    return made


def _collect(bin_folder: Path, recipe: Recipe, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    try:
        out.mkdir(parents=True)
        for file in [bin_folder / recipe.target, *bin_folder.glob("*.so*")]:
            shutil.copy(file, out / file.name)
    except OSError as error:
        raise ToolingError(
            "the finished build could not be copied into the store", evidence=str(error), todo="free some space"
        ) from error
    return out


def check_version(binary: Path, source: SourceTree) -> str:
    """What the binary says of itself, when that is the build number and the source tree asked for.

    Raises ReleaseFailed otherwise: a stale binary, the guide's issue 6.
    """
    output = run([binary, "--version"], timeout_s=60, check=False)
    line = next((li for li in output.text.splitlines() if "version" in li), output.text[:200])
    if output.code or not re.search(rf"\b{source.upstream.build}\b", line) or source.tree[:9] not in line:
        raise ReleaseFailed(
            f"the finished binary is not {source.upstream.tag} of tree {source.tree[:9]}",
            evidence=f"--version says: {line}",
            todo="the build was thrown away; run it again, and report it if it happens twice",
        )
    return line


def _configure(source: SourceTree, recipe: Recipe, work: Path, log: Path, compiler: CompilerCache) -> None:
    given = definitions(recipe) | {
        "LLAMA_BUILD_NUMBER": str(source.upstream.build),
        # The tree instead of upstream's commit, which the archive does not tell: --version then names the source.
        "LLAMA_BUILD_COMMIT": source.tree[:9],
        "CMAKE_C_COMPILER_LAUNCHER": str(compiler.binary),
        "CMAKE_CXX_COMPILER_LAUNCHER": str(compiler.binary),
    }
    given["CMAKE_MAKE_PROGRAM"] = str(tool("ninja"))
    words = [f"-D{name}={value}" for name, value in sorted(given.items())]
    output = run(
        [tool("cmake"), "-S", work / "src", "-B", work / "out", "-G", "Ninja", *words],
        timeout_s=CONFIGURE_TIMEOUT_S,
        env=compiler.env,
        check=False,
    )
    log.write_text(output.stdout + output.stderr)
    if output.code:
        raise _failure(output.stderr[max(output.stderr.find("CMake Error"), 0) :][:1500], log)


def _ninja(recipe: Recipe, work: Path, log: Path, compiler: CompilerCache, progress: Progress) -> int:
    total = 0
    with (
        open(log, "a") as file,
        subprocess.Popen(
            [tool("ninja"), "-C", work / "out", recipe.target],
            env={**os.environ, **compiler.env, "NINJA_STATUS": "[%f/%t] "},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=die_with_parent,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if match := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
                total = int(match[2])
                progress(int(match[1]), total, match[3].split("/")[-1].strip())
    if process.returncode:
        raise _failure(first_error(log.read_text(errors="replace")), log)
    return total


def first_error(text: str) -> str:
    """The first thing that went wrong in a build log, with the lines that explain it."""
    lines = text.splitlines()
    for pattern in (r"(fatal )?error:", r"undefined reference", r"^FAILED:"):
        for at, line in enumerate(lines):
            if re.search(pattern, line):
                return "\n".join(lines[at : at + 6])
    return "\n".join(lines[-12:])


def _failure(words: str, log: Path) -> Problem:
    ours = ("No space left on device", "Killed signal", "Cannot allocate memory", "No CMAKE_CXX_COMPILER")
    text = log.read_text(errors="replace")
    evidence = f"{words}\nthe whole log: {log}"
    if sign := next((sign for sign in ours if sign in text), None):
        return ToolingError("this machine could not compile it", evidence=evidence, todo=f"mend this: {sign}")
    return ReleaseFailed(
        "upstream's source does not compile here",
        evidence=evidence,
        todo="take another build, or add a patch to the series",
    )


class CompilerCache:
    """sccache with a server of its own for one build; a context manager."""

    def __init__(self, folder: Path, socket: Path) -> None:
        self.binary = tool("sccache")
        self.env: dict[str, str] = {
            "SCCACHE_DIR": str(folder),
            "SCCACHE_CACHE_SIZE": "5G",
            "SCCACHE_SERVER_UDS": str(socket),
            "SCCACHE_IDLE_TIMEOUT": "0",
        }
        self._socket = socket

    def __enter__(self) -> CompilerCache:
        foreground = {"SCCACHE_START_SERVER": "1", "SCCACHE_NO_DAEMON": "1"}
        self._server = subprocess.Popen(
            [self.binary], env={**os.environ, **self.env, **foreground}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent,
        )  # fmt: skip
        deadline = time.monotonic() + SERVER_START_S
        while not self._socket.exists():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self._server.kill()
                raise ToolingError(
                    "the compiler cache's server did not start", evidence=f"{self.binary} in the foreground"
                )
            time.sleep(0.05)
        return self

    def hits(self) -> int:
        """Objects taken from the cache in this build."""
        stats = run([self.binary, "--show-stats", "--stats-format", "json"], timeout_s=60, env=self.env)
        return sum(json.loads(stats.stdout)["stats"]["cache_hits"]["counts"].values())

    def __exit__(self, *exc: object) -> None:
        run([self.binary, "--stop-server"], timeout_s=60, env=self.env, check=False)
        self._server.kill()
        self._server.wait()
