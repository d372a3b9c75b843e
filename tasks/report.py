"""What a person reads of a release: tables in Markdown, its dossier there and in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.console import show_table
from tasks.release import SERVER_SAID, Dossier, Verdict, Verification, by_cause, headlines

NAME_WIDTH = 11

MARK = {
    Verdict.PASSED: "[green]passed[/]",
    Verdict.FAILED: "[red]failed[/]",
    Verdict.INCONCLUSIVE: "[yellow]inconclusive[/]",
    Verdict.ERRORED: "[red]errored[/]",
}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A GitHub-style table; cells are made safe for it."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)])


def show_dossier(dossier: Dossier) -> None:
    """Print the verifications of a release as a table in the terminal."""
    show_table(
        f"dossier {dossier.digest} of {dossier.release.label}",
        ("verification", "verdict", "what was seen"),
        (
            (name, MARK[found[0].verdict], _together(found).replace("[", "\\["))
            for name, found in _grouped(dossier.verifications)
        ),
    )


def _grouped(verifications: Sequence[Verification]) -> list[tuple[str, list[Verification]]]:
    """Verifications that passed, by subject (`contracts.chat`); of the others those of one cause (see `by_cause`)."""
    groups: dict[str, list[Verification]] = {}
    for same in by_cause(verifications):
        first = same[0]
        name = first.name if len(same) == 1 else f"{first.name} and {len(same) - 1} more"
        if first.verdict is Verdict.PASSED:
            name = first.name.rpartition(".")[0] or first.name
        groups.setdefault(name, []).extend(same)
    return list(groups.items())


def _together(found: list[Verification]) -> str:
    if SERVER_SAID in found[0].evidence:
        return headlines([found])[0]
    if len(found) == 1 and ("." not in found[0].name or found[0].verdict is not Verdict.PASSED):
        return found[0].summary
    return f"{len(found)} kept: {', '.join(v.name.rpartition('.')[2].replace('_', ' ') for v in found)}"


def dossier_markdown(dossier: Dossier, replaces: str, sections: Sequence[tuple[str, str]] = ()) -> str:
    """The dossier as a person is asked to approve it: what did not pass first, what passed by subject.

    `sections` are (title, Markdown) of what there is more to see of.
    """
    counts = ", ".join(f"{len(found)} {verdict}" for verdict in Verdict if (found := dossier.having(verdict)))
    groups = sorted(_grouped(dossier.verifications), key=lambda group: group[1][0].verdict is Verdict.PASSED)
    rows = [(name, found[0].verdict, _together(found)) for name, found in groups]
    return "\n\n".join(
        [
            f"## Release {dossier.release.label}, to replace {replaces}",
            f"Dossier `{dossier.digest}`: {counts}.",
            markdown_table(("verification", "verdict", "what was seen"), rows),
            *(f"### {title}\n\n{text.strip()}" for title, text in sections),
            f"`{' '.join(dossier.release.argv)}`",
            "An approval holds for this dossier only, and only while production is what it is now.",
        ]
    )
