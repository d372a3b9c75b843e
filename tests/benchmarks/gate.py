"""How often the eval gate errs and how many items it asks: simulated gates, and real ones.

The simulation's numbers are measured: `python -m tests.benchmarks.gate` asks SmolLM2 and a copy of it with noise on
its weights the same items, and prints MEASURED anew (about ten minutes).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.evals.sequential import ALPHA, clustered_width, log_stakes

GATES = 2000
Array = NDArray[np.float64]


class Measured(NamedTuple):
    """Of SmolLM2 against a copy whose weights have noise of a tenth of their spread."""

    right: float
    """Share of items that the original gets right."""
    right_spread: float
    """Standard deviation of that share between templates, beyond chance."""
    discordant: float
    """Share of items that only one of both gets right."""
    template_effect: float
    """Standard deviation of a template's true difference, beyond chance."""


MEASURED = Measured(right=0.35, right_spread=0.35, discordant=0.08, template_effect=0.05)


class Design(NamedTuple):
    """A gate: looks after every block of one item a template."""

    margin: float
    templates: int
    blocks: int


FULL = Design(0.03, 72, 40)
DEMO = Design(0.15, 40, 3)
FAMILY = Design(0.1, 8, 40)


def simulate(design: Design, difference: float, effect: float, discordant: float, seed: int) -> Array:
    """Differences of GATES gates, shape (gates, blocks, templates).

    Templates differ in how often production is right, as measured; only there can the candidate lose, so what it
    loses on average (`difference`) falls on templates in proportion, with random effects of sd `effect` on top.
    Borderline templates flip most.
    """
    rng = np.random.default_rng(seed)
    spread = min(MEASURED.right_spread**2, 0.9 * MEASURED.right * (1 - MEASURED.right))
    size = MEASURED.right * (1 - MEASURED.right) / spread - 1
    share = rng.beta(MEASURED.right * size, (1 - MEASURED.right) * size, (GATES, 1, design.templates))
    borderline = share * (1 - share) / (MEASURED.right * (1 - MEASURED.right) - spread)
    shift = (difference + effect * rng.standard_normal(share.shape)) * share / MEASURED.right
    flips = np.minimum(discordant / 2 * borderline, 0.5 - np.minimum(np.abs(shift), 1) / 2)
    draw = rng.random((GATES, design.blocks, design.templates))
    up, down = flips + np.maximum(shift, 0), flips + np.maximum(-shift, 0)
    return np.where(draw < up, 1.0, np.where(draw < up + down, -1.0, 0.0))


class Bounds(NamedTuple):
    """At each look of each gate, whether a bound is sure: shape (gates, blocks)."""

    passes: Array
    fails: Array


def betting(x: Array, margin: float) -> Bounds:
    gates, _, templates = x.shape
    flat = x.reshape(gates, -1)

    def sure(values: Array, bound: float) -> Array:
        stakes = np.maximum.accumulate(log_stakes(values, bound, margin), axis=1)
        found: Array = stakes[:, templates - 1 :: templates] >= -math.log(ALPHA)
        return found

    return Bounds(sure(flat, -margin), sure(-flat, margin))


def clustered(x: Array, margin: float) -> Bounds:
    sums = np.cumsum(x, axis=1)
    counts = np.arange(1.0, x.shape[1] + 1)[:, np.newaxis] * np.ones(x.shape[2])
    mean, width = (
        sums.sum(axis=2) / counts.sum(axis=1),
        clustered_width(sums, counts, [str(n // 8) for n in range(x.shape[2])]),
    )
    return Bounds(mean - width > -margin, mean + width < -margin)


def both(x: Array, margin: float) -> Bounds:
    one, two = betting(x, margin), clustered(x, margin)
    return Bounds(one.passes & two.passes, one.fails & two.fails)


def first(sure: Array) -> Array:
    """The first look at which it is sure; the number of looks where it never is."""
    return np.where(sure.any(axis=1), sure.argmax(axis=1), sure.shape[1])


class Rates(NamedTuple):
    passed: float
    failed: float
    items: float
    """Asked on average."""


def rates(bounds: Bounds, templates: int) -> Rates:
    passes, fails = first(bounds.passes), first(bounds.fails)
    looks = bounds.passes.shape[1]
    stop = np.minimum(np.minimum(passes, fails) + 1, looks)
    passed, failed = (passes < fails) & (passes < looks), (fails < passes) & (fails < looks)
    return Rates(passed.mean(), failed.mean(), stop.mean() * templates)


def fixed_items(x: Array, design: Design, power: float, fails: bool) -> float:
    """Items that a test of one fixed size needs for this power: paired, clustered by template, one-sided 95%.

    From the variance of the simulated templates' means, so that it knows what no real test does.
    """
    per_item = float(x.var())
    between = max(0.0, float(x.mean(axis=1).var()) - per_item / x.shape[1])
    distance = abs(float(x.mean()) + design.margin)
    z = NormalDist().inv_cdf(1 - ALPHA) + NormalDist().inv_cdf(min(power, 0.999))
    left = (distance / z) ** 2 - between / design.templates
    del fails
    return per_item / left if left > 0 else math.inf
