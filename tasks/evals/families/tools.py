from __future__ import annotations

import random

from tasks.evals.families.family import Family, number, text, tool
from tasks.evals.families.words import CITIES, COLOURS, FRUITS, NAMES, THINGS, WORDS
from tasks.evals.model import Ask, Call, Expectation, Tool

WEATHER = tool("get_weather", "The weather in a city now.", city="string")
OTHERS = (
    tool("send_mail", "Send an e-mail.", to="string", text="string"),
    tool("get_time", "The time in a city now.", city="string"),
    tool("play_music", "Play a song.", title="string"),
    tool("book_table", "Book a table in a restaurant.", restaurant="string", people="integer"),
)


def calls(prompt: str, tools: list[Tool], *wanted: Call) -> Ask:
    value = Expectation(kind="calls", value=[c.model_dump() for c in wanted])
    return Ask(prompt=prompt, expected=value, tools=tuple(tools), max_tokens=32 + 32 * len(wanted))


def _offered(r: random.Random, level: int, *needed: Tool) -> list[Tool]:
    """The tools needed among `level` others."""
    found = [*needed, *r.sample([t for t in OTHERS if t not in needed], min(level, 3))]
    r.shuffle(found)
    return found


def _single(r: random.Random, level: int) -> Ask:
    city = r.choice(CITIES)
    asked = r.choice(
        ("What is the weather in {}?", "Is it raining in {}?", "How warm is it in {} now?", "Weather, {}?")
    )
    return calls(asked.format(city), _offered(r, level, WEATHER), Call(name="get_weather", arguments={"city": city}))


def _typed(r: random.Random, level: int) -> Ask:
    people, place = r.randint(2, 9), r.choice(WORDS).title()
    return calls(
        f"Book a table for {people} people in the restaurant {place}.",
        _offered(r, level, OTHERS[3]),
        Call(name="book_table", arguments={"restaurant": place, "people": people}),
    )


def _choice(r: random.Random, level: int) -> Ask:
    city = r.choice(CITIES)
    asked = r.choice(("What time is it in {}?", "Tell me the time in {}.", "How late is it in {} now?"))
    return calls(
        asked.format(city), _offered(r, level, WEATHER, OTHERS[1]), Call(name="get_time", arguments={"city": city})
    )


def _parallel(r: random.Random, level: int) -> Ask:
    cities = r.sample(CITIES, 2 + level // 2)
    return calls(
        f"What is the weather in {' and in '.join(cities)}? Look all of them up at once.",
        _offered(r, level, WEATHER),
        *(Call(name="get_weather", arguments={"city": c}) for c in cities),
    )


def _enum(r: random.Random, level: int) -> Ask:
    colour, room = r.choice(COLOURS), r.choice(("kitchen", "bedroom", "hall", "bath", "office"))
    light = tool("set_light", "Set the light of a room.", room="string", colour={"type": "string", "enum": [*COLOURS]})
    return calls(
        f"Make the light in the {room} {colour}, please.",
        _offered(r, level, light),
        Call(name="set_light", arguments={"room": room, "colour": colour}),
    )


def _not_needed(r: random.Random, level: int) -> Ask:
    a, b = r.randint(1, 9 * (1 + level)), r.randint(1, 9 * (1 + level))
    return number(f"What is {a} + {b}? Answer with a number.", a + b, tools=tuple(_offered(r, level, WEATHER)))


def _small_talk(r: random.Random, level: int) -> Ask:
    sentence = f"{r.choice(NAMES)} likes {r.choice(FRUITS)}s" + f" and {r.choice(THINGS)}s" * (level > 1)
    return text(f"Repeat this sentence: {sentence}.", f"{sentence}.", tools=tuple(_offered(r, level, WEATHER)))


def _wrong(r: random.Random, level: int) -> Ask:
    """Only tools that cannot do what is asked: the right thing is to say something and to call nothing."""
    asked = f"What is the opposite of {r.choice(('hot', 'big', 'old', 'fast', 'light', 'happy', 'rich', 'early'))}"
    asked += f", {r.choice(NAMES)} wants to know" if level else ""
    ask = calls(f"{asked}? Answer with one word.", _offered(r, level, r.choice(OTHERS[2:])))
    return ask.model_copy(update={"max_tokens": 24})


FAMILY = Family(
    "tools",
    "choosing a tool and its arguments: the tool-call grammar and parser, and the chat template",
    {
        "single": _single, "typed": _typed, "choice": _choice, "parallel": _parallel, "enum": _enum,
        "not needed": _not_needed, "small talk": _small_talk, "wrong tool": _wrong,
    },
)  # fmt: skip
