"""Defaults in code: what the members of parameter structs are initialised with, by their way from the outermost one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tasks.upstream.treediff.cpp import Code
from tasks.upstream.treediff.facts import Fact, Files, Kind

HEADERS = ("common/*.h", "tools/server/server-task.h")
ROOTS = {"common_params": "params", "task_params": "request"}
"""Struct -> how its members are called here."""

_STRUCT = re.compile(r"struct\s+(\w+)(?:\s*:[^{]*)?$")
_MEMBER = re.compile(
    r"^\s*(?:const\s+|enum\s+|struct\s+)*(?P<type>[\w:]+(?:<.*>)?)\s*[*&]?\s+(?P<name>\w+)(?:\[\w*\])?\s*"
    r"(?:=\s*(?P<value>.+)|(?P<braced>\{.*\}))?$",
    re.DOTALL,
)
_CONTEXT = re.compile(r"/\*\s*\.(\w+)\s*=?\s*\*/\s*([^,/\n]+)")
_SKIPPED = re.compile(r"^\s*(?:return|using|typedef|friend|static|template|public|private|#|operator)\b")


class Member(NamedTuple):
    """A member of a struct."""

    type: str
    value: str
    at: str


class Defaults:
    """The parameter structs of a tree."""

    def __init__(self, files: Files) -> None:
        self.structs: dict[str, dict[str, Member]] = {}
        for code in files.code(*HEADERS):
            for name, members in structs(code):
                self.structs.setdefault(name, {}).update(members)

    def find(self, path: str, root: str = "common_params") -> Member | None:
        """The member at the end of `speculative.draft.n_max`."""
        member = None
        for step in path.split("."):
            member = self.structs.get(root, {}).get(step)
            if member is None:
                return None
            root = member.type
        return member

    def walk(self, root: str, way: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Member]]:
        """Every member that is reached from a struct and has a value, by its whole way; they may point in a circle."""
        for name, member in self.structs.get(root, {}).items():
            if member.type in self.structs and member.type not in (*above, root):
                yield from self.walk(member.type, f"{way}.{name}", (*above, root))
            elif member.value:
                yield f"{way}.{name}", member


def structs(code: Code) -> Iterator[tuple[str, dict[str, Member]]]:
    """The structs of a header with what their members are initialised with."""
    for number, block in enumerate(code.blocks):
        if not (found := _STRUCT.search(block.head)):
            continue
        inner = [(b.start, b.end) for b in code.blocks if b.outer == number]
        yield found[1], dict(_members(code, block.start + 1, block.end, inner))


def _members(code: Code, start: int, end: int, inner: list[tuple[int, int]]) -> Iterator[tuple[str, Member]]:
    begin = start
    for m in re.finditer(";", code.shape[start:end]):
        place = start + m.start()
        if any(low < place < high for low, high in inner):
            continue
        said = code.bare[begin:place]
        said = re.sub(r"^\s*#.*$", "", said[said.rfind("}\n") + 1 :] if _is_after_body(said) else said, flags=re.M)
        if not _SKIPPED.match(said) and (found := _MEMBER.match(said)) and "(" not in found["type"]:
            value = " ".join((found["value"] or found["braced"] or "").split())
            yield found["name"], Member(found["type"], value, code.at(begin + _blank(code.bare[begin:place])))
        begin = place + 1


def _is_after_body(said: str) -> bool:
    """Whether what ends here began with a method's body, which no `;` ends."""
    return bool(re.search(r"\)[^;{}]*\{", said)) and "}\n" in said


def _blank(text: str) -> int:
    return len(text) - len(text.lstrip())


def facts(files: Files) -> Iterable[Fact]:
    """Each member's default, and those of the library's own parameters."""
    known = Defaults(files)
    for root, way in ROOTS.items():
        for name, member in known.walk(root, way):
            yield Fact(Kind.DEFAULT, name, plain(member.value), member.at, about=frozenset({name.rpartition(".")[2]}))
    for code in files.code("src/llama-context.cpp", "src/llama-model.cpp", "src/llama.cpp", "src/llama-quant.cpp"):
        for block in code.blocks:
            if re.fullmatch(r"llama_(context|model)_default_params", block.function):
                for m in _CONTEXT.finditer(code.text, block.start, block.end):
                    name = f"{block.function.removesuffix('_default_params')}.{m[1]}"
                    yield Fact(Kind.DEFAULT, name, plain(m[2]), code.at(m.start()), about=frozenset({m[1]}))


def plain(value: str) -> str:
    """A value as it is compared: `0.10f` and `0.1` are one."""
    value = value.strip().rstrip(",").strip()
    value = listed[1].strip() if (listed := re.fullmatch(r"\{([^{},]+)\}", value)) else value  # a list of one
    if re.fullmatch(r"-?\d+\.\d*f?|-?\.\d+f?", value):
        return f"{float(value.rstrip('f')):g}"
    return value
