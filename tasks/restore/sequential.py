"""The sequential test behind a restore verdict: does a snapshot come back as often as a good one, or as a bad one?

Wald's sequential probability ratio test ("Sequential tests of statistical hypotheses", Ann. Math. Stat. 16, 1945) of
two rates, with the thresholds that Ville's inequality gives: 1 / `bad_passes` and 1 / `good_fails` for the two
likelihood ratios. Each ratio is a martingale under the rate that it speaks against, so the chance that it ever comes so
far is at most the error rate, however long one looks and wherever `cycles_max` cuts it off. What the errors really are,
and how many cycles it takes, is computed exactly, by dynamic programming over (cycles, failures).

A return that created a snapshot may be the first of its worker type, or a restore that failed and ended so: a boot
record tells no difference. Each error rate holds whichever it was, as each ratio takes the worse of the two:

    to pass       it was a failure. At the beginning, before anything was restored, it counts for nothing, and neither
                  does the first restore: what follows the first restore does not depend on how long that took.
    to fail       it was none, as long as there are no more of them than worker types beside the first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from tasks.release import Model, Verdict

if TYPE_CHECKING:
    from tasks.settings import RestoreSettings


class Tally(NamedTuple):
    """The idle cycles that count, by how they ended."""

    restored: int
    failed: int = 0
    created: int = 0
    """Those that created a snapshot after the first restore."""

    @property
    def cycles(self) -> int:
        return self.restored + self.failed + self.created


class Course(Model):
    """What the test does with releases that come back with one rate. Probabilities, and numbers of cycles."""

    rate: float
    passed: float
    failed: float
    undecided: float
    expected: float
    """The mean number of cycles that count."""


class Foreseen(Model):
    """What is known of the test before its first cycle."""

    fewest: int
    """The least number of cycles after which it can pass."""
    most: int
    good: Course
    bad: Course
    hidden: Course
    """Of a bad one whose every failure leaves no trace but a new snapshot."""

    @property
    def summary(self) -> str:
        """One line for a person."""
        good, bad = self.good, self.bad
        return (
            f"{self.fewest} idle cycles at least to pass, {self.most} at most; expected {good.expected:.1f} "
            f"where {percent(good.rate)} come back, {bad.expected:.1f} where {percent(bad.rate)} do; a snapshot of "
            f"{percent(bad.rate)} passes in {bad.passed:.1%} of cases, in {self.hidden.passed:.1%} when its failures "
            f"look like new snapshots; one of {percent(good.rate)} fails in {good.failed:.2%} and stays undecided in "
            f"{good.undecided:.2%}"
        )


def percent(rate: float) -> str:
    """0.995 is 99.5%: a share with all the places that a setting has."""
    return f"{100 * rate:g}%"


def decide(tally: Tally, settings: RestoreSettings) -> Verdict | None:
    """`passed` or `failed` once the cycles that count decide; None before that."""
    if _ratio(max(tally.restored - 1, 0), tally.failed + tally.created, settings) >= -math.log(settings.bad_passes):
        return Verdict.PASSED
    failed = tally.failed + max(0, tally.created - (settings.worker_types - 1))
    return Verdict.FAILED if _ratio(tally.restored, failed, settings) <= math.log(settings.good_fails) else None


def _ratio(restored: int, failed: int, settings: RestoreSettings) -> float:
    """Logarithm of how much likelier that is with the good rate than with the bad one."""
    good, bad = settings.good, settings.bad
    return restored * math.log(good / bad) + failed * math.log((1 - good) / (1 - bad))


def foresee(settings: RestoreSettings) -> Foreseen:
    """Its exact error rates and expected numbers of cycles under these settings."""
    return Foreseen(
        fewest=settings.fewest, most=settings.cycles_max, good=course(settings.good, settings),
        bad=course(settings.bad, settings), hidden=course(settings.bad, settings, hidden=True),
    )  # fmt: skip


def course(rate: float, settings: RestoreSettings, *, hidden: bool = False) -> Course:
    """How the test ends for releases of which each return is a restore with this probability, each by itself.

    `hidden`: what fails is seen as a new snapshot. Those before the first restore don't count, so that is where it
    begins.
    """
    ends = {Verdict.PASSED: 0.0, Verdict.FAILED: 0.0}
    expected = 0.0
    reached = {0: 1.0}  # failures so far -> the probability to be there, undecided
    for cycle in range(1, settings.cycles_max + 1):
        expected += sum(reached.values())
        back = 1.0 if hidden and cycle == 1 else rate
        after: dict[int, float] = {}
        for failures, probability in reached.items():
            for more, share in ((0, back), (1, 1 - back)):
                after[failures + more] = after.get(failures + more, 0.0) + probability * share
        reached = {}
        for failures, probability in after.items():
            seen = Tally(cycle - failures, created=failures) if hidden else Tally(cycle - failures, failures)
            verdict = decide(seen, settings)
            if verdict is None:
                reached[failures] = probability
            else:
                ends[verdict] += probability
    return Course(
        rate=rate, passed=ends[Verdict.PASSED], failed=ends[Verdict.FAILED], undecided=sum(reached.values()),
        expected=expected,
    )  # fmt: skip
