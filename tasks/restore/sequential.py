"""The sequential test behind a restore verdict: does a snapshot come back as often as a good one, or as a bad one?

Wald's sequential probability ratio test ("Sequential tests of statistical hypotheses", Ann. Math. Stat. 16, 1945) of
two rates, with the thresholds that Ville's inequality gives: 1 / `bad_passes` and 1 / `good_fails` for the two
likelihood ratios. Each ratio is a martingale under the rate that it speaks against, so the chance that it ever comes so
far is at most the error rate, however long one looks and wherever `cycles_max` cuts it off. What the errors really are,
and how many cycles it takes, is computed exactly, by dynamic programming over (cycles, failures).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tasks.release import Model, Verdict

if TYPE_CHECKING:
    from tasks.settings import RestoreSettings


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

    @property
    def summary(self) -> str:
        """One line for a person."""
        good, bad = self.good, self.bad
        return (
            f"{self.fewest} idle cycles at least to pass, {self.most} at most; expected {good.expected:.1f} "
            f"where {percent(good.rate)} come back, {bad.expected:.1f} where {percent(bad.rate)} do; a snapshot of "
            f"{percent(bad.rate)} passes in {bad.passed:.1%} of cases, one of {percent(good.rate)} fails in "
            f"{good.failed:.2%} and stays undecided in {good.undecided:.2%}"
        )


def percent(rate: float) -> str:
    """0.995 is 99.5%: a share with all the places that a setting has."""
    return f"{100 * rate:g}%"


def decide(restored: int, failed: int, settings: RestoreSettings) -> Verdict | None:
    """`passed` or `failed` once so many restores and failures in the cycles that count decide; None before that."""
    ratio = restored * math.log(settings.good / settings.bad) + failed * math.log(
        (1 - settings.good) / (1 - settings.bad)
    )
    if ratio >= -math.log(settings.bad_passes):
        return Verdict.PASSED
    return Verdict.FAILED if ratio <= math.log(settings.good_fails) else None


def foresee(settings: RestoreSettings) -> Foreseen:
    """Its exact error rates and expected numbers of cycles under these settings."""
    return Foreseen(
        fewest=settings.fewest, most=settings.cycles_max, good=course(settings.good, settings),
        bad=course(settings.bad, settings),
    )  # fmt: skip


def course(rate: float, settings: RestoreSettings) -> Course:
    """How the test ends for releases of which each return is a restore with this probability, each by itself."""
    ends = {Verdict.PASSED: 0.0, Verdict.FAILED: 0.0}
    expected = 0.0
    reached = {0: 1.0}  # failures so far -> the probability to be there, undecided
    for cycle in range(1, settings.cycles_max + 1):
        expected += sum(reached.values())
        after: dict[int, float] = {}
        for failures, probability in reached.items():
            for more, share in ((0, rate), (1, 1 - rate)):
                after[failures + more] = after.get(failures + more, 0.0) + probability * share
        reached = {}
        for failures, probability in after.items():
            verdict = decide(cycle - failures, failures, settings)
            if verdict is None:
                reached[failures] = probability
            else:
                ends[verdict] += probability
    return Course(
        rate=rate, passed=ends[Verdict.PASSED], failed=ends[Verdict.FAILED], undecided=sum(reached.values()),
        expected=expected,
    )  # fmt: skip
