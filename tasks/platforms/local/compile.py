"""CMake and Ninja on this machine: a source tree becomes a build in the store."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from pathlib import Path

from modal_app.compile import CompileFailed, collect, compile_target, tool
from tasks.platforms import Progress
from tasks.process import Output, die_with_parent, run
from tasks.release import Build, Problem, Recipe, ReleaseFailed, SourceTree, ToolingError, digest_of, now
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.store import Store, hold, sha256_of

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


def definitions(recipe: Recipe) -> dict[str, str]:
    """CMake definitions of a recipe: lean, then the backend's, then the recipe's own."""
    return {"CMAKE_BUILD_TYPE": recipe.build_type, **LEAN, **BACKEND[recipe.backend], **recipe.cmake}


def names(source: SourceTree) -> dict[str, str]:
    """CMake definitions of what the binary calls itself."""
    # The tree instead of upstream's commit, which the archive does not tell: --version then names the source.
    return {"LLAMA_BUILD_NUMBER": str(source.upstream.build), "LLAMA_BUILD_COMMIT": source.tree[:9]}


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
    try:
        compiled = compile_target(
            work / "src", work / "out", recipe.target, definitions(recipe) | names(source), log=log,
            cache=cache / "sccache", progress=progress, before_exec=die_with_parent,
        )  # fmt: skip
    except CompileFailed as error:
        raise _failure(error, log) from error
    out = _collect(work / "out" / "bin", recipe, store.root / "builds" / f".making-{digest}")
    made = Build(
        digest=digest,
        source=source,
        recipe=recipe,
        toolchain=tools,
        version=check_version(run([out / recipe.target, "--version"], timeout_s=60, check=False), source),
        files={p.name: sha256_of(p) for p in sorted(out.iterdir())},
        seconds=round(time.monotonic() - start, 1),
        objects=compiled.objects,
        cache_hits=compiled.cache_hits,
        built_at=now(),
    )
    store.publish_build(made, out)
    shutil.rmtree(work, ignore_errors=True)
    return made


def _collect(bin_folder: Path, recipe: Recipe, out: Path) -> Path:
    try:
        collect(bin_folder, recipe.target, out)
    except OSError as error:
        raise ToolingError(
            "the finished build could not be copied into the store", evidence=str(error), todo="free some space"
        ) from error
    return out


def check_version(output: Output, source: SourceTree) -> str:
    """What the binary says of itself to --version, when that is the build number and the source tree asked for.

    Raises ReleaseFailed otherwise: a stale binary, the guide's issue 6.
    """
    line = next((li for li in output.text.splitlines() if "version" in li), output.text[:200])
    if output.code or not re.search(rf"\b{source.upstream.build}\b", line) or source.tree[:9] not in line:
        raise ReleaseFailed(
            f"the finished binary is not {source.upstream.tag} of tree {source.tree[:9]}",
            evidence=f"--version says: {line}",
            todo="the build was thrown away; run it again, and report it if it happens twice",
        )
    return line


def _failure(error: CompileFailed, log: Path) -> Problem:
    evidence = f"{error.words}\nthe whole log: {log}"
    if error.machine:
        return ToolingError("this machine could not compile it", evidence=evidence, todo=f"mend this: {error.machine}")
    return ReleaseFailed(
        "upstream's source does not compile here",
        evidence=evidence,
        todo="take another build, or add a patch to the series",
    )
