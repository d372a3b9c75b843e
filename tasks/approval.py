"""Ask a person, in the Prefect page or in a terminal; bound to the dossier's digest."""

from __future__ import annotations

from typing import Literal

from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from tasks.release import Approval, Dossier, Event, ReleaseFailed, ToolingError
from tasks.report import dossier_markdown
from tasks.settings import ApprovalSettings
from tasks.store import Store
from tasks.upstream.notes import Assessment, digest, show

POLL_S = 1


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


def ask(
    store: Store, dossier: Dossier, expected: str | None, settings: ApprovalSettings, notes: Assessment | None = None
) -> Approval:
    """Pause the running flow until a person has decided; the decision, recorded.

    `notes` is what upstream tells of the changes, for the person to read: the approval is not bound to it.

    Must be called in a flow, not in a task. Raises ReleaseFailed when the dossier leaves nothing to decide,
    ToolingError when nobody decides in time or the dossier changes meanwhile.
    """
    if dossier.blockers:
        raise ReleaseFailed(
            f"{dossier.release.label} may not be promoted",
            evidence="\n".join(dossier.blockers),
            todo="read the evidence in the dossier; `llama-release upgrade --again` verifies anew",
        )
    if found := recorded(store, dossier, expected):
        return found
    replaces = store.get_release(expected).label if expected else "nothing (the first release)"
    if notes:
        show(notes)
    question = Decision.with_initial_data(
        description=dossier_markdown(dossier, replaces, digest(notes) if notes else "")
    )
    store.log(
        Event(
            kind="approval_wanted",
            release=dossier.release.id,
            stage="production",
            summary=f"dossier {dossier.digest} of {dossier.release.label} waits for a person",
            detail={"link": flow_run.ui_url},
        )
    )
    try:
        answer = pause_flow_run(wait_for_input=question, timeout=settings.timeout_s, poll_interval=POLL_S)
    except FlowPauseTimeout as error:
        raise ToolingError(
            f"nobody decided on dossier {dossier.digest} in {settings.timeout_s} s",
            evidence=str(error),
            todo="run the upgrade again: everything but the question is kept",
        ) from error
    approval = Approval(
        release=dossier.release.id,
        dossier=dossier.digest,
        expected=expected,
        decision=answer.decision,
        approver=answer.approver,
        note=answer.note,
    )
    store.save_approval(approval)
    store.log(
        Event(
            kind="approved" if answer.decision == "approve" else "rejected",
            release=dossier.release.id,
            stage="production",
            summary=f"{answer.approver}: {answer.decision} dossier {dossier.digest} {answer.note}".rstrip(),
        )
    )
    return approval
