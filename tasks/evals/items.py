"""The items of the eval gate: a seeded generator of short questions with exactly checkable answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import StrEnum

from tasks.evals.scorer import SCORER_VERSION, Expectation
from tasks.release import BadInput, Model, digest_of


class Protocol(Model):
    """How the items are asked: one user message, no system message."""

    temperature: float = 0.0


PROTOCOL = Protocol()


class Family(StrEnum):
    ARITHMETIC = "arithmetic"
    COPY = "copy"
    LIST = "list"
    JSON = "json"
    RECALL = "recall"
    """A fact that stands in the prompt."""


class Item(Model):
    """One question and what a right answer holds."""

    id: str
    family: Family
    template: str
    prompt: str
    expected: Expectation
    max_tokens: int


class ItemSet(Model):
    """The items that one seed and count give."""

    seed: int
    items: tuple[Item, ...]

    @property
    def digest(self) -> str:
        """12 hex characters over the items, how they are asked and how they are scored."""
        return digest_of([self.model_dump(mode="json"), PROTOCOL.model_dump(), SCORER_VERSION])[:12]


_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo")
_CITIES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Tokyo", "Madrid", "Berlin", "Athens", "Dublin")
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple")
_THINGS = ("ball", "car", "hat", "cup", "bag", "book", "chair", "lamp")
_FRUITS = ("apple", "banana", "cherry", "grape", "lemon", "mango", "orange", "peach", "pear", "plum")
_ANIMALS = ("cat", "dog", "horse", "cow", "sheep", "goat", "duck", "rabbit", "lion", "tiger")
_WORDS = ("river", "stone", "cloud", "forest", "window", "garden", "silver", "candle", "bridge", "mirror", "paper")
_TRIES = 1000
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"

Draft = tuple[str, Expectation, int]
"""Prompt, expectation, max_tokens."""
Template = Callable[[random.Random], Draft]


def _number(prompt: str, value: int) -> Draft:
    return prompt, Expectation(kind="number", value=value), 24


def _add(r: random.Random) -> Draft:
    a, b = r.randint(3, 12), r.randint(1, 9)
    return _number(f"What is {a} + {b}? Answer with a number.", a + b)


def _subtract(r: random.Random) -> Draft:
    a, b = r.randint(6, 20), r.randint(1, 5)
    return _number(f"What is {a} - {b}? Answer with a number.", a - b)


def _double(r: random.Random) -> Draft:
    a = r.randint(2, 40)
    return _number(f"What is two times {a}? Answer with one number.", a * 2)


def _text(prompt: str, value: str) -> Draft:
    return prompt, Expectation(kind="text", value=value), 24


def _sentence(r: random.Random) -> Draft:
    sentence = f"{r.choice(_NAMES)} has {r.randint(2, 30)} books and {r.randint(2, 30)} pens."
    return _text(f"Repeat this sentence: {sentence}", sentence)


def _code(r: random.Random) -> Draft:
    sentence = f"The code is {''.join(r.sample(_LETTERS, 3))}-{r.randint(100, 999)}."
    return _text(f"Repeat this sentence: {sentence}", sentence)


def _quoted(r: random.Random) -> Draft:
    sentence = f"{r.choice(_NAMES)} has a {r.choice(_COLOURS)} {r.choice(_THINGS)}"
    return _text(f'Say "{sentence}" and nothing else.', sentence)


def _list(prompt: str, values: list[str]) -> Draft:
    return prompt, Expectation(kind="list", value=[*values]), 32


def _bullets(r: random.Random) -> Draft:
    words = r.sample(_FRUITS, 3)
    return _list(f"Write these as a bulleted list, one on each line: {', '.join(words)}", words)


def _commas(r: random.Random) -> Draft:
    words = r.sample(_ANIMALS, 4)
    return _list(f"Write these words separated by commas, and nothing else: {' '.join(words)}", words)


def _count(r: random.Random) -> Draft:
    first = r.randint(10, 60)
    numbers = [str(n) for n in range(first, first + 5)]
    return _list(f"Count from {numbers[0]} to {numbers[-1]}. Write only the numbers, separated by commas.", numbers)


def _json(prompt: str, value: dict[str, str | int]) -> Draft:
    return prompt, Expectation(kind="json", value={**value}), 40


def _object(r: random.Random) -> Draft:
    name, age = r.choice(_NAMES), r.randint(18, 80)
    return _json(
        f'Write a JSON object with the keys "name" and "age". The name is "{name}" and the age is {age}.',
        {"name": name, "age": age},
    )


def _extract(r: random.Random) -> Draft:
    name, city = r.choice(_NAMES), r.choice(_CITIES)
    return _json(
        f'{name} lives in {city}. Answer only with JSON like {{"name": "...", "city": "..."}}.',
        {"name": name, "city": city},
    )


def _weather(r: random.Random) -> Draft:
    city, degrees = r.choice(_CITIES), r.randint(2, 35)
    return _json(
        f'It is {degrees} degrees in {city}. Answer only with JSON like {{"city": "...", "degrees": 0}}.',
        {"city": city, "degrees": degrees},
    )


def _word(prompt: str, value: str, *others: str) -> Draft:
    return prompt, Expectation(kind="word", value=value, distractors=others), 24


def _home(r: random.Random) -> Draft:
    names, cities = r.sample(_NAMES, 2), r.sample(_CITIES, 2)
    text = " ".join(f"{n} lives in {c}." for n, c in zip(names, cities, strict=True))
    asked = r.randrange(2)
    return _word(f"{text} Where does {names[asked]} live?", cities[asked], cities[1 - asked], names[1 - asked])


def _age(r: random.Random) -> Draft:
    name, city, age = r.choice(_NAMES), r.choice(_CITIES), r.randint(20, 60)
    return _word(f"{name} is {age} years old and lives in {city}. How old is {name}?", str(age))


def _password(r: random.Random) -> Draft:
    door, box = r.sample(_WORDS, 2)
    return _word(f"The door's password is {door}. The box's password is {box}. What is the box's password?", box, door)


TEMPLATES: dict[Family, dict[str, Template]] = {
    Family.ARITHMETIC: {"add": _add, "subtract": _subtract, "double": _double},
    Family.COPY: {"sentence": _sentence, "code": _code, "quoted": _quoted},
    Family.LIST: {"bullets": _bullets, "commas": _commas, "count": _count},
    Family.JSON: {"object": _object, "extract": _extract, "weather": _weather},
    Family.RECALL: {"home": _home, "age": _age, "password": _password},
}


def generate(seed: int, count: int) -> ItemSet:
    """The first `count` items of this seed, all prompts different, families and templates taken in turn.

    A pure function: the same arguments give the same set everywhere, and a smaller count gives its beginning.
    Raises BadInput when a template has no more different prompts to give (with the present ones: above 500).
    """
    turns = [
        (family, name, template)
        for row in zip(*(t.items() for t in TEMPLATES.values()), strict=True)
        for family, (name, template) in zip(TEMPLATES, row, strict=True)
    ]
    items: list[Item] = []
    prompts: set[str] = set()
    for index in range(count):
        family, name, template = turns[index % len(turns)]
        draw = random.Random(f"{seed}/{index}")
        for _ in range(_TRIES):
            prompt, expected, max_tokens = template(draw)
            if prompt not in prompts:
                break
        else:
            raise BadInput(
                f"there are no {count} different items",
                evidence=f"{family}/{name} gave nothing new after {index} items",
                todo="lower evals.items",
            )
        prompts.add(prompt)
        item_id = f"{family}-{name}-{index:03}"
        items.append(
            Item(id=item_id, family=family, template=name, prompt=prompt, expected=expected, max_tokens=max_tokens)
        )
    return ItemSet(seed=seed, items=tuple(items))
