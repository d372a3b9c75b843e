"""A drill: would the release that a rollback goes to still do? Booted and asked on trial servers, for that alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tasks.contracts import check_server
from tasks.contracts.judge import judge
from tasks.contracts.promises import CONTRACTS
from tasks.contracts.trials import ORDER, trial_release
from tasks.platforms import Platform, Progress
from tasks.promote import check_serving
from tasks.release import Endpoint, Event, Release, Verdict, Verification
from tasks.report import markdown_table
from tasks.stage import Row, stage

MUST = [contract for contract in CONTRACTS.values() if contract.must]
"""What is asked: the promises that must be kept whatever production does."""


@stage("drill", "drill of the retained release")
def drill(row: Row, platform: Platform, release_id: str | None = None) -> Verdict | None:
    """The verdict on a retained release (the latest one by default), as `run` says; None when none is retained."""
    store = platform.store
    target = release_id or next(iter(store.pointer("production").retained), None)
    if target is None:
        row.done("no release is retained: a rollback has nowhere to go")
        return None
    event = run(platform, store.get_release(target), row.progress)
    rows = event.detail["contracts"].items()
    row.done(f"{event.detail['verdict']}: {event.summary}", markdown_table(("promise", "what was seen"), rows))
    return Verdict(event.detail["verdict"])


def run(platform: Platform, release: Release, progress: Progress) -> Event:
    """Drill a release; the event that the ledger has of it, with verdict and evidence.

    Neither stage is touched and the dossier stays what the release was promoted by: everything runs on trial servers.
    `failed` when it is not whole in the store, does not boot, is another binary, or breaks a promise that must hold;
    `errored` when our own tooling broke.
    """
    began = time.monotonic()
    lost = platform.store.lost(release)
    found = [] if lost else asked(platform, release, progress)
    verdict, summary = _judged(release, lost, found)
    return platform.store.log(
        Event(
            kind="drill",
            release=release.id,
            summary=summary,
            detail={
                "verdict": verdict,
                "lost": lost,
                "contracts": {v.name: f"{v.verdict}: {v.summary}" for v in found},
                "seconds": round(time.monotonic() - began, 1),
            },
        )
    )


def asked(platform: Platform, release: Release, progress: Progress) -> list[Verification]:
    """A verification of each promise that must be kept, sorted by name, from trial servers; none is recorded."""
    found: list[Verification] = []
    with tempfile.TemporaryDirectory(prefix="llama-release-") as folder:
        for server in ORDER:
            only = [contract for contract in MUST if contract.server == server]
            if not only:
                continue
            progress(len(found), len(MUST), f"starting the {server} server")
            runs = trial_release(platform.store, release, server, Path(folder))
            trial = platform.trial(runs, wait=server != "starting")
            if server == "model":
                trial = _of_this_binary(trial, release)
            for done in check_server(server, trial, runs, subject=release, only=only):
                found.append(done)
                progress(len(found), len(MUST), done.name.removeprefix("contracts."))
    return sorted(judge(found, None, []), key=lambda v: v.name)


@contextmanager
def _of_this_binary(trial: AbstractContextManager[Endpoint], release: Release) -> Iterator[Endpoint]:
    with trial as endpoint:
        check_serving(endpoint, release)
        yield endpoint


def _judged(release: Release, lost: Sequence[str], found: Sequence[Verification]) -> tuple[Verdict, str]:
    if lost:
        return Verdict.FAILED, f"{release.label} is not whole in the store: {', '.join(lost)} missing or altered"
    for verdict in (Verdict.FAILED, Verdict.ERRORED):
        if bad := [v for v in found if v.verdict is verdict]:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            return verdict, f"{release.label}: {bad[0].name} {verdict}{more}: {bad[0].summary}"
    return Verdict.PASSED, f"{release.label} is whole, boots and keeps all {len(found)} promises that must hold"
