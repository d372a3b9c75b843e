"""Environment variables that code asks for by itself, beside those of flags."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tasks.upstream.treediff.facts import Fact, Files, Kind
from tasks.upstream.treediff.refusals import CUDA, SERVED

READING = (*SERVED, *CUDA, "common/jinja/*.cpp", "src/models/*.cpp", "ggml/src/ggml-cpu/*.cpp", "ggml/src/ggml-cpu/*.c")
_ASKED = re.compile(r'getenv\s*\(\s*"(\w+)"\s*\)')


def facts(files: Files) -> Iterable[Fact]:
    """The variables, with the code that asks."""
    for code in files.code(*READING):
        for m in _ASKED.finditer(code.bare):
            line = code.text[code.text.rfind("\n", 0, m.start()) + 1 :].partition("\n")[0]
            yield Fact(Kind.VARIABLE, m[1], "", code.at(m.start()), text=" ".join(line.split()))
