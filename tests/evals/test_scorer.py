import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from tasks.evals.model import Expectation
from tasks.evals.scorer import is_correct

NUMBER = Expectation(kind="number", value=1204)
TEXT = Expectation(kind="text", value="The code is ABC-123.")
OPEN_TEXT = Expectation(kind="text", value="Ben has a red hat")
WORD = Expectation(kind="word", value="Oslo", distractors=("Rome", "Anna"))
LIST = Expectation(kind="list", value=["pear", "plum", "fig"])
JSON = Expectation(kind="json", value={"name": "Ben", "age": 30})


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (NUMBER, "1204"), (NUMBER, "It is 1,204."), (NUMBER, "600 + 604 = 1204.0"),
        (TEXT, "The code is ABC-123."), (TEXT, ' "The code is ABC-123."\n'), (TEXT, "```\nThe code is ABC-123.\n```"),
        (OPEN_TEXT, "Ben has a red hat."), (OPEN_TEXT, '"Ben has a red hat".'), (OPEN_TEXT, "`Ben has a red hat.`"),
        (WORD, "Ben lives in OSLO, Norway."), (WORD, "oslo"),
        (LIST, "pear, plum, fig"), (LIST, "Pear, plum, and fig."), (LIST, "1. Pear\n2. Plum\n3. Fig\n"),
        (LIST, "- pear\n* plum\n• fig"), (LIST, '["pear", "plum", "fig"]'), (LIST, "```\npear\nplum\nfig\n```"),
        (JSON, '{"age": 30, "name": "Ben"}'), (JSON, 'Sure:\n```json\n{"name":"Ben","age":30}\n```\nDone.'),
        (JSON, '{"name": "Ben", "age": 30.0}'),
    ],
)  # fmt: skip
def test_accepted(expected: Expectation, text: str) -> None:
    assert is_correct(expected, text)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (NUMBER, ""), (NUMBER, "1204 or 1205"), (NUMBER, "-1204"), (NUMBER, "12045"), (NUMBER, "one"),
        (TEXT, "the code is ABC-123."), (TEXT, "The code is ABC-123. Is that right?"), (TEXT, "The code is ABC-123"),
        (OPEN_TEXT, "Sure! Ben has a red hat."), (OPEN_TEXT, '"'),
        (WORD, "Anna lives in Oslo."), (WORD, "Oslo or Rome"), (WORD, "Osloer"), (WORD, "Rome"),
        (LIST, "plum, pear, fig"), (LIST, "pear, plum"), (LIST, "pear, plum, fig, lime"),
        (LIST, "Here they are: pear, plum, fig"), (LIST, "pear plum fig"),
        (JSON, '{"name": "Ben"}'), (JSON, '{"name": "Ben", "age": "30"}'), (JSON, '{"name": "Ben", "age": 30'),
        (JSON, '{"name": "Ben", "age": 30, "x": 1}'), (JSON, '{"name": "Ann", "age": 1} {"name": "Ben", "age": 30}'),
        (Expectation(kind="json", value={"a": 1}), '{"a": true}'), (JSON, "[" * 100_000),
    ],
)  # fmt: skip
def test_refused(expected: Expectation, text: str) -> None:
    assert not is_correct(expected, text)


@given(st.sampled_from([NUMBER, TEXT, OPEN_TEXT, WORD, LIST, JSON]), st.text())
def test_no_text_makes_it_raise(expected: Expectation, text: str) -> None:
    assert is_correct(expected, text) in (True, False)


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_a_number_is_right_when_it_is_the_last_one(value: int, other: int) -> None:
    expected = Expectation(kind="number", value=value)
    assert is_correct(expected, f"The answer is {value:,}.")
    assert is_correct(expected, f"{other} gives {value}") and is_correct(expected, f"{value} then {other}") is (
        value == other
    )


JSONS = st.recursive(st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))


@given(st.dictionaries(st.text(), JSONS), st.dictionaries(st.text(), JSONS))
def test_json_is_right_when_it_is_the_same_value(value: dict[str, JsonValue], other: dict[str, JsonValue]) -> None:
    expected = Expectation(kind="json", value=value)
    assert is_correct(expected, "```json\n" + json.dumps(value, indent=1) + "\n```")
    same = json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert is_correct(expected, json.dumps(other)) is same
