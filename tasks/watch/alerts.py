"""Incidents: told once when they begin, once when they end, however often the watch runs and wherever it is killed.

An incident is in the state before it is in the ledger; one that is in the state only is looked for in the ledger by its
mark and told if it is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import get_args

from pydantic import Field

from tasks.release import Event, Model, Release, now
from tasks.store import Store
from tasks.watch.judge import Finding, Kind, Slow

ALERT, OVER = "watch_alert", "watch_over"
SLOW_KEPT = 20
COMMANDS: dict[Kind, str] = {
    "down": "llama-release start",
    "restores_fail": "llama-release redeploy --reason 'it does not come back from idle'",
    "errors_after_idle": "llama-release rollback --reason 'errors after idle'",
    "slower": "llama-release redeploy --reason 'it has become slower'",
}


class Incident(Model):
    """Something wrong with production for some time."""

    finding: Finding
    release: str
    began: datetime = Field(default_factory=now)
    told: bool = False
    proven: bool = Field(default=False, description="our own probes show it; else it may be what clients sent")
    acted: bool = False
    ended: datetime | None = None
    why: str = ""
    """Why it ended."""

    @property
    def mark(self) -> str:
        return f"{self.finding.kind} {self.began.isoformat()}"


class State(Model):
    """What the watch has to know the next time."""

    incidents: tuple[Incident, ...] = ()
    ended: dict[Kind, datetime] = Field(default_factory=dict, description="when the last one of this kind was over")
    slow: tuple[Slow, ...] = Field(default=(), description="when releases were slower than their baselines, the latest")
    probed_at: datetime | None = Field(default=None, description="when production was last woken")
    drilled_at: datetime | None = Field(default=None, description="when the retained release was last tried")


def load(store: Store) -> State:
    return store.watch_state(State) or State()


def change(store: Store, **update: object) -> State:
    """The state with something changed, saved."""
    state = load(store).model_copy(update=update)
    store.save_watch_state(state)
    return state


def follow(
    store: Store,
    release: Release,
    found: Callable[[Kind, datetime | None], Finding | None],
    over: Callable[[Kind, datetime], bool],
    proven: Callable[[Kind, datetime | None], bool],
) -> State:
    """Begin and end incidents of the release in production by what is found, and tell of it."""
    state = load(store)
    kept = [_ended(each, release, over) for each in state.incidents]
    ended = state.ended | {each.finding.kind: each.ended for each in kept if each.ended}
    running = {each.finding.kind for each in kept if each.ended is None}
    for kind in get_args(Kind):
        if kind not in running and (finding := found(kind, ended.get(kind))):
            kept.append(Incident(finding=finding, release=release.id))
    kept = [
        each
        if each.ended or each.proven
        else each.model_copy(update={"proven": proven(each.finding.kind, ended.get(each.finding.kind))})
        for each in kept
    ]
    slow = [
        Slow(release=each.release, began=each.began, ended=each.ended)
        for each in kept
        if each.ended and each.finding.kind == "slower"
    ]
    change(store, incidents=tuple(kept), ended=ended, slow=tuple(dict.fromkeys([*state.slow, *slow]))[-SLOW_KEPT:])
    for each in kept:
        _tell(store, each)
    told = tuple(each.model_copy(update={"told": True}) for each in kept if each.ended is None)
    return change(store, incidents=told)


def _ended(incident: Incident, release: Release, over: Callable[[Kind, datetime], bool]) -> Incident:
    if incident.ended:
        return incident
    if incident.release != release.id:
        return incident.model_copy(update={"ended": now(), "why": f"production is {release.label} now"})
    if over(incident.finding.kind, incident.began):
        return incident.model_copy(update={"ended": now(), "why": "production is as it should be again"})
    return incident


def _tell(store: Store, incident: Incident) -> None:
    finding = incident.finding
    detail = {"incident": incident.mark, "about": finding.kind}
    if not incident.told:
        more = finding.model_dump(mode="json", include={"in_a_row", "last_good"})
        command = COMMANDS[finding.kind]
        _log_once(
            store,
            incident.began,
            Event(
                kind=ALERT, release=incident.release, stage="production", summary=finding.summary,
                detail={**detail, **more, "command": command},
            ),
        )  # fmt: skip
    if incident.ended:
        summary = f"over: {incident.why} (it began {incident.began:%Y-%m-%d %H:%M} UTC: {finding.summary})"
        _log_once(
            store,
            incident.ended,
            Event(kind=OVER, release=incident.release, stage="production", summary=summary, detail=detail),
        )


def _log_once(store: Store, since: datetime, event: Event) -> None:
    """Log it unless the ledger has it since then."""
    for _, known in store.events(after=f"{since:%Y%m%dT%H%M%S}"):
        if known.kind == event.kind and known.detail.get("incident") == event.detail["incident"]:
            return
    store.log(event)
