"""The score interval for the difference of two paired proportions."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.90
"""Two-sided: each bound alone is a one-sided 95% bound, the convention of non-inferiority tests at 5%."""


class Interval(NamedTuple):
    """A difference of proportions and its bounds, in -1..1."""

    estimate: float
    low: float
    high: float


def tango(gained: int, lost: int, pairs: int, confidence: float = CONFIDENCE) -> Interval:
    """Tango's score interval for (gained - lost) / pairs.

    `gained`: pairs right only in the second, `lost`: right only in the first, `pairs`: all pairs. `confidence` is
    two-sided. Raises ValueError when the counts cannot be.

    Source: Tango (1998), Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design, Statistics in Medicine 17, 891-908. It inverts the score test, so it is never of zero width
    and works without any discordant pair. statsmodels 0.15 and scipy 1.17 have no score interval for this difference.
    """
    if min(gained, lost) < 0 or pairs < 1 or gained + lost > pairs:
        raise ValueError(f"{gained} gained and {lost} lost of {pairs} pairs")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    estimate = (gained - lost) / pairs
    low = _root(gained, lost, pairs, z, -1.0, estimate)
    high = -_root(lost, gained, pairs, z, -1.0, -estimate)
    return Interval(estimate, low, high)


def _root(gained: int, lost: int, pairs: int, z: float, low: float, high: float) -> float:
    """Where the falling score statistic is z: the lower bound."""
    for _ in range(60):
        middle = (low + high) / 2
        if _score(gained, lost, pairs, middle) > z:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _score(gained: int, lost: int, pairs: int, difference: float) -> float:
    """Tango's statistic at a true difference; the nuisance (share lost) at its restricted maximum of likelihood."""
    a = 2 * pairs
    b = (2 * pairs - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    share_lost = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = pairs * (2 * share_lost + difference * (1 - difference))
    distance = gained - lost - pairs * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)
