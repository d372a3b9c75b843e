from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evals.families import families, generate
from tasks.evals.gate import Standing, decide, in_order
from tasks.evals.model import Expectation, Item, ItemAnswer, Outcome
from tasks.release import Verdict
from tasks.settings import EvalSettings

SETTINGS = EvalSettings(margin=0.08, batch=60, items=600)


def made(family: str, templates: int, each: int) -> list[Item]:
    return [
        Item(
            id=f"{family}/{t}/{n}", family=family, template=f"{family}/{t}", prompt="?",
            expected=Expectation(kind="text", value="!"),
        )
        for t in range(templates)
        for n in range(each)
    ]  # fmt: skip


ITEMS = in_order([*made("sums", 10, 30), *made("tools", 10, 30)], 1)


def said(right: set[str], items: list[Item] = ITEMS, wrong: Outcome = Outcome.WRONG) -> dict[str, ItemAnswer]:
    return {i.id: ItemAnswer(item=i.id, outcome=Outcome.CORRECT if i.id in right else wrong) for i in items}


def some(share: float, *, family: str = "", items: list[Item] = ITEMS) -> set[str]:
    """Every n-th item, so that this share of them is named, spread over all templates."""
    chosen = [i.id for i in items if family in ("", i.family)]
    return {item for n, item in enumerate(chosen) if int(n * share) != int((n + 1) * share)}


HALF = some(0.5)


@pytest.mark.parametrize(
    ("lost", "verdict"),
    [(0.0, Verdict.PASSED), (0.02, Verdict.PASSED), (0.4, Verdict.FAILED), (0.8, Verdict.FAILED)],
)
def test_it_passes_what_is_not_worse_by_the_margin_and_fails_what_is(lost: float, verdict: Verdict) -> None:
    standing = decide(ITEMS, said(HALF - some(lost)), said(HALF), SETTINGS)
    assert standing.verdict is verdict, standing.overall
    assert not standing.wanted


def test_it_stops_as_soon_as_it_is_sure_and_asks_no_item_more() -> None:
    equal = decide(ITEMS, said(HALF), said(HALF), SETTINGS)
    worse = decide(ITEMS, said(set()), said(HALF), SETTINGS)
    assert len(equal.asked) == len(worse.asked) == 60
    near = decide(ITEMS, said(HALF - some(0.16)), said(HALF), SETTINGS)
    assert (near.verdict, len(near.asked)) == (Verdict.INCONCLUSIVE, 600)
    assert [n for n, _ in near.overall.looks] == [*range(60, 601, 60)]


def test_batches_are_wanted_in_turn_and_what_was_answered_beyond_changes_nothing() -> None:
    close = HALF - some(0.04)
    whole = decide(ITEMS, said(close), said(HALF), SETTINGS)
    ours: dict[str, ItemAnswer] = {}
    seen: list[str] = []
    standing = decide(ITEMS, ours, said(HALF), SETTINGS)
    while standing.wanted:
        seen += [i.id for i in standing.wanted]
        ours |= said(close, standing.wanted)
        standing = decide(ITEMS, ours, said(HALF), SETTINGS)
    assert seen == [i.id for i in whole.asked]
    assert (standing.verdict, standing.overall) == (whole.verdict, whole.overall)


def critical(standing: Standing, name: str) -> Verdict:
    return next(f.verdict for f in standing.families if f.name == name)


def test_a_critical_family_fails_alone_and_another_one_is_only_shown() -> None:
    """Ten points fewer in tools are five over all: less than the margin there."""
    ours = said(HALF - some(0.3, family="tools"))
    wide = SETTINGS.model_copy(update={"margin": 0.3, "family_margin": 0.05})
    shown = decide(ITEMS, ours, said(HALF), wide)
    assert shown.verdict is Verdict.PASSED
    alone = decide(ITEMS, ours, said(HALF), wide.model_copy(update={"critical": ("tools",)}))
    assert alone.verdict is critical(alone, "tools") is Verdict.FAILED
    assert critical(alone, "sums") is not Verdict.FAILED


def test_when_only_a_critical_family_is_left_open_only_its_items_are_asked() -> None:
    strict = SETTINGS.model_copy(update={"margin": 0.2, "critical": ("tools",), "margins": {"tools": 0.03}})
    standing = decide(ITEMS, said(HALF), said(HALF), strict)
    assert standing.verdict is Verdict.PASSED
    first, later = standing.asked[:60], standing.asked[60:]
    assert {i.family for i in first} == {"sums", "tools"}
    assert later and {i.family for i in later} == {"tools"}
    assert standing.overall.looks[-1][0] == 60


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_production_that_could_not_show_any_harm_decides_nothing(share: float) -> None:
    few = some(share)
    standing = decide(ITEMS, said(few), said(few), SETTINGS)
    assert (standing.verdict, standing.overall.blind) == (Verdict.INCONCLUSIVE, True)
    assert len(standing.asked) == 600


def test_an_answer_that_was_cut_off_is_wrong() -> None:
    assert decide(ITEMS, said(set(), wrong=Outcome.THOUGHT_OUT), said(HALF), SETTINGS).verdict is Verdict.FAILED


@given(st.integers(0, 1000), st.integers(1, 120))
def test_any_beginning_has_as_many_items_of_each_family_and_of_each_template_as_it_can(seed: int, first: int) -> None:
    items = in_order([*made("a", 8, 6), *made("b", 8, 6), *made("own", 24, 1)], seed)
    assert items == in_order([*made("a", 8, 6), *made("b", 8, 6), *made("own", 24, 1)], seed)
    assert sorted(i.id for i in items) == sorted(
        i.id for i in [*made("a", 8, 6), *made("b", 8, 6), *made("own", 24, 1)]
    )
    begun = items[:first]
    families_seen = Counter(i.family for i in begun)
    assert abs(families_seen["a"] - families_seen["b"]) <= 2
    assert abs(families_seen["a"] - 2 * families_seen["own"]) <= 4
    templates = Counter(i.template for i in begun if i.family == "a")
    assert max(templates.values(), default=0) - min(templates[f"a/{t}"] for t in range(8)) <= 1


def test_our_own_families_seencome_in_blocks_of_one_item_a_template() -> None:
    items = in_order(generate(families((), 300, with_images=False), 2026, 3), 2026)
    assert len({i.template for i in items[:64]}) == 64
