from __future__ import annotations

import random

from tasks.evals.families.family import Family, number
from tasks.evals.families.words import FRUITS, NAMES, THINGS
from tasks.evals.model import Ask

SIZE = (9, 20, 99, 999, 9999)
"""The largest number, by level."""


def _add(r: random.Random, level: int) -> Ask:
    a, b = r.randint(3, SIZE[level]), r.randint(1, SIZE[level])
    return number(f"What is {a} + {b}? Answer with a number.", a + b)


def _subtract(r: random.Random, level: int) -> Ask:
    b = r.randint(1, SIZE[level] // 2)
    a = r.randint(b + 1, SIZE[level] + 9)
    return number(f"What is {a} - {b}? Answer with a number.", a - b)


def _times(r: random.Random, level: int) -> Ask:
    a, b = r.randint(2, SIZE[level] + 11), (2, 3, 7, 12, 37)[level]
    return number(f"What is {'two' if b == 2 else b} times {a}? Answer with one number.", a * b)


def _chain(r: random.Random, level: int) -> Ask:
    a, b, c = (r.randint(1, SIZE[level]) for _ in range(3))
    return number(f"What is {a} + {b} + {c}? Answer with a number.", a + b + c)


def _apples(r: random.Random, level: int) -> Ask:
    name, fruit = r.choice(NAMES), r.choice(FRUITS)
    have, more = r.randint(2, SIZE[level]), r.randint(2, SIZE[level])
    given = r.randint(1, have - 1) if level > 1 else 0
    gives = f" and gives away {given}" if given else ""
    return number(
        f"{name} has {have} pieces of {fruit} and buys {more} more{gives}. "
        "How many pieces are there now? Answer with a number.",
        have + more - given,
        max_tokens=48,
    )


def _price(r: random.Random, level: int) -> Ask:
    thing, each, count = r.choice(THINGS), r.randint(2, SIZE[level]), r.randint(2, 3 + 3 * level)
    return number(
        f"One {thing} costs {each} euros. How many euros do {count} of them cost? Answer with a number.",
        each * count,
        max_tokens=48,
    )


def _share(r: random.Random, level: int) -> Ask:
    people, each = r.randint(2, 3 + 2 * level), r.randint(2, SIZE[level])
    return number(
        f"{people * each} {r.choice(THINGS)}s are shared equally by {people} people. "
        "How many does each get? Answer with a number.",
        each,
        max_tokens=48,
    )


def _minutes(r: random.Random, level: int) -> Ask:
    hour, minute, length = r.randint(1, 20), 5 * r.randint(0, 11), (10, 20, 45, 95, 135)[level] + r.randint(0, 4) * 5
    return number(
        f"A film begins at {hour}:{minute:02} and takes {length} minutes. How many minutes past the full hour does the "
        "clock show when it ends? Answer with a number.",
        (minute + length) % 60,
        max_tokens=48,
    )


FAMILY = Family(
    "arithmetic",
    "getting numbers right: damaged weights, a worse quantisation, wrong kernels",
    {
        "add": _add, "subtract": _subtract, "times": _times, "chain": _chain, "apples": _apples, "price": _price,
        "share": _share, "minutes": _minutes,
    },
)  # fmt: skip
