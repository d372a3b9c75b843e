"""How chats become prompts and prompts answers: built-in templates, templates that upstream carries, parsers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tasks.upstream.treediff.facts import Fact, Files, Kind, digest

CARRIED = "models/templates/*.jinja"
PARSING = ("common/chat*.cpp", "common/parsers/*.cpp")
_BUILT_IN = re.compile(r'\{\s*"([\w.-]+)"\s*,\s*(LLM_CHAT_TEMPLATE_\w+)\s*\}')
_PARSER = re.compile(r"common_chat_(?:params_init|parse)_(\w+)$")


def facts(files: Files) -> Iterable[Fact]:
    """Templates by name, parsers by the digest of their code."""
    for code in files.code("src/llama-chat.cpp"):
        for m in _BUILT_IN.finditer(code.bare):
            yield Fact(Kind.TEMPLATE, m[1], m[2], code.at(m.start()))
    for path, text in files.fitting(CARRIED):
        yield Fact(Kind.TEMPLATE, path.rpartition("/")[2], digest(text), f"{path}:1")
    for code in files.code(*PARSING):
        for block in code.blocks:
            if found := _PARSER.search(block.function):
                yield Fact(Kind.PARSER, found[1], digest(code.bare[block.start : block.end]), code.at(block.start))
