"""What of an API surface we use: the settings' flags, the environment, what contracts send and read, patches."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any

from tasks.contracts.promises import CONTRACTS
from tasks.endpoint import Answer, Client, Stream
from tasks.flags.table import known
from tasks.flags.words import read
from tasks.patches.series import Patch
from tasks.preflight.argv import Want, spelled
from tasks.preflight.compare import Difference, Kind, What
from tasks.preflight.observe import MALFORMED, NO_KEY
from tasks.release import Release
from tasks.settings import ServerSettings

_OURS = "tasks."
_ABOUT_ARGV = "tasks.flags"
"""Its words are of what a server is told before it is asked anything."""
_METHODS = (Client, Stream, Answer)
_TRANSPORT = ("request", "evidence", "_asked", "_reaching", "_chain")  # their words are about an exchange, not of it
_PATH = re.compile(r"/[\w/-]+")


@dataclass(frozen=True)
class Words:
    """What the code of one promise says to a server and looks for in its answers."""

    strings: frozenset[str]
    """Every string in it: routes, keys that it reads, values."""
    patterns: frozenset[str]
    """Regular expressions for the keys that it puts together."""
    sent: frozenset[str]
    """Keys of dicts and names of keyword arguments: what a request may be made of."""

    cases: frozenset[str]
    """Which odd requests it makes, as observe.py calls them."""

    @property
    def routes(self) -> frozenset[str]:
        return frozenset(word for word in self.strings if _PATH.fullmatch(word))

    def reads(self, key: str) -> bool:
        """Whether a string in it is this key, or can be put together to it."""
        return key in self.strings or any(re.fullmatch(pattern, key) for pattern in self.patterns)


OTHERWISE = (
    "--alias",
    "--model",
    "--mmproj",
    "--chat-template-file",
    "--jinja",
    "--spec-draft-model",
    "--lora",
    "--lora-scaled",
)
"""Options whose effect is shown although no contract names them: everything asks the model, contracts on images,
templates, tools, drafts and adapters the others."""


def unproved(argv: Sequence[str]) -> list[str]:
    """The options of an argv whose effect no contract shows, as they are said."""
    named = frozenset(word for contract in CONTRACTS.values() for word in words_of(contract.check).strings)
    return [
        " ".join(each.words)
        for each in read(argv, known()).effective
        if each.main not in OTHERWISE and not named & set(each.flag.names)
    ]


@dataclass(frozen=True)
class Uses:
    """Who uses what."""

    flags: Mapping[str, str] = field(default_factory=dict)
    """Flag in the candidate's argv -> our setting."""
    respelled: Mapping[str, str] = field(default_factory=dict)
    """Flag that only production's argv has -> our setting, and how it is said now."""
    variables: frozenset[str] = frozenset()
    """Names that servers see of the environment."""
    contracts: Mapping[str, Words] = field(default_factory=dict)
    patches: Mapping[str, str] = field(default_factory=dict)
    """Patch in the candidate -> the lines that it changes, and those around them."""

    def mark(self, difference: Difference) -> Difference:
        """The difference with who uses it. It fails the release when what a setting, a variable or a contract needs
        is gone; what a patch needs is for its proof to say."""
        needed = tuple(self._needed(difference))
        shown = (*needed, *self._respelled(difference), *self._patches(difference))
        return difference.model_copy(update={"used_by": shown, "fails": difference.gone and bool(needed)})

    def _needed(self, difference: Difference) -> Iterator[str]:
        kind, names = difference.kind, difference.names
        if difference.what is What.ADDED:
            return
        if kind is Kind.FLAG:
            yield from dict.fromkeys(f"setting {self.flags[name]}" for name in names if name in self.flags)
        elif kind is Kind.VARIABLE:
            yield from (f"environment {name}" for name in names if name in self.variables)
        else:
            yield from (name for name, words in self.contracts.items() if _speaks_of(words, difference))

    def _respelled(self, difference: Difference) -> Iterator[str]:
        if difference.kind is Kind.FLAG:
            yield from (f"setting {self.respelled[n]}" for n in difference.names if n in self.respelled)

    def _patches(self, difference: Difference) -> Iterator[str]:
        if difference.kind not in (Kind.FLAG, Kind.VARIABLE):
            quoted = [f'"{word}"' for name in difference.names for word in (name.split()[-1], name.rpartition(".")[2])]
            yield from (patch for patch, text in self.patches.items() if any(word in text for word in quoted))


def _speaks_of(words: Words, difference: Difference) -> bool:
    if difference.kind is Kind.FIELD:
        return bool(words.sent & set(difference.names))
    paths = {route_path(name) for name in difference.where or difference.names}
    if difference.kind is Kind.STATUS:
        odd = {name.rpartition(", ")[2] for name in difference.where} & {NO_KEY, MALFORMED}
        return bool(words.routes & paths) and odd <= words.cases
    if difference.kind is Kind.ROUTE:
        return bool(words.routes & paths)
    return bool(words.routes & paths) and any(all(map(words.reads, _keys_on(name))) for name in difference.names)


def _keys_on(name: str) -> list[str]:
    """The keys on the way to one of an answer (`chat.completion: choices[].delta.role`), or a metric's last word.

    Whoever reads a key reads those that it stands in: a `type` alone is a word that requests have, too.
    """
    *_, path = re.split(r": ?", name)
    return [key for key in re.split(r"\.|\[\]", path) if key]


def route_path(exchange: str) -> str:
    """The path in the name of a route or an exchange: `/props` of `GET /props, no key`."""
    return exchange.split(", ")[0].split()[-1]


def uses(
    server: ServerSettings, release: Release, before: Release, variables: Sequence[str], patches: Sequence[Patch]
) -> Uses:
    """What `release` needs and what `before`, the release in production, has been using."""
    settings = spelled(server)
    ours, theirs = (tuple(word for word in each.argv if word.startswith("-")) for each in (release, before))
    return Uses(
        flags={word: _newest(word, settings.get(word)) for word in ours},
        respelled={word: _now(settings[word], release) for word in theirs if word not in ours and word in settings},
        variables=frozenset(variables),
        contracts={name: words_of(contract.check) for name, contract in sorted(CONTRACTS.items())},
        patches={p.name: "\n".join(h.text for file in p.files for h in file.hunks) for p in patches},
    )


def _newest(word: str, want: Want | None) -> str:
    if want is None or word in want.spellings[0]:
        return want.setting if want else word
    return f"{want.setting}, newly `{' '.join(want.spellings[0])}`"


def _now(want: Want, release: Release) -> str:
    argv = " ".join(release.argv)
    said = next((" ".join(s) for s in want.spellings if s and " ".join(s) in argv), "left out")
    return f"{want.setting}, here `{said}`"


# -- what a promise's code says -----------------------------------------------------------------------


@cache
def words_of(check: Any) -> Words:
    """The words in a promise's function and in all of our code that it calls by name."""
    reader = _Reader()
    reader.follow(check)
    return Words(*map(frozenset, (reader.strings, reader.patterns, reader.sent, reader.cases)))


class _Reader(ast.NodeVisitor):
    """Follows names from one function to the next through their modules, as Python would."""

    def __init__(self) -> None:
        self.strings: set[str] = set()
        self.patterns: set[str] = set()
        self.sent: set[str] = set()
        self.cases: set[str] = set()
        self._seen: set[Any] = set()
        self._globals: dict[str, Any] = {}

    def follow(self, value: Any) -> None:
        value = value.fget if isinstance(value, property) else value
        if isinstance(value, FunctionType):
            module = value.__module__
            if value in self._seen or not module.startswith(_OURS) or module.startswith(_ABOUT_ARGV):
                return
            self._seen.add(value)
            if value.__name__ == "<lambda>":  # its source is of the statement around it, or no statement at all
                for inner in (*value.__code__.co_consts, *map(value.__globals__.get, value.__code__.co_names)):
                    self.follow(inner)
                return
            body = _body(value)
            own = {node.id for node in ast.walk(body) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            own.update(inspect.signature(value).parameters)
            outer, self._globals = self._globals, {k: v for k, v in value.__globals__.items() if k not in own}
            self.generic_visit(body)
            self._globals = outer
        elif isinstance(value, str):
            self.strings.add(value)
        elif isinstance(value, bytes):
            self.cases.add(MALFORMED)
        elif isinstance(value, dict):
            self.sent.update(key for key in value if isinstance(key, str))
            for inner in (*value, *value.values()):
                self.follow(inner)
        elif isinstance(value, list | tuple | set | frozenset):
            for inner in value:
                self.follow(inner)

    def visit_Constant(self, node: ast.Constant) -> None:
        self.follow(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "at":
            self._keys(node.args)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._keys([node.slice])
        self.generic_visit(node)

    def _keys(self, nodes: Sequence[ast.expr]) -> None:
        """The keys among these that are put together: what else is put together are words for a person or a model."""
        for joined in (node for node in nodes if isinstance(node, ast.JoinedStr)):
            parts = [re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".+" for p in joined.values]
            if {".+"} < set(parts):
                self.patterns.add("".join(parts))

    def visit_Name(self, node: ast.Name) -> None:
        self.follow(self._globals.get(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        for owner in _METHODS if node.attr not in _TRANSPORT else ():
            self.follow(inspect.getattr_static(owner, node.attr, None))
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        self.sent.add(node.arg or "")
        if node.arg == "key" and isinstance(node.value, ast.Constant) and node.value.value is None:
            self.cases.add(NO_KEY)
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        self.sent.update(key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
        self.generic_visit(node)


def _body(function: FunctionType) -> ast.Module:
    """A function's statements, without its docstring and its decorators."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(definition, ast.FunctionDef)
    body = definition.body[1:] if ast.get_docstring(definition) else definition.body
    return ast.Module(body=body, type_ignores=[])
