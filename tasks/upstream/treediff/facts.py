"""What one tree says of itself, fact by fact, so that two trees can be laid side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from tasks.sources import fits
from tasks.upstream.treediff.cpp import Code


class Kind(StrEnum):
    """What a fact is about."""

    FLAG = "flag"
    VARIABLE = "environment variable"
    ROUTE = "route"
    REQUEST_FIELD = "request field"
    RESPONSE_FIELD = "response field"
    METRIC = "metric"
    ERROR = "error"
    """A request or a start that is refused: the message, its status, and when."""
    WARNING = "warning"
    """What the server says and goes on: it takes another way than asked."""
    HTTP = "HTTP"
    """Headers, hooks and limits of the HTTP server."""
    LOG = "log line"
    DEFAULT = "default in code"
    OPTION = "CMake option"
    TOOLCHAIN = "toolchain"
    """What a build needs beside the source, and for which GPUs it is made."""
    FORMAT = "file format"
    GGUF_KEY = "GGUF key"
    ARCHITECTURE = "architecture"
    QUANT = "quant type"
    PRE_TOKENIZER = "pre-tokenizer"
    TEMPLATE = "chat template"
    PARSER = "chat parser"
    CUDA = "CUDA code"
    README = "server README"
    PATCHED = "patched file"
    """A file that our series changes."""


class Fact(NamedTuple):
    """One thing that a tree says."""

    kind: Kind
    name: str
    value: str = ""
    """What is compared."""
    at: str = ""
    """`path:line`."""
    text: str = ""
    """Upstream's own words on it."""
    about: frozenset[str] = frozenset()
    """Names of parameters that it reads or sets: what ties it to a flag."""


def digest(text: str) -> str:
    """What a text is, whatever its spaces: the value of a fact whose own words are too many."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:12]


class Files:
    """Files of one tree, by path."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self._codes: dict[str, Code] = {}

    def fitting(self, *globs: str) -> Iterator[tuple[str, str]]:
        """(path, text) of those that a glob fits, sorted."""
        for path in sorted(self.texts):
            if any(fits(path, glob) for glob in globs):
                yield path, self.texts[path]

    def code(self, *globs: str) -> Iterator[Code]:
        """Those that a glob fits, as code; each is read once."""
        for path, text in self.fitting(*globs):
            if path not in self._codes:
                self._codes[path] = Code(path, text)
            yield self._codes[path]


def unique(facts: Iterable[Fact]) -> dict[tuple[Kind, str], Fact]:
    """The facts by kind and name. Those of one name are one: its values together, where it is first."""
    found: dict[tuple[Kind, str], list[Fact]] = {}
    for fact in facts:
        found.setdefault((fact.kind, fact.name), []).append(fact)
    return {key: _one(same) for key, same in found.items()}


def _one(same: list[Fact]) -> Fact:
    values = list(dict.fromkeys(fact.value for fact in same if fact.value))
    about = frozenset().union(*(fact.about for fact in same))
    return same[0]._replace(value=" | ".join(sorted(values)), about=about)
