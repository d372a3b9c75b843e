from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evals.sequential import ALPHA, clustered_width, interval, log_stakes

MARGIN = 0.05
ALONE = ["f"] * 1000
"""All items of one family."""
DIFFERENCES = st.lists(st.sampled_from([-1, 0, 0, 0, 0, 1]), min_size=1, max_size=150)


@given(DIFFERENCES, st.integers(1, 12))
def test_it_holds_the_estimate_and_stays_in_range(differences: list[int], kinds: int) -> None:
    templates = [f"t{n % kinds}" for n in range(len(differences))]
    found = interval(differences, templates, ALONE[: len(differences)], MARGIN)
    assert -1 <= found.low <= found.estimate <= found.high <= 1


def test_a_stake_on_a_true_mean_is_worth_one_on_average_whatever_came_before() -> None:
    """The property that Ville's inequality needs, checked by weighing all 3^6 sequences of six items."""
    p = {1: 0.02, 0: 0.9, -1: 0.08}
    bound = p[1] - p[-1]
    sequences = np.array(np.meshgrid(*[[1.0, 0.0, -1.0]] * 6)).reshape(6, -1).T
    weights = np.prod(np.vectorize(p.__getitem__)(sequences), axis=1)
    stakes = np.exp(log_stakes(sequences, bound, MARGIN))
    assert weights @ stakes == pytest.approx(np.ones(6))


def test_no_stake_can_be_lost_whole_or_go_below_nothing() -> None:
    for bound in (-0.99, -MARGIN, 0.0, MARGIN, 0.99):
        assert np.isfinite(log_stakes(-np.ones((1, 400)), bound, MARGIN)).all()


def test_equal_answers_are_sure_to_be_no_worse_after_about_log_20_over_the_bet_times_the_margin() -> None:
    def low(items: int) -> float:
        return interval([0] * items, [f"t{n % 10}" for n in range(items)], ALONE[:items], MARGIN).low

    assert low(60) < -MARGIN < low(160)


def test_one_broken_template_of_ten_is_less_sure_than_the_same_losses_spread_over_all() -> None:
    n = 1000
    templates = [f"t{i % 10}" for i in range(n)]
    rng = np.random.default_rng(1)
    together = [-1 if i % 10 == 0 and (i // 10) % 2 else 0 for i in range(n)]
    spread = [int(d) for d in rng.permutation(together)]
    one, many = interval(together, templates, ALONE, MARGIN), interval(spread, templates, ALONE, MARGIN)
    assert one.estimate == many.estimate == pytest.approx(-0.05)
    assert one.estimate - one.low > 1.5 * (many.estimate - many.low)


def test_one_template_alone_does_not_vouch_for_others() -> None:
    assert interval([0] * 500, ["t"] * 500, ALONE[:500], MARGIN).low == -1.0
    assert clustered_width(np.array([0.0]), np.array([500.0]), ["f"]) == math.inf


def test_items_that_are_their_own_template_have_the_samples_variance_and_doubled_ones_count_once() -> None:
    """The boundary itself is a number of standard errors that is the same for every sample of a size."""
    rng = np.random.default_rng(3)
    one, other, half = (rng.choice([-1.0, 0.0, 1.0], n) for n in (200, 200, 100))
    widths = [clustered_width(x, np.ones(200), ALONE[:200]) / np.std(x, ddof=1) for x in (one, other)]
    assert widths[0] == pytest.approx(widths[1], rel=1e-9)
    errors = widths[0] * math.sqrt(200)
    doubled = clustered_width(2 * half, np.full(100, 2.0), ALONE[:100]) / (np.std(half, ddof=1) / math.sqrt(100))
    assert doubled == pytest.approx(errors, rel=0.02)  # fewer templates: Student's t is a little wider


def test_a_whole_family_that_broke_is_no_noise_between_templates() -> None:
    families = ["broken"] * 8 + ["whole"] * 64
    sums, counts = np.array([-5.0, -6.0] * 4 + [0.0, 1.0, 0.0, -1.0] * 16), np.full(72, 10.0)
    together, apart = clustered_width(sums, counts, ["all"] * 72), clustered_width(sums, counts, families)
    assert apart < together / 2


def test_a_template_alone_in_its_family_is_compared_with_all_others() -> None:
    sums, counts = np.array([-5.0, 0.0, 1.0, 0.0]), np.full(4, 10.0)
    alone = clustered_width(sums, counts, ["own", "f", "f", "f"])
    assert math.isfinite(alone)
    assert alone > clustered_width(np.array([0.0, 0.0, 1.0, 0.0]), counts, ["own", "f", "f", "f"])
    assert clustered_width(sums, counts, ["a", "b", "c", "d"]) == math.inf


def test_losing_all_of_two_templates_is_sure_to_be_worse_and_gaining_them_no_proof_that_others_gain() -> None:
    templates = [f"t{n % 10}" for n in range(300)]
    lost = [-1 if n % 10 < 2 else 0 for n in range(300)]
    worse, better = (interval([way * d for d in lost], templates, ALONE[:300], MARGIN) for way in (1, -1))
    assert worse.high < -MARGIN
    assert better.low < 0


@pytest.mark.parametrize("truth", ["independent", "by template"])
def test_a_release_worse_by_the_margin_passes_at_most_one_time_in_twenty(truth: str) -> None:
    rng, gates, templates, blocks = np.random.default_rng(7), 400, 24, 50
    shift = -MARGIN + (0.08 if truth == "by template" else 0.0) * rng.standard_normal((gates, 1, templates))
    noise, draw = 0.03, rng.random((gates, blocks, templates))
    up, down = noise + np.maximum(shift, 0), noise + np.maximum(-shift, 0)
    x = np.where(draw < up, 1.0, np.where(draw < up + down, -1.0, 0.0))
    stakes = log_stakes(x.reshape(gates, -1), -MARGIN, MARGIN)
    sure = np.maximum.accumulate(stakes, axis=1)[:, templates - 1 :: templates] >= -math.log(ALPHA)
    sums, counts = np.cumsum(x, axis=1), np.arange(1, blocks + 1)[:, np.newaxis] * np.ones(templates)
    low = sums.sum(axis=2) / counts.sum(axis=1) - clustered_width(sums, counts, ALONE[:templates])
    assert (sure & (low > -MARGIN)).any(axis=1).mean() <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / gates)


@pytest.mark.parametrize("sizes", [(0, 0), (2, 3)])
def test_impossible_input_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="differences"):
        interval([0] * sizes[0], ["t"] * sizes[1], ["f"] * sizes[1], MARGIN)
