"""Surfaces of small real excerpts: what --help and the server's source of three builds say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tasks.flags.flag import flags_of_help
from tasks.preflight.surface import Surface, fields_of, routes_of

DATA = Path(__file__).parent / "data"


def excerpt(tag: str, kind: str) -> str:
    """`help.txt` as the binary prints it, `server.cpp` as lines of tools/server/*.cpp, `README.md` as its tables."""
    return (DATA / f"{tag}-{kind}").read_text()


def surface(tag: str, source: str, **known: Any) -> Surface:
    """The surface of a build as far as its excerpts tell it; `source` is the build whose server.cpp is taken."""
    code = excerpt(source, "server.cpp")
    found = Surface(
        build=tag,
        tag=tag,
        flags=flags_of_help(excerpt(tag, "help.txt")),
        routes=routes_of(code),
        fields=fields_of(code),
        mentioned=tuple(re.findall(r'"([\w.]+)"', code)),
    )
    return found.model_copy(update=known)
