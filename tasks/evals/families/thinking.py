from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from tasks.evals.families.family import Family, number, word
from tasks.evals.families.words import ANIMALS, COLOURS, DAYS, FRUITS, NAMES, THINGS, WORDS
from tasks.evals.model import Ask


def _budget(level: int) -> dict[str, Any]:
    """A budget that grows with the level, and room for the answer after it."""
    tokens = 16 * 2**level
    return {"thinking_tokens": tokens, "max_tokens": tokens + 32}


def _oldest(r: random.Random, level: int) -> Ask:
    people = r.sample(NAMES, 2 + level)
    told = " ".join(f"{a} is older than {b}." for a, b in pairwise(people))
    return word(f"{told} Who is the oldest? Answer with the name.", people[0], *people[1:], **_budget(level))


def _day(r: random.Random, level: int) -> Ask:
    today, days = r.randrange(7), r.randint(1, 3 + 9 * level)
    right = DAYS[(today + days) % 7]
    others = (d for d in DAYS if d not in (right, DAYS[today]))
    return word(
        f"Today is {DAYS[today]}. Which day is it in {days} days? Answer with the day.",
        right, *others, **_budget(level),
    )  # fmt: skip


def _coins(r: random.Random, level: int) -> Ask:
    two, five = r.randint(1, 5 + 4 * level), r.randint(1, 4 + 4 * level)
    return number(
        f"{r.choice(NAMES)} has {two} coins of 2 and {five} coins of 5. How much is that? Answer with a number.",
        2 * two + 5 * five,
        **_budget(level),
    )


def _series(r: random.Random, level: int) -> Ask:
    first, step = r.randint(1, 20), (1, 2, 5, 7, 13)[level] + r.randint(0, level)
    shown = ", ".join(str(first + step * n) for n in range(4))
    return number(f"What comes next: {shown}? Answer with a number.", first + 4 * step, **_budget(level))


def _letters(r: random.Random, level: int) -> Ask:
    said = "".join(r.sample(WORDS, 1 + level))
    letter = r.choice(sorted(set(said)))
    return number(
        f'How often is the letter "{letter}" in "{said}"? Answer with a number.', said.count(letter), **_budget(level)
    )


def _odd(r: random.Random, level: int) -> Ask:
    kinds = r.sample((COLOURS[:6], ANIMALS, FRUITS[:6]), 2)
    many, one = r.sample(kinds[0], 2 + level), r.choice(kinds[1])
    shown = [*many, one]
    r.shuffle(shown)
    return word(f"Which one is not like the others: {', '.join(shown)}? Answer with one word.", one, **_budget(level))


def _larger(r: random.Random, level: int) -> Ask:
    a, b = r.sample(range(2, 20 * 4**level), 2)
    c = r.randint(2, 9)
    sums = (f"{a} + {c}", a + c), (str(b), b)
    right = max(s[1] for s in sums)
    return number(
        f"Which is larger, {sums[0][0]} or {sums[1][0]}? Answer with the larger number.", right, **_budget(level)
    )


def _left(r: random.Random, level: int) -> Ask:
    things = r.sample(THINGS, 3 + level)
    taken = r.sample(things, 2 + level)
    (left,) = set(things) - set(taken)
    return word(
        f"On the table are a {', a '.join(things)}. Somebody takes the {', the '.join(taken)}. "
        "What is left? Answer with one word.",
        left, *taken, **_budget(level),
    )  # fmt: skip


FAMILY = Family(
    "thinking",
    "thought that ends at its budget and is followed by an answer: the reasoning parser and budget",
    {
        "oldest": _oldest, "day": _day, "coins": _coins, "series": _series, "letters": _letters, "odd": _odd,
        "larger": _larger, "left": _left,
    },
)  # fmt: skip
