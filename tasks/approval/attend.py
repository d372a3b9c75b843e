"""What happens to a question while a person thinks: reminders, probes of staging, and its end without an answer."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from prefect.runtime import flow_run

from tasks import restore
from tasks.approval import held
from tasks.platforms import Platform
from tasks.release import Approval, Event, Problem, Release, Request, Verdict, now
from tasks.settings import Settings
from tasks.store import Store

NOBODY = "llama-release"
"""Who answers a paused run whose question no longer stands."""


def given(store: Store, request: Request) -> Approval | None:
    """The answer to a question, when a person has given it."""
    return store.approval(request.key)


def stale(store: Store, request: Request) -> str:
    """Why a question no longer stands, '' when it does."""
    release = store.get_release(request.release)
    production, staging = store.pointer("production"), store.pointer("staging").release
    if production.release != request.expected:
        asked, is_now = request.expected or "nothing", production.release or "nothing"
        return f"production moved: asked to replace {asked}, it is {is_now} now"
    if production.version != request.version:
        return f"production moved, or a hold did: it has {production.release or 'nothing'} again"
    dossier = store.dossier(release, request.required)
    if dossier.digest != request.dossier:
        why = f"; {dossier.blockers[0]}" if dossier.blockers else ""
        return f"the dossier changed: asked about {request.dossier}, it is {dossier.digest} now{why}"
    if staging != request.release:
        return f"staging serves {staging or 'nothing'} by now"
    return ""


def waiting(store: Store, release: Release) -> Request | None:
    """The question about this release that another run waits with, when it still stands.

    A run that waits in its own process holds the release lock, and is not told of.
    """
    for request in store.requests():
        if request.state != "open" or request.release != release.id or request.run == flow_run.id:
            continue
        state = held.state(request) if request.suspended and not given(store, request) else None
        if state and not state.is_final() and not stale(store, request):
            return request
    return None


def close(store: Store, request: Request, state: Literal["withdrawn", "expired"], reason: str) -> None:
    """End a question without an answer, and the waiting of the run that asked it."""
    held.end(request, {"decision": "reject", "approver": NOBODY, "note": f"{state}: {reason}"})
    closed(store, request, state, reason)


def closed(store: Store, request: Request, state: Literal["withdrawn", "expired"], reason: str) -> None:
    """Record that a question ended without an answer."""
    label = store.get_release(request.release).label
    summary = f"the request of {request.name} to approve {label} is {state}: {reason}"
    store.log(_event(request, f"approval_{state}", summary))
    store.save_request(request.model_copy(update={"state": state, "reason": reason}))


def attend(platform: Platform, settings: Settings) -> None:
    """Look after every open question once: expire it, withdraw it, probe staging, remind.

    The caller holds the release lock. A question whose run waits in its own process is looked after by that process
    only; by anybody else it is found dead. Raises what a probe's platform raises that is no `Problem`.
    """
    for request in platform.store.requests():
        if request.state == "open" and not _ended(platform.store, request):
            _remind(platform.store, request, settings)
            _probe(platform, request, settings)


def _ended(store: Store, request: Request) -> bool:
    """Whether a question needs nobody's care: it was answered, or was closed now."""
    if not request.suspended and request.run != flow_run.id:
        close(store, request, "withdrawn", "its process ended")
        return True
    state = held.state(request)
    late = now() >= request.expires_at
    if state and state.is_final() and given(store, request):
        store.save_request(request.model_copy(update={"state": "answered"}))  # it died with the answer, which holds
    elif state and state.is_final():
        close(store, request, "expired" if late else "withdrawn", f"its run ended: {state.message or state.name}")
    elif state and not state.is_paused():
        return True  # answered, or not yet asked: the run itself goes on
    elif late:
        close(store, request, "expired", f"nobody decided until {clock(request.expires_at)}")
    elif reason := stale(store, request):
        close(store, request, "withdrawn", reason)
    else:
        return False
    return True


def _remind(store: Store, request: Request, settings: Settings) -> None:
    if (now() - (request.reminded_at or request.asked_at)).total_seconds() < settings.approval.remind_s:
        return
    label = store.get_release(request.release).label
    summary = f"{label} waits for a person since {clock(request.asked_at)}, until {clock(request.expires_at)}"
    again = f"; reminded {clock(now())}"
    store.log(_event(request, "approval_reminder", summary + again))
    store.save_request(request.model_copy(update={"reminded_at": now()}))


def _probe(platform: Platform, asked: Request, settings: Settings) -> None:
    """One idle cycle of staging. One that is wrong by itself fails the release's restore verification."""
    store = platform.store
    request = store.request(asked.run)
    if request is None or (now() - (request.probed_at or request.asked_at)).total_seconds() < settings.approval.probe_s:
        return
    store.save_request(request.model_copy(update={"probed_at": now()}))
    release = store.get_release(request.release)
    detail: dict[str, Any] = {}
    try:
        cycle, fault = restore.once(platform, "staging", release, settings.restore)
    except Problem as problem:
        verdict, summary = Verdict.ERRORED, problem.what
        detail = {"error": str(problem)}
    else:
        verdict = fault.verdict if fault else Verdict.PASSED
        summary = fault.summary if fault else f"staging came back as {cycle.told}"
        detail = {"cycle": cycle.model_dump(mode="json")}
    store.log(_event(request, "staging_probed", f"{release.label}: {summary}", verdict=verdict, **detail))
    if verdict is Verdict.FAILED:
        restore.condemn(store, release, cycle, f"while a person was thinking: {summary}")
        close(store, request, "withdrawn", f"staging failed: {summary}")


def _event(request: Request, kind: str, summary: str, **detail: Any) -> Event:
    detail |= {"run": request.run, "link": request.link, "command": f"llama-release approve {request.run}"}
    return Event(kind=kind, release=request.release, stage="production", summary=summary, detail=detail)


def clock(at: datetime) -> str:
    """A moment for a person to read."""
    return f"{at:%Y-%m-%d %H:%M} UTC"
