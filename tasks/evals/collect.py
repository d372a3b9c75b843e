"""A release's answers to the items: from the store, or asked of a trial server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import tasks
from tasks.endpoint import Client
from tasks.evals.ask import KEY_VARIABLE, Request
from tasks.evals.compare import NAME, basis, gate, table
from tasks.evals.items import Item, ItemSet, generate
from tasks.evals.model import Answers, ItemAnswer, Outcome
from tasks.platforms import Platform, Progress
from tasks.process import die_with_parent
from tasks.release import Endpoint, Release, ToolingError, Verification, settle
from tasks.report import Row, stage
from tasks.settings import Settings
from tasks.store import Files

ATTEMPTS = 3
"""How often an item without an answer is asked in one run."""
ATTEMPT_TIMEOUT_S = 120
RECOVERY_S = 10.0
"""How long a server that gave no answer has to become healthy again before the rest is given up."""


def item_set(settings: Settings) -> ItemSet:
    """The items that these settings ask."""
    return generate(settings.evals.seed, settings.evals.items)


def answers(platform: Platform, release: Release, settings: Settings, progress: Progress) -> Answers:
    """What this release answers to the item set: from the store, or asked of a trial server and then stored.

    Each answer is kept as it comes, so a run that was killed goes on where it stopped. An item whose request failed
    is asked again, up to ATTEMPTS times while the server is healthy; what is still without an answer has the outcome
    `errored`, and only then is the result not stored as final. Raises what `platform.trial` raises, and ToolingError
    when the asking process itself breaks.
    """
    asked = item_set(settings)
    path = platform.store.answers_path(release.id, asked.digest)
    files, partial = platform.store.files, path.replace(".json", ".partial.json")
    kept = _load(files, path) or _load(files, partial)
    if kept and kept.complete:
        return kept
    found = {a.item: a for a in kept.answers if a.outcome is not Outcome.ERRORED} if kept else {}
    spent, start = kept.seconds if kept else 0.0, time.monotonic()

    def so_far() -> Answers:
        return Answers(
            release=release.id, set_digest=asked.digest, seed=asked.seed, count=len(asked.items),
            answers=tuple(found[item.id] for item in asked.items if item.id in found),
            seconds=round(spent + time.monotonic() - start, 2),
        )  # fmt: skip

    with platform.trial(release) as endpoint:
        for attempt in range(ATTEMPTS):
            left = [i for i in asked.items if i.id not in found or found[i.id].outcome is Outcome.ERRORED]
            if not left or (attempt and not _healthy(endpoint)):
                break
            for answer in _ask(endpoint, release, left, settings):
                found[answer.item] = answer
                if answer.outcome is not Outcome.ERRORED:
                    files.write(partial, so_far().model_dump_json(indent=1) + "\n")
                    done = sum(a.outcome is not Outcome.ERRORED for a in found.values())
                    progress(done, len(asked.items), f"asking {release.label}")
    result = so_far()
    if result.complete:
        files.write(path, result.model_dump_json(indent=1) + "\n")
        files.remove(partial)
    return result


def _load(files: Files, path: str) -> Answers | None:
    """Stored answers, or None when there are none or the file is not readable: then they are asked again."""
    try:
        return Answers.model_validate_json(files.read(path) or "")
    except ValueError:
        return None


def _healthy(endpoint: Endpoint) -> bool:
    try:
        with Client(endpoint) as client:
            client.wait_healthy(RECOVERY_S, every_s=1.0)
    except ToolingError:
        return False
    return True


def _ask(endpoint: Endpoint, release: Release, items: Sequence[Item], settings: Settings) -> Iterator[ItemAnswer]:
    """Each answer as the asking process tells it. Raises ToolingError when that process fails."""
    request = Request(
        base_url=endpoint.base_url.rstrip("/"), model=release.alias, items=tuple(items), seed=settings.evals.seed,
        connections=settings.evals.max_connections, attempt_timeout_s=ATTEMPT_TIMEOUT_S,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="evals-") as folder, open(f"{folder}/stderr", "w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.evals.ask"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, cwd=folder,
            env=_environment(endpoint, Path(folder)), preexec_fn=die_with_parent,
        )  # fmt: skip
        assert process.stdin and process.stdout
        longest_s = 60 + ATTEMPT_TIMEOUT_S * -(-len(items) // settings.evals.max_connections)
        watchdog = threading.Timer(longest_s, process.kill)
        watchdog.start()
        try:
            process.stdin.write(request.model_dump_json())
            process.stdin.close()
            for line in process.stdout:
                yield ItemAnswer.model_validate_json(line)
            code = process.wait()
        except (BrokenPipeError, ValueError) as error:
            raise _broken(process.poll(), said.name, str(error)) from error
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        if code:
            raise _broken(code, said.name)


def _broken(code: int | None, log: str, why: str = "") -> ToolingError:
    tail = Path(log).read_text(encoding="utf-8", errors="replace")[-1500:]
    return ToolingError(
        f"the process that asks the eval items failed (exit code {code})",
        evidence=f"{why}\n{tail}",
        todo="run it again: answers that were given are kept",
    )


def _environment(endpoint: Endpoint, folder: Path) -> dict[str, str]:
    """Ours without what would change Inspect's ways or lead requests through a proxy; its files go to `folder`."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("INSPECT_", "OPENAI_", "EVALS_")) and not name.lower().endswith("_proxy")
    }
    homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(folder))
    source = str(Path(tasks.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return {**own, **homes, "PYTHONPATH": path, "DO_NOT_TRACK": "1", KEY_VARIABLE: endpoint.api_key or "none"}


@stage(NAME, "evals of {release.label}")
def check(row: Row, platform: Platform, release: Release, production: str | None, settings: Settings) -> Verification:
    """The gate's verdict on a release against what production's release answers; recorded in the dossier.

    Raises ReleaseFailed when it is worse, ToolingError when items were left without an answer.
    """
    store = platform.store
    wanted = basis(production, item_set(settings).digest, settings)
    found = store.fresh(release.id, (NAME,), wanted)
    again = bool(found)
    if not found:
        baseline = answers(platform, store.get_release(production), settings, row.progress) if production else None
        found = [gate(answers(platform, release, settings, row.progress), baseline, settings)]
        store.record(found[0])
    (verdict,) = found
    row.done(f"{'recorded before: ' if again else ''}{verdict.summary}", table(verdict), release=release.id)
    settle(found)
    return verdict
