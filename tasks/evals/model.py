"""The eval gate's values: an item, and what a release answered to it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, JsonValue

from tasks.release import Model, digest_of

SCORER_VERSION = "2"
"""Part of an item set's digest: raise it whenever an answer would be asked for or judged differently."""


class Expectation(Model):
    """What a right answer holds; the rules for each kind are in `scorer.py`."""

    kind: Literal["number", "text", "word", "list", "json", "rules", "calls", "inspect"]
    value: JsonValue
    distractors: tuple[str, ...] = ()
    """Words of a `word` item that a right answer must not hold."""


class Call(Model):
    """A call of a tool, with decoded arguments."""

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in sorted(self.arguments.items()))})"

    @property
    def key(self) -> str:
        """The same for calls that mean the same: letter case and white space of strings do not matter."""
        return f"{self.name} {digest_of(_plain(self.arguments))}"


def _plain(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


class Tool(Model):
    """A tool that is offered, and what it answers when the model may go on after calling it."""

    name: str
    description: str
    parameters: dict[str, Any] = Field(description="JSON schema of the arguments")
    results: dict[str, str] = Field(default_factory=dict, description="Call.key -> what the tool answers")


class Ask(Model):
    """One question and what a right answer holds."""

    prompt: str
    expected: Expectation
    max_tokens: int = 32
    image: str = Field(default="", description="a PNG that goes with the prompt, base64")
    tools: tuple[Tool, ...] = ()
    before: tuple[tuple[Call, str], ...] = Field(default=(), description="calls already made after the prompt")
    answer_schema: dict[str, Any] | None = Field(default=None, description="JSON schema the server must enforce")
    thinking_tokens: int | None = Field(default=None, description="thinking budget; None: thinking is off")


class Item(Ask):
    """An Ask as part of a set."""

    id: str
    family: str
    template: str = Field(description="what it was made from: items of one template tend to change together")
    task: str = Field(default="", description="the Inspect task that asks and judges it; empty: ours")


class ItemSet(Model):
    """Items in the order in which they are asked."""

    items: tuple[Item, ...]
    sources: tuple[str, ...] = Field(default=(), description="digests of the code of other people's Inspect tasks")

    @property
    def digest(self) -> str:
        """12 hex characters over the items, how they are asked and how they are judged."""
        return digest_of([self.model_dump(mode="json"), SCORER_VERSION])[:12]


class Outcome(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"
    TRUNCATED = "truncated"
    """Cut off at max_tokens: counts as wrong, whatever stands in it."""
    THOUGHT_OUT = "thought out"
    """Cut off while still thinking, with no answer begun: counts as wrong."""
    ERRORED = "errored"
    """There was no answer: the request failed. Never counted as wrong."""


class ItemAnswer(Model):
    """One answer."""

    item: str
    outcome: Outcome
    text: str = Field(default="", description="what was said, tool calls first")
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = Field(default=0.0, description="from question to answer")
    wall_s: float = Field(default=0.0, description="since the answer before it: these add up to the time of asking")

    @property
    def right(self) -> bool:
        return self.outcome is Outcome.CORRECT
