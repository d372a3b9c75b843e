from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tasks.approval.page import page
from tasks.evals.gate import decide
from tasks.evals.model import ItemAnswer, Outcome
from tasks.evals.plot import svg
from tasks.evals.sequential import Interval
from tasks.evals.shown import MOST_TELLING, RANKING, cost, evidence, markdown, summary, telling
from tasks.platforms.local import LocalPlatform
from tasks.release import Dossier, Release, UpstreamRelease, Verification
from tasks.settings import EvalSettings, Settings
from tasks.store import Store
from tests.evals.test_gate import HALF, ITEMS, SETTINGS, said, some


def seen(ours: dict[str, ItemAnswer]) -> Verification:
    standing = decide(ITEMS, ours, said(HALF), SETTINGS)
    found = evidence(standing, ours, said(HALF), {"tools": "the parser"})
    return Verification(name="evals", release="r", verdict=standing.verdict, summary="it is", evidence=found)


def test_a_summary_is_one_line_with_the_numbers_and_the_noise() -> None:
    same = decide(ITEMS, said(HALF), said(HALF), SETTINGS)
    said_ = summary(same, same, SETTINGS)
    assert said_.startswith("+0.0 points [-")
    assert "margin 8: passed after 60 of 600 items; production against itself: 0 of 60 changed" in said_
    near = decide(ITEMS, said(HALF - some(0.16)), said(HALF), SETTINGS)
    assert "inconclusive after 600 of 600 items; worse, but perhaps by less than the margin" in summary(
        near, same, SETTINGS
    )
    blind = decide(ITEMS, said(set()), said(set()), SETTINGS)
    assert "could not show any harm" in summary(blind, same, SETTINGS)


def test_the_page_tells_each_family_what_a_broken_one_protects_and_shows_the_plot() -> None:
    page = markdown(seen(said(HALF - some(1.0, family="tools"))))
    assert re.search(r"\| sums \| (\d+) \| (\d+) \| \2 \| 0 \| 0 \| 0 \|", page)
    assert re.search(r"\| tools \| (\d+) \| (\d+) \| 0 \| \2 \| 0 \| 0 \|", page)
    assert "- tools protects: the parser" in page
    assert "data:image/svg+xml;base64," in page
    assert page.count("| lost | tools/") == MOST_TELLING


def test_whoever_approves_is_shown_it(store: Store) -> None:
    release = Release(
        upstream=UpstreamRelease(build=11434), tree="t", build="b", argv=("--jinja",), files={}, alias="model"
    )
    made = seen(said(HALF - some(0.2)))
    dossier = Dossier(release=release, required=("evals",), verifications=(made,))
    read = page(LocalPlatform(Settings(store=store.root)), dossier, None, None)
    assert "| all | " in read
    assert RANKING in read


def test_the_most_telling_items_are_of_the_templates_that_lost_most_one_of_each_in_turn_and_losses_come_first() -> None:
    items = [i for i in ITEMS if i.family == "tools"]
    of = {t: [i.id for i in items if i.template == f"tools/{t}"] for t in range(10)}
    before = set(of[0][:9] + of[1][:5] + of[2][:5])
    ours = {of[2][0], of[2][1], *of[2][10:14], *of[3][:2]}  # template 2 loses three and gains four
    ranked = [d["item"] for d in telling(items, said(ours, items), said(before, items))]
    templates = [int(item.split("/")[1]) for item in ranked]
    assert templates == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert len(set(ranked)) == MOST_TELLING


def test_gains_are_told_when_little_was_lost() -> None:
    items = ITEMS[:100]
    changed = telling(items, said({items[0].id, items[1].id}, items), said({items[2].id}, items))
    assert [d["gained"] for d in changed] == [False, True, True]


def test_cost_is_tokens_seconds_and_money() -> None:
    answers = [
        ItemAnswer(item=str(n), outcome=Outcome.WRONG, prompt_tokens=900, completion_tokens=100, wall_s=18.0)
        for n in range(100)
    ]
    prices = EvalSettings(price_per_hour=2.0, price_per_million_tokens=5.0)
    assert cost(answers, prices) == {"answers": 100, "tokens": 100_000, "seconds": 1800.0, "money": 1.5}


@pytest.mark.parametrize("estimate", [-0.5, 0.0, 0.01])
def test_the_plot_is_one_picture_whose_points_lie_within_it(estimate: float) -> None:
    looks = [(72 * n, Interval(estimate, max(-1, estimate - 0.5 / n), estimate + 0.5 / n)) for n in range(1, 20)]
    picture = ElementTree.fromstring(svg(looks, 0.03, "a < b"))
    circles = picture.findall("{*}circle")
    assert len(circles) == 19
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 720
        assert 28 <= float(circle.attrib["cy"]) <= 220
