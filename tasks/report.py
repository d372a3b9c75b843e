"""What a person reads of a release: tables in Markdown, its dossier there and in the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tasks.console import one_line, show_table, styled, visible
from tasks.release import SERVER_SAID, Dossier, Verdict, Verification, by_cause, headlines

NAME_WIDTH = 11

MARK = {
    Verdict.PASSED: styled("passed", "green"),
    Verdict.FAILED: styled("failed", "red"),
    Verdict.INCONCLUSIVE: styled("inconclusive", "yellow"),
    Verdict.ERRORED: styled("errored", "red"),
}

# An address becomes a link by itself in GitHub's Markdown, however it is escaped: remark-gfm 4, which Prefect's page
# uses, looks for one in the text that escapes have already been taken out of. It leaves code alone.
_ADDRESS = re.compile(r"://|www\.|@", re.IGNORECASE)
_WORD = re.compile(r"([^\s|`]+)")
_SPECIAL = re.compile(r"[\\`*\[\]<>|~]|&(?=#|\w)|(?<![^\W_])_|_(?![^\W_])")
_BLOCK = re.compile(r"^(?=[-+=#:])|^(\d{1,9})(?=[.)])")
"""What begins a list, a heading, its underline or a rule, where it is the first of a line."""


def markdown(text: object) -> str:
    """Text as Markdown that shows it as it is, in one line: no link, picture, HTML, emphasis, heading or list."""
    return _BLOCK.sub(r"\1\\", _cell(text))


def _cell(text: object) -> str:
    """As `markdown`, where no block can begin."""
    return "".join(map(_inline, _WORD.split(one_line(str(text)))))


def _inline(word: str) -> str:
    return f"`{word}`" if _ADDRESS.search(word) else _SPECIAL.sub(r"\\\g<0>", word)


def code(text: str) -> str:
    """Text as code in a line of Markdown."""
    fence = _fence(text, 1)
    return f"{fence} {one_line(text)} {fence}" if "`" in text else f"`{one_line(text)}`"


def fenced(text: str, language: str = "") -> str:
    """Text as a block of code in Markdown, line by line."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def _fence(text: str, least: int) -> str:
    """More backticks in a row than the text has."""
    return "`" * max([least, *(1 + len(run) for run in re.findall("`+", text))])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A GitHub-style table; a cell is text, and shown as it is."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(map(_cell, cells)) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)])


def show_dossier(dossier: Dossier) -> None:
    """Print the verifications of a release as a table in the terminal."""
    show_table(
        f"dossier {dossier.digest} of {dossier.release.label}",
        ("verification", "verdict", "what was seen"),
        ((name, MARK[found[0].verdict], _together(found)) for name, found in _grouped(dossier.verifications)),
    )


def _grouped(verifications: Sequence[Verification]) -> list[tuple[str, list[Verification]]]:
    """Verifications that passed, by subject (`contracts.chat`); of the others those of one cause (see `by_cause`).

    What is known and not kept stands alone.
    """
    groups: dict[str, list[Verification]] = {}
    for same in by_cause(verifications):
        first = same[0]
        name = first.name if len(same) == 1 else f"{first.name} and {len(same) - 1} more"
        if first.verdict is Verdict.PASSED and not first.is_known:
            name = first.name.rpartition(".")[0] or first.name
        groups.setdefault(name, []).extend(same)
    return list(groups.items())


def _together(found: list[Verification]) -> str:
    if SERVER_SAID in found[0].evidence:
        return headlines([found])[0]
    first = found[0]
    if len(found) == 1 and ("." not in first.name or first.verdict is not Verdict.PASSED or first.is_known):
        return found[0].summary
    return f"{len(found)} kept: {', '.join(v.name.rpartition('.')[2].replace('_', ' ') for v in found)}"


def dossier_markdown(dossier: Dossier, replaces: str, sections: Sequence[tuple[str, str]] = ()) -> str:
    """The dossier as a person is asked to approve it: what did not pass first, what passed by subject.

    `sections` are (title of our own, Markdown) of what there is more to see of.
    """
    counts = ", ".join(f"{len(found)} {verdict}" for verdict in Verdict if (found := dossier.having(verdict)))
    groups = sorted(_grouped(dossier.verifications), key=lambda group: group[1][0].verdict is Verdict.PASSED)
    rows = [(name, found[0].verdict, _together(found)) for name, found in groups]
    return "\n\n".join(
        [
            f"## Release {markdown(dossier.release.label)}, to replace {markdown(replaces)}",
            f"Dossier `{dossier.digest}`: {counts}.",
            markdown_table(("verification", "verdict", "what was seen"), rows),
            *(f"### {title}\n\n{text.strip()}" for title, text in sections),
            code(" ".join(dossier.release.argv)),
            "An approval holds for this dossier only, and only while production is what it is now.",
        ]
    )
