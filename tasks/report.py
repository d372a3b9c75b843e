"""What a person sees while a release goes its way: one row a stage, in the terminal and in the Prefect page."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from modal_app.redaction import redact
from tasks.platforms import Platform
from tasks.release import SERVER_SAID, Dossier, Event, Problem, Verdict, Verification, by_cause, headlines, now, settle


def _nobody_reads(lines: Console) -> None:
    """A run goes on when nobody reads its lines any more, as when its worker was killed; rich would end it."""
    lines.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, lines.file.fileno())
    os.close(nowhere)


# Prefect's own lines are written by one, too
Console.on_broken_pipe = _nobody_reads  # type: ignore[method-assign, assignment]
console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150)
LINE_EVERY_S = 5.0
ARTIFACT_EVERY_S = 2.0
NAME_WIDTH = 11
AWAY_S = 120.0
"""How long Prefect's server may be away before a run gives up: Prefect's own requests wait about a minute."""

P = ParamSpec("P")
R = TypeVar("R")

MARK = {
    Verdict.PASSED: "[green]passed[/]",
    Verdict.FAILED: "[red]failed[/]",
    Verdict.INCONCLUSIVE: "[yellow]inconclusive[/]",
    Verdict.ERRORED: "[red]errored[/]",
}


class Row:
    """One stage as it runs: a line that moves, then a line that stays and an artifact with the evidence."""

    def __init__(self, name: str, platform: Platform, ledger: bool = True) -> None:
        self.name = name
        self._ledger = ledger
        self._platform = platform
        self.started_at = now()
        self._start = time.monotonic()
        self._bar: Progress | None = None
        self._last_line = self._start
        self._last_artifact = self._start
        self._artifact: Any = None
        self.closed = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def progress(self, done: int, total: int, what: str) -> None:
        """Say how far it is. Cheap: what is shown is bounded in rate."""
        if console.is_terminal:
            self._move(done, total, what)
        elif time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            console.print(f"  {self.name:<{NAME_WIDTH}} {done}/{total} {what}  {_clock(self.seconds)}", markup=False)
        if total > 1 and time.monotonic() - self._last_artifact > ARTIFACT_EVERY_S:
            self._last_artifact = time.monotonic()
            percent = round(100 * done / total, 1)
            with suppress(httpx.TransportError):  # the next one will tell
                self._tell(percent, done, total, what)

    def _tell(self, percent: float, done: int, total: int, what: str) -> None:
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, description=f"{self.name}: {what}")
        else:
            update_progress_artifact(self._artifact, percent, description=f"{self.name}: {done}/{total} {what}")

    def _move(self, done: int, total: int, what: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn(f"  {self.name:<{NAME_WIDTH}}"), BarColumn(22), MofNCompleteColumn(),
                TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._bar.add_task(what)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=what[:48])

    def done(
        self, summary: str, markdown: str = "", *, release: str | None = None, detail: dict[str, Any] | None = None
    ) -> None:
        """Close the row: the line that stays, the artifact, and the ledger's line."""
        self._keep(summary, "[green]ok[/]", markdown, release=release, detail=detail or {})

    def judged(
        self,
        found: Sequence[Verification],
        summary: str,
        markdown: str = "",
        *,
        again: bool = False,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Close the row with the worst verdict of what was verified. Raises what `settle` raises.

        `again`: it was recorded before and not run now.
        """
        verdicts = [v.verdict for v in found]
        worst = next(
            v for v in (Verdict.FAILED, Verdict.ERRORED, Verdict.INCONCLUSIVE, Verdict.PASSED) if v in verdicts
        )
        told = f"recorded before: {summary}" if again else summary
        detail = {"verdict": worst, "again": again, **(detail or {})}
        self._keep(told, MARK[worst], markdown, release=found[0].release, detail=detail)
        settle(found)

    def failed(self, error: BaseException) -> None:
        """Close the row with what went wrong."""
        what = error.what if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
        kind = type(error).__name__
        self._keep(what, "[red]stopped[/]", f"```\n{error}\n```", release=None, detail={"error": kind})

    def _keep(self, summary: str, mark: str, markdown: str, *, release: str | None, detail: dict[str, Any]) -> None:
        summary, markdown = redact([summary, markdown])
        self._close(summary, mark, release=release, detail=detail)
        patiently(create_markdown_artifact)(
            key=_key(self.name), markdown=f"**{summary}**\n\n{markdown}", description=summary[:200]
        )

    def _close(self, summary: str, mark: str, *, release: str | None, detail: dict[str, Any]) -> None:
        self.closed = True
        if self._bar:
            self._bar.stop()
        console.print(f"  {self.name:<{NAME_WIDTH}}", end=" ", markup=False)
        console.print(summary, markup=False, end="  ", soft_wrap=True)
        console.print(f"{mark} [dim]{_clock(self.seconds)}[/]")
        get_run_logger().info("%s: %s", self.name, summary)
        if not self._ledger:
            return
        self._platform.store.log(
            Event(
                kind=f"stage.{self.name}",
                release=release,
                summary=summary,
                detail={"seconds": round(self.seconds, 3), **detail},
            )
        )


def patiently(call: Callable[P, R], limit_s: float = AWAY_S) -> Callable[P, R]:
    """The call, made again while Prefect's server is away: it may be restarted while a release goes its way."""

    def again(*args: P.args, **kwargs: P.kwargs) -> R:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return call(*args, **kwargs)
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    return again


def stage(
    name: str, row_name: str, *, ledger: bool = True
) -> Callable[[Callable[Concatenate[Row, Platform, P], R]], Callable[Concatenate[Platform, P], R]]:
    """Make a function one row that a person sees: a Prefect task, a terminal line, an artifact, a ledger event.

    `row_name` is the row's title in the Prefect page; `{parameter}` is filled in from the call. The function must
    close its row with `row.done`; what it raises closes the row too. `ledger=False`: of what runs every few
    minutes, only what comes of it is an event.
    """

    def wrap(function: Callable[Concatenate[Row, Platform, P], R]) -> Callable[Concatenate[Platform, P], R]:
        def run(platform: Platform, *args: P.args, **kwargs: P.kwargs) -> R:
            row = Row(name, platform, ledger)
            try:
                result = function(row, platform, *args, **kwargs)
            except BaseException as error:
                if not row.closed:
                    row.failed(error)
                raise
            if not row.closed:
                raise RuntimeError(f"the stage {name} returned without saying what it did")
            return result

        functools.update_wrapper(run, function)
        parameters = list(inspect.signature(function).parameters.values())[1:]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return task(name=name, task_run_name=row_name, cache_policy=NO_CACHE, persist_result=False)(run)  # type: ignore[return-value]

    return wrap


def _key(name: str) -> str:
    return name.replace("_", "-").lower()


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A GitHub-style table; cells are made safe for it."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)])


def show_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table in the terminal."""
    table = Table(*header, title=title, title_justify="left", box=None, header_style="dim", pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


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
