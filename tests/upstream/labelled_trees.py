"""Real differences between two upstream trees, labelled by hand before the reader of trees was written.

How the set was drawn: six pairs of builds, read with git diff where people outside see something: flags, variables,
defaults, the server's messages, fields and headers, CMake options, file formats. `evidence` is [path, side, text]: the
text stands in the file of that side, and of `-side` it does not. A decoy is a difference that breaks nobody: an
addition, another backend or program, a rewording, a rearranged line, a file that a lean archive left out.

A break is listed when a change of a risk matches one of `must_mention`, and shown when a line for people does. A decoy
is raised when a line for people matches one of `raised_by`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from tasks import upstream
from tasks.release import Model, Recipe
from tasks.settings import ServerSettings, Settings
from tasks.sources import Sources
from tasks.upstream import treediff
from tasks.upstream.ours import used_by
from tasks.upstream.risk import Risk
from tasks.upstream.treediff import TreeDiff, page

FILE = Path(__file__).parent / "labelled_trees.jsonl"
DECOY = "decoy"


class Labelled(Model):
    """One difference with its label."""

    id: str
    low: int = Field(alias="from")
    high: int = Field(alias="to")
    kind: str
    name: str
    evidence: tuple[tuple[str, str, str], ...]
    must_mention: tuple[str, ...] = ()
    raised_by: tuple[str, ...] = ()
    matters_for: str = ""
    why_harmless: str = ""


class Verdict(NamedTuple):
    """What the reader made of it."""

    record: Labelled
    shown: bool
    listed: bool

    @property
    def right(self) -> bool:
        return not self.shown if self.record.kind == DECOY else self.shown or self.listed


def labelled() -> list[Labelled]:
    """All records, as they stand in the file."""
    return [Labelled.model_validate(json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines()]


def reference(patches: Path, cache: Path) -> Settings:
    """Settings that use much of upstream: CUDA, a quantized cache, options of the build."""
    return Settings(
        cache=cache,
        patches=patches,
        server=ServerSettings(kv_cache_type="q8_0", flash_attention="auto"),
        recipe=Recipe(backend="cuda", cmake={"LLAMA_BUILD_WEBUI": "OFF"}),
    )


def compared(settings: Settings, low: int, high: int) -> TreeDiff:
    """What differs between two builds, whose source is fetched where it is not here."""
    old, new = tree_of(settings, low), tree_of(settings, high)
    return treediff.read(Sources(settings.cache), old, new, used_by(settings))


def tree_of(settings: Settings, build: int) -> str:
    """The git tree of a build, fetched where it is not here."""
    return upstream.tree_of(upstream.open_upstream(settings), Sources(settings.cache), build)


def judged(records: Iterable[Labelled], found: TreeDiff) -> Iterator[Verdict]:
    """What a tree diff shows and lists of each record."""
    shown = [" ".join(line) for line in page.lines(found)]
    listed = [change.model_dump_json() for change in found.changes if change.risk is not Risk.NONE]
    for record in records:
        patterns = [re.compile(each, re.IGNORECASE) for each in record.must_mention or record.raised_by]
        in_shown, in_listed = (any(p.search(line) for p in patterns for line in lines) for lines in (shown, listed))
        yield Verdict(record, in_shown, in_listed)
