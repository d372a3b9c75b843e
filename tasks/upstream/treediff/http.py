"""What the HTTP server takes and how it answers, by its source: routes, keys, request fields, statuses, headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from tasks.preflight.surface import routes_of
from tasks.upstream.treediff.cpp import Code
from tasks.upstream.treediff.facts import Fact, Files, Kind

SERVER = ("tools/server/*.cpp", "tools/server/*.h")
PUBLIC = "public"
"""What a path is that no key is asked for."""
EXCEPTION = "exception"
"""How the name begins of what becomes of an exception."""

_ROUTE = re.compile(r'ctx_http\.(?:get|post|del)\s*\(\s*"(/[^"]*)"')
_READ = re.compile(
    r"""
      json_value\( \s* \w*(?:data|body|request|params|opts?) \s*,\s* "(?P<value>[\w.]+)"
    | (?:data|body) (?:\.(?:contains|at|find)\( | \[ ) \s* "(?P<at>[\w.]+)"
    | new\s+(?P<type>field_\w+)(?:<[^>]*>)?\( \s* "(?P<field>[\w.]+)"
    | add_alias\( \s* "(?P<alias>[\w.]+)"
    """,
    re.VERBOSE,
)
_LIMIT = re.compile(r"->\s*set_(\w*limits)\(")
_PUBLIC = re.compile(r"public_endpoints\w*\s*=")
_HEADER = re.compile(r'set_header\(\s*"([\w-]+)"\s*,')
_HOOK = re.compile(r"(?:srv|svr|svr_http|http_server)(?:->|\.)set_(\w+)\s*\(")
_CATCH = re.compile(r"catch\s*\(\s*(?:const\s+)?([\w:]+|\.\.\.)[^)]*\)\s*\{")
_STATUS = re.compile(r"case\s+ERROR_TYPE_(\w+)\s*:.*?\bcode\s*=\s*(\d+)", re.DOTALL)


def facts(files: Files) -> Iterable[Fact]:
    """Everything that a client meets before it has an answer."""
    declared = statuses(files)
    known = {error: status for error, (status, _) in declared.items()}
    for code in files.code(*SERVER):
        yield from _routes(code)
        yield from _fields(code)
        yield from _http(code)
        yield from _caught(code, known)
    for error, (status, at) in declared.items():
        yield Fact(Kind.ERROR, f"status of {error}", status, at)


def statuses(files: Files) -> dict[str, tuple[str, str]]:
    """Error of the server's own list (`INVALID_REQUEST`) -> (HTTP status, its place)."""
    return {m[1]: (m[2], code.at(m.start())) for code in files.code(*SERVER) for m in _STATUS.finditer(code.bare)}


def _routes(code: Code) -> Iterator[Fact]:
    handlers = {(route.method, route.path): route for route in routes_of(code.text)}
    places = {m[1]: code.at(m.start()) for m in _ROUTE.finditer(code.bare)}
    for route in handlers.values():
        yield Fact(Kind.ROUTE, str(route), route.handler, places.get(route.path, code.path))
    for m in _PUBLIC.finditer(code.bare):
        opens = code.shape.find("{", m.end())
        for path in code.strings(opens, code.closing(opens)):
            if path.startswith("/"):
                yield Fact(Kind.ROUTE, f"{path} without a key", PUBLIC, code.at(m.start()))


def _fields(code: Code) -> Iterator[Fact]:
    """Request fields; of one that stands in the schema, its type and limits too (upstream, since b9700 or so)."""
    for m in _READ.finditer(code.bare):
        name = m["value"] or m["at"] or m["field"] or m["alias"]
        # only a schema declares a field once and for all: what code reads in passing it may read anywhere
        value = _schema(code, m) if m["field"] else ""
        yield Fact(Kind.REQUEST_FIELD, name, value, code.at(m.start()))


def _schema(code: Code, found: re.Match[str]) -> str:
    end = code.shape.find(";", found.end())
    limits = [
        f"{m[1].replace('_', ' ')} {code.bare[m.end() : code.closing(m.end() - 1)].strip()}"
        for m in _LIMIT.finditer(code.bare, found.start(), end if end >= 0 else len(code.text))
    ]
    return ", ".join([found["type"].removeprefix("field_"), *limits])


def _http(code: Code) -> Iterator[Fact]:
    for m in _HEADER.finditer(code.bare):
        said = " ".join(code.bare[m.end() : code.closing(m.start() + len("set_header"))].split())
        yield Fact(Kind.HTTP, f"header {m[1]}", said, code.at(m.start()))
    for m in _HOOK.finditer(code.bare):
        said = " ".join(code.bare[m.end() : code.closing(m.end() - 1)].split())
        # a body of its own is a rule of its own, which its messages tell of
        yield Fact(Kind.HTTP, f"set_{m[1]}", "its own" if "{" in said else said, code.at(m.start()))


def _caught(code: Code, known: Mapping[str, str]) -> Iterator[Fact]:
    """Which status an exception becomes."""
    for m in _CATCH.finditer(code.bare):
        body = code.bare[m.end() : code.closing(m.end() - 1)]
        for error in re.findall(r"\bERROR_TYPE_(\w+)", body)[:1]:
            where = code.inner(m.start()) or code.function(m.start())
            yield Fact(Kind.ERROR, f"{EXCEPTION} {m[1]} in {where}", known.get(error, error), code.at(m.start()))
