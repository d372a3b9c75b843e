"""Moving stage pointers: staging, promotion, rollback, and finishing what a killed process left open.

A move of production is a compare-and-swap under a lock. Its intent is on disk before anything is touched; the
pointer is the truth. So a process killed between any two lines leaves either the old release whole in production
or the new one, and `recover` brings the servers, the pointer and the ledger in line again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from tasks.endpoint import Client, content
from tasks.platforms import Platform
from tasks.release import (
    Approval,
    BadInput,
    Dossier,
    Endpoint,
    Event,
    Hold,
    Intent,
    Problem,
    Promotion,
    Release,
    ReleaseFailed,
    StageName,
    StagePointer,
    ToolingError,
    Verdict,
    Verification,
    now,
)
from tasks.report import Row, markdown_table, stage
from tasks.store import Store

STAGING = "staging"
AUTOMATIC = "llama-release"
HEALTH_DEADLINE_S = 120.0


def check_serving(endpoint: Endpoint, release: Release) -> dict[str, object]:
    """Evidence that this endpoint answers, and from this very binary: `system_fingerprint` names build and tree.

    Raises ReleaseFailed when it answers wrongly, ToolingError when it does not answer.
    """
    with Client(endpoint) as client:
        client.wait_healthy(HEALTH_DEADLINE_S, every_s=0.2)
        models = client.get("/v1/models")
        answer = client.chat("Say hello.", max_tokens=16, temperature=0.0)
    evidence: dict[str, object] = {"models": models.evidence, "chat": answer.evidence}
    served = [m.get("id") for m in models.body.get("data", [])] if isinstance(models.body, dict) else []
    fingerprint = answer.body.get("system_fingerprint") if isinstance(answer.body, dict) else None
    wanted = f"{release.upstream.tag}-{release.tree[:9]}"
    problem = (
        f"/v1/models answers {models.status} with {served}, wanted {release.alias}"
        if models.status != 200 or release.alias not in served
        else f"a chat request answers {answer.status}: {str(answer.body)[:200]}"
        if answer.status != 200 or not content(answer)
        else f"the binary calls itself {fingerprint}, wanted {wanted}"
        if fingerprint != wanted
        else ""
    )
    if problem:
        raise ReleaseFailed(
            f"the server at {endpoint.base_url} does not serve {release.label}",
            evidence=problem,
            todo="look at the server's log and the release's dossier",
        )
    return evidence


def production_lock(store: Store) -> AbstractContextManager[None]:
    """Held around every move of production. Raises ToolingError when another process is at it."""
    return store.lock("production", holder={"doing": "moving production", "since": now().isoformat(timespec="seconds")})


def swap(
    platform: Platform,
    dossier: Dossier,
    approval: Approval,
    retain: int,
) -> Promotion:
    """Put an approved release into production, or refuse and change nothing.

    Refuses with BadInput when production, the dossier or the hold is not what the approval was given for, with
    ReleaseFailed when the dossier has a failed, errored or missing verification or the new server is not right.
    A failed verification after the move puts production back and sets a hold.
    """
    store, release = platform.store, dossier.release
    with production_lock(store):
        pointer = store.pointer("production")
        _refuse_unless(pointer, dossier, approval, store)
        intent = Intent(
            stage="production",
            action="promote",
            before=pointer.release,
            after=release.id,
            dossier=dossier.digest,
            by=approval.approver,
            note=approval.note,
        )
        moved = StagePointer(
            stage="production",
            release=release.id,
            dossier=dossier.digest,
            since=now(),
            retained=_retained(pointer, release.id, retain),
        )
        _move(platform, intent, release, moved)
    return Promotion(
        release=release,
        replaced=pointer.release,
        dossier=dossier.digest,
        approver=approval.approver,
        retained=moved.retained,
        at=intent.at,
    )


def _refuse_unless(pointer: StagePointer, dossier: Dossier, approval: Approval, store: Store) -> None:
    release = dossier.release
    if approval.decision != "approve" or approval.release != release.id:
        raise BadInput(
            f"there is no approval of {release.label}", evidence=f"{approval.decision} of {approval.release}"
        )
    refuse_on_hold(pointer)
    if pointer.release != approval.expected:
        raise BadInput(
            "production moved since the approval was given",
            evidence=f"approved to replace {approval.expected}, production is {pointer.release}",
            todo="run the upgrade again: it will ask again",
        )
    if dossier.digest != approval.dossier:
        raise BadInput(
            "the dossier changed since the approval was given",
            evidence=f"approved {approval.dossier}, it is now {dossier.digest}",
            todo="run the upgrade again: it will ask again",
        )
    if dossier.blockers:
        raise ReleaseFailed(
            f"{release.label} may not be promoted",
            evidence="\n".join(dossier.blockers),
            todo="mend it and run it again",
        )
    whole(store, release)


def whole(store: Store, release: Release) -> None:
    """Nothing when the release's binary and files are in the store as recorded; else raises ToolingError."""
    if missing := store.lost(release):
        raise ToolingError(
            f"{release.label} is not whole in the store",
            evidence=", ".join(missing) + " missing or altered",
            todo=f"`llama-release upgrade --to {release.upstream.tag}` builds it again",
        )


def refuse_on_hold(production: StagePointer) -> None:
    """Raises BadInput that says who set the hold and why, when there is one."""
    if hold := production.hold:
        raise BadInput(
            "production is on hold",
            evidence=f"by {hold.by} at {hold.at:%Y-%m-%d %H:%M} UTC: {hold.reason}",
            todo="`llama-release hold lift --by NAME` when the reason is gone",
        )


def _retained(pointer: StagePointer, coming: str, retain: int) -> tuple[str, ...]:
    earlier = ([pointer.release] if pointer.release else []) + list(pointer.retained)
    return tuple(r for r in earlier if r != coming)[:retain]


def _move(platform: Platform, intent: Intent, release: Release, moved: StagePointer) -> None:
    """Intent, server, pointer, proof, ledger, in that order. Raises with production as it was before."""
    store = platform.store
    store.open_intent(intent)
    try:
        platform.deploy("production", release, lambda endpoint: check_serving(endpoint, release))
    except Problem:
        _undo(platform, intent)
        raise
    store.save_pointer(moved)
    _finish(platform, intent)


def _finish(platform: Platform, intent: Intent) -> None:
    """The pointer has moved: prove production through its own address, or go back and hold."""
    store = platform.store
    release = store.get_release(intent.after)
    try:
        _serve(platform, intent.after)
        check_serving(platform.endpoint("production"), release)
    except Problem as error:
        _go_back(platform, intent, error)
        raise ReleaseFailed(
            f"{release.label} did not verify in production: production is back on {intent.before or 'nothing'}",
            evidence=error.evidence or error.what,
            todo="read the evidence; `llama-release hold lift` when it is mended",
        ) from error
    _log_once(
        store,
        intent,
        Event(
            kind="promoted" if intent.action == "promote" else "rolled_back",
            release=intent.after,
            stage="production",
            summary=f"{release.label} is in production, replacing {_label(store, intent.before)}, by {intent.by}",
            detail={"dossier": intent.dossier, "note": intent.note, "before": intent.before},
        ),
    )
    store.close_intent("production")


def _undo(platform: Platform, intent: Intent) -> None:
    """The pointer has not moved: servers back in line with it."""
    store = platform.store
    _serve(platform, intent.before)
    _log_once(
        store,
        intent,
        Event(
            kind="move_undone",
            release=intent.after,
            stage="production",
            summary=f"the move to {intent.after} was undone before it happened; production: {intent.before or 'empty'}",
        ),
    )
    store.close_intent("production")


def _go_back(platform: Platform, intent: Intent, error: Problem) -> None:
    store = platform.store
    pointer = store.pointer("production")
    retained = tuple(r for r in pointer.retained if r != intent.before)
    store.save_pointer(
        StagePointer(
            stage="production",
            release=intent.before,
            since=now(),
            retained=retained,
            hold=Hold(reason=f"{intent.after} did not verify after the move: {error.what}", by=AUTOMATIC),
        )
    )
    _serve(platform, intent.before)
    _log_once(
        store,
        intent,
        Event(
            kind="rolled_back",
            release=intent.before,
            stage="production",
            summary=f"{intent.after} did not verify in production; back on {intent.before or 'nothing'}, hold set",
            detail={"error": str(error)},
        ),
    )
    store.close_intent("production")


def _serve(platform: Platform, release_id: str | None) -> None:
    if release_id is None:
        platform.stop("production")
        return
    release = platform.store.get_release(release_id)
    platform.deploy("production", release, lambda endpoint: check_serving(endpoint, release))


def serve_pointer(platform: Platform, stage_name: StageName) -> Endpoint | None:
    """The stage serves the release that its pointer names; where, or None when it names none.

    Raises what keeps the release from being served.
    """
    pointer = platform.store.pointer(stage_name)
    if pointer.release is None:
        return None
    release = platform.store.get_release(pointer.release)
    whole(platform.store, release)
    return platform.deploy(stage_name, release, lambda endpoint: check_serving(endpoint, release))


def _log_once(store: Store, intent: Intent, event: Event) -> None:
    mark = intent.at.isoformat()
    if not any(e.detail.get("intent") == mark and e.kind == event.kind for e in store.ledger()):
        store.log(event.model_copy(update={"detail": {**event.detail, "intent": mark}}))


def _label(store: Store, release_id: str | None) -> str:
    release = store.release(release_id) if release_id else None
    return release.label if release else "nothing"


def recover(platform: Platform) -> str:
    """Finish or undo a move of production that a killed process left open; say what was done, '' when none was."""
    store = platform.store
    if store.intent("production") is None:
        return ""
    with production_lock(store):
        intent = store.intent("production")
        if intent is None:
            return ""
        pointer = store.pointer("production")
        if pointer.release == intent.after != intent.before:
            _finish(platform, intent)
            return f"finished the {intent.action} to {intent.after} that was left open"
        _undo(platform, intent)
        return f"undid the {intent.action} to {intent.after} that was left open"


def back_to(platform: Platform, to: str | None, by: str, reason: str, retain: int) -> Promotion:
    """Production back to a retained release (the latest one by default), with a hold.

    Raises BadInput when there is none to go back to, ReleaseFailed when it does not verify.
    """
    store = platform.store
    with production_lock(store):
        pointer = store.pointer("production")
        target = to or next(iter(pointer.retained), None)
        if target is None or target not in pointer.retained:
            raise BadInput(
                f"production cannot go back to {target or 'anything'}",
                evidence=f"retained: {', '.join(pointer.retained) or 'none'}",
                todo="choose one of the retained releases (`llama-release status`)",
            )
        release = store.get_release(target)
        whole(store, release)
        intent = Intent(
            stage="production",
            action="rollback",
            before=pointer.release,
            after=target,
            dossier=None,
            by=by,
            note=reason,
        )
        moved = StagePointer(
            stage="production",
            release=target,
            since=now(),
            retained=_retained(pointer, target, retain),
            hold=Hold(reason=reason, by=by),
        )
        _move(platform, intent, release, moved)
    return Promotion(
        release=release,
        replaced=pointer.release,
        dossier=None,
        approver=by,
        retained=moved.retained,
        at=intent.at,
    )


def lift_hold(store: Store, by: str) -> Hold:
    """Lift production's hold and say which it was. Raises BadInput when there is none."""
    with production_lock(store):
        pointer = store.pointer("production")
        if pointer.hold is None:
            raise BadInput("production is not on hold", todo="nothing to lift")
        store.save_pointer(pointer.model_copy(update={"hold": None}))
        store.log(Event(kind="hold_lifted", stage="production", summary=f"{by} lifted the hold: {pointer.hold.reason}"))
        return pointer.hold


def to_stage(platform: Platform, stage_name: StageName, release: Release) -> tuple[Endpoint, dict[str, object]]:
    """Have a stage that needs no approval serve a release; where it answers, and the proof that it does."""
    store = platform.store
    endpoint = platform.deploy(stage_name, release, lambda at: check_serving(at, release))
    evidence = check_serving(endpoint, release)
    pointer = store.pointer(stage_name)
    if pointer.release != release.id:
        store.save_pointer(StagePointer(stage=stage_name, release=release.id, since=now()))
    return endpoint, evidence


@stage("staging", "staging {release.label}")
def staging(row: Row, platform: Platform, release: Release) -> Endpoint:
    """Staging serves the release at its own address. Recorded in the dossier."""
    row.progress(0, 1, "starting the server")
    endpoint, evidence = to_stage(platform, "staging", release)
    summary = f"up on {endpoint.base_url}, answers as {release.upstream.tag}-{release.tree[:9]}"
    if not platform.store.fresh(release.id, (STAGING,), ""):
        platform.store.record(
            Verification(
                name=STAGING,
                release=release.id,
                verdict=Verdict.PASSED,
                summary=summary,
                promise="a chat request through the stage's own address is answered by this binary",
                evidence=evidence,
            )
        )
    row.done(summary, release=release.id)
    return endpoint


@stage("production", "promote {dossier.release.label}")
def promote(row: Row, platform: Platform, dossier: Dossier, approval: Approval, retain: int) -> Promotion:
    """Production serves the approved release. Refuses, or puts everything back, as `swap` says."""
    row.progress(0, 1, "new server up and verified before traffic moves")
    done = swap(platform, dossier, approval, retain)
    row.done(*_told(platform, done), release=done.release.id)
    return done


@stage("rollback", "roll production back")
def rollback(row: Row, platform: Platform, to: str | None, by: str, reason: str, retain: int) -> Promotion:
    """Production serves a retained release again, and a hold is set."""
    row.progress(0, 1, "retained server up and verified before traffic moves")
    done = back_to(platform, to, by, reason, retain)
    row.done(*_told(platform, done), release=done.release.id)
    return done


def _told(platform: Platform, done: Promotion) -> tuple[str, str]:
    kept = ", ".join(_label(platform.store, r) for r in done.retained) or "none"
    rows = [
        ("production", done.release.label),
        ("replaced", _label(platform.store, done.replaced)),
        ("by", done.approver),
    ]
    at = platform.endpoint("production").base_url
    return (
        f"{done.release.upstream.tag} answers at {at}; retained for rollback: {kept}",
        markdown_table(("what", "is"), [*rows, ("retained", kept), ("dossier", done.dossier or "none")]),
    )
