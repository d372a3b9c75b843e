import pytest

from tasks.evals import Answers, ItemAnswer, Outcome, gate, item_set, table
from tasks.release import Verdict
from tasks.settings import EvalSettings, Settings

SETTINGS = Settings(evals=EvalSettings(items=72, margin=0.08))
SET = item_set(SETTINGS)


def said(release: str, right: range, others: Outcome = Outcome.WRONG, **changes: object) -> Answers:
    """Answers that are right for the items of `right`, and of one other outcome elsewhere."""
    answers = tuple(
        ItemAnswer(item=item.id, outcome=Outcome.CORRECT if n in right else others, text=f"{release} {n}")
        for n, item in enumerate(SET.items)
    )
    return Answers.model_validate(
        {"release": release, "set_digest": SET.digest, "seed": SET.seed, "count": 72, "answers": answers} | changes
    )


BASE = said("old", range(40))


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        (range(40), Verdict.PASSED),
        (range(72), Verdict.PASSED),
        (range(39), Verdict.PASSED),
        (range(36), Verdict.INCONCLUSIVE),
        (range(1, 41), Verdict.PASSED),
        (range(6, 42), Verdict.INCONCLUSIVE),
        (range(28), Verdict.FAILED),
        (range(0), Verdict.FAILED),
        (range(40, 72), Verdict.INCONCLUSIVE),
    ],
)
def test_the_verdict_follows_the_interval_and_the_margin(right: range, verdict: Verdict) -> None:
    found = gate(said("new", right), BASE, SETTINGS)
    assert found.verdict is verdict, found.summary
    interval, margin = found.evidence["interval"], SETTINGS.evals.margin
    assert (verdict is Verdict.PASSED) == (interval["low"] > -margin)
    assert (verdict is Verdict.FAILED) == (interval["high"] < -margin)


def test_a_summary_is_one_line_with_the_numbers() -> None:
    found = gate(said("new", range(40)), BASE, SETTINGS)
    assert found.summary == "+0.0 points [-3.6, +3.6], margin 8: passed on 72 items"
    worse = gate(said("new", range(36)), BASE, SETTINGS)
    assert worse.summary == (
        "-5.6 points [-11.8, -1.7], margin 8: inconclusive on 72 items; worse, but perhaps by less than the margin"
    )


def test_answers_that_were_cut_off_count_as_wrong() -> None:
    found = gate(said("new", range(20), Outcome.TRUNCATED), BASE, SETTINGS)
    assert found.verdict is Verdict.FAILED
    assert found.evidence["families"][-1]["truncated"] == 52


def test_without_a_baseline_it_is_inconclusive() -> None:
    found = gate(said("new", range(40)), None, SETTINGS)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "nothing to compare with" in found.summary
    assert "| all | 72 | - | 40 | - | - | 0 |" in table(found)


@pytest.mark.parametrize("side", ["candidate", "baseline"])
def test_an_item_without_an_answer_is_errored_and_never_wrong(side: str) -> None:
    broken, whole = said(side, range(71), Outcome.ERRORED), said("whole", range(71))
    found = gate(broken, whole, SETTINGS) if side == "candidate" else gate(whole, broken, SETTINGS)
    assert found.verdict is Verdict.ERRORED
    assert found.summary == f"1 of 72 items have no answer of the {side}: run it again"
    assert found.evidence["errors"][0]["item"] == SET.items[71].id


def test_missing_answers_and_another_set_are_errored() -> None:
    assert gate(said("new", range(40), answers=()), BASE, SETTINGS).verdict is Verdict.ERRORED
    found = gate(BASE, said("old", range(40), set_digest="other"), SETTINGS)
    assert (found.verdict, found.summary[:18]) == (Verdict.ERRORED, "not the same items")


@pytest.mark.parametrize("right", [range(0), range(8)])
def test_a_baseline_that_could_not_show_harm_decides_nothing(right: range) -> None:
    found = gate(said("new", right), said("old", right), SETTINGS)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "could not show any harm" in found.summary


def test_the_basis_changes_with_baseline_set_and_margin_but_not_with_the_candidate() -> None:
    wider = Settings(evals=EvalSettings(items=72, margin=0.1))
    basis = gate(said("new", range(40)), BASE, SETTINGS).basis
    assert gate(said("newer", range(3)), BASE, SETTINGS).basis == basis
    others = [
        gate(BASE, said("older", range(40)), SETTINGS),
        gate(said("new", range(40)), None, SETTINGS),
        gate(said("new", range(40)), BASE, wider),
        gate(said("new", range(40), set_digest="s"), said("old", range(40), set_digest="s"), SETTINGS),
    ]
    assert len({basis, *(v.basis for v in others)}) == 5


def test_the_table_shows_what_was_lost_and_gained_side_by_side() -> None:
    found = gate(said("new", range(1, 41)), BASE, SETTINGS)
    assert [d["gained"] for d in found.evidence["discordant"]] == [False, True]
    text = table(found)
    lost, gained = SET.items[0], SET.items[40]
    assert f"| {lost.prompt} | {lost.expected.value} | old 0 | new 0 |" in text
    assert f"{gained.prompt} | {gained.expected.value}".replace("\n", "<br>") in text
    assert "| all | 72 | 40 | 40 | 1 | 1 | 0 |" in text
