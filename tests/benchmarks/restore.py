"""How sure a restore verdict is, and what it takes: the test's exact error rates, and simulated releases with them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.release import Verdict
from tasks.restore.sequential import course, decide, foresee
from tasks.settings import RestoreSettings

SEED, RELEASES = 2026, 20_000
SETTINGS = RestoreSettings()
OTHERS = (
    RestoreSettings(good_fails=0.05),
    RestoreSettings(bad_passes=0.01),
    RestoreSettings(bad=0.8, cycles_max=80),
    RestoreSettings(bad=0.9, cycles_max=200),
)


def simulated(rate: float, settings: RestoreSettings) -> tuple[dict[Verdict | None, float], float]:
    """(verdict -> its share, cycles on average) of releases that come back with this rate."""
    rng = np.random.default_rng(SEED)
    ends: dict[Verdict | None, float] = {Verdict.PASSED: 0, Verdict.FAILED: 0, None: 0}
    cycles = 0
    for returns in rng.random((RELEASES, settings.cycles_max)) < rate:
        restored = 0
        for n, back in enumerate(returns, 1):
            restored += int(back)
            if verdict := decide(restored, n - restored, settings):
                break
        ends[verdict] += 1 / RELEASES
        cycles += n
    return ends, cycles / RELEASES


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
    for settings in OTHERS:
        yield f"good {settings.good:g}, bad {settings.bad:g}, bad_passes {settings.bad_passes:g}, " + (
            f"good_fails {settings.good_fails:g}: {foresee(settings).summary}"
        )
    yield f"5 of 5, as it was: a snapshot of 70% passes in {0.7**5:.1%}"
