import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evals import items
from tasks.evals.items import TEMPLATES, Family, generate
from tasks.evals.scorer import is_correct
from tasks.release import BadInput


@given(st.integers(), st.integers(1, 120))
@settings(max_examples=30, deadline=None)
def test_the_same_seed_and_count_give_the_same_set_and_no_prompt_twice(seed: int, count: int) -> None:
    made = generate(seed, count)
    assert made == generate(seed, count)
    assert len(made.items) == len({i.id for i in made.items}) == len({i.prompt for i in made.items}) == count


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    assert generate(2026, 72).items == generate(2026, 120).items[:72]


def test_every_family_and_template_is_in_the_default_set() -> None:
    made = generate(2026, 72).items
    assert {i.family for i in made} == set(Family)
    assert {(i.family, i.template) for i in made} == {(f, name) for f, ts in TEMPLATES.items() for name in ts}
    assert all(0 < i.max_tokens <= 48 for i in made)


def test_the_set_is_the_one_that_was_calibrated() -> None:
    assert generate(2026, 72).digest == "111ec9d13b25"


def test_the_digest_is_of_the_items_and_of_how_they_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    one = generate(2026, 72)
    digests = {one.digest, generate(2027, 72).digest, generate(2026, 73).digest}
    monkeypatch.setattr(items, "SCORER_VERSION", "other")
    assert len(digests | {one.digest}) == 4


def test_more_items_than_there_are_is_refused() -> None:
    with pytest.raises(BadInput, match="different items"):
        generate(2026, 5000)


def test_every_item_can_be_answered_right_and_its_prompt_is_no_answer() -> None:
    for item in generate(7, 300).items:
        value = item.expected.value
        right = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if item.expected.kind == "json":
            right = re.sub("'", '"', right)
        assert is_correct(item.expected, right), item
        assert not is_correct(item.expected, ""), item
        if item.family is not Family.RECALL or item.template != "age":
            assert not is_correct(item.expected, item.prompt), item
