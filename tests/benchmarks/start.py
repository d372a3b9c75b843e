"""How long a command takes before it has done anything, beside a Python that does nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SCRIPT = Path(sysconfig.get_path("scripts")) / "llama-release"
ROUNDS = 7
NOTHING = "python -c pass"
COMPLETION = "llama-release sta<Tab>"
AT_MOST = {"--help": 15, "--version": 15, COMPLETION: 15, "status": 30, "history": 30}
"""So many times what Python takes by itself: 0.5 s and 1 s where that is 33 ms, and a busy machine has a ratio too."""
OTHERS = ("upgrade --help", "explain x", "hold lift", "approve x", "plan", "doctor")
"""They do something too; `plan` asks upstream."""


def clean(folder: Path) -> dict[str, str]:
    """The environment of a user with an empty store in this folder, and no settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "PREFECT_", "DEMO_"))}
    return kept | {"LLAMA_RELEASE_STORE": str(folder / "store")}


def completing(line: str) -> dict[str, str]:
    """What bash adds to the environment for the completion of a line."""
    at = str(len(line.split(" ")) - 1)
    return {"_LLAMA_RELEASE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": at}


def main() -> Iterator[str]:
    """Lines of the report: the median of the rounds, each round one start of every command."""
    with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder:
        env = clean(Path(folder))
        runs = {NOTHING: (["-c", "pass"], env)}
        runs |= {words: ([str(SCRIPT), *words.split()], env) for words in (*AT_MOST, *OTHERS) if words != COMPLETION}
        runs[COMPLETION] = ([str(SCRIPT)], env | completing("llama-release sta"))
        found: dict[str, list[float]] = {name: [] for name in (NOTHING, *AT_MOST, *OTHERS)}
        for _ in range(ROUNDS):
            for name, seconds in found.items():
                seconds.append(_seconds(*runs[name], folder))
    nothing = statistics.median(found[NOTHING])
    yield f"{'command':24}{'seconds':>8}{'ratio':>7}{'at most':>9}"
    for name, seconds in found.items():
        took = statistics.median(seconds)
        yield f"{name:24}{took:8.2f}{took / nothing:7.1f}{AT_MOST.get(name, ''):>9}"


def _seconds(argv: list[str], env: Mapping[str, str], folder: str) -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, *argv], env=env, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
    return time.monotonic() - start
