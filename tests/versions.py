"""`make test-versions`: the tests on the oldest and on the newest versions that the bounds of pyproject.toml allow.

Each end gets a fresh environment in a temporary folder. pip has no lowest resolution: the oldest end is installed with
every lower bound as a constraint; what nobody here bounds is the newest that goes with those. The newest end has no
constraints at all, so it tells first when a release somewhere breaks something.

    python -m tests.versions [oldest] [newest] [all | arguments of pytest]

Without `all` and arguments the unit and wire tiers run: the others compile llama.cpp, which no Python package changes.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parent.parent
PROJECT = REPOSITORY / "pyproject.toml"
ENDS = ("oldest", "newest")
TIERS = ("-m", "not real and not browser")
PINS = "LLAMA_RELEASE_PINS"
"""Names the file of pins that an environment was made of, for the test that compares them with what is installed."""


class NoLowerBound(ValueError):
    """A requirement without exactly one `>=`."""


def requirements(project: Path) -> Iterator[Requirement]:
    """What a pyproject.toml requires, all extras included."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    for texts in (table["dependencies"], *table["optional-dependencies"].values()):
        yield from map(Requirement, texts)


def oldest(of: Iterable[Requirement]) -> list[str]:
    """A constraint `name==version` for the lower bound of each. Raises NoLowerBound."""
    return [f"{wanted.name}=={_lower_bound(wanted)}" for wanted in of]


def _lower_bound(wanted: Requirement) -> str:
    lowest = [bound.version for bound in wanted.specifier if bound.operator == ">="]
    if len(lowest) != 1:
        raise NoLowerBound(f"{PROJECT.name}: {wanted} has no single lower bound")
    return lowest[0]


def run_end(end: str, pytest: Sequence[str]) -> int:
    """Make an environment of this end's versions, print them and run pytest in it. Its exit code, or pip's."""
    with tempfile.TemporaryDirectory(prefix=f"{end}-") as folder:
        home = Path(folder)
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        python = home / "venv" / "bin" / "python"
        if failed := _install(python, end, home):
            return failed
        pins = home / "pins.txt"
        pins.write_text(_installed(python))
        print(f"-- {end}, Python {sys.version.split()[0]}\n{pins.read_text()}", flush=True)
        path = os.pathsep.join((str(python.parent), os.environ["PATH"]))
        env = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY), PINS: str(pins)}
        words = ("-n", "logical", "--dist", "loadfile")
        return subprocess.run([python, "-m", "pytest", *words, *pytest], cwd=REPOSITORY, env=env).returncode


def _install(python: Path, end: str, home: Path) -> int:
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(oldest(requirements(PROJECT))) if end == "oldest" else "")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "--upgrade", "pip"], check=True)  # as `make venv` does first
    words = ("--constraint", constraints, "--editable", f"{REPOSITORY}[test,docs]")
    return subprocess.run([*pip, *words]).returncode


def _installed(python: Path) -> str:
    """All packages of an environment but this project, as `name==version` lines."""
    words = ("freeze", "--all", "--exclude", "llama-release")
    return subprocess.run([python, "-m", "pip", *words], check=True, capture_output=True, text=True).stdout


def main(argv: Sequence[str]) -> int:
    words = list(argv)
    ends = list(itertools.takewhile(ENDS.__contains__, words))
    pytest = words[len(ends) :]
    codes = {end: run_end(end, () if pytest == ["all"] else pytest or TIERS) for end in ends or ENDS}
    for end, code in codes.items():
        print(f"{end}: {'passed' if code == 0 else f'failed, exit code {code}'}")
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
