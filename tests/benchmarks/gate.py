"""How often the eval gate errs and how many items it asks: simulated gates, and three real ones.

What the simulation reckons with is measured: `python -m tests.benchmarks.gate` asks SmolLM2, and a copy of it with
noise on its weights, the same items, and prints MEASURED anew (about ten minutes; it needs a release, see `make demo`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import NormalDist, fmean, variance
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.evals.collect import Asking, Book
from tasks.evals.families import families, generate
from tasks.evals.sequential import ALPHA, clustered_width, log_stakes
from tasks.evals.stage import Gate, item_set
from tasks.platforms.local import LocalPlatform
from tasks.release import Release
from tasks.settings import EvalSettings
from tests.benchmarks.released import copied
from tests.evals.conftest import SMALL, another, silent
from tests.evals.weights import noised

GATES = 2000
Array = NDArray[np.float64]


class Measured(NamedTuple):
    """Of SmolLM2 against a copy whose feed-forward weights have noise of a tenth of their spread, on 253 items."""

    right: float
    """Share of items that the original gets right."""
    right_spread: float
    """Standard deviation of that share between templates, beyond chance."""
    discordant: float
    """Share of items that only one of both gets right."""
    difference: float
    """What the copy gets right more often."""
    difference_spread: float
    """Standard deviation between templates of the true difference, beyond chance."""

    @property
    def effect(self) -> float:
        """Of `difference_spread`, what is left when each template loses in proportion to its share right."""
        relative = self.right_spread / self.right
        left = self.difference_spread**2 - (self.difference * relative) ** 2
        return math.sqrt(max(0.0, left) / (1 + relative**2))


MEASURED = Measured(right=0.312, right_spread=0.358, discordant=0.146, difference=-0.075, difference_spread=0.186)


class Design(NamedTuple):
    """A gate that looks after every block of one item a template; families have FAMILY templates."""

    margin: float
    templates: int
    blocks: int


FAMILY = 8
FULL = Design(0.03, 72, 40)
DEMO = Design(0.15, 40, 3)
CRITICAL = Design(0.1, FAMILY, 40)
"""One family by itself."""


# -- simulated gates --------------------------------------------------------------------------------


def simulate(
    design: Design, difference: float, *, effect: float, discordant: float, broken: int = 0, exact: bool = False
) -> Array:
    """Differences of GATES gates, shape (gates, blocks, templates).

    Templates differ in how often production is right, as measured. What the candidate loses on average (`difference`)
    falls on them in proportion to that, with random effects of standard deviation `effect` on top; `exact`: so that
    each gate's own templates lose that much, and not only all that there could be. Templates that are neither easy nor
    hard flip most. The first `broken` templates are never right any more.
    """
    rng = np.random.default_rng(1)
    right = MEASURED.right
    size = max(0.1, right * (1 - right) / MEASURED.right_spread**2 - 1)
    share = rng.beta(right * size, (1 - right) * size, (GATES, 1, design.templates))
    shift = (difference + effect * rng.standard_normal(share.shape)) * share / right
    if exact:
        shift += difference - shift.mean(axis=2, keepdims=True)
    undecided = share * (1 - share) / (right * (1 - right) * size / (size + 1))
    flips = np.minimum(discordant / 2 * undecided, 0.5 - np.minimum(np.abs(shift), 1) / 2)
    up, down = flips + np.maximum(shift, 0), flips + np.maximum(-shift, 0)
    up[:, :, :broken], down[:, :, :broken] = 0, share[:, :, :broken]
    draw = rng.random((GATES, design.blocks, design.templates))
    return np.where(draw < up, 1.0, np.where(draw < up + down, -1.0, 0.0))


class Sure(NamedTuple):
    """At each look of each gate, shape (gates, looks): whether the bounds say passed, or failed."""

    passes: NDArray[np.bool_]
    fails: NDArray[np.bool_]


def betting(x: Array, margin: float) -> Sure:
    flat, templates = x.reshape(len(x), -1), x.shape[2]

    def sure(values: Array, bound: float) -> NDArray[np.bool_]:
        stakes = np.maximum.accumulate(log_stakes(values, bound, margin), axis=1)
        found: NDArray[np.bool_] = stakes[:, templates - 1 :: templates] >= -math.log(ALPHA)
        return found

    return Sure(sure(flat, -margin), sure(-flat, margin))


def clustered(x: Array, margin: float) -> Sure:
    sums = np.cumsum(x, axis=1)
    counts = np.arange(1.0, x.shape[1] + 1)[:, np.newaxis] * np.ones(x.shape[2])
    width = clustered_width(sums, counts, [str(n // FAMILY) for n in range(x.shape[2])])
    mean = sums.sum(axis=2) / counts.sum(axis=1)
    return Sure(mean - width > -margin, mean + width < -margin)


def both(x: Array, margin: float) -> Sure:
    """What the gate does: see tasks/evals/sequential.py."""
    bets = betting(x, margin)
    return Sure(bets.passes & clustered(x, margin).passes, bets.fails)


class Rates(NamedTuple):
    passed: float
    failed: float
    items: float
    """Asked on average."""


def rates(sure: Sure, templates: int) -> Rates:
    """What becomes of the gates that stop as soon as it is sure."""
    looks = sure.passes.shape[1]
    passes, fails = (np.where(s.any(axis=1), s.argmax(axis=1), looks) for s in sure)
    stop = np.minimum(np.minimum(passes, fails) + 1, looks)
    return Rates(float((passes < fails).mean()), float((fails < passes).mean()), float(stop.mean()) * templates)


def fixed_size(margin: float, power: float) -> float:
    """Items of a paired test of one fixed size, one-sided 95%, of this power for an equal release (normal theory).

    Planned for the measured share of discordant items: a size is fixed before anybody knows how many will differ.
    """
    z = NormalDist().inv_cdf(1 - ALPHA) + NormalDist().inv_cdf(power)
    return MEASURED.discordant * (z / margin) ** 2


def rows(design: Design) -> Iterator[tuple[str, Array]]:
    """Name and simulated differences of each row of the table; the first is the equal release."""
    effect, discordant, margin = MEASURED.effect, MEASURED.discordant, design.margin
    yield "equal", simulate(design, 0, effect=0, discordant=discordant)
    yield "equal, 8% of items change", simulate(design, 0, effect=0, discordant=0.08)
    yield "equal, 1% (as the same weights do)", simulate(design, 0, effect=0, discordant=0.01)
    yield "equal on average, effects", simulate(design, 0, effect=effect, discordant=discordant)
    for name, exact in (("these templates", True), ("all such templates", False)):
        worse = simulate(design, -margin, effect=effect, discordant=discordant, exact=exact)
        yield f"worse by the margin on {name}", worse
    yield "worse by the margin, no effects", simulate(design, -margin, effect=0, discordant=discordant)
    lost = -min(5 * margin, 0.9 * MEASURED.right)
    yield f"worse by {-100 * lost:.0f} points, effects", simulate(design, lost, effect=effect, discordant=discordant)
    if design.templates > 2 * FAMILY:
        yield "two families broken", simulate(design, 0, effect=0, discordant=discordant, broken=2 * FAMILY)


def simulated() -> Iterator[str]:
    """The tables of the simulation."""
    yield f"{GATES} gates a row; effects: templates differ by {MEASURED.effect:.2f} (standard deviation)"
    yield f"measured: {MEASURED}"
    for title, design in (("full gate", FULL), ("demo", DEMO), ("one critical family by itself", CRITICAL)):
        most = design.templates * design.blocks
        yield f"{title}: margin {100 * design.margin:.0f}, {design.templates} templates, at most {most} items"
        yield f"  {'passed/failed, %':44}{'gate':>12}{'items':>7}{'betting alone':>16}{'clustered alone':>17}"
        fixed = 0.0
        for name, x in rows(design):
            found, *alone = (rates(bound(x, design.margin), design.templates) for bound in (both, betting, clustered))
            fixed = fixed or fixed_size(design.margin, found.passed)
            shown = [f"{100 * r.passed:.1f}/{100 * r.failed:.1f}" for r in (found, *alone)]
            share = f"  {found.items / fixed:.2f} of {fixed:.0f}" if max(found.passed, found.failed) > 0.5 else ""
            yield f"  {name:44}{shown[0]:>12}{found.items:7.0f}{shown[1]:>16}{shown[2]:>17}{share}"
    yield "the last column: items asked, compared with a fixed-size test that passes as many equal releases"
    yield from several_critical()


def several_critical(count: int = 3) -> Iterator[str]:
    """An equal release with `count` critical families: any of these questions may fail it."""
    for name, effect in (("no effects", 0.0), ("effects of 0.05", 0.05), ("effects as measured", MEASURED.effect)):
        whole = simulate(FULL, 0, effect=effect, discordant=MEASURED.discordant)
        fails = both(whole, FULL.margin).fails.any(axis=1)
        for n in range(count):
            fails |= both(whole[:, :, FAMILY * n : FAMILY * (n + 1)], CRITICAL.margin).fails.any(axis=1)
        yield f"equal, {count} critical families, {name}: {100 * fails.mean():.1f}% fail"


# -- real gates -------------------------------------------------------------------------------------


def with_noise(platform: LocalPlatform, release: Release, share: float) -> Release:
    store = platform.store
    copy = noised(store.file(release.files["model"]), store.root / f"noised-{share}.gguf", share)
    return release.model_copy(update={"files": release.files | {"model": store.put_file(copy)}})


def real() -> Iterator[str]:
    """SmolLM2 against itself, against a damaged copy, and with another chat template."""
    settings = SMALL.model_copy(update={"tasks": ()})
    with copied() as (platform, release):
        candidates = {
            "itself": another(release, "--slots"),
            "damaged weights": with_noise(platform, release, 0.5),
            "another chat template": another(release, "--chat-template", "llama2"),
        }
        asked = item_set([release], settings)
        for name, candidate in candidates.items():
            found = Gate(platform, candidate, release, settings, asked, silent).verify()
            yield f"{name:24}{found.summary}; {found.seconds:.0f} s of asking"


def main() -> Iterator[str]:
    yield from simulated()
    yield from real()


# -- what the simulation reckons with ---------------------------------------------------------------


def measure(items_a_template: int = 5) -> Measured:
    """Ask SmolLM2 and a slightly noised copy the easier levels of all families. Raises NoRelease."""
    items = generate(families((), 160, with_images=False), 2026, items_a_template, hardest=1)
    with copied() as (platform, release), Asking(EvalSettings()) as asking:
        books = []
        for n, each in enumerate((release, with_noise(platform, release, 0.1))):
            books.append(Book(platform.store.root / f"{n}.jsonl"))
            with platform.trial(each) as endpoint:
                asking.ask(endpoint, each.alias, items, books[-1], silent)
    return measured([(i.template, books[0][i.id].right, books[1][i.id].right) for i in items])


def measured(pairs: Sequence[tuple[str, bool, bool]]) -> Measured:
    """From (template, right before, right after) of each item; spreads by analysis of variance, 0 at least."""

    def spread(values: Sequence[float]) -> float:
        groups: dict[str, list[float]] = defaultdict(list)
        for (template, *_), value in zip(pairs, values, strict=True):
            groups[template].append(value)
        of = [g for g in groups.values() if len(g) > 1]
        between = variance(map(fmean, of)) - fmean(variance(g) / len(g) for g in of)
        return math.sqrt(max(0.0, between))

    right = [float(before) for _, before, _ in pairs]
    change = [float(after) - before for _, before, after in pairs]
    shares = (fmean(right), spread(right), fmean(map(abs, change)), fmean(change), spread(change))
    return Measured(*(round(share, 3) for share in shares))


if __name__ == "__main__":
    print(measure())
