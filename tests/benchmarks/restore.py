"""How sure a restore verdict is, and what it takes: the test's exact error rates, and simulated releases with them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.release import Verdict
from tasks.restore.sequential import Tally, course, decide, foresee
from tasks.settings import RestoreSettings

SEED, RELEASES = 2026, 20_000
SETTINGS = RestoreSettings()
OTHERS = (
    RestoreSettings(good_fails=0.05),
    RestoreSettings(bad_passes=0.01),
    RestoreSettings(bad=0.8, cycles_max=80),
    RestoreSettings(bad=0.9, cycles_max=200),
)


HIDDEN = (0.0, 0.5, 1.0)
"""Shares of the failed restores that leave nothing but a new snapshot."""


def simulated(rate: float, settings: RestoreSettings, hidden: float = 0.0) -> tuple[dict[Verdict | None, float], float]:
    """(verdict -> its share, cycles on average that count) of releases that come back with this rate, of whose failures
    this share is seen as a new snapshot, which counts for nothing before anything was restored or failed otherwise."""
    rng = np.random.default_rng(SEED)
    ends: dict[Verdict | None, float] = {Verdict.PASSED: 0, Verdict.FAILED: 0, None: 0}
    cycles = 0
    drawn = rng.random((RELEASES, settings.cycles_max, 2)) < (rate, hidden)
    for returns in drawn:
        verdict, tally = None, Tally(0)
        for back, new in returns:
            if back:
                tally = tally._replace(restored=tally.restored + 1)
            elif not new:
                tally = tally._replace(failed=tally.failed + 1)
            elif tally.cycles:
                tally = tally._replace(created=tally.created + 1)
            if verdict := decide(tally, settings):
                break
        ends[verdict] += 1 / RELEASES
        cycles += tally.cycles
    return ends, cycles / RELEASES


def two_more() -> int:
    """Restores that a good release needs when two kinds of machine took their snapshots after the first restore."""
    return next(n for n in range(1, 1000) if decide(Tally(n, created=2), SETTINGS) is Verdict.PASSED)


def main() -> Iterator[str]:
    yield f"the default: {foresee(SETTINGS).summary}"
    yield f"exact, and in brackets {RELEASES} simulated releases, seed {SEED}"
    yield "| comes back | passes | fails | undecided | cycles |"
    yield "| --- | --- | --- | --- | --- |"
    for rate in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999):
        known, (ends, cycles) = course(rate, SETTINGS), simulated(rate, SETTINGS)
        yield (
            f"| {rate:.1%} | {known.passed:.2%} ({ends[Verdict.PASSED]:.2%}) "
            f"| {known.failed:.2%} ({ends[Verdict.FAILED]:.2%}) | {known.undecided:.2%} ({ends[None]:.2%}) "
            f"| {known.expected:.1f} ({cycles:.1f}) |"
        )
    yield "failed restores that leave nothing but a new snapshot, as the platform may have done for another machine:"
    yield f"| of {SETTINGS.bad:.0%}, so many failures look so | passes | fails | undecided | cycles |"
    yield "| --- | --- | --- | --- | --- |"
    for hidden in HIDDEN:
        ends, cycles = simulated(SETTINGS.bad, SETTINGS, hidden)
        yield (
            f"| {hidden:.0%} | {ends[Verdict.PASSED]:.2%} | {ends[Verdict.FAILED]:.2%} | {ends[None]:.2%} "
            f"| {cycles:.1f} |"
        )
    worst = course(SETTINGS.bad, SETTINGS, hidden=True)
    yield f"the worst, exact: {worst.passed:.2%} pass; with two new snapshots it takes {two_more()} restores to pass"
    for settings in OTHERS:
        yield f"good {settings.good:g}, bad {settings.bad:g}, bad_passes {settings.bad_passes:g}, " + (
            f"good_fails {settings.good_fails:g}: {foresee(settings).summary}"
        )
    yield f"5 of 5, as it was: a snapshot of 70% passes in {0.7**5:.1%}"
