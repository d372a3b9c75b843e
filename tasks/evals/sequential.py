"""An interval for a paired difference that holds at every look, so that asking may stop as soon as it is sure.

It is made of two one-sided 95% bounds:

- A betting bound, exact at any sample size: whoever bets that the mean is above m multiplies a stake of 1 by
  1 + bet * (x - m) with each item; when the mean is m or less, the stake ever reaches 20 with a chance of at most 1/20
  (Ville). Source: Waudby-Smith, Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2024).
  Without discordant items, which is the usual case, it does not collapse to a point.
- A bound clustered by template: items of one template tend to change together, so a thousand items of ten templates
  are not a thousand witnesses. A normal mixture boundary, asymptotic, with the cluster-robust variance. Source:
  Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, Time-uniform central limit theory and asymptotic confidence sequences,
  Annals of Statistics 52 (2024); variance as in Liang, Zeger, Biometrika 73 (1986), with T/(T-1). Two things are added.
  Templates are a sample of what could be asked, families are not: they are strata, and that one family changed more
  than another is no noise (Cochran, Sampling Techniques, 1977, chapter 5). And the boundary, in standard errors, is
  carried over to Student's t with as many degrees of freedom as there are templates beyond the families, at the same
  tail probability.

The lower bound, which lets a release pass, is the lower of both: that answers are no worse must hold for more than
these templates. The upper bound, which fails a release, is the betting bound alone: being worse on these templates is
enough. What either bound would do by itself is measured by `python -m tests.benchmarks gate`: betting alone passes far
too many bad releases when templates differ, the clustered bound alone too many when few items changed, and as an upper
bound it leaves releases with whole families broken undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
"""Error of each bound, over all looks together."""
EXPECTED_DISCORDANT = 0.1
"""Share of discordant items that the first bets reckon with: as if that had been seen on PRIOR_ITEMS items."""
PRIOR_ITEMS = 100
LARGEST_BET = 0.7
"""Of what could lose the whole stake."""
TUNED_FOR = 500
"""Items at which the clustered bound is tightest."""

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean difference and its bounds, each in -1..1: `low` for all such templates, `high` for these."""

    estimate: float
    low: float
    high: float


def interval(differences: Sequence[int], templates: Sequence[str], strata: Sequence[str], margin: float) -> Interval:
    """The interval after these items, in the order in which they were asked.

    `differences`: candidate minus baseline, each -1, 0 or 1; `templates`: what each item was made from, and `strata`:
    the family of that; `margin`: the difference, in 0..1, that the bets are laid to tell from none. Raises ValueError
    without items.
    """
    if not differences or not len(differences) == len(templates) == len(strata):
        raise ValueError(f"{len(differences)} differences of {len(templates)} items")
    x = np.asarray(differences, dtype=np.float64)
    _, first, which = np.unique(np.asarray(templates), return_index=True, return_inverse=True)
    sums, counts = np.bincount(which, weights=x).astype(float), np.bincount(which).astype(float)
    width = float(clustered_width(sums, counts, [strata[item] for item in first]))
    mean = float(x.mean())
    return Interval(
        mean,
        max(-1.0, min(mean - width, _betting_low(x, margin))),
        max(mean, -_betting_low(-x, margin)),
    )


def log_stakes(x: Array, bound: float, margin: float) -> Array:
    """Logarithm of the stake after each item of someone who bets that the mean is above `bound`.

    `x`: differences in -1..1, items along the last axis; the result has its shape. Bets are laid for a truth one margin
    above the bound: the growth-optimal bet there, with the variance seen so far.
    """
    n = np.arange(1, x.shape[-1] + 1)
    before = _shifted(np.cumsum(x, axis=-1)) / n  # the mean of what was seen, shrunk a little towards 0
    squares = _shifted(np.cumsum((x - before) ** 2, axis=-1))
    variance = (PRIOR_ITEMS * EXPECTED_DISCORDANT + squares) / (PRIOR_ITEMS + n - 1)
    bets = np.minimum(margin / (variance + margin**2), LARGEST_BET / (1 + bound))
    stakes: Array = np.cumsum(np.log1p(bets * (x - bound)), axis=-1)
    return stakes


def clustered_width(sums: Array, counts: Array, strata: Sequence[str]) -> Array:
    """Half the width of the clustered bound; infinite unless some stratum has two templates.

    `sums`, `counts`: of the differences of each template, templates along the last axis; `strata`: of each template.
    A template that is alone in its stratum is compared with all others.
    """
    from scipy.special import ndtr, stdtrit  # two quantiles: scipy.stats has the same ones, and takes seconds to load

    names, which = np.unique(np.asarray(strata), return_inverse=True)
    member = (which[:, np.newaxis] == np.arange(len(names))).astype(np.float64)
    n = counts.sum(axis=-1)
    seen = (counts > 0) @ member
    means = (sums @ member) / np.maximum(counts @ member, 1)
    means = np.where(seen > 1, means, (sums.sum(axis=-1) / n)[..., np.newaxis])
    spread = ((sums - counts * (means @ member.T)) ** 2) @ member
    freedom = np.maximum(seen - 1, 0).sum(axis=-1)
    variance = (np.where(seen > 1, seen / np.maximum(seen - 1, 1), 1) * spread).sum(axis=-1) / n
    rho2 = (-2 * math.log(2 * ALPHA) + math.log(1 - 2 * math.log(2 * ALPHA))) / TUNED_FOR
    scale = 2 * (n * rho2 + 1) / (n * rho2) * np.log1p(np.sqrt(n * rho2 + 1) / (2 * ALPHA))
    errors = -stdtrit(np.maximum(freedom, 1), ndtr(-np.sqrt(scale)))
    width: Array = np.where(freedom > 0, np.sqrt(variance / n) * errors, np.inf)
    return width


def _betting_low(x: Array, margin: float) -> float:
    """The largest mean that is refused: no bet against it would have been lost. Found by halving -1..1."""
    low, high = -1.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if log_stakes(x, middle, margin).max() >= -math.log(ALPHA):
            low = middle
        else:
            high = middle
    return low


def _shifted(x: Array) -> Array:
    """Each value moved one item later: what was known before it."""
    return np.concatenate([np.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)
