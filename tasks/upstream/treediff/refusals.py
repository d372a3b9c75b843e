"""What is refused, when, and with which status: each message of the code with all that must hold for it to be said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tasks.upstream.treediff import http
from tasks.upstream.treediff.cpp import PLACEHOLDER, Code
from tasks.upstream.treediff.facts import Fact, Files, Kind

SERVED = (
    "tools/server/*.cpp",
    "tools/server/*.h",
    "common/*.cpp",
    "common/parsers/*.cpp",
    "src/*.cpp",
    "ggml/src/*.cpp",
    "ggml/src/*.c",
    "tools/mtmd/*.cpp",
)
CUDA = ("ggml/src/ggml-cuda/*.cu", "ggml/src/ggml-cuda/*.cuh")

_BEGINS = re.compile(r"throw\s|format_error_response|send_error|res_err|LOG_[EWI]|SRV_[EWI]|SLT_[EWI]|GGML_ABORT")
"""How each of `_SAID` begins: looking for these alone is seven times as fast."""
_SAID = re.compile(
    r"""throw\s+(?:std::)?(?P<thrown>\w+)\s*\("""
    r"""|(?P<refused>format_error_response|send_error|res_err\w*)\s*\("""
    r"""|(?P<logged>LOG_(?:ERR|WRN|INF|ERROR|WARN|INFO)|S(?:RV|LT)_(?:ERR|WRN|INF))\s*\("""
    r"""|(?P<abort>GGML_ABORT)\s*\("""
)
PARAMETER = re.compile(r"\b[cm]?params(?:_base)?(?:\.|->)(?:\w+(?:\.|->))*(\w+)")
"""A parameter in a condition, by its last name: `params.type_k`. Other names are the function's own."""
_THROWN = {"invalid_argument": "400", "domain_error": "400", "out_of_range": "400"}
"""What ex_wrapper of tools/server/server.cpp makes of an exception; of any other, 500."""
_SHORTEST = 6
"""Letters of a message that says something."""


class Said(NamedTuple):
    """A message, and what must hold for it to be said."""

    message: str
    how: str
    conditions: tuple[str, ...]
    function: str
    at: str


def facts(files: Files) -> Iterable[Fact]:
    """Refusals, warnings and log lines. The name is the message without its values."""
    known = {error: status for error, (status, _) in http.statuses(files).items()}
    for code in files.code(*SERVED, *CUDA):
        for said in _messages(code, known):
            kind = Kind.LOG if said.how == "info" else Kind.WARNING if said.how == "warning" else Kind.ERROR
            when = " and ".join(reversed(said.conditions)) if kind is not Kind.LOG else ""
            about = frozenset(PARAMETER.findall(when))
            value = f"{said.how}; when {when}" if when else said.how
            yield Fact(kind, said.message, value, said.at, text=said.function, about=about)


def _messages(code: Code, known: Mapping[str, str]) -> Iterator[Said]:
    serving = code.path.startswith("tools/server/")
    for begin in _BEGINS.finditer(code.shape):
        if not (m := _SAID.match(code.shape, begin.start())):
            continue
        opens = m.end() - 1
        arguments = code.arguments(opens)
        texts = [text for span in arguments[: 3 if m["refused"] else 1] for text in code.strings(*span)]
        if m["logged"] and texts and not re.sub(r"%s|\W", "", texts[0]):  # SRV_WRN("%s", "message")
            texts = [text for span in arguments[1:2] for text in code.strings(*span)]
        message = _plain(" … ".join(texts))
        if len(re.sub(r"[\W\d_…]", "", message)) < _SHORTEST:
            continue
        how = _how(m, code.bare[opens : code.closing(opens)], serving, known)
        yield Said(message, how, code.conditions(m.start()), code.function(m.start()), code.at(m.start()))


def _how(found: re.Match[str], arguments: str, serving: bool, known: Mapping[str, str]) -> str:
    if found["logged"]:
        level = found["logged"].rpartition("_")[2]
        return {"ERR": "error", "ERROR": "error", "WRN": "warning", "WARN": "warning"}.get(level, "info")
    if found["abort"]:
        return "abort"
    if found["refused"]:
        error = re.search(r"\bERROR_TYPE_(\w+)", arguments)
        return known.get(error[1], error[1]) if error else "refused"
    return _THROWN.get(found["thrown"], "500") if serving else found["thrown"]


def _plain(text: str) -> str:
    """A message as it is told apart: without its values, the function's name in front and the line's end."""
    text = re.sub(r"^(?:%s:?\s*)+", "", text.strip())
    return " ".join(PLACEHOLDER.sub("%", text).split())
