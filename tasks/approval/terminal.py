"""The answer from a terminal: the same question, the same server, the same refusals as in the Prefect page."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from prefect.settings import PREFECT_API_URL

from tasks.approval import held
from tasks.approval.attend import clock, given, stale
from tasks.approval.question import rollbacks
from tasks.console import console, one_line
from tasks.release import BadInput, Request, ToolingError
from tasks.report import show_dossier
from tasks.store import Store

_MEANT: dict[str, Literal["approve", "reject"]] = {
    "approve": "approve", "yes": "approve", "y": "approve", "reject": "reject", "no": "reject", "n": "reject",
}  # fmt: skip


def typed(line: str) -> tuple[Literal["approve", "reject"], str] | None:
    """What somebody decides who types this line, and the note behind it; None when it is no decision."""
    word, _, note = line.strip().partition(" ")
    decision = _MEANT.get(word.lower())
    return (decision, note.strip()) if decision else None


def find(store: Store, which: str) -> Request:
    """What the run of this id or name asks; the latest, when several runs have the name.

    Raises BadInput that names the runs that wait.
    """
    found = [r for r in store.requests() if which in (r.run, r.name)]
    if not found:
        waiting = ", ".join(f"{r.run} ({r.name})" for r in store.requests() if r.state == "open")
        raise BadInput(
            f"no run {which} has asked for an approval in {store.root}",
            evidence=f"waiting: {waiting or 'none'}",
            todo="take the id or the name of a run that waits",
        )
    return found[-1]


def show(store: Store, request: Request) -> None:
    """Print what is to be decided."""
    release = store.get_release(request.release)
    expected = store.release(request.expected) if request.expected else None
    show_dossier(store.dossier(release, request.required))
    asked = (
        f"{release.label} is to replace {expected.label if expected else 'nothing'}; asked by {request.name} at "
        f"{clock(request.asked_at)}, until {clock(request.expires_at)}"
    )
    before = (f"it was rolled back before, {line}" for line in rollbacks(store, release))
    for line in filter(None, (asked, *before, request.link)):
        console.print(one_line(line), soft_wrap=True)


def decide(store: Store, request: Request, decision: Literal["approve", "reject"], by: str, note: str) -> None:
    """Have the run go on with this decision.

    Raises BadInput when it was decided, withdrawn or has expired, when it no longer stands or the run does not wait;
    ToolingError when the run's Prefect server is not there.
    """
    if answer := given(store, request):
        raise _refused(request, f"{answer.approver} decided at {clock(answer.at)}: {answer.decision} {answer.note}")
    if request.state in ("withdrawn", "expired"):
        raise _refused(request, f"it is {request.state}: {request.reason}")
    if reason := stale(store, request):
        raise _refused(request, reason)
    for address in filter(None, (PREFECT_API_URL.value(), request.api_url)):
        if state := held.state(request, address):
            if not state.is_paused():
                raise _refused(request, f"the run does not wait: it is {state.name} {state.message or ''}")
            with held.server(address):
                held.answer(UUID(request.run), {"decision": decision, "approver": by, "note": note})
            return
    raise ToolingError(
        f"the Prefect server that holds {request.name} is not there",
        evidence=f"asked {request.api_url}",
        todo="set PREFECT_API_URL to it; if the run's process has ended, run the upgrade again",
    )


def _refused(request: Request, why: str) -> BadInput:
    return BadInput(
        f"{request.name} cannot be answered",
        evidence=why.rstrip(),
        todo="`llama-release upgrade` asks again if need be",
    )
