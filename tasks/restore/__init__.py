"""Forced idle windows and restore probe: does it come back, how fast, is it the same process, does it say the same?"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable

from modal_app.warmup import TEXTS, Golden
from tasks.platforms import Platform
from tasks.release import Release, StageName, Verdict, Verification, digest_of
from tasks.report import markdown_table
from tasks.restore.cycle import Cycle, recorded, run
from tasks.restore.judge import Judgement, counted, fault, judge, unfinished
from tasks.restore.plot import svg
from tasks.settings import RestoreSettings
from tasks.stage import Row, stage
from tasks.store import Store, write_atomic

NAME = "restore"
PLOTTED = 12
"""How many releases the plot shows."""


def basis(settings: RestoreSettings) -> str:
    """Digest of what a restore verification depends on besides the release."""
    return digest_of([settings.model_dump(), TEXTS])[:12]


def probe(
    platform: Platform,
    stage_name: StageName,
    release: Release,
    settings: RestoreSettings,
    progress: Callable[[int, int, str], None],
) -> Verification:
    """So many idle cycles of a stage, or fewer when one of them decides; their latencies go into the series.

    Raises ToolingError when the idle window cannot be forced, or there is nothing to compare answers with.
    """
    start = time.monotonic()
    cycles: list[Cycle] = []
    now: Golden | None = None
    progress(0, settings.cycles, "forcing an idle window")
    while unfinished(cycles, settings):
        # of the snapshot that it will come back from; where there is none, of the server that runs now
        golden = platform.golden(stage_name) or now or (now := recorded(platform, stage_name, release))
        cycles.append(_cycle(platform, stage_name, release, golden, settings))
        progress(len(counted(cycles)), settings.cycles, ", ".join(cycle.kind for cycle in cycles))
    verdict, summary = judge(cycles, settings)
    return Verification(
        name=NAME,
        release=release.id,
        verdict=verdict,
        summary=summary,
        promise="a first request after an idle window is answered by the process that was warmed up, as it was then "
        "(guide, playbook step 5)",
        basis=basis(settings),
        evidence={"cycles": [cycle.model_dump(mode="json") for cycle in cycles]},
        seconds=time.monotonic() - start,
    )


def _cycle(
    platform: Platform, stage_name: StageName, release: Release, golden: Golden, settings: RestoreSettings
) -> Cycle:
    cycle = run(platform, stage_name, golden, settings)
    if cycle.latency:
        platform.store.add_latency(release.id, cycle.latency)
    return cycle


def once(
    platform: Platform, stage_name: StageName, release: Release, settings: RestoreSettings
) -> tuple[Cycle, Judgement | None]:
    """One more idle cycle of a stage, and what is wrong with it, if anything is. Raises what `probe` raises."""
    golden = platform.golden(stage_name) or recorded(platform, stage_name, release)
    cycle = _cycle(platform, stage_name, release, golden, settings)
    return cycle, fault(cycle)


def condemn(store: Store, release: Release, cycle: Cycle, summary: str) -> None:
    """A later cycle that is wrong by itself fails the release's restore verification, whatever it was."""
    if known := store.verification(release.id, NAME):
        cycles = [*known.evidence["cycles"], cycle.model_dump(mode="json")]
        changed = {"verdict": Verdict.FAILED, "summary": summary, "evidence": {**known.evidence, "cycles": cycles}}
        store.record(known.model_copy(update=changed))


@stage(NAME, "restore probe of {release.label} on {stage_name}")
def check(
    row: Row, platform: Platform, stage_name: StageName, release: Release, settings: RestoreSettings
) -> Verification:
    """Force idle windows on a stage and prove that it comes back; recorded in the release's dossier."""
    found = platform.store.fresh(release.id, (NAME,), basis(settings))
    again = bool(found)
    if not found:
        found = [probe(platform, stage_name, release, settings, row.progress)]
        platform.store.record(found[0])
    (made,) = found
    row.judged(found, made.summary, markdown(platform.store, made), again=again)
    return made


def markdown(store: Store, made: Verification) -> str:
    """A restore verification for a person: its cycles, and the plot of this and the latest releases."""
    plot = drawn(store)
    write_atomic(store.latency_plot(), plot)
    image = base64.b64encode(plot.encode()).decode()
    return "\n\n".join(
        [
            markdown_table(COLUMNS, rows(made)),
            f"![latency across releases](data:image/svg+xml;base64,{image})",
        ]
    )


COLUMNS = ("cycle", "came up as", "health", "first token after idle", "warm", "nonce", "control", "answers")


def rows(made: Verification) -> list[tuple[object, ...]]:
    """The cycles of a restore verification, as COLUMNS says."""
    return [_row(n, cycle) for n, cycle in enumerate(map(Cycle.model_validate, made.evidence["cycles"]), 1)]


def _row(number: int, cycle: Cycle) -> tuple[object, ...]:
    told = "; ".join(filter(None, (cycle.told, cycle.error)))
    if cycle.nonce is None or cycle.warm is None or cycle.control is None:
        return number, told, "", "none", "", "", "", "none"
    health_s = cycle.boots[-1].health_s if cycle.boots else None
    return (
        number, told, "" if health_s is None else f"{health_s:.2f} s",
        f"{cycle.nonce.first_token_s:.2f} s", f"{cycle.warm.first_token_s:.2f} s",
        *(f"{asked.cached_tokens} of {asked.nonce_tokens}" for asked in (cycle.nonce, cycle.control)),
        "; ".join(cycle.differences) or f"the same within {cycle.tolerance:.2g}",
    )  # fmt: skip


def drawn(store: Store) -> str:
    """The plot of the latest releases that have a series, oldest upstream build first."""
    known = [(release, store.latencies(release.id)) for release in reversed(store.releases())]
    return svg([(release, series) for release, series in known if series][-PLOTTED:])
