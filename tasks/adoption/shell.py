"""One line of a shell, as far as it starts one program: what needs a shell to be known is refused, never guessed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tasks.adoption.variables import interpolate
from tasks.release import BadInput

ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
_PIECE = re.compile(
    r"""(?P<space>[ \t]+|\\\n)|(?P<comment>(?<!\S)\#[^\n]*)"""
    r"""|(?P<operator>(?<![^\s])\d+(?:>>|>&|>|<)|>>|>&|&>>?|>|<|&&|\|\||[;|&\n()])"""
    r"""|'(?P<single>[^']*)'|"(?P<double>(?:\\.|[^"\\])*)"|\\(?P<escaped>.)|(?P<plain>(?:\$\{[^}]*\}|[^\s'"\\;&|<>()])+)""",
    re.DOTALL,
)
_NEXT = {"&&", ";", "\n"}
_SETS = {"set", "ulimit", "umask", "trap", "sleep", "echo", "mkdir", "true", ":"}
"""What may stand before and changes nothing of the server's words and variables."""


class Line(NamedTuple):
    """The one program that a shell's text starts."""

    words: list[str]
    variables: dict[str, str]
    folder: str | None
    dropped: list[str]


def read_line(text: str, known: Mapping[str, str]) -> Line:
    """The last command of a shell's text, with what `cd` and `export` before it do. Raises BadInput for what only a
    shell can tell: other programs, loops, `$(...)`, variables that are not known here."""
    variables: dict[str, str] = {}
    folder: str | None = None
    dropped: list[str] = []
    found: list[str] = []
    seen = {**known}
    for words, told in _commands(text, seen):
        dropped += told
        first = next((at for at, word in enumerate(words) if not ASSIGNMENT.fullmatch(word)), len(words))
        set_here, words = dict(word.split("=", 1) for word in words[:first]), words[first:]
        if not words:  # the shell's own variables, which no program sees
            seen |= set_here
        if not words or words[0] in _SETS:
            continue
        if words[0] in ("source", "."):
            dropped.append(" ".join(words))
        elif words[0] == "cd" and len(words) == 2:
            folder = words[1]
        elif words[0] == "export":
            exported = {name: value for name, sign, value in (word.partition("=") for word in words[1:]) if sign}
            seen |= exported
            variables |= exported | {name: seen[name] for name in words[1:] if name in seen}
        elif found:
            raise _needs_a_shell(f"it starts {found[0]} and then {words[0]}")
        else:
            found, variables = words, variables | set_here
    return Line(found, variables, folder, dropped)


def _needs_a_shell(why: str) -> BadInput:
    return BadInput(
        "only a shell can tell which llama-server this starts", evidence=why,  # the text may hold a key
        todo="give the line that starts llama-server: `llama-release import -- llama-server ...`",
    )  # fmt: skip


def _commands(text: str, known: dict[str, str]) -> Iterator[tuple[list[str], list[str]]]:
    """(words, what was dropped) of each simple command; `known` may grow from one to the next."""
    words: list[str] = []
    dropped: list[str] = []
    word: str | None = None
    redirected, piped = "", False

    def close() -> None:
        nonlocal word, redirected
        if word is not None:
            if redirected:
                dropped.append(f"{redirected}{word}")
            elif not piped:
                words.append(word)
            redirected = ""
        word = None

    at = 0
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            raise _needs_a_shell("a quote is not closed")
        at = piece.end()
        if piece["space"] is not None or piece["comment"] is not None:
            close()
        elif (operator := piece["operator"]) is not None:
            close()
            if operator in _NEXT:
                yield words, dropped
                words, dropped, piped = [], [], False
            elif ">" in operator or "<" in operator:
                redirected = operator
            elif operator == "|":
                piped = True
                dropped.append(f"| {text[at:].strip()[:60]}")
            elif operator == "&" and not text[at:].strip():
                dropped.append("&")
            else:
                raise _needs_a_shell(f"it has {operator!r}")
        elif piece["plain"] is not None:
            plain = _home(piece["plain"], word, known)
            parts = _expanded(plain, known)
            if re.search(r"[*?\[]", parts) or "{" in re.sub(r"\$\{[^}]*\}", "", piece["plain"]):
                raise _needs_a_shell("it has * ? [ or { outside of quotes")
            split = parts.split() if parts != plain else [parts]
            for n, part in enumerate(split):
                if n:
                    close()
                word = (word or "") + part
        else:
            raw = piece["single"]
            if piece["double"] is not None:
                raw = re.sub(r'\\([\\"`\n])', r"\1", _expanded(piece["double"], known)).replace(r"\$", "$")
            word = (word or "") + (piece["escaped"] if raw is None else raw)
    close()
    yield words, dropped


def _home(piece: str, before: str | None, known: Mapping[str, str]) -> str:
    """A piece with its ~ as the home: at a word's beginning, and behind NAME= (POSIX, Tilde Expansion)."""
    name = ASSIGNMENT.fullmatch(piece) if before is None else None
    tilde = name["value"] if name else piece if before is None else ""
    if not tilde.startswith("~"):
        return piece
    first, slash, rest = tilde.partition("/")
    home = known["HOME"] if first == "~" and "HOME" in known else os.path.expanduser(first)
    return piece.removesuffix(tilde) + home + slash + rest


def _expanded(piece: str, known: Mapping[str, str]) -> str:
    if re.search(r"(?<!\\)(\$[^A-Za-z_{$]|`)|\$$", piece):  # $(...), `...`, $1, "$@"
        raise _needs_a_shell("it uses another command's output or the arguments of a script")

    def unset(name: str) -> str:
        raise _needs_a_shell(f"${name} is not set here")

    parts = re.split(r"(\\\$)", piece)
    return "".join(part if n % 2 else interpolate(part, known, unset) for n, part in enumerate(parts))
