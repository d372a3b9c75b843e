"""Forced idle windows and restore probe: does it come back, how fast, is it the same process, does it say the same?"""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from modal_app import warmup
from modal_app.warmup import Golden
from tasks.behaviour import digest_of_code
from tasks.console import console, one_line
from tasks.platforms import Platform
from tasks.release import BootRecord, Model, Release, StageName, Verdict, Verification, digest_of
from tasks.report import NAME_WIDTH, markdown_table
from tasks.restore.cycle import Cycle, NotIdle, recorded, run
from tasks.restore.judge import UNTOLD_MAX, Judgement, counted, fault, judge, unfinished
from tasks.restore.plot import svg
from tasks.restore.sequential import foresee
from tasks.settings import RestoreSettings
from tasks.stage import Row, stage
from tasks.store import Store, write_atomic

NAME = "restore"
_HERE = Path(__file__)
RULES = (
    Path(warmup.__file__),
    *(_HERE.with_name(f"{name}.py") for name in (_HERE.stem, "cycle", "deaths", "judge", "sequential")),
    _HERE.parents[1] / "platforms" / "modal" / "starts.py",
)
"""The code that a verdict rests on."""
LATE_S = 60.0
"""How long a platform's log may come after its count of what it started."""
POLL_S = 1.0
PLOTTED = 12
"""How many releases the plot shows."""


def basis(settings: RestoreSettings) -> str:
    """Digest of the rules that a restore verification depends on besides the release: the settings, and the code that
    asks and that judges."""
    return digest_of([settings.model_dump(), digest_of_code(*RULES)])[:12]


class Kept(Model):
    """The idle cycles of a probe that has no verdict yet."""

    cycles: tuple[Cycle, ...] = ()
    untold: tuple[Cycle, ...] = ()
    """Those of which nothing can be told: they don't count, or no later run could come to another verdict. But they
    are shown, and too many of them are no pass."""
    begun: int = 0
    """Attempts, written before each is made: what is in neither of the others ended with the process that made it."""

    @property
    def told_nothing(self) -> tuple[str, ...]:
        """What is known of the attempts that don't count, the latest last."""
        killed = self.begun - len(self.cycles) - len(self.untold)
        words = [found.summary for cycle in self.untold if (found := fault(cycle))]
        return (*["the run that made it was killed"] * killed, *words)

    def seen_again(self, boots: Sequence[BootRecord]) -> Kept:
        """With all that is known by now of what came up in each cycle's time: a platform may tell late of a server that
        died in its restore, and the one that answered in its place looks like a new snapshot, or a sound restore."""
        return self.model_copy(
            update={name: tuple(c.seen_again(boots) for c in getattr(self, name)) for name in ("cycles", "untold")}
        )

    def with_(self, cycle: Cycle) -> Kept:
        found = fault(cycle)
        name = "untold" if found and found.verdict is Verdict.ERRORED else "cycles"
        return self.model_copy(update={name: (*getattr(self, name), cycle)})


def probe(
    platform: Platform,
    stage_name: StageName,
    release: Release,
    settings: RestoreSettings,
    progress: Callable[[int, int, str], None],
) -> Verification:
    """Idle cycles of a stage until they decide, or there are too many; their latencies go into the series.

    Each is kept as it is made: what a killed run, or one of which nothing could be told, has seen by these rules is
    gone on with (`to_staging` forgets it before another server takes the place of this one). Raises ToolingError when
    the idle window cannot be forced, or there is nothing to compare answers with.
    """
    start = time.monotonic()
    store, key = platform.store, _key(platform, stage_name, settings)
    kept = store.cycles(release.id, key, Kept) or Kept()
    known, untold = len(kept.cycles), len(kept.untold)
    now: Golden | None = None
    progress(len(counted(kept.cycles)), settings.cycles_max, "forcing an idle window")
    while _goes_on(kept := kept.seen_again(platform.boots(stage_name)), settings) and len(kept.untold) == untold:
        # of the snapshot that it will come back from; where there is none, of the server that runs now
        golden = platform.golden(stage_name) or now or (now := recorded(platform, stage_name, release))
        store.save_cycles(release.id, key, begun := kept.model_copy(update={"begun": kept.begun + 1}))
        try:
            cycle = _cycle(platform, stage_name, release, golden, settings)
        except NotIdle:  # no attempt at a restore
            store.save_cycles(release.id, key, kept)
            raise
        store.save_cycles(release.id, key, kept := begun.with_(cycle))
        progress(len(counted(kept.cycles)), settings.cycles_max, ", ".join(cycle.kind for cycle in kept.cycles))
    verdict, summary = _judged(kept, kept.untold[untold:], settings)
    if verdict is Verdict.PASSED and (unseen := _uncounted(platform, stage_name, kept)):
        verdict, summary = Verdict.ERRORED, f"{unseen}; else: {summary}"
        store.forget_cycles(release.id)  # they don't become more by themselves: all are made anew
    by_kind = by_machine(boots_of(platform, stage_name, release))
    return Verification(
        name=NAME,
        release=release.id,
        verdict=verdict,
        summary="; ".join(filter(None, (summary, by_kind)))
        + (f" ({known} cycles were made by an earlier run)" if known else ""),
        promise="a first request after an idle window is answered by the process that was warmed up, as it was then "
        "(guide, playbook step 5)",
        basis=basis(settings),
        evidence={
            "cycles": [cycle.model_dump(mode="json") for cycle in (*kept.cycles, *kept.untold)],
            "test": foresee(settings).model_dump(mode="json"),
        },
        seconds=time.monotonic() - start,
    )


def _key(platform: Platform, stage_name: StageName, settings: RestoreSettings) -> str:
    """Of the cycles of one deployment by these rules: another one is another server, with snapshots of its own."""
    _, generation = platform.serving(stage_name) or ("", "")
    return digest_of([basis(settings), stage_name, generation, platform.version(stage_name)])[:12]


def _uncounted(platform: Platform, stage_name: StageName, kept: Kept) -> str:
    """What is to be said when the platform started more servers since the first cycle than left a trace: any of them
    may be a restore that failed. '' when all are known, or it does not count.

    Its count and its log may both come late (modal 1.6.4 calls the count best effort), so a difference is waited for;
    a count that is behind is none.
    """
    first = min((cycle.since for cycle in kept.cycles if cycle.since), default=None)
    if first is None or platform.started(stage_name, first) is None:
        return ""
    deadline = time.monotonic() + LATE_S
    while True:
        known = sum(boot.containers for boot in platform.boots(stage_name) if boot.at > first)
        started = platform.started(stage_name, first) or 0
        if started <= known:
            return ""
        if time.monotonic() > deadline:
            return f"{started} servers were started for the idle windows, and only {known} are known of"
        time.sleep(POLL_S)


def boots_of(platform: Platform, stage_name: StageName, release: Release) -> list[BootRecord]:
    """All boots of what the stage serves of a release now: those of the idle windows, and those before them."""
    _, generation = platform.serving(stage_name) or ("", "")
    boots = platform.boots(stage_name)
    return [boot for boot in boots if (boot.release, boot.generation) == (release.id, generation)]


def by_machine(boots: Sequence[BootRecord]) -> str:
    """How the starts went on each kind of machine, where there are several: a snapshot is good for one kind only."""
    kinds = list(dict.fromkeys(boot.worker for boot in boots if boot.worker))
    if len(kinds) < 2:
        return ""
    told = []
    for number, kind in enumerate(kinds, 1):
        count = Counter(boot.kind for boot in boots if boot.worker == kind)
        told.append(f"machine {number} ({kind}): {', '.join(f'{n} {name}' for name, n in sorted(count.items()))}")
    if nowhere := sum(not boot.worker for boot in boots):
        told.append(f"{nowhere} died before they said where")
    return f"all {len(boots)} starts of it, {'; '.join(told)}"


def _goes_on(kept: Kept, settings: RestoreSettings) -> bool:
    return len(kept.told_nothing) <= UNTOLD_MAX and unfinished(kept.cycles, settings)


def _judged(kept: Kept, ours: Sequence[Cycle], settings: RestoreSettings) -> Judgement:
    """By all that was seen; where this run ended at what can't be told, by that one of `ours`, if there are few."""
    if ours and len(kept.told_nothing) <= UNTOLD_MAX:
        found = fault(ours[-1])
        assert found, "that is why it ended"
        return Judgement(found.verdict, f"cycle {len(kept.cycles) + len(kept.untold)}: {found.summary}")
    return judge(kept.cycles, settings, kept.told_nothing)


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


def foreseen(settings: RestoreSettings) -> str:
    """What there is to know of a probe before it begins, as one line."""
    return (
        f"{foresee(settings).summary}; up to {settings.created_max} more at the beginning that create a snapshot; "
        f"where there is none, {settings.cold_cycles} cycles"
    )


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
        console.print(f"  {NAME:<{NAME_WIDTH}} {one_line(foreseen(settings))}", soft_wrap=True)
        found = [probe(platform, stage_name, release, settings, row.progress)]
        platform.store.record(found[0])
        if found[0].verdict is not Verdict.ERRORED:
            platform.store.forget_cycles(release.id)
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
        "; ".join(cycle.differences) or (f"same within {cycle.tolerance:.2g}" if cycle.compared else "not compared"),
    )  # fmt: skip


def drawn(store: Store) -> str:
    """The plot of the latest releases that have a series, oldest upstream build first."""
    known = [(release, store.latencies(release.id)) for release in reversed(store.releases())]
    return svg([(release, series) for release, series in known if series][-PLOTTED:])
