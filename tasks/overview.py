"""What an operator asks first: what serves where, who waits for whom, and what the watch last saw.

It is there when everything else is broken: what can't be had says why in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, TypeVar, get_args

import httpx

from tasks.platforms import Platform, Sight
from tasks.release import BootRecord, Model, Problem, Request, StageName, StagePointer, now
from tasks.store import DAMAGED, Store
from tasks.troubles import load_troubles
from tasks.watch import alerts, series

LATEST_EVENTS = 200
"""So many of the ledger are looked through for damaged ones; `doctor` reads all."""

Part = TypeVar("Part")


class StageNow(Model):
    """A stage as it is: what its pointer says, and what is seen of its servers."""

    pointer: StagePointer
    label: str
    """Of the release that it points to; '' when there is none."""
    retained: tuple[str, ...]
    """Labels of what can be gone back to, the latest first."""
    address: str
    """Where clients reach it; '' where nothing is served."""
    state: str
    """up, idle, coming up, stopped, or why that is not known."""
    last_boot: BootRecord | None


class Overview(Model):
    """Everything that `llama-release status` shows."""

    stages: tuple[StageNow, ...]
    waiting: tuple[Request, ...]
    """Questions that no person has answered yet, oldest first."""
    at_work: dict[str, str]
    """Lock -> who holds it, in its own words."""
    watch: str
    """The restore watch's last word on production."""
    notes: tuple[str, ...]
    """What is wrong or can't be seen, one line each; none when all is well."""


def overview(platform: Platform) -> Overview:
    """All of it, as far as it can be had, without waking a server. Raises ToolingError when a pointer can't be read."""
    store, notes = platform.store, list[str]()

    def had(what: str, part: Callable[[], Part], otherwise: Part) -> Part:
        try:
            return part()
        except (Problem, OSError, ValueError, httpx.HTTPError) as error:
            notes.append(f"{what}: not known, {_reason(error)}")
            return otherwise

    def stage_now(stage: StageName) -> StageNow:
        pointer = store.pointer(stage)
        boots = had(f"boots of {stage}", lambda: platform.boots(stage), list[BootRecord]())
        return StageNow(
            pointer=pointer,
            label=_label(store, pointer.release) if pointer.release else "",
            retained=tuple(_label(store, each) for each in pointer.retained),
            address=had(f"address of {stage}", lambda: platform.address(stage), ""),
            state=had(f"servers of {stage}", lambda: _state(platform.sight(stage)), "not known"),
            last_boot=boots[-1] if boots else None,
        )

    stages = tuple(stage_now(stage) for stage in ("production", "staging"))
    waiting = had("who waits", lambda: [each for each in store.requests() if each.state == "open"], list[Request]())
    at_work = had("who is at work", store.holders, dict[str, str]())
    watch = had("watch", lambda: _watched(store), "not known")
    notes += had("intents", lambda: list(_left_open(store)), list[str]())
    notes += had("ledger", lambda: list(_damaged(store)), list[str]())
    notes += _troubles(store)
    return Overview(stages=stages, waiting=tuple(waiting), at_work=at_work, watch=watch, notes=tuple(notes))


def as_json(seen: Overview) -> list[dict[str, Any]]:
    """A record for each stage: its pointer, and what is seen of it. What people wait for and the watch says is about
    production, and stands there."""
    stages = [
        stage.model_dump(mode="json", exclude={"pointer", "retained"}) | stage.pointer.model_dump(mode="json")
        for stage in seen.stages
    ]
    stages[0] |= seen.model_dump(mode="json", exclude={"stages"})
    return stages


def _reason(error: Exception) -> str:
    if not isinstance(error, Problem):
        return str(error)
    return ", ".join(filter(None, (error.what, error.evidence.partition("\n")[0])))


def _label(store: Store, release_id: str) -> str:
    try:
        found = store.release(release_id)
    except Problem:  # its file is damaged, and what serves is known all the same
        found = None
    return found.label if found else release_id


def _state(sight: Sight) -> str:
    if sight.down:
        return sight.down
    if sight.starting:
        return "coming up"
    busy = f", {sight.in_flight} requests under way" if sight.in_flight else ""
    return f"up{busy}" if sight.servers else "idle"


def _left_open(store: Store) -> Iterator[str]:
    for stage in get_args(StageName):
        if intent := store.intent(stage):
            yield f"a {intent.action} of {stage} to {intent.after} was left open: the next run finishes or undoes it"


def _troubles(store: Store) -> Iterator[str]:
    for each in load_troubles(store.root):
        if not each.over:
            yield f"{each.what}: {each.error} (since {when(each.since)})"


def _watched(store: Store) -> str:
    if wrong := [each for each in alerts.load(store).incidents if each.ended is None]:
        return "; ".join(f"since {when(each.began)}: {each.finding.summary}" for each in wrong)
    release = store.pointer("production").release
    seen = store.watched(release, series.Series) if release else None
    return f"nothing wrong, last looked {when(seen.looks[-1].at)}" if seen and seen.looks else "has not looked yet"


def _damaged(store: Store) -> Iterator[str]:
    yield from (event.summary for event in store.ledger(LATEST_EVENTS) if event.kind == DAMAGED)


def when(at: datetime) -> str:
    """A moment and how long it is past, for people."""
    return f"{at:%Y-%m-%d %H:%M} UTC, {timedelta(seconds=int((now() - at).total_seconds()))} ago"


def rows(seen: Overview) -> Iterator[tuple[str, str]]:
    """(what it is about, line) for a person; '' where it is about the same as the line before."""
    for stage in seen.stages:
        yield from _stage_rows(stage)
    for request in seen.waiting:
        yield "waits", f"{request.name} for a person to decide on {request.tag} ({request.release})"
        yield "", f"since {when(request.asked_at)}, until {request.expires_at:%Y-%m-%d %H:%M} UTC; {request.link}"
    for lock, words in seen.at_work.items():
        yield "at work", f"{lock}: {words or 'it has not said who it is'}"
    yield "watch", seen.watch
    for note in seen.notes:
        yield "note", note


def _stage_rows(stage: StageNow) -> Iterator[tuple[str, str]]:
    pointer, boot = stage.pointer, stage.last_boot
    since = f" since {when(pointer.since)}" if pointer.since else ""
    yield pointer.stage, f"{stage.label or 'empty'}{since}"
    if pointer.release:
        yield "", f"{stage.state}, at {stage.address}" if stage.address else stage.state
    if pointer.release and boot:
        seconds = f" in {boot.health_s:.2f} s" if boot.health_s is not None else ""
        yield "", f"last boot: {boot.kind}{seconds}, {when(boot.at)}"
    if pointer.hold:
        yield "", f"on hold since {when(pointer.hold.at)}, by {pointer.hold.by}: {pointer.hold.reason}"
    if stage.retained:
        yield "", f"retained: {', '.join(stage.retained)}"
