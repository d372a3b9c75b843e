"""How long a command takes that is refused before it runs anything, beside a Python that does nothing.

When a Prefect server was started to refuse it, `upgrade` on hold took 236 times as long as Python does by itself, 18 s
on a quiet machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tasks.contracts import scripted
from tasks.release import Hold, StagePointer
from tasks.store import Store
from tests.benchmarks.start import SCRIPT, clean
from tests.fakes.github import fake_github

ROUNDS = 5
NOTHING = "python -c pass"
AT_MOST = 90
"""So many times what Python takes by itself: 3 s where that is 33 ms."""
REFUSED = {
    "on hold": ("upgrade",),
    "no such tag": ("upgrade", "--to", "b123"),
    "missing needs": ("upgrade",),
    "nothing to redeploy": ("redeploy", "--reason", "new key"),
}


def main() -> Iterator[str]:
    """Lines of the report: the median of the rounds of each refusal. Exits when one has started a Prefect server."""
    with (
        tempfile.TemporaryDirectory() as name,
        fake_github(Path(name, "github")) as github,
    ):
        github.commit("one", {"CMakeLists.txt": "project(x)\n"})
        github.release("b10601", "2026-11-01T12:00:00Z", prerelease=True)
        folder = Path(name)
        (folder / "patches").mkdir()
        (folder / "patches/series").write_text("")
        model = scripted.build(scripted.thinks_then_answers(1), folder / "m.gguf")
        env = clean(folder) | {
            "LLAMA_RELEASE_CACHE": f"{folder}/cache", "LLAMA_RELEASE_PATCHES": f"{folder}/patches",
            "LLAMA_RELEASE_LOCAL__STAGING_PORT": "0", "LLAMA_RELEASE_LOCAL__PRODUCTION_PORT": "0",
            "LLAMA_RELEASE_UPSTREAM__KIND": "github", "LLAMA_RELEASE_UPSTREAM__API_URL": github.url,
        }  # fmt: skip
        store, has_model = Store(folder / "store"), {"LLAMA_RELEASE_SERVER__MODEL": str(model)}
        nothing = statistics.median(_seconds(["-c", "pass"], env, folder, 0) for _ in range(ROUNDS))
        yield f"{'refused':24}{'seconds':>8}{'ratio':>7}{'at most':>9}"
        yield f"{NOTHING:24}{nothing:8.2f}{1:7.1f}"
        for why, words in REFUSED.items():
            hold = Hold(reason="it was slow", by="ada") if why == "on hold" else None
            store.save_pointer(StagePointer(stage="production", hold=hold))
            given, code = env | ({} if why == "missing needs" else has_model), 2
            took = statistics.median(_seconds([str(SCRIPT), *words], given, folder, code) for _ in range(ROUNDS))
            yield f"{why:24}{took:8.2f}{took / nothing:7.1f}{AT_MOST:9}"
        if (store.root / "prefect").exists():
            raise SystemExit("a refused command has started a Prefect server")


def _seconds(argv: list[str], env: Mapping[str, str], folder: Path, code: int) -> float:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *argv], env=env, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != code:
        raise SystemExit(f"{argv} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - start
