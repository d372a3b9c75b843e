"""Real upstream changes, labelled by what they did to whoever runs a llama-server or asks one.

How the set was drawn: `changelog` records are all changes that the changelog in the wheel tells of, each pull request
at its first build, none left out: how often they break something is honest. `github` records are merged pull requests
that the changelog leaves out, namely all that turned up while looking for the causes of what differs in the option
tables, routes and fields of the real trees b8672, b9105, b10605, b11010 and b11434: many of them break something, so
they count for recall, never for how often a finding is right. The cause of five differences was not found (what draft
models default to, --ctx-size-draft, the flags of text to speech, /v1/models behind the key, 400 for malformed JSON):
perhaps those whose titles say least, so recall on these records is rather too high than too low.

A change is breaking when an argv, a variable, a request, an answer or a build that was right before works otherwise or
no more, on the CPU or with CUDA, although nothing in it was wrong. Mended faults, messages, other backends and other
programs are not. Doubts were settled in the sources on both sides (`reason` says so).

Split by time at b9000: the rules were written with only the earlier part labelled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tasks.release import Change, Model, Recipe
from tasks.settings import Settings
from tasks.upstream.notes import Assessed, assess
from tasks.upstream.ours import Ours, used_by
from tasks.upstream.risk import Risk

FILE = Path(__file__).parent / "labelled_changes.jsonl"
SPLIT = 9000
COUNTED = ("flag", "env", "route", "field", "default")
"""The kinds of which none should be missed."""


class Labelled(Model):
    """One change with its label."""

    source: Literal["changelog", "github"]
    part: Literal["earlier", "later"]
    build: int | None
    pull: int
    title: str
    breaking: bool
    kind: Literal["flag", "env", "route", "field", "default", "status code", "template", "cache", "none"]
    reason: str


def labelled() -> list[Labelled]:
    """All records, as they stand in the file."""
    return [Labelled.model_validate(json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines()]


def reference(patches: Path) -> Ours:
    """What the product's reference uses: Gemma 4 on CUDA with this repository's patches."""
    return replace(used_by(Settings(recipe=Recipe(backend="cuda"), patches=patches)), architecture="gemma4")


def judged(
    records: Iterable[Labelled], used: Ours, bodies: dict[int, str] | None = None
) -> list[tuple[Labelled, Assessed]]:
    """Each record with its assessment; `bodies` is pull -> what its author says, where that is known."""
    found = []
    for record in records:
        body = (bodies or {}).get(record.pull, "")
        change = Change(build=record.build or SPLIT, pull=record.pull, title=record.title, body=body)
        found.append((record, assess(change, used)))
    return found


def warned(found: Assessed) -> bool:
    """Whether a person would be told that this may break something."""
    return found.risk in (Risk.MAY_BREAK, Risk.MAY_BREAK_US)
