from __future__ import annotations

import base64
import struct
import zlib
from collections import Counter
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, JsonValue, TypeAdapter

from tasks.evals.families import families, generate
from tasks.evals.families.long_context import CHARACTERS
from tasks.evals.families.picture import COLOURS, SIDE, Picture
from tasks.evals.model import Call, Expectation, Item
from tasks.evals.scorer import is_correct
from tasks.release import BadInput

EVERY = families((), 2048, with_images=True)
WORDS_ONLY = families((), 2048, with_images=False)


@pytest.fixture(scope="module")
def many() -> list[Item]:
    """Twenty items of each template, of all levels."""
    return generate(EVERY, 7, 20)


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_the_same_seed_gives_the_same_items_and_fewer_are_the_beginning_of_more(seed: int, each: int) -> None:
    made = generate(WORDS_ONLY, seed, each)
    assert made == generate(WORDS_ONLY, seed, each)
    more = {item.id: item for item in generate(WORDS_ONLY, seed, each + 1)}
    assert all(more[item.id] == item for item in made)
    assert len(made) == len({item.id for item in made})


def test_each_family_has_at_least_eight_templates_says_what_it_protects_and_gives_several_hundred_items() -> None:
    assert all(len(f.templates) >= 8 and len(f.protects) > 30 for f in EVERY)
    counts = Counter(item.family for item in generate(WORDS_ONLY, 2026, 40))
    assert len(counts) == 8
    assert min(counts.values()) >= 300


def test_no_item_of_a_template_is_asked_twice(many: list[Item]) -> None:
    said = [item.model_dump_json(exclude={"id"}) for item in many]
    assert len(set(said)) == len(said)


class Rules(BaseModel, extra="forbid"):
    """All that the rules of an item may ask of its text."""

    words: int = 3
    starts: str = ""
    holds: str = ""
    ends: str = ""
    lines: Literal[1] = 1
    lacks: Literal["", ","] = ""


CALLS, RULES = TypeAdapter(list[Call]), TypeAdapter(list[dict[str, JsonValue]])


def right_answer(expected: Expectation) -> tuple[str, list[Call]]:
    """One right answer: text and calls."""
    value = expected.value
    match expected.kind:
        case "calls":
            calls = CALLS.validate_python(value)
            return ("" if calls else "I cannot do that."), calls
        case "list":
            assert isinstance(value, list)
            return ", ".join(map(str, value)), []
        case "json":
            return str(value).replace("'", '"').replace("True", "true").replace("False", "false"), []
        case "rules":
            rules = Rules.model_validate({k: v for rule in RULES.validate_python(value) for k, v in rule.items()})
            middle = ["word"] * rules.words
            return " ".join(filter(None, [rules.starts, rules.holds, *middle, rules.ends])), []
    return str(value), []


def test_every_item_can_be_answered_right_and_neither_silence_nor_its_own_prompt_is_right(many: list[Item]) -> None:
    for item in many:
        text, calls = right_answer(item.expected)
        assert is_correct(item.expected, text, calls), item
        assert not is_correct(item.expected, ""), item
        if item.expected.kind not in ("number", "word", "calls", "rules"):
            assert not is_correct(item.expected, item.prompt), item
        if item.expected.kind != "calls":
            assert not is_correct(item.expected, text, [Call(name="get_weather")]), item


def test_what_a_schema_enforces_allows_the_right_answer_and_calls_fit_their_tool(many: list[Item]) -> None:
    for item in many:
        if item.answer_schema:
            Draft202012Validator(item.answer_schema).validate(item.expected.value)
        offered = {tool.name: tool for tool in item.tools}
        wanted = CALLS.validate_python(item.expected.value) if item.expected.kind == "calls" else []
        for call in [*wanted, *(call for call, _ in item.before)]:
            Draft202012Validator(offered[call.name].parameters).validate(call.arguments)


def test_prompts_grow_with_the_level_up_to_what_is_allowed() -> None:
    (family,) = families(("long context",), 2048, with_images=False)
    items = generate([family], 3, 5)
    lengths = [len(i.prompt) for i in items if i.template == "long context/code at the start"]
    assert lengths == sorted(lengths)
    assert 1800 * CHARACTERS < max(len(i.prompt) for i in items) < 2048 * CHARACTERS + 400


def test_each_block_of_a_template_mixes_levels_and_the_hardest_can_be_left_out() -> None:
    (family,) = families(("thinking",), 2048, with_images=False)
    budgets = {i.thinking_tokens for i in generate([family], 1, 1)}
    assert budgets == {16, 32, 64, 128, 256}
    assert {i.thinking_tokens for i in generate([family], 1, 5, hardest=1)} == {16, 32}


def test_a_family_that_there_is_not_is_refused_and_images_need_a_projector() -> None:
    with pytest.raises(BadInput, match="no eval family poetry"):
        families(("poetry",), 2048, with_images=True)
    assert [f.name for f in families(("images", "tools"), 2048, with_images=False)] == ["tools"]


def test_a_picture_is_a_png_that_holds_what_was_drawn() -> None:
    picture = Picture()
    picture.shape("square", "red", 100, 200, 20)
    picture.text("I", 300, 300, 4)
    data = base64.b64decode(picture.png())
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (SIDE, SIDE)
    length = struct.unpack(">I", data[33:37])[0]
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(SIDE, 1 + 3 * SIDE)
    assert not rows[:, 0].any()
    pixels = rows[:, 1:].reshape(SIDE, SIDE, 3)
    assert tuple(pixels[200, 100]) == COLOURS["red"]
    assert (pixels == COLOURS["red"]).all(axis=2).sum() == 41 * 41
    assert (pixels == 0).all(axis=2).sum() == 16 * 11  # the 11 dots of an I, 4 x 4 pixels each
