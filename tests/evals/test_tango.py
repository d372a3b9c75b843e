import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evals.tango import tango


@pytest.mark.parametrize(
    ("gained", "lost", "pairs", "confidence", "low", "high", "digits"),
    [
        # Fagerland, Lydersen, Laake (2014): airway hyper-responsiveness before and after transplantation
        (1, 7, 21, 0.95, -0.517, -0.026, 3),
        # R's PropCIs::scoreci.mp, as others published its output
        (28, 25, 618, 0.90, -0.0148, 0.0247, 4),
        (50, 31, 591, 0.90, 0.0072, 0.0577, 4),
    ],
)
def test_published_intervals(
    gained: int, lost: int, pairs: int, confidence: float, low: float, high: float, digits: int
) -> None:
    found = tango(gained, lost, pairs, confidence)
    assert (round(found.low, digits), round(found.high, digits)) == (low, high)


def test_without_discordant_pairs_it_is_z2_over_n_plus_z2_to_each_side() -> None:
    z2 = 1.6448536269514722**2
    assert tango(0, 0, 72) == pytest.approx((0, -z2 / (72 + z2), z2 / (72 + z2)), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 400))
def test_it_holds_the_estimate_mirrors_and_stays_in_range(gained: int, lost: int, agree: int) -> None:
    pairs = gained + lost + agree
    found, mirrored = tango(gained, lost, pairs), tango(lost, gained, pairs)
    assert -1 <= found.low < found.estimate < found.high <= 1
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    wider = tango(gained, lost, pairs, 0.99)
    assert wider.low < found.low and found.high < wider.high


@pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (0, 0, 0), (3, 3, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="pairs"):
        tango(*counts)
