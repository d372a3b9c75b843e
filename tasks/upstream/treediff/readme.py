"""What the server's README promises beside its tables of flags: what each field of a request means, and its default."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tasks.preflight.surface import README
from tasks.upstream.treediff.facts import Fact, Files, Kind

_FIELD = re.compile(r"^\s*(?:[-*]\s+)?`([\w.]+)`:\s*(.+)$", re.MULTILINE)
_DEFAULT = re.compile(r"[Dd]efaults?(?: is|:| to| value is)?:?\s*`([^`]+)`")


def facts(files: Files) -> Iterable[Fact]:
    """Each documented field with its default."""
    for path, text in files.fitting(README):
        for m in _FIELD.finditer(text):
            if found := _DEFAULT.search(m[2]):
                yield Fact(
                    Kind.README, m[1], found[1], f"{path}:{text.count(chr(10), 0, m.start()) + 1}", text=m[2][:200]
                )
