"""A release's report: one self-contained HTML page, made of what the store has of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks import restore
from tasks.console import visible
from tasks.contracts.judge import named, promised
from tasks.evals import shown
from tasks.preflight import SURFACE
from tasks.preflight.compare import Difference
from tasks.proof import NAME as PATCHES
from tasks.release import BadInput, Event, PatchResult, Release, Verdict, Verification, by_cause, now
from tasks.store import Store, write_atomic
from tasks.upstream.notes import Assessment
from tasks.upstream.treediff import page as treediff

FIRST_STAGE = "stage.upstream"
CONTRACTS = "contracts."


class Cost(NamedTuple):
    """What a stage of a release has cost in money, where the platform tells it."""

    stage: str
    seconds: float
    usd: float


class StageRow(NamedTuple):
    """What a stage came to, over all its runs for one release."""

    name: str
    summary: str
    verdict: str
    seconds: float
    runs: int


class OpenPromise(NamedTuple):
    """A promise that is not kept, or all that could not be asked for one reason."""

    name: str
    verdict: str
    summary: str
    promise: str


class Subject(NamedTuple):
    """The promises of one subject."""

    name: str
    kept: tuple[Verification, ...]
    others: tuple[Verification, ...]


def choose(store: Store, wanted: str | None) -> Release:
    """The release that people call so; production's when none is named.

    Of several of a tag, the one that is or was in production. Raises BadInput when that does not tell.
    """
    pointer = store.pointer("production")
    if wanted is None and pointer.release is None:
        raise BadInput("nothing is in production", todo="name a release: its id, or its tag")
    return store.named(wanted or pointer.release or "", (pointer.release, *pointer.retained))


def story(ledger: Iterable[Event], release_id: str) -> list[Event]:
    """The ledger's lines that are of a release, oldest first.

    An upgrade's first stages do not know yet which release it will be: theirs are the lines from the first stage on,
    up to the one that names the release, and the stage that stopped the run. Only one release at a time goes its way.
    """
    found: list[Event] = []
    nameless: list[Event] = []
    current: str | None = None
    running = False
    for event in ledger:
        if event.kind == FIRST_STAGE:
            nameless, current, running = [], None, True
        if running and event.release and current is None:
            current = event.release
            found += nameless if current == release_id else []
        if event.release == release_id:
            found.append(event)
        elif running and event.release is None and event.kind.startswith("stage."):
            (found if current == release_id else nameless).append(event)
            running = "error" not in event.detail
    return found


def stages(events: Sequence[Event]) -> list[StageRow]:
    """One row a stage, in the order in which they were first run: its last word, the seconds of all its runs."""
    rows: dict[str, StageRow] = {}
    for event in events:
        if event.kind.startswith("stage."):
            name = event.kind.removeprefix("stage.")
            before = rows.get(name)
            verdict = "stopped" if "error" in event.detail else str(event.detail.get("verdict", "done"))
            seconds = float(event.detail["seconds"]) + (before.seconds if before else 0.0)
            rows[name] = StageRow(name, event.summary, verdict, seconds, (before.runs if before else 0) + 1)
    return list(rows.values())


def subjects(verifications: Sequence[Verification]) -> list[Subject]:
    """The promises by subject, sorted by name; what is not kept is told apart."""
    groups: dict[str, list[Verification]] = {}
    for each in verifications:
        if each.name.startswith(CONTRACTS):
            groups.setdefault(each.name.split(".")[1], []).append(each)
    return [
        Subject(
            name,
            tuple(v for v in found if v.verdict is Verdict.PASSED and not v.is_known),
            tuple(v for v in found if v.verdict is not Verdict.PASSED or v.is_known),
        )
        for name, found in sorted(groups.items())
    ]


def open_promises(verifications: Sequence[Verification]) -> list[OpenPromise]:
    """What is not kept or could not be asked, one row a cause, by verdict."""
    ours = [v for v in verifications if v.name.startswith(CONTRACTS)]
    left = [v for v in ours if v.verdict is not Verdict.PASSED or v.is_known]
    rows = [
        OpenPromise(named(g), "known" if g[0].is_known else g[0].verdict, g[0].summary, promised(g))
        for g in by_cause(left)
    ]
    return sorted(rows, key=lambda row: row.verdict)


def notes(events: Sequence[Event]) -> tuple[str, Assessment | None]:
    """(what the latest look at upstream said in one line, what it found that is risky)."""
    looks = [event for event in events if event.kind == FIRST_STAGE]
    told = [event.detail["notes"] for event in looks if "notes" in event.detail]
    return (looks[-1].summary if looks else ""), (Assessment.model_validate(told[-1]) if told else None)


def page(store: Store, release: Release, costs: Sequence[Cost] = (), at: datetime | None = None) -> str:
    """The report as HTML. It holds all that it shows, and no script."""
    verifications = store.verifications(release.id)
    by_name = {each.name: each for each in verifications}
    events = story(store.ledger(), release.id)
    said, assessment = notes(events)
    surface, patches = by_name.get(SURFACE), by_name.get(PATCHES)
    gate, probe = by_name.get("evals"), by_name.get(restore.NAME)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {"clock": clock, "megabytes": lambda size: f"{size / 1e6:,.0f} MB"}
    return environment.get_template("release_page.html.jinja").render(
        release=release,
        build=store.build(release.build),
        standing=standing(store, release),
        counts=[(verdict, n) for verdict in Verdict if (n := sum(v.verdict is verdict for v in verifications))],
        stages=(rows := stages(events)),
        seconds=sum(row.seconds for row in rows),
        costs=costs,
        said=said,
        notes=assessment,
        changed=treediff.tables(assessment.compared) if assessment and assessment.compared else [],
        patches=[PatchResult.model_validate(each) for each in patches.evidence["patches"]] if patches else [],
        surface=surface,
        differences=[Difference.model_validate(each) for each in surface.evidence["differences"]] if surface else [],
        subjects=subjects(verifications),
        open=open_promises(verifications),
        probe=probe,
        cycles=(restore.COLUMNS, restore.rows(probe)) if probe else None,
        latency=Markup(restore.drawn(store)),
        gate=gate,
        families=(shown.COLUMNS, [shown.family_row(row) for row in gate.evidence.get("families", ())])
        if gate
        else None,
        interval=Markup(shown.interval_plot(gate.evidence) if gate else ""),
        approvals=store.approvals(release.id),
        wanted=[event for event in events if event.kind == "approval_wanted"],
        events=events,
        at=at or now(),
    )


def _shown(value: object) -> object:
    """What the template puts in, before it is escaped; what is HTML already stays."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def standing(store: Store, release: Release) -> str:
    """Where a release is now, in words."""
    production, staging = store.pointer("production"), store.pointer("staging")
    if release.id == production.release:
        hold = f", on hold: {production.hold.reason}" if production.hold else ""
        return f"in production since {production.since:%Y-%m-%d %H:%M} UTC{hold}"
    if release.id in production.retained:
        return "retained for rollback"
    return "on staging" if release.id == staging.release else "not served"


def clock(seconds: float) -> str:
    """Seconds as a person reads them: `4.2 s`, `2:05`, `1:02:05`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def write(store: Store, release: Release, costs: Sequence[Cost] = ()) -> Path:
    """Write a release's report into the store's folder on this machine; where it is. Raises ToolingError."""
    target = store.report(release.id)
    write_atomic(target, page(store, release, costs))
    return target
