from __future__ import annotations

import random
from typing import Any

from tasks.evals.families.family import Family, number, tool, word
from tasks.evals.families.words import CITIES, NAMES, THINGS
from tasks.evals.model import Ask, Call, Tool


def _lookup(name: str, description: str, argument: str, known: dict[str, str]) -> Tool:
    """A tool that knows these answers, by the value of its one argument."""
    results = {Call(name=name, arguments={argument: k}).key: v for k, v in known.items()}
    return tool(name, description, results, **{argument: "string"})


def _priced(r: random.Random, level: int) -> tuple[list[str], list[int], Tool]:
    things = r.sample(THINGS, 2 + level)
    prices = [r.randint(2, 9 + 20 * level) for _ in things]
    known = {t: f"The {t} costs {p} euros." for t, p in zip(things, prices, strict=True)}
    return things, prices, _lookup("get_price", "The price of one thing.", "thing", known)


def _called(offered: Tool, argument: str, *values: str) -> dict[str, Any]:
    """What an item is given when these calls were made already."""
    made = [Call(name=offered.name, arguments={argument: v}) for v in values]
    return {"tools": (offered,), "before": tuple((c, offered.results[c.key]) for c in made)}


def _read(r: random.Random, level: int) -> Ask:
    things, prices, get = _priced(r, level)
    return number(
        f"What is the price of the {things[0]}? Answer with a number.", prices[0], **_called(get, "thing", things[0])
    )


def _sum(r: random.Random, level: int) -> Ask:
    things, prices, get = _priced(r, level)
    return number(
        f"How much are the {things[0]} and the {things[1]} together? Answer with a number.",
        sum(prices[:2]),
        max_tokens=48,
        **_called(get, "thing", *things[:2]),
    )


def _dearer(r: random.Random, level: int) -> Ask:
    things, prices, get = _priced(r, level)
    prices[1] += (prices[0] == prices[1]) * 1
    first, second = things[:2]
    known = {t: f"The {t} costs {p} euros." for t, p in zip(things, prices, strict=True)}
    get = _lookup("get_price", "The price of one thing.", "thing", known)
    more, less = (first, second) if prices[0] > prices[1] else (second, first)
    return word(
        f"Which costs more, the {first} or the {second}? Answer with one word.", more, less,
        **_called(get, "thing", first, second),
    )  # fmt: skip


def _home(r: random.Random, level: int) -> Ask:
    people = r.sample(NAMES, 1 + level)
    cities = r.sample(CITIES, 1 + level)
    known = {p: f"{p} lives in {c}." for p, c in zip(people, cities, strict=True)}
    find = _lookup("find_person", "Where a person lives.", "name", known)
    at = r.randrange(len(people))
    others = tuple(c for c in cities if c != cities[at])
    return word(
        f"In which city does {people[at]} live? Answer with the city.", cities[at], *others,
        **_called(find, "name", *people),
    )  # fmt: skip


def _ask_price(r: random.Random, level: int) -> Ask:
    things, prices, get = _priced(r, level)
    return number(
        f"What does the {things[0]} cost? Look it up, then answer with a number.", prices[0], tools=(get,),
        max_tokens=64,
    )  # fmt: skip


def _ask_both(r: random.Random, level: int) -> Ask:
    things, prices, get = _priced(r, level)
    return number(
        f"Look up what the {things[0]} costs and what the {things[1]} costs, then answer with the sum as a number.",
        sum(prices[:2]),
        tools=(get,),
        max_tokens=96,
    )


def _follow(r: random.Random, level: int) -> Ask:
    """The second call needs what the first one answered."""
    people, cities = r.sample(NAMES, 2 + level), r.sample(CITIES, 2 + level)
    degrees = r.sample(range(2, 35), len(cities))
    find = _lookup(
        "find_person", "Where a person lives.", "name",
        {p: f"{p} lives in {c}." for p, c in zip(people, cities, strict=True)},
    )  # fmt: skip
    weather = _lookup(
        "get_weather", "The weather in a city.", "city",
        {c: f"{d} degrees in {c}." for c, d in zip(cities, degrees, strict=True)},
    )  # fmt: skip
    return number(
        f"How many degrees is it in the city where {people[0]} lives? Look it up, then answer with a number.",
        degrees[0],
        tools=(find, weather),
        max_tokens=96,
    )


def _corrected(r: random.Random, level: int) -> Ask:
    """The first call is answered with what to ask instead."""
    thing, price = r.choice(THINGS), r.randint(2, 99)
    code = f"{thing[:2].upper()}{r.randint(10, 99 * 10**level)}"
    known = {thing: f"Error: not a code. The code of the {thing} is {code}.", code: f"{code} costs {price} euros."}
    get = _lookup("get_price", "The price of a thing by its code.", "code", known)
    return number(
        f"What does the {thing} cost? Its code is not known: ask for {thing} first. Answer with a number.",
        price,
        tools=(get,),
        max_tokens=96,
    )


FAMILY = Family(
    "tool turns",
    "going on after a tool has answered: how the template shows results, and calls that build on each other",
    {
        "read": _read, "sum": _sum, "dearer": _dearer, "home": _home, "ask price": _ask_price, "ask both": _ask_both,
        "follow": _follow, "corrected": _corrected,
    },
)  # fmt: skip
