from __future__ import annotations

import random
from typing import cast

from tasks.evals.families.family import Family, number, word
from tasks.evals.families.picture import COLOURS, SHAPES, SIDE, Picture, Shape
from tasks.evals.families.words import WORDS
from tasks.evals.model import Ask

PLACES = [(x, y) for y in (75, 224, 373) for x in (75, 224, 373)]
"""Nine middles, left to right and top to bottom."""


def _scale(level: int, characters: int) -> int:
    return max(2, min((8, 6, 4, 3, 2)[level], (SIDE - 40) // (6 * characters)))


def _written(r: random.Random, level: int, said: str) -> Picture:
    picture, scale = Picture(), _scale(level, len(said))
    picture.text(said, r.randint(10, SIDE - 10 - 6 * scale * len(said)), r.randint(10, SIDE - 10 - 7 * scale), scale)
    return picture


def _number(r: random.Random, level: int) -> Ask:
    value = r.randint(10, 99 * 10**level)
    return number("Which number is in the image? Answer with it.", value, image=_written(r, level, str(value)).png())


def _word(r: random.Random, level: int) -> Ask:
    said = r.choice(WORDS)
    return word("Which word is in the image? Answer with it.", said, image=_written(r, level, said.upper()).png())


def _second(r: random.Random, level: int) -> Ask:
    upper, lower = r.sample(WORDS, 2)
    picture, scale = Picture(), _scale(level, 8)
    picture.text(upper.upper(), 20, r.randint(20, 120), scale)
    picture.text(lower.upper(), 20, r.randint(250, 350), scale)
    return word("Two words are in the image. Answer with the lower one only.", lower, upper, image=picture.png())


def _sum(r: random.Random, level: int) -> Ask:
    a, b = r.randint(1, 9 * (1 + 5 * level)), r.randint(1, 9 * (1 + 5 * level))
    picture, scale = Picture(), _scale(level, 8)
    picture.text(str(a), r.randint(20, 100), 100, scale)
    picture.text(str(b), r.randint(20, 100), 280, scale)
    return number("Two numbers are in the image. What is their sum? Answer with a number.", a + b, image=picture.png())


def _drawn(r: random.Random, level: int, count: int) -> tuple[Picture, list[tuple[str, str]]]:
    """A picture of `count` shapes, smaller with the level, and what they are in reading order: (shape, colour)."""
    kinds = r.sample([(s, c) for s in SHAPES for c in COLOURS], count)
    picture = Picture()
    places = sorted(r.sample(range(9), count))
    for (kind, colour), place in zip(kinds, places, strict=True):
        picture.shape(cast(Shape, kind), colour, *PLACES[place], size=(60, 50, 36, 24, 14)[level])
    return picture, kinds


def _shape(r: random.Random, level: int) -> Ask:
    picture, ((kind, _),) = _drawn(r, level, 1)
    others = [s for s in SHAPES if s != kind]
    return word(f"Which shape is in the image: {', '.join(SHAPES)}?", kind, *others, image=picture.png())


def _colour(r: random.Random, level: int) -> Ask:
    while True:
        picture, drawn = _drawn(r, level, 1 + level)
        kind, colour = drawn[0]
        if [k for k, _ in drawn].count(kind) == 1:
            return word(
                f"Which colour is the {kind}? Answer with one word.", colour, *(c for c in COLOURS if c != colour),
                image=picture.png(),
            )  # fmt: skip


def _count(r: random.Random, level: int) -> Ask:
    shapes = r.randint(1, 3 + level)
    picture, _ = _drawn(r, level, shapes)
    return number("How many shapes are in the image? Answer with a number.", shapes, image=picture.png())


def _left(r: random.Random, level: int) -> Ask:
    (left, right), picture = r.sample(SHAPES, 2), Picture()
    size = (60, 50, 36, 24, 14)[level]
    picture.shape(cast(Shape, left), r.choice([*COLOURS]), r.randint(70, 150), r.randint(70, 370), size)
    picture.shape(cast(Shape, right), r.choice([*COLOURS]), r.randint(290, 370), r.randint(70, 370), size)
    return word(
        f"Which is further left, the {min(left, right)} or the {max(left, right)}? Answer with one word.", left, right,
        image=picture.png(),
    )  # fmt: skip


FAMILY = Family(
    "images",
    "reading text and shapes from pictures: the multimodal projector and the image preprocessing",
    {
        "number": _number, "word": _word, "second word": _second, "sum": _sum, "shape": _shape, "colour": _colour,
        "count": _count, "left": _left,
    },
)  # fmt: skip
