"""The decision: which items are asked next, and when it is sure. Nothing here asks or remembers anything.

Several questions are answered on the way: is the release worse over all items, and is it worse in each family. The
first one and those of the critical families decide. To pass, all of these must pass (intersection-union), so a release
that is worse by the margin in any of them still passes at most as often as that one question errs: 5%. To fail, one is
enough, each at 5% against a release that is worse by just the margin; how seldom an equal release fails with several
critical families is measured (`python -m tests.benchmarks gate`). Families that do not decide are shown, uncorrected.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.evals.model import Item, ItemAnswer
from tasks.evals.sequential import Interval, interval
from tasks.release import Verdict
from tasks.settings import EvalSettings

OVERALL = "all"


def in_order(items: Sequence[Item], seed: int) -> list[Item]:
    """The items in the order in which they are asked, so that any beginning holds as much of each family as of others.

    Within a family one item of each template comes before the second of any; the order is the same for one seed.
    """
    draw = random.Random(seed)
    turns: dict[str, dict[str, list[Item]]] = {}
    for item in items:
        turns.setdefault(item.family, {}).setdefault(item.template, []).append(item)
    placed: list[tuple[float, Item]] = []
    for templates in turns.values():
        line = [
            (turn, draw.random(), item)
            for line in templates.values()
            for turn, item in enumerate(_shuffled(line, draw))
        ]
        line.sort(key=lambda place: place[:2])
        placed += [((n + draw.random()) / len(line), item) for n, (_, _, item) in enumerate(line)]
    return [item for _, item in sorted(placed, key=lambda place: place[0])]


def _shuffled(items: Sequence[Item], draw: random.Random) -> list[Item]:
    return draw.sample(items, len(items))


@dataclass
class Question:
    """Is the candidate worse than production by more than the margin, over these items?"""

    name: str
    margin: float
    decides: bool
    differences: list[int] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    families: list[str] = field(default_factory=list)
    before: list[bool] = field(default_factory=list)
    looks: list[tuple[int, Interval]] = field(default_factory=list)
    verdict: Verdict = Verdict.INCONCLUSIVE
    blind: bool = False
    """Whether losing all that production has right would not fail (ICH E10: no assay sensitivity)."""

    @property
    def open(self) -> bool:
        return self.verdict is Verdict.INCONCLUSIVE

    @property
    def interval(self) -> Interval:
        return self.looks[-1][1] if self.looks else Interval(0.0, -1.0, 1.0)

    def add(self, item: Item, right: bool, before: bool) -> None:
        self.differences.append(right - before)
        self.templates.append(item.template)
        self.families.append(item.family)
        self.before.append(before)

    def look(self) -> None:
        """Take the interval anew. What was sure once stays so: the interval holds at every look."""
        if not self.differences or (self.looks and self.looks[-1][0] == len(self.differences)):
            return
        found = interval(self.differences, self.templates, self.families, self.margin)
        self.looks.append((len(self.differences), found))
        if not self.open:
            return
        if found.low > -self.margin:
            lost = interval([-int(b) for b in self.before], self.templates, self.families, self.margin)
            self.blind = lost.high >= -self.margin
            self.verdict = Verdict.INCONCLUSIVE if self.blind else Verdict.PASSED
        elif found.high < -self.margin:
            self.verdict = Verdict.FAILED


@dataclass
class Standing:
    """How far the gate is."""

    overall: Question
    families: list[Question]
    asked: list[Item] = field(default_factory=list)
    wanted: list[Item] = field(default_factory=list)
    """The next batch; empty when the gate is done."""

    @property
    def deciding(self) -> list[Question]:
        return [self.overall, *(f for f in self.families if f.decides)]

    @property
    def verdict(self) -> Verdict:
        verdicts = {question.verdict for question in self.deciding}
        if Verdict.FAILED in verdicts:
            return Verdict.FAILED
        return Verdict.PASSED if verdicts == {Verdict.PASSED} else Verdict.INCONCLUSIVE


def decide(
    items: Sequence[Item], candidate: Mapping[str, ItemAnswer], production: Mapping[str, ItemAnswer],
    settings: EvalSettings,
) -> Standing:  # fmt: skip
    """Where the gate stands with these answers, and which batch is to be answered next.

    `items`: in the order of `in_order`. When the question over all items is settled and critical families are not,
    only theirs are asked on. Batches are looked at one by one whatever else has been answered, so a gate that is
    run again comes to the same decision.
    """
    families = {
        name: Question(name, settings.margins.get(name, settings.family_margin), name in settings.critical)
        for name in dict.fromkeys(item.family for item in items)
    }
    standing = Standing(Question(OVERALL, settings.margin, True), [*families.values()])
    rest = list(items)
    while rest and standing.verdict is Verdict.INCONCLUSIVE:
        if not standing.overall.open:
            rest = [item for item in rest if families[item.family].decides and families[item.family].open]
        batch, rest = rest[: settings.batch], rest[settings.batch :]
        if any(item.id not in candidate or item.id not in production for item in batch):
            standing.wanted = batch
            return standing
        counts = standing.overall.open
        for item in batch:
            right, before = candidate[item.id].right, production[item.id].right
            families[item.family].add(item, right, before)
            if counts:
                standing.overall.add(item, right, before)
        standing.asked += batch
        for question in (standing.overall, *families.values()):
            question.look()
    return standing
