"""What a stage is while it runs: one row that a person sees, in the terminal and in the Prefect page.

Prefect takes two seconds to load, so it is imported where a stage runs: what only looks at stages, such as `plan`, does
without.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from modal_app.redaction import redact
from tasks.console import console, one_line, styled
from tasks.platforms import Platform
from tasks.release import Event, Problem, Verdict, Verification, now, settle
from tasks.report import MARK, NAME_WIDTH, fenced, markdown

LINE_EVERY_S = 5.0
ARTIFACT_EVERY_S = 2.0
AWAY_S = 120.0
"""How long Prefect's server may be away before a run gives up: Prefect's own requests wait about a minute."""

P = ParamSpec("P")
R = TypeVar("R")


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
            console.print(f"  {self.name:<{NAME_WIDTH}} {done}/{total} {one_line(what)}  {_clock(self.seconds)}")
        if total > 1 and time.monotonic() - self._last_artifact > ARTIFACT_EVERY_S:
            self._last_artifact = time.monotonic()
            percent = round(100 * done / total, 1)
            with suppress(httpx.TransportError):  # the next one will tell
                self._tell(percent, done, total, what)

    def _tell(self, percent: float, done: int, total: int, what: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        said = f"{self.name}: {done}/{total} {markdown(redact(what))}"
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, description=said)
        else:
            update_progress_artifact(self._artifact, percent, description=said)

    def _move(self, done: int, total: int, what: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn(f"  {self.name:<{NAME_WIDTH}}"), BarColumn(22), MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False), TimeElapsedColumn(), console=console, transient=True,
            )  # fmt: skip
            self._bar.start()
            self._bar.add_task(what)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=one_line(what)[:48])

    def done(
        self, summary: str, evidence: str = "", *, release: str | None = None, detail: dict[str, Any] | None = None
    ) -> None:
        """Close the row: the line that stays, the artifact with the evidence in Markdown, and the ledger's line."""
        self._keep(summary, styled("ok", "green"), evidence, release=release, detail=detail or {})

    def judged(
        self,
        found: Sequence[Verification],
        summary: str,
        evidence: str = "",
        *,
        again: bool = False,
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Close the row with the worst verdict of what was verified; evidence is Markdown. Raises what `settle` raises.

        `again`: it was recorded before and not run now.
        """
        verdicts = [v.verdict for v in found]
        worst = next(
            v for v in (Verdict.FAILED, Verdict.ERRORED, Verdict.INCONCLUSIVE, Verdict.PASSED) if v in verdicts
        )
        told = f"recorded before: {summary}" if again else summary
        detail = {"verdict": worst, "again": again, **(detail or {})}
        self._keep(told, MARK[worst], evidence, release=found[0].release, detail=detail)
        settle(found)

    def failed(self, error: BaseException) -> None:
        """Close the row with what went wrong."""
        if isinstance(error, KeyboardInterrupt):
            what = "interrupted"
        else:
            what = error.what if isinstance(error, Problem) else f"{type(error).__name__}: {error}"
        kind = type(error).__name__
        self._keep(what, styled("stopped", "red"), fenced(str(error)), release=None, detail={"error": kind})

    def _keep(self, summary: str, mark: Text, evidence: str, *, release: str | None, detail: dict[str, Any]) -> None:
        from prefect.artifacts import create_markdown_artifact

        summary, evidence = redact([summary, evidence])
        self._close(summary, mark, release=release, detail=detail)
        patiently(create_markdown_artifact)(
            key=_key(self.name), markdown=f"**{markdown(summary)}**\n\n{evidence}", description=markdown(summary[:200])
        )

    def _close(self, summary: str, mark: Text, *, release: str | None, detail: dict[str, Any]) -> None:
        from prefect.logging import get_run_logger

        self.closed = True
        if self._bar:
            self._bar.stop()
        console.print(f"  {self.name:<{NAME_WIDTH}} {one_line(summary)} ", mark, end=" ", soft_wrap=True)
        console.print(styled(_clock(self.seconds), "dim"))
        get_run_logger().info("%s: %s", self.name, one_line(summary))
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

        @functools.cache
        def as_task() -> Callable[Concatenate[Platform, P], R]:
            from prefect import task
            from prefect.cache_policies import NO_CACHE

            return task(name=name, task_run_name=row_name, cache_policy=NO_CACHE, persist_result=False)(run)  # type: ignore[return-value]

        def call(platform: Platform, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return as_task()(platform, *args, **kwargs)

        functools.update_wrapper(call, run)
        return call

    return wrap


def _key(name: str) -> str:
    return name.replace("_", "-").lower()


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"
