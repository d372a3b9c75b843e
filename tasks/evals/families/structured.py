from __future__ import annotations

import random
from typing import Any

from tasks.evals.families.family import Family, closed, structured
from tasks.evals.families.words import CITIES, COLOURS, FRUITS, NAMES, THINGS
from tasks.evals.model import Ask


def _object(r: random.Random, level: int) -> Ask:
    value: dict[str, Any] = {"name": r.choice(NAMES), "age": r.randint(18, 80)}
    more = {"city": r.choice(CITIES), "colour": r.choice(COLOURS), "thing": r.choice(THINGS), "child": r.choice(NAMES)}
    value |= dict([*more.items()][:level])
    keys = " and ".join(f'"{k}"' for k in value)
    told = " and ".join(f'the {k} is "{v}"' if isinstance(v, str) else f"the {k} is {v}" for k, v in value.items())
    return structured(f"Write a JSON object with the keys {keys}. {told[0].upper()}{told[1:]}.", value)


def _extract(r: random.Random, level: int) -> Ask:
    name, city, other, away = *r.sample(NAMES, 1), r.choice(CITIES), r.choice(NAMES), r.choice(CITIES)
    noise = ("", " It is warm there.", f" The weather in {away} is bad.", f" {other} is a friend from {away}.")
    return structured(
        f'{name} lives in {city}.{noise[min(level, 3)]} Answer only with JSON like {{"name": "...", "city": "..."}}'
        f"{f', for {name}' if level > 2 else ''}.",
        {"name": name, "city": city},
    )


def _weather(r: random.Random, level: int) -> Ask:
    city, degrees = r.choice(CITIES), r.randint(2, 35)
    value: dict[str, Any] = {"city": city, "degrees": degrees}
    like = '"city": "...", "degrees": 0'
    if level > 1:
        value["rain"] = r.random() < 0.5
        like += ', "rain": true or false'
    rain = f" and it {'rains' if value['rain'] else 'does not rain'}" if level > 1 else ""
    return structured(f"It is {degrees} degrees in {city}{rain}. Answer only with JSON like {{{like}}}.", value)


def _person(r: random.Random, level: int) -> Ask:
    name, age, city = r.choice(NAMES), r.randint(18, 80), r.choice(CITIES)
    properties: dict[str, Any] = {"name": {"type": "string"}, "age": {"type": "integer"}}
    value: dict[str, Any] = {"name": name, "age": age}
    told = f"{name} is {age} years old."
    if level > 1:
        properties["city"], value["city"], told = {"type": "string"}, city, f"{told[:-1]} and lives in {city}."
    return structured(f"{told} Answer in JSON.", value, answer_schema=closed(properties))


def _colour(r: random.Random, level: int) -> Ask:
    colours = r.sample(COLOURS, 2 + level)
    things = r.sample(THINGS, 1 + level)
    told = " ".join(f"The {t} is {c}." for t, c in zip(things, colours, strict=False))
    at = r.randrange(len(things))
    schema = closed({"colour": {"enum": [*COLOURS]}})
    return structured(
        f"{told} Which colour is the {things[at]}? Answer in JSON.", {"colour": colours[at]}, answer_schema=schema
    )


def _order(r: random.Random, level: int) -> Ask:
    fruits = r.sample(FRUITS, 1 + level)
    lines: list[dict[str, Any]] = [{"item": f, "amount": r.randint(2, 20)} for f in fruits]
    schema = {"type": "array", "items": closed({"item": {"type": "string"}, "amount": {"type": "integer"}})}
    told = ", ".join(f"{line['amount']} x {line['item']}" for line in lines)
    return structured(
        f"An order: {told}. Answer with a JSON array of item and amount.",
        lines,
        answer_schema=schema,
        max_tokens=32 * (2 + level),
    )


def _switches(r: random.Random, level: int) -> Ask:
    things = r.sample(("light", "heater", "radio", "fan", "door"), 1 + level)
    value = {t: r.random() < 0.5 for t in things}
    told = ", ".join(f"the {t} is {'on' if on else 'off'}" for t, on in value.items())
    when = f" (reading {r.randint(100, 999)})"
    return structured(
        f"In the house{when} {told}. Answer in JSON: true for on, false for off.",
        value,
        answer_schema=closed({t: {"type": "boolean"} for t in things}),
    )


def _sorted(r: random.Random, level: int) -> Ask:
    numbers = r.sample(range(1, 10 * 4**level), 3 + level)
    if numbers == sorted(numbers):
        numbers.reverse()
    return structured(
        f"Answer only with a JSON array of these numbers from the smallest to the largest: {numbers}", sorted(numbers)
    )


FAMILY = Family(
    "structured",
    "JSON that a program reads: grammars made from a JSON schema, and the tokenizer",
    {
        "object": _object, "extract": _extract, "weather": _weather, "person": _person, "colour": _colour,
        "order": _order, "switches": _switches, "sorted": _sorted,
    },
)  # fmt: skip
