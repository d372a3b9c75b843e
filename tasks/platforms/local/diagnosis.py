"""A build is tried before it is published; of one that dies or counts wrongly here it is found out whose fault that is.

What may be seen and what it means:
    production's build, made in the same way, is right here   upstream changed it: the release is bad
    production's build is wrong here too                      the machine's, or its compiler's
    there is none to compare with, or it was made otherwise   not known whose, and so never called upstream's
Where this build is right without some of the CPU's instructions, or by another compiler, that is a way round; whose
fault it was that does not tell: upstream's own code for those instructions may be wrong, too.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modal_app.child import serving
from modal_app.compile import Compiled, CompileFailed, Progress, compile_target
from modal_app.selftest import Result, runs_of, selftest
from tasks import selftest as case
from tasks.hardware import Compiler, compiler_at, compiler_here, cpu_here, usable_cpus
from tasks.platforms.local.server import lacks
from tasks.process import die_with_parent
from tasks.release import Build, Problem, Recipe, ReleaseFailed, SourceTree, ToolingError
from tasks.settings import Settings
from tasks.store import Store

_AMX = ("-mno-amx-bf16", "-mno-amx-int8", "-mno-amx-tile")
_COMPILER = re.compile(r"(?:g\+\+|clang\+\+)(?:-(\d+))?")


@dataclass(frozen=True)
class Workshop:
    """Where and how a source tree is compiled."""

    source: Path
    out: Path
    target: str
    definitions: Mapping[str, str]
    cpu_flags: tuple[str, ...]
    log: Path
    cache: Path
    progress: Progress
    hide: tuple[Path, ...]
    """What upstream's code must not see besides what it never does."""

    def compile(self) -> Compiled:
        """Compile it, or bring it up to date. Raises CompileFailed."""
        return compile_target(
            self.source, self.out, self.target, self.definitions, log=self.log, cache=self.cache / "sccache",
            progress=self.progress, cpu_flags=self.cpu_flags, hide=self.hide, before_exec=die_with_parent,
        )  # fmt: skip

    @property
    def binary(self) -> Path:
        return self.out / "bin" / self.target


@dataclass(frozen=True)
class Experiment:
    """Another way to make the same build."""

    name: str
    """For a person, such as `without AMX`."""
    workshop: Workshop
    way_round: str
    """What to do so that the next build is made this way."""


@dataclass(frozen=True)
class Trial:
    """What an experiment, or production's build, came to."""

    name: str
    result: Result
    otherwise: str = ""
    """What production's build was made with that this one was not; empty when they can be compared."""

    def __str__(self) -> str:
        made = f" (made otherwise: {self.otherwise})" if self.otherwise else ""
        return f"{self.name}{made}: {'right' if self.result.ok else self.result.summary}"


def tried(binary: Path, recipe: Recipe, settings: Settings) -> Result:
    """What the self-test says of a llama-server, served as a release would be."""
    folder = case.prepare(settings.cache, case.types_of(settings.server.model))
    runs = runs_of(recipe.backend, usable_cpus())
    binary = binary.absolute()
    return selftest(binary, folder, runs, serving(binary.parent), hide=[settings.store], before_exec=die_with_parent)


def explain(
    seen: Result,
    workshop: Workshop,
    source: SourceTree,
    recipe: Recipe,
    tools: Mapping[str, str],
    store: Store,
    settings: Settings,
) -> Problem:
    """The error to raise for a build whose self-test failed: what was seen, what else was tried, whose fault it is.

    A ReleaseFailed only where production's build, made in the same way, is right on this machine.
    """
    compiler = compiler_here(workshop.definitions.get("CMAKE_CXX_COMPILER", ""))
    beside = _beside(store, recipe, tools, settings)
    seen = _once_more(seen, workshop.binary, recipe, settings)
    found: list[Trial] = []
    helps: Experiment | None = None
    for experiment in (
        _experiments(workshop, recipe, compiler) if seen.computed and not seen.passing and not seen.ok else ()
    ):
        workshop.progress(0, 1, f"the self-test failed; finding out: {experiment.name}")
        found.append(Trial(experiment.name, _result(experiment, recipe, settings)))
        if found[-1].result.ok:
            helps = experiment
            break
    return verdict(seen, source.upstream.tag, beside, found, helps, f"this machine's or {compiler}'s")


def verdict(
    seen: Result, tag: str, beside: Trial | None, found: Sequence[Trial], helps: Experiment | None, ours: str
) -> Problem:
    """The error for a build whose self-test failed.

    Args:
        seen: what it came to.
        tag: the upstream release that it is of.
        beside: what production's build came to on the same machine.
        found: what else was tried.
        helps: the experiment that was right.
        ours: what may be at fault besides upstream.
    """
    upstream = False
    if seen.ok:
        whose = "asked again it was right: something on this machine disturbed it"
    elif seen.passing:
        whose = "which says nothing of the release"
    elif beside is None or beside.otherwise:
        whose = "whose fault it is could not be told"
    elif beside.result.ok:
        upstream, whose = True, f"{beside.name} is right on this machine, so upstream changed it"
    elif beside.result.passing:
        whose = f"{beside.name} could not be tried either: {beside.result.summary}"
    else:
        whose = f"{beside.name} fails here too: the fault is {ours}, and not upstream's"
    words = f"is {seen.summary}" if seen.signal else f"fails its self-test: {seen.summary}"
    right = f"; {helps.name} it is right" if helps else ""
    return (ReleaseFailed if upstream else ToolingError)(
        f"{tag} as it was built here {words}{right}; {whose}",
        evidence="\n".join(filter(None, [seen.words, *map(str, filter(None, (beside, *found)))])),
        todo=_todo(helps, upstream),
    )


def _todo(helps: Experiment | None, upstream: bool) -> str:
    last = "take another upstream build" if upstream else "run it again, or try another compiler (CC, CXX) or machine"
    way = f"{helps.way_round}, and run it again; or " if helps else ""
    return f"{way}{last}. Nothing was published, and production is as it was"


def _once_more(seen: Result, binary: Path, recipe: Recipe, settings: Settings) -> Result:
    """What a second self-test says: only a build that fails again in the same way is held to be wrong."""
    again = tried(binary, recipe, settings)
    if again.ok:
        return replace(again, summary=seen.summary, signal=seen.signal, words=seen.words)
    return seen if seen.signal == again.signal else again


def _beside(store: Store, recipe: Recipe, tools: Mapping[str, str], settings: Settings) -> Trial | None:
    """What production's build comes to here; None where there is none that may run on this CPU."""
    build = _production(store)
    if build is None or lacks(build):
        return None
    binary = store.build_dir(build.digest) / build.recipe.target
    differs = [name for name in sorted({*tools, *build.toolchain}) if tools.get(name) != build.toolchain.get(name)]
    if build.recipe != recipe:
        differs.append("recipe")
    return Trial(f"production's {build.tag}", tried(binary, build.recipe, settings), ", ".join(differs))


def _production(store: Store) -> Build | None:
    pointer = store.pointer("production")
    release = store.release(pointer.release) if pointer.release else None
    build = store.build(release.build) if release else None
    return build if build and not store.damaged(build) else None


def _result(experiment: Experiment, recipe: Recipe, settings: Settings) -> Result:
    try:
        experiment.workshop.compile()
    except CompileFailed as error:
        said = "could not be compiled" if error.machine else "does not compile"
        return Result(False, f"it {said}: {error.words.splitlines()[0] if error.words else ''}")
    return tried(experiment.workshop.binary, recipe, settings)


def _experiments(workshop: Workshop, recipe: Recipe, compiler: Compiler) -> Iterator[Experiment]:
    """One change at a time, the cheapest first: flags compile a tenth of the objects anew, a compiler all of them."""
    features, flags = cpu_here().features, workshop.cpu_flags
    workshop = replace(workshop, log=workshop.log.with_suffix(".experiment.log"))
    native = workshop.definitions.get("GGML_NATIVE") == "ON"
    for name, needs, without in (("AMX", "amx_tile", _AMX), ("AVX-512", "avx512f", ("-mno-avx512f",))):
        known = compiler.knows_amx or name != "AMX"
        if native and known and needs in features and not _is_off(flags, without):
            words = ", ".join(f'"{flag}"' for flag in _last(recipe.cpu_flags, without))
            yield Experiment(
                f"without {name}",
                replace(workshop, cpu_flags=_last(flags, without)),
                f"set recipe.cpu_flags = [{words}]",
            )
    if native:
        yield Experiment(
            "without native code",
            # a folder of its own: CMake's cache remembers what followed from the other value
            replace(
                workshop,
                out=workshop.out.with_name("out-any"),
                definitions={**workshop.definitions, "GGML_NATIVE": "OFF"},
                cpu_flags=(),
            ),
            'set recipe.cmake = { GGML_NATIVE = "OFF" }',
        )
    for other in _other_compilers(compiler):
        c = _c_of(other)
        chosen = "CMAKE_CXX_COMPILER" in recipe.cmake
        way = f'CMAKE_C_COMPILER = "{c}", CMAKE_CXX_COMPILER = "{other}" in recipe.cmake'
        yield Experiment(
            f"by {compiler_at(other)}",
            replace(
                workshop,
                out=workshop.out.with_name(f"out-{Path(other).name}"),
                definitions={**workshop.definitions, "CMAKE_C_COMPILER": c, "CMAKE_CXX_COMPILER": other},
            ),
            f"set {way}" if chosen else f"export CC={c} CXX={other}",
        )


def _is_off(flags: tuple[str, ...], without: tuple[str, ...]) -> bool:
    """Whether each of these `-mno-` flags is the last word on its feature."""
    last = {_feature(flag): flag for flag in flags}
    return all(last.get(_feature(flag)) == flag for flag in without)


def _last(flags: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """The flags with more behind them, which are then the last and only word on their features."""
    of_more = {_feature(flag) for flag in more}
    return (*(flag for flag in flags if _feature(flag) not in of_more), *more)


def _feature(flag: str) -> str:
    return flag.replace("-mno-", "-m", 1)


def _c_of(compiler: str) -> str:
    """The C compiler beside a C++ compiler."""
    return compiler.replace("clang++", "clang").replace("g++", "gcc")


def _other_compilers(mine: Compiler) -> list[str]:
    """Paths of the C++ compilers on PATH that are of another family or version than this one, one of each."""
    found: dict[str, Compiler] = {}
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name)
            if _COMPILER.fullmatch(name) and os.access(path, os.X_OK) and shutil.which(_c_of(path)):
                found.setdefault(path, compiler_at(path))
    unlike = {str(compiler): path for path, compiler in found.items() if str(compiler) != str(mine)}
    return [unlike[name] for name in sorted(unlike, reverse=True)]
