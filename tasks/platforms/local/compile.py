"""CMake and Ninja on this machine: a source tree becomes a build in the store."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from modal_app.child import COMPILERS, environment
from modal_app.compile import CompileFailed, collect, tool
from tasks import faults
from tasks.faults import Fault, Making
from tasks.hardware import Compiler, compiler_here, cpu_here, driver_version, hardware_here, parse_nvcc
from tasks.platforms import Progress
from tasks.platforms.local import diagnosis, snapshot
from tasks.platforms.local.diagnosis import Workshop
from tasks.platforms.local.snapshot import Wanted
from tasks.process import Output, ask, run
from tasks.release import Build, Problem, Recipe, ReleaseFailed, SourceTree, ToolingError, now
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

    Raises ReleaseFailed with the compiler's first error when upstream's code does not compile, the binary names another
    build, or its self-test fails by upstream's fault; ToolingError when this machine could not do it.
    """
    avoids = striking(recipe, settings)
    tools = toolchain(recipe, avoids)
    digest = Build.identity(source, recipe, tools)
    if found := _intact(store, digest):
        return found
    with hold(settings.cache / "compile.lock", holder={"source": source.upstream.tag}, wait=True):
        if found := _intact(store, digest):
            return found
        return _compile(digest, source, recipe, tools, avoids, store, settings, progress)


def finished(source: SourceTree, recipe: Recipe, store: Store, settings: Settings) -> Build | None:
    """The build of this source tree in the store, when it is there and whole."""
    return _intact(store, Build.identity(source, recipe, toolchain(recipe, striking(recipe, settings))))


def _intact(store: Store, digest: str) -> Build | None:
    found = store.build(digest)
    return found if found and not store.damaged(found) else None


FLAGS = ("CFLAGS", "CXXFLAGS", "CUDAFLAGS", "LDFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
"""Variables of the environment that compilers, and CMake for them, read."""


def toolchain(recipe: Recipe, avoids: Sequence[Fault]) -> dict[str, str]:
    """Tool -> version of everything that decides what comes out; with native code also what it needs of a CPU.

    `avoids` are the known faults that it is kept from. Raises ToolingError when a tool is missing.
    """
    found = {
        "cmake": _version(tool("cmake")).splitlines()[0],
        "ninja": _version(tool("ninja")).strip(),
        "c++": _version(compiler_of(recipe)).splitlines()[0],
        "cc": _version(_chosen(recipe, "CMAKE_C_COMPILER", "CC", "cc")).splitlines()[0],
        "machine": f"{platform.system()} {platform.machine()}",
    }
    if recipe.backend == "cuda":
        found["cuda"] = _nvcc(recipe).splitlines()[-1]
    if given := [f"{name}={os.environ[name]}" for name in FLAGS if os.environ.get(name)]:
        found["flags"] = " ".join(given)
    if flags := faults.cpu_flags(avoids):
        found["without"] = " ".join(flags)
    if added := faults.cmake(avoids):
        found["with"] = " ".join(f"{name}={value}" for name, value in sorted(added.items()))
    if is_native(recipe):
        found["cpu"] = " ".join(needs_of_cpu((*flags, *recipe.cpu_flags), compiler_here(compiler_of(recipe))))
    return found


def compiler_of(recipe: Recipe) -> str:
    """The C++ compiler that CMake takes for a recipe here."""
    return _chosen(recipe, "CMAKE_CXX_COMPILER", "CXX", "c++")


def _chosen(recipe: Recipe, definition: str, variable: str, usual: str) -> str:
    return recipe.cmake.get(definition) or os.environ.get(variable) or usual


def _nvcc(recipe: Recipe) -> str:
    """What the CUDA compiler that CMake takes says to --version. Raises ToolingError when there is none."""
    return _version(_chosen(recipe, "CMAKE_CUDA_COMPILER", "CUDACXX", "nvcc"))


def _version(program: str | Path) -> str:
    return run([program, "--version"], env=environment(COMPILERS), timeout_s=60).stdout


def is_native(recipe: Recipe) -> bool:
    """Whether a recipe compiles code for this very CPU."""
    return definitions(recipe).get("GGML_NATIVE", "").upper() in ("ON", "1", "TRUE", "YES")


def striking(recipe: Recipe, settings: Settings) -> tuple[Fault, ...]:
    """The known faults that a build of this recipe would have here, and is kept from."""
    nvcc = driver = ""
    if recipe.backend == "cuda":
        nvcc, driver = parse_nvcc(_nvcc(recipe)), driver_version()
    making = Making(
        native=is_native(recipe),
        cuda_architectures=faults.architectures(definitions(recipe).get("CMAKE_CUDA_ARCHITECTURES", "")),
        snapshots="criu" if _is_snapshotted(recipe, settings) else "none",
    )
    here = hardware_here(nvcc, driver, compiler_of(recipe))
    found = faults.striking(here, making)
    if settings.local.amx == "off" and making.native:
        amx = faults.striking(here, making.model_copy(update={"snapshots": "criu"}))
        found = (*found, *(fault for fault in amx if fault not in found))
    return found


def _is_snapshotted(recipe: Recipe, settings: Settings) -> bool:
    """Whether idle servers of a build are written to disk by CRIU here, unless AMX is preferred to that."""
    if settings.local.amx == "on" or settings.server.memory_map:
        return False
    return snapshot.snapshots_here(Wanted.of(settings), gpu=recipe.backend == "cuda").kind == "disk"


def needs_of_cpu(flags: Sequence[str], compiler: Compiler) -> tuple[str, ...]:
    """The features of this CPU that native code may use when it is compiled with these flags."""
    without = set() if compiler.knows_amx else {name for name in cpu_here().features if name.startswith("amx")}
    for flag in flags:  # the last word on a feature counts
        name = flag.removeprefix("-m").removeprefix("no-").replace("-", "_")
        (without.add if flag.startswith("-mno-") else without.discard)(name)
    # a feature takes those along that need it: -mno-avx512f leaves nothing of AVX-512
    whole = ("avx512",) if "avx512f" in without else ()
    return tuple(name for name in cpu_here().features if name not in without and not (whole and name.startswith(whole)))


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
    avoids: Sequence[Fault],
    store: Store,
    settings: Settings,
    progress: Progress,
) -> Build:
    start = time.monotonic()
    # Always the same folder: the compiler cache then knows the neighbouring release's objects.
    work = settings.cache / "compile"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    progress(0, 1, "writing the source tree")
    Sources(settings.cache).export(source.tree, work / "src")
    log = store.root / "logs" / f"build-{source.upstream.tag}-{digest}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(
        source=work / "src",
        out=work / "out",
        target=recipe.target,
        definitions=faults.kept_from(definitions(recipe), avoids) | names(source),
        cpu_flags=(*faults.cpu_flags(avoids), *recipe.cpu_flags),
        log=log,
        cache=settings.cache,
        progress=progress,
        hide=(store.root,),
    )
    try:
        compiled = workshop.compile()
    except CompileFailed as error:
        raise _failure(error, log) from error
    out = _collect(work / "out" / "bin", recipe, store.root / "builds" / f".making-{digest}")
    try:
        version = check_version(ask(out / recipe.target, "--version", hide=[store.root]), source)
        progress(compiled.objects, compiled.objects, "trying it: the self-test")
        tried = diagnosis.tried(out / recipe.target, recipe, settings)
        if not tried.ok:
            raise diagnosis.explain(tried, workshop, source, recipe, tools, store, settings)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    made = Build(
        digest=digest,
        source=source,
        recipe=recipe,
        toolchain=tools,
        version=version,
        files={p.name: sha256_of(p) for p in sorted(out.iterdir())},
        seconds=round(time.monotonic() - start, 1),
        objects=compiled.objects,
        cache_hits=compiled.cache_hits,
        built_at=now(),
        avoids=tuple(fault.id for fault in avoids if fault.is_avoided),
        selftest=tried.summary,
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
