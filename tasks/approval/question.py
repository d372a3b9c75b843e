"""What a person is asked, and what was answered."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput, read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_UI_URL
from pydantic import Field

from tasks.approval import held
from tasks.approval.attend import attend, close, closed, given, stale
from tasks.platforms import Platform
from tasks.release import Approval, BadInput, Dossier, Event, ReleaseFailed, Request, ToolingError, now
from tasks.settings import Settings
from tasks.store import Store
from tasks.troubles import Troubles

if TYPE_CHECKING:
    from tasks.upstream.notes import Assessment


POLL_S = 1
ATTEND_S = 2.0


class Decision(RunInput):
    """What a person fills in on the Prefect page."""

    decision: Literal["approve", "reject"] = Field(
        description="approve: promote this release. reject: leave production"
    )
    approver: str = Field(min_length=1, description="your name; the open-source Prefect server does not check it")
    note: str = Field(default="", description="why")


def recorded(store: Store, dossier: Dossier, expected: str | None) -> Approval | None:
    """An approval given before for this very dossier and this very production, by a run that then died."""
    found = store.approval(dossier.digest)
    return found if found and found.decision == "approve" and found.expected == expected else None


def asked(store: Store) -> Request | None:
    """What the running flow asked before it was suspended, its answer recorded now; None when it starts for the
    first time.

    Needs no lock: from here on a kill loses no answer.
    """
    request = store.request(str(flow_run.id))
    if request and request.state == "open" and not given(store, request):
        key = keyset_from_base_key(f"suspended-{request.key}")["response"]
        answer: Any = read_flow_run_input(key, flow_run_id=UUID(request.run))
        if answer:
            _record(store, request, Decision(**answer))
    return request


def refuse(store: Store, request: Request | None) -> None:
    """Nothing when what was asked still stands, or when nothing was.

    Raises ToolingError when nobody decided in time, BadInput that says why when it was withdrawn, production or
    staging moved, or the dossier is another one now.
    """
    request = store.request(request.run) if request else None
    if request is None or store.pointer("production").release == request.release:
        return  # there is nothing left to decide, and the flow will say so
    if request.state == "open" and (reason := stale(store, request)):
        closed(store, request, "withdrawn", reason)
    now_known = store.request(request.run) or request
    if now_known.state == "expired":
        raise ToolingError(
            f"nobody decided on dossier {request.dossier} in time",
            evidence=now_known.reason,
            todo="run the upgrade again: everything but the question is kept",
        )
    if now_known.state == "withdrawn":
        raise BadInput(
            f"the request of {request.name} no longer stands",
            evidence=now_known.reason,
            todo="run the upgrade again: it will ask again",
        )


def ask(
    platform: Platform, dossier: Dossier, expected: str | None, settings: Settings, notes: Assessment | None = None
) -> Approval:
    """The decision of a person, recorded. A run of a deployment is suspended until then: its process ends here, and
    the flow runs again from the top when a person has decided. Any other run is paused.

    `notes` is what upstream tells of the changes, for the person to read: the approval is not bound to it.

    Must be called in a flow, not in a task, by the holder of the release lock. Raises ReleaseFailed when the dossier
    leaves nothing to decide, and what `refuse` raises.
    """
    from tasks.approval.page import page  # it shows every proof; who answers a question needs none of them
    from tasks.upstream.notes import show

    store = platform.store
    if dossier.blockers:
        raise ReleaseFailed(
            f"{dossier.release.label} may not be promoted",
            evidence="\n".join(dossier.blockers),
            todo="read the evidence in the dossier; `llama-release upgrade --again` verifies anew",
        )
    if (before := store.request(str(flow_run.id))) and (answer := given(store, before)):
        return _accept(store, before, answer)
    if answer := recorded(store, dossier, expected):
        return answer
    if notes:
        show(notes)
    read = page(platform, dossier, expected, notes)
    create_markdown_artifact(key="approval", markdown=read, description=f"dossier {dossier.digest}")  # wider there
    question = Decision.with_initial_data(description=read)
    request = _open(store, dossier, expected, settings)
    timeout_s = settings.approval.timeout_s
    if request.suspended:
        suspend_flow_run(wait_for_input=question, timeout=timeout_s, key=request.key)
    try:
        with _attended(platform, settings):
            filled = pause_flow_run(wait_for_input=question, timeout=timeout_s, poll_interval=POLL_S, key=request.key)
    except FlowPauseTimeout:
        if (store.request(request.run) or request).state == "open":
            closed(store, request, "expired", f"nobody decided in {timeout_s} s")
        refuse(store, request)
        raise
    refuse(store, request)
    return _accept(store, request, _record(store, request, filled))


def _open(store: Store, dossier: Dossier, expected: str | None, settings: Settings) -> Request:
    """The question of the running flow, in the store; older ones that it puts out of date are withdrawn."""
    release = dossier.release
    at = now()
    request = Request(
        run=str(flow_run.id),
        name=flow_run.name or "",
        api_url=held.api_url(),
        link=f"{PREFECT_UI_URL.value()}/v2/runs/flow-run/{flow_run.id}" if PREFECT_UI_URL.value() else "",
        suspended=deployment.id is not None,
        tag=release.upstream.tag,
        release=release.id,
        dossier=dossier.digest,
        required=dossier.required,
        expected=expected,
        asked_at=at,
        expires_at=at + timedelta(seconds=settings.approval.timeout_s),
    )
    for other in store.requests():
        if other.state == "open" and other.run != request.run:
            if reason := stale(store, other):
                close(store, other, "withdrawn", reason)
            elif other.release == release.id:
                close(store, other, "withdrawn", f"{request.name} asks anew")
    store.save_request(request)
    store.log(
        Event(
            kind="approval_wanted",
            release=release.id,
            stage="production",
            summary=f"dossier {dossier.digest} of {release.label} waits for a person",
            detail={"link": request.link, "run": request.run, "command": f"llama-release approve {request.run}"},
        )
    )
    return request


@contextmanager
def _attended(platform: Platform, settings: Settings) -> Iterator[None]:
    """Look after the open questions while the block waits for a person."""
    stop, troubles = threading.Event(), Troubles(platform.store.root)

    def look() -> None:
        while not stop.wait(ATTEND_S):
            with troubles.outlived("looking after the open questions"):  # a person may still decide
                attend(platform, settings)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(look,), name="attend", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _record(store: Store, request: Request, filled: Decision) -> Approval:
    approval = Approval(
        release=request.release,
        dossier=request.dossier,
        expected=request.expected,
        decision=filled.decision,
        approver=filled.approver,
        note=filled.note,
    )
    store.log(
        Event(
            kind="approved" if filled.decision == "approve" else "rejected",
            release=request.release,
            stage="production",
            summary=f"{filled.approver}: {filled.decision} dossier {request.dossier} {filled.note}".rstrip(),
        )
    )
    store.save_approval(approval)
    return approval


def _accept(store: Store, request: Request, answer: Approval) -> Approval:
    """The answer to a question that still stands. Raises what `refuse` raises."""
    refuse(store, request)
    store.save_request(request.model_copy(update={"state": "answered"}))
    return answer
