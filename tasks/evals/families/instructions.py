from __future__ import annotations

import random
from typing import Any

from tasks.evals.families.family import Family, listed, ruled, text
from tasks.evals.families.words import ANIMALS, COLOURS, FRUITS, NAMES, THINGS, WORDS
from tasks.evals.model import Ask


def _bullets(r: random.Random, level: int) -> Ask:
    words = r.sample(FRUITS, 3 + level)
    return listed(f"Write these as a bulleted list, one on each line: {', '.join(words)}", words, max_tokens=64)


def _commas(r: random.Random, level: int) -> Ask:
    words = r.sample(ANIMALS, 3 + level)
    return listed(f"Write these words separated by commas, and nothing else: {' '.join(words)}", words)


def _count(r: random.Random, level: int) -> Ask:
    first, step = r.randint(10, 60), (1, 1, 2, 3, 7)[level]
    numbers = [str(first + step * n) for n in range(5)]
    steps = f" in steps of {step}" if step > 1 else ""
    return listed(
        f"Count from {numbers[0]} to {numbers[-1]}{steps}. Write only the numbers, separated by commas.", numbers
    )


def _quoted(r: random.Random, level: int) -> Ask:
    sentence = f"{r.choice(NAMES)} has a {r.choice(COLOURS)} {r.choice(THINGS)}"
    sentence += "".join(f" and a {r.choice(COLOURS)} {r.choice(THINGS)}" for _ in range(level))
    return text(f'Say "{sentence}" and nothing else.', sentence, max_tokens=48)


def _capitals(r: random.Random, level: int) -> Ask:
    words = " ".join(r.sample(WORDS, 2 + 2 * level))
    return text(f"Write this in capital letters: {words}", words.upper(), max_tokens=48)


def _reverse(r: random.Random, level: int) -> Ask:
    words = r.sample(WORDS, 2 + level)
    return listed(
        f"Write these words in the opposite order, separated by commas: {', '.join(words)}", [*reversed(words)]
    )


def _length(r: random.Random, level: int) -> Ask:
    words = (1, 3, 5, 8, 12)[level]
    about = r.choice(WORDS + THINGS)
    return ruled(f"Write about a {about} in exactly {words} word{'s'[: words > 1]}.", {"words": words})


def _bounds(r: random.Random, level: int) -> Ask:
    inside, last = r.sample(WORDS, 2)
    first = r.choice(NAMES)
    rules: list[tuple[dict[str, Any], str]] = [
        ({"holds": inside}, f"has the word {inside} in it"), ({"starts": first}, f"begins with {first}"),
        ({"ends": last}, f"has {last} as its last word"), ({"lines": 1}, "is on one line"),
        ({"lacks": ","}, "has no comma"),
    ]  # fmt: skip
    kept = rules[: level + 1]
    return ruled(f"Write one short sentence that {', '.join(say for _, say in kept)}.", *(rule for rule, _ in kept))


FAMILY = Family(
    "instructions",
    "doing what the prompt says about form: sampling, the chat template and the tokenizer",
    {
        "bullets": _bullets, "commas": _commas, "count": _count, "quoted": _quoted, "capitals": _capitals,
        "reverse": _reverse, "length": _length, "bounds": _bounds,
    },
)  # fmt: skip
