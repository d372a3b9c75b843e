"""The sequential test: its errors are what it says, and it refuses what could never pass."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.release import Verdict
from tasks.restore.sequential import Tally, course, decide, foresee
from tasks.settings import RestoreSettings

DEFAULT = RestoreSettings()


def test_the_errors_of_the_default_are_small_and_known() -> None:
    found = foresee(DEFAULT)
    assert (found.fewest, found.most) == (10, 40)
    assert found.bad.passed == pytest.approx(0.0309, abs=1e-4)
    assert found.hidden.passed == pytest.approx(0.0438, abs=1e-4)
    assert found.good.failed == pytest.approx(0.0032, abs=1e-4)
    assert found.good.undecided < 0.002
    assert found.good.expected == pytest.approx(11.1, abs=0.1)
    assert found.bad.expected == pytest.approx(7.3, abs=0.1)
    assert found.summary.startswith("10 idle cycles at least to pass, 40 at most; expected 11.1 where 99% come back")
    assert "passes in 3.1% of cases, in 4.4% when its failures look like new snapshots;" in found.summary


def test_the_first_verdict_that_it_can_give_is_after_the_fewest_restores() -> None:
    assert decide(Tally(DEFAULT.fewest), DEFAULT) is Verdict.PASSED
    assert decide(Tally(DEFAULT.fewest - 1), DEFAULT) is None
    assert decide(Tally(0, failed=1), DEFAULT) is None
    assert decide(Tally(0, failed=2), DEFAULT) is Verdict.FAILED


def test_a_snapshot_whose_failures_leave_only_new_snapshots_passes_no_oftener() -> None:
    """The whole rule on cycles in their order, those before the first restore included."""
    chance, trials = random.Random(2026), 4000
    passed = 0
    for _ in range(trials):
        restored = created = 0
        verdict: Verdict | None = None
        while verdict is None and restored + created < DEFAULT.cycles_max:
            back = chance.random() < DEFAULT.bad
            restored, created = restored + back, created + (not back and restored > 0)
            verdict = decide(Tally(restored, created=created), DEFAULT)
        passed += verdict is Verdict.PASSED
    assert passed / trials == pytest.approx(course(DEFAULT.bad, DEFAULT, hidden=True).passed, abs=0.013)
    assert passed / trials <= DEFAULT.bad_passes + 0.013


def test_what_is_computed_is_what_happens() -> None:
    chance, trials = random.Random(2026), 4000
    ends: list[tuple[Verdict | None, int]] = []
    for _ in range(trials):
        restored = failed = 0
        verdict: Verdict | None = None
        while verdict is None and restored + failed < DEFAULT.cycles_max:
            success = chance.random() < DEFAULT.bad
            restored, failed = restored + success, failed + (not success)
            verdict = decide(Tally(restored, failed), DEFAULT)
        ends.append((verdict, restored + failed))
    known = course(DEFAULT.bad, DEFAULT)
    passed = sum(verdict is Verdict.PASSED for verdict, _ in ends)
    assert passed / trials == pytest.approx(known.passed, abs=0.013)  # four standard errors
    assert sum(cycles for _, cycles in ends) / trials == pytest.approx(known.expected, abs=0.3)


@given(st.floats(0.05, 0.97), st.floats(0.01, 0.9), st.floats(0.005, 0.3), st.floats(0.005, 0.3), st.integers(1, 60))
def test_the_errors_never_exceed_the_settings(
    bad: float, further: float, bad_passes: float, good_fails: float, cycles_max: int
) -> None:
    good = bad + further * (0.999 - bad)
    try:
        settings = RestoreSettings(
            good=good, bad=bad, bad_passes=bad_passes, good_fails=good_fails, cycles_max=cycles_max
        )
    except ValueError:
        assume(False)
    found = foresee(settings)
    assert found.bad.passed <= bad_passes
    assert found.hidden.passed <= bad_passes
    assert found.good.failed <= good_fails
    assert found.good.passed > 0
    for each in (found.good, found.bad, found.hidden):
        assert each.passed + each.failed + each.undecided == pytest.approx(1)


def test_settings_that_can_never_pass_are_refused_with_numbers_that_can() -> None:
    with pytest.raises(ValueError, match="it takes 10 restores in a row") as refused:
        RestoreSettings(cycles_max=6)
    said = str(refused.value)
    assert "Set restore.cycles_max to 10 or more; or restore.bad at most 0.5437, or " in said
    assert "restore.bad_passes at least 0.177" in said
    for better in ({"cycles_max": 10}, {"cycles_max": 6, "bad": 0.5437}, {"cycles_max": 6, "bad_passes": 0.177}):
        assert foresee(RestoreSettings.model_validate(better)).good.passed > 0.9
    with pytest.raises(ValueError, match=r"restore.bad \(0.99\) must be less than restore.good \(0.99\)"):
        RestoreSettings(bad=0.99)


@pytest.mark.parametrize("old", [{"cycles": 5}, {"required": 0.5}, {"cycles": 5, "required": 0.5}])
def test_the_old_names_are_told_with_the_new_ones(old: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"restore.{min(old)}.* went: .*restore.good, .*restore.cold_cycles"):
        RestoreSettings.model_validate(old)
