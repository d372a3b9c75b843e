"""Versions and marks of the files that a server writes and reads."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tasks.upstream.treediff.facts import Fact, Files, Kind

HOLDING = (
    "include/*.h", "src/*.cpp", "src/*.h", "tools/server/*.cpp", "tools/server/*.h", "common/*.h", "common/*.cpp",
    "ggml/include/gguf.h", "ggml/include/ggml.h", "tools/mtmd/*.cpp", "tools/mtmd/*.h",
)  # fmt: skip
_WORD = re.compile("VERSION|MAGIC")
_NUMBERED = re.compile(
    r"[ \t]*#\s*define\s+(?P<macro>\w+)\s+(?P<value>[^\s/]+)"
    r"|.*\b(?:const|constexpr)\b[^=;()]*?\b(?P<name>[A-Z]\w*)(?:\[\])?\s*=\s*(?P<number>[^;]+);"
)
_PROGRAM = re.compile(
    r"^(?:GGML|LLAMA|GGML_BACKEND_API|GGML_CUDA|CUDART|CPPHTTPLIB\w*)_VERSION(?:_\w+)?$|WIN|_H$|OPENSSL"
)
"""Names of the program's own version, and of other people's."""


def facts(files: Files) -> Iterable[Fact]:
    """Each constant that a file is recognised or refused by."""
    for code in files.code(*HOLDING):
        starts = sorted({code.bare.rfind("\n", 0, m.start()) + 1 for m in _WORD.finditer(code.bare)})
        for start in starts:
            end = code.bare.find("\n", start)
            if not (m := _NUMBERED.match(code.bare, start, end if end >= 0 else len(code.bare))):
                continue
            name = m["macro"] or m["name"]
            if _WORD.search(name) and not _PROGRAM.search(name):
                yield Fact(Kind.FORMAT, name, " ".join((m["value"] or m["number"]).split()), code.at(start))
