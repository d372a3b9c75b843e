"""What a family of items is."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tasks.evals.model import Ask, Expectation, Tool

HARDEST = 4
"""Levels go from 0, which a model of 135M parameters often gets right, to this."""

Template = Callable[[random.Random, int], Ask]
"""Makes one item of a level from a source of randomness."""


class Family(NamedTuple):
    name: str
    protects: str
    """What would break it: for the person who reads that it broke."""
    templates: Mapping[str, Template]


def number(prompt: str, value: float, **more: Any) -> Ask:
    return Ask(prompt=prompt, expected=Expectation(kind="number", value=value), **more)


def text(prompt: str, value: str, **more: Any) -> Ask:
    return Ask(prompt=prompt, expected=Expectation(kind="text", value=value), **more)


def word(prompt: str, value: str, *distractors: str, **more: Any) -> Ask:
    return Ask(prompt=prompt, expected=Expectation(kind="word", value=value, distractors=distractors), **more)


def listed(prompt: str, values: list[str], **more: Any) -> Ask:
    return Ask(prompt=prompt, expected=Expectation(kind="list", value=[*values]), **more)


def structured(prompt: str, value: dict[str, Any] | list[Any], **more: Any) -> Ask:
    return Ask(prompt=prompt, expected=Expectation(kind="json", value=value), **{"max_tokens": 64} | more)


def ruled(prompt: str, *rules: dict[str, Any], **more: Any) -> Ask:
    return Ask(prompt=prompt, expected=Expectation(kind="rules", value=[*rules]), **{"max_tokens": 48} | more)


def tool(name: str, description: str, results: dict[str, str] | None = None, /, **arguments: Any) -> Tool:
    """A tool whose arguments are all required; each is a JSON type name or a whole schema."""
    properties = {k: {"type": v} if isinstance(v, str) else v for k, v in arguments.items()}
    return Tool(name=name, description=description, parameters=closed(properties), results=results or {})


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object that has these properties and no others."""
    return {
        "type": "object", "properties": properties, "required": [*properties], "additionalProperties": False,
    }  # fmt: skip
