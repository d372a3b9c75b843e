from __future__ import annotations

import random
from collections.abc import Mapping

from tasks.evals.families.family import HARDEST, Family, Template, number, word
from tasks.evals.families.words import ANIMALS, CITIES, COLOURS, FRUITS, NAMES, THINGS, WORDS
from tasks.evals.model import Ask

SHORTEST = 120
"""Tokens of the prompts of level 0; those of the hardest level have as many as allowed."""
CHARACTERS = 3
"""Of plain English a token, at the least."""


def _filler(r: random.Random) -> str:
    return r.choice(
        (
            f"The {r.choice(ANIMALS)} slept near the {r.choice(WORDS)}.",
            f"A {r.choice(COLOURS)} {r.choice(THINGS)} stood on the table for a long time.",
            f"Nobody in {r.choice(CITIES)} wanted to talk about the {r.choice(WORDS)}.",
            f"Later there was {r.choice(FRUITS)} cake, and everybody was happy.",
            f"They walked past the {r.choice(WORDS)} and looked at the {r.choice(WORDS)}.",
        )
    )


def _among(r: random.Random, level: int, longest: int, facts: list[tuple[float, str]]) -> str:
    """Filler of the level's length with the facts at these depths, in 0..1."""
    tokens = min(longest, SHORTEST * (max(longest, SHORTEST) / SHORTEST) ** (level / HARDEST))
    lines: list[str] = []
    while sum(map(len, lines)) < tokens * CHARACTERS:
        lines.append(_filler(r))
    for depth, fact in sorted(facts, reverse=True):
        lines.insert(round(depth * len(lines)), fact)
    return " ".join(lines)


def templates(longest: int) -> Mapping[str, Template]:
    """The templates for prompts of up to `longest` tokens."""

    def code_at(low: float, high: float) -> Template:
        def make(r: random.Random, level: int) -> Ask:
            code = r.randint(1000, 9999)
            story = _among(r, level, longest, [(r.uniform(low, high), f"The code of the safe is {code}.")])
            return number(f"{story}\n\nWhat is the code of the safe? Answer with the number.", code)

        return make

    def password(r: random.Random, level: int) -> Ask:
        door, box = r.sample(WORDS, 2)
        facts = [(r.random(), f"The password of the door is {door}."), (r.random(), f"That of the box is {box}.")]
        story = _among(r, level, longest, facts)
        return word(f"{story}\n\nWhat is the password of the door? Answer with one word.", door, box)

    def latest(r: random.Random, level: int) -> Ask:
        old, new = r.sample(range(100, 999), 2)
        facts = [
            (r.uniform(0, 0.5), f"The room number is {old}."),
            (r.uniform(0.5, 1), f"The room number has changed: now it is {new}."),
        ]
        story = _among(r, level, longest, facts)
        return number(f"{story}\n\nWhat is the room number now? Answer with the number.", new)

    def ages(r: random.Random, level: int) -> Ask:
        people = r.sample(NAMES, 3)
        years = [r.randint(18, 80) for _ in people]
        facts = [(r.random(), f"{p} is {y} years old.") for p, y in zip(people, years, strict=True)]
        story = _among(r, level, longest, facts)
        return number(f"{story}\n\nHow old is {people[0]}? Answer with the number.", years[0])

    def total(r: random.Random, level: int) -> Ask:
        name, counts = r.choice(NAMES), [r.randint(2, 9), r.randint(2, 9)]
        facts = [(r.random(), f"{name} paid {count} coins.") for count in counts]
        story = _among(r, level, longest, facts)
        return number(
            f"{story}\n\nHow many coins did {name} pay in all? Answer with the number.", sum(counts), max_tokens=48
        )

    return {
        "code at the start": code_at(0, 0.1), "code before the middle": code_at(0.2, 0.4),
        "code after the middle": code_at(0.6, 0.8), "code at the end": code_at(0.9, 1), "password": password,
        "latest": latest, "ages": ages, "total": total,
    }  # fmt: skip


def family(longest: int) -> Family:
    return Family(
        "long context",
        "finding what stands far back: the KV cache and its quantisation, sliding windows, position scaling",
        templates(longest),
    )
