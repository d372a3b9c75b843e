"""Moving stage pointers: staging, promotion, rollback, and finishing what a killed process left open.

A move of production is a compare-and-swap under a lock. Its intent is on disk before anything is touched; the
pointer is the truth. So a process killed between any two lines leaves either the old release whole in production
or the new one, and `recover` brings the servers, the pointer and the ledger in line again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Literal, NamedTuple, get_args

from tasks import restore
from tasks.endpoint import Client, content
from tasks.platforms import Platform, Progress, unseen
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
from tasks.report import markdown_table
from tasks.restore.comeback import comes_back
from tasks.restore.deaths import naming_deaths
from tasks.stage import Row, stage
from tasks.store import Store

STAGING = "staging"
LOCK = "production"
"""The lock around every move of production."""
AUTOMATIC = "llama-release"
HEALTH_DEADLINE_S = 120.0
SEIZE_LIMIT_S = 300.0
"""For a holder that can't be killed from here: longer than the lease of one that died on another machine (180 s)."""
PROOF_TODO = (
    "production answers, but may not come back once it was idle: read the evidence, keep it awake meanwhile, and "
    "`llama-release redeploy` gives it a new snapshot"
)


def check_serving(endpoint: Endpoint, release: Release) -> dict[str, object]:
    """Evidence that this endpoint answers, and from this very binary: `system_fingerprint` names build and tree.

    Raises ReleaseFailed when it answers wrongly, ToolingError when it does not answer.
    """
    with Client(endpoint) as client:
        client.wait_healthy(max(HEALTH_DEADLINE_S, endpoint.start_s), every_s=0.2)
        models = client.get("/v1/models")
        answer = client.chat("Say hello.", max_tokens=16, temperature=0.0)
    evidence: dict[str, object] = {"models": models.evidence, "chat": answer.evidence}
    served = [m.get("id") for m in models.body.get("data", [])] if isinstance(models.body, dict) else []
    fingerprint = answer.body.get("system_fingerprint") if isinstance(answer.body, dict) else None
    wanted = f"{release.upstream.tag}-{release.tree[:9]}"
    problem = (
        f"/v1/models answers {models.status} with {served or str(models.body)[:200]}, wanted {release.alias}"
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
    return store.lock(LOCK, holder={"doing": "moving production", "since": now().isoformat(timespec="seconds")})


@contextmanager
def seized(store: Store, tell: Callable[[str], None]) -> Iterator[None]:
    """Production's lock, held: a process of this machine that has it is killed, which no move of production minds.

    One that can't be killed from here is waited for. Raises ToolingError that names it when that takes too long.
    """
    deadline, told = time.monotonic() + SEIZE_LIMIT_S, ""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(production_lock(store))
                break
            except ToolingError as error:
                if time.monotonic() > deadline:
                    raise
                said = _interrupted(store) or f"{error.what}: {error.evidence}; waiting for it"
                if said != told:
                    tell(said)
                told = said
            time.sleep(0.1)
        yield


def _interrupted(store: Store) -> str:
    """What was killed because it moves production; '' when it can't be."""
    pid = store.lock_holder(LOCK)
    if pid is None:
        return ""
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:  # another user's
        return ""
    return f"pid {pid} was moving production and is killed; what it left open is settled here"


def swap(
    platform: Platform,
    dossier: Dossier,
    approval: Approval,
    retain: int,
    action: Literal["promote", "redeploy"] = "promote",
    progress: Progress = unseen,
) -> Promotion:
    """Put an approved release into production, or refuse and change nothing.

    It is deployed there as the generation that staging has of it, which is the one that was verified. The release
    that production has already may be redeployed during a hold, which stays; no other one may come then.

    Refuses with BadInput when production, the dossier or the hold is not what the approval was given for, with
    ReleaseFailed when the dossier has a failed, errored or missing verification or the new server is not right; one
    that does not come up is told as whose fault that is (`runbook.failure`).
    A failed verification after the move puts production back and sets a hold.
    """
    store, release = platform.store, dossier.release
    with production_lock(store):
        pointer = store.pointer("production")
        _refuse_unless(pointer, dossier, approval, store)
        generation = store.pointer("staging").generation(release.id)
        intent = Intent(
            stage="production",
            action=action,
            before=pointer.release,
            after=release.id,
            generation_before=pointer.generation(pointer.release),
            generation=generation,
            dossier=dossier.digest,
            by=approval.approver,
            note=approval.note,
        )
        moved = _pointing(pointer, release.id, generation, _retained(pointer, release.id, retain))
        moved = moved.model_copy(update={"dossier": dossier.digest, "hold": pointer.hold})
        _move(platform, intent, release, moved, progress=progress)
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
    if release.id != pointer.release:
        refuse_on_hold(pointer)
    if (pointer.release, pointer.version) != (approval.expected, approval.version):
        raise BadInput(
            "production moved since the approval was given",
            evidence=f"approved to replace {approval.expected} (version {approval.version} of production), it is "
            f"{pointer.release} (version {pointer.version}): each move, hold and lifting of one is another version",
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


def _pointing(pointer: StagePointer, release: str, generation: str, retained: tuple[str, ...]) -> StagePointer:
    """The stage's pointer, moved. What it retains keeps its generation, and with it its snapshot."""
    generations = {name: known for name in retained if (known := pointer.generation(name))}
    if generation:
        generations[release] = generation
    return StagePointer(stage=pointer.stage, release=release, since=now(), retained=retained, generations=generations)


def _move(
    platform: Platform, intent: Intent, release: Release, moved: StagePointer, *, at_once: bool = False,
    progress: Progress = unseen,
) -> str:  # fmt: skip
    """Intent, server, pointer, proof, ledger, in that order. Raises with production as it was before.

    Returns how production came back from an idle window, which is tried after a rollback alone.
    """
    store = platform.store
    store.open_intent(intent)
    try:
        _deploy(
            platform, "production", release, generation=intent.generation, at_once=at_once, progress=progress
        )  # fmt: skip
    except Problem:
        _undo(platform, intent)
        raise
    store.save_pointer(moved)
    return _finish(platform, intent, at_once=at_once)


DONE = {"promote": "promoted", "redeploy": "redeployed", "rollback": "rolled_back"}
"""The ledger's word for each move that was finished."""


def _finish(platform: Platform, intent: Intent, *, at_once: bool = False) -> str:
    """The pointer has moved: prove production through its own address, or go back and hold.

    Returns what else is to be said. `at_once`, the ledger is told when it can be, and no idle window is forced.
    """
    store = platform.store
    release = store.get_release(intent.after)
    try:
        _serve(platform, intent.after, intent.generation)
        _prove_serving(platform, "production", release)
    except Problem as error:
        _go_back(platform, intent.model_copy(update={"failed": str(error)}))
        raise ReleaseFailed(
            f"{release.label} did not verify in production: production is back on {intent.before or 'nothing'}",
            evidence=error.evidence or error.what,
            todo="read the evidence; `llama-release hold lift` when it is mended",
        ) from error
    try:
        _log_once(
            store,
            intent,
            Event(
                kind=DONE[intent.action],
                release=intent.after,
                stage="production",
                summary=f"{release.label} is in production, {_replacing(store, intent)}, by {intent.by}"
                + (f": {intent.note}" if intent.action == "redeploy" else ""),
                detail={
                    "dossier": intent.dossier,
                    "note": intent.note,
                    "before": intent.before,
                    "generation": intent.generation,
                },
            ),
        )
    except ToolingError as error:
        if not at_once:
            raise
        return f"the ledger could not be told, and the next flow tells it: {error.evidence or error.what}"
    proof = _proved(platform, intent, release) if intent.action == "rollback" and not at_once else ""
    if intent.action == "redeploy":
        store.close_redeploy()
    store.close_intent("production")
    return proof


def _proved(platform: Platform, intent: Intent, release: Release) -> str:
    """Force production idle, which it now was put back to, and tell how it came back, here and in the ledger.

    Whatever comes of it, the rollback stands: what was before is worse. Not where requests are refused while a server
    comes up: clients that have had enough would get errors for as long as that takes.
    """
    store = platform.store
    if not platform.holds_requests:
        return "no idle window was forced: clients would be refused meanwhile; the restore watch sees how it comes back"
    verdict, seen = comes_back(
        platform,
        "production",
        lambda: check_serving(platform.endpoint("production"), release),
        platform.settings.restore,
    )
    summary = f"{release.label} after the rollback: {seen}"
    _log_once(
        store,
        intent,
        Event(
            kind="rollback_proof",
            release=release.id,
            stage="production",
            summary=summary,
            detail={"verdict": verdict, "todo": "" if verdict is Verdict.PASSED else PROOF_TODO},
        ),
    )
    return f"idle window {verdict}: {seen}"


def _undo(platform: Platform, intent: Intent) -> None:
    """The pointer has not moved: servers back in line with it. Those that are keep their key, whatever ours is."""
    store = platform.store
    if intent.before is None or platform.serving("production") != (intent.before, intent.generation_before):
        _serve(platform, intent.before, intent.generation_before)
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


def _go_back(platform: Platform, intent: Intent) -> None:
    """What was put into production did not verify there: back to what was before, a hold, and proof of that."""
    store = platform.store
    store.open_intent(intent)
    pointer = store.pointer("production")
    retained = tuple(r for r in pointer.retained if r != intent.before)
    why = intent.failed.splitlines()[0]
    hold = Hold(reason=f"{intent.after} did not verify after the move: {why}", by=AUTOMATIC)
    back = (
        _pointing(pointer, intent.before, intent.generation_before, retained)
        if intent.before
        else StagePointer(stage="production", since=now(), retained=retained)
    )
    store.save_pointer(back.model_copy(update={"hold": hold}))
    _serve(platform, intent.before, intent.generation_before)
    _log_once(
        store,
        intent,
        Event(
            kind="rolled_back",
            release=intent.before,
            stage="production",
            summary=f"{intent.after} did not verify in production; back on {intent.before or 'nothing'}, hold set",
            detail={"error": intent.failed, "before": intent.after},
        ),
    )
    if intent.before:
        _proved(platform, intent, store.get_release(intent.before))
    store.close_redeploy()
    store.close_intent("production")


def _serve(platform: Platform, release_id: str | None, generation: str) -> None:
    if release_id is None:
        platform.stop("production")
        return
    release = platform.store.get_release(release_id)
    try:
        _deploy(platform, "production", release, generation=generation)
    except BadInput as error:  # what production had can't be given otherwise
        raise ToolingError(error.what, evidence=error.evidence, todo=error.todo) from error


def serve_pointer(platform: Platform, stage_name: StageName) -> Endpoint | None:
    """The stage serves the release that its pointer names; where, or None when it names none.

    Raises what keeps the release from being served.
    """
    pointer = platform.store.pointer(stage_name)
    if pointer.release is None:
        return None
    release = platform.store.get_release(pointer.release)
    whole(platform.store, release)
    return _deploy(platform, stage_name, release, generation=pointer.generation(release.id))


def _deploy(
    platform: Platform,
    stage_name: StageName,
    release: Release,
    check: Callable[[Endpoint], object] | None = None,
    *,
    generation: str,
    at_once: bool = False,
    progress: Progress = unseen,
) -> Endpoint:
    """As `platform.deploy`, by default with `check_serving`. A server that dies of its check is told as dead."""

    def check_it(endpoint: Endpoint) -> object:
        return check(endpoint) if check else check_serving(endpoint, release)

    with naming_deaths(platform, stage_name, release):
        return platform.deploy(
            stage_name, release, check_it, generation=generation, at_once=at_once, progress=progress
        )  # fmt: skip


def _prove_serving(platform: Platform, stage_name: StageName, release: Release) -> dict[str, object]:
    """As `check_serving` through the stage's own address; a server that dies of it is told as dead."""
    with naming_deaths(platform, stage_name, release):
        return check_serving(platform.endpoint(stage_name), release)


def _replacing(store: Store, intent: Intent) -> str:
    if intent.before == intent.after:
        renewed = intent.generation != intent.generation_before
        return f"on new servers (generation {intent.generation})" if renewed else "as before a move that was left open"
    return f"replacing {_label(store, intent.before)}"


def _log_once(store: Store, intent: Intent, event: Event) -> None:
    mark = intent.at.isoformat()
    if not any(e.detail.get("intent") == mark and e.kind == event.kind for e in store.ledger()):
        store.log(event.model_copy(update={"detail": {**event.detail, "intent": mark}}))


def _label(store: Store, release_id: str | None) -> str:
    release = store.release(release_id) if release_id else None
    return release.label if release else "nothing"


def recover(platform: Platform) -> str:
    """Undo or finish what a killed process left open: a forced idle window, then a move of production.

    Says what was done, '' when there was nothing.
    """
    done = [platform.unforce(stage_name) for stage_name in get_args(StageName)]
    return "; ".join(filter(None, [*done, _recover_move(platform)]))


def _recover_move(platform: Platform) -> str:
    store = platform.store
    if store.intent("production") is None:
        return ""
    platform.check_keys()  # what can't be asked for want of a key is not to be taken for a server that doesn't answer
    with production_lock(store):
        intent = store.intent("production")
        if intent is None:
            return ""
        if intent.failed:
            _go_back(platform, intent)
            return f"went back from {intent.after}, which did not verify, to {intent.before or 'nothing'}"
        pointer = store.pointer("production")
        before, after = (intent.before, intent.generation_before), (intent.after, intent.generation)
        if (pointer.release, pointer.generation(pointer.release)) == after != before:
            _finish(platform, intent)
            return f"finished the {intent.action} to {intent.after} that was left open"
        _undo(platform, intent)
        return f"undid the {intent.action} to {intent.after} that was left open"


def meant(store: Store, to: str | None) -> str | None:
    """The id of the release that a person would go back to who calls it so. Raises what `Store.named` raises."""
    return store.named(to, store.pointer("production").retained).id if to else None


def check_way_back(store: Store, to: str | None) -> None:
    """Raises BadInput when production can't go back to what a person calls so, or not without being told where to."""
    _way_back(store.pointer("production"), None, meant(store, to))


def back_to(
    platform: Platform, to: str | None, by: str, reason: str, retain: int, progress: Progress = unseen
) -> Promotion:
    """Production back to a retained release (the latest one by default), with a hold, and proved by an idle window.

    A proof that fails does not undo it. Raises BadInput when there is none to go back to, or a hold says that this
    was done and `to` does not say where else to go; ReleaseFailed when it does not verify.
    """
    store = platform.store
    with production_lock(store):
        pointer = store.pointer("production")
        target = _way_back(pointer, None, to)
        whole(store, store.get_release(target.release))
        return _roll_back(platform, pointer, target, by, reason, retain, progress=progress)


def back_now(
    platform: Platform, to: str | None, by: str, reason: str, retain: int, tell: Callable[[str], None]
) -> Promotion:
    """As `back_to`, and all that it waits for is the boot of the release that it goes back to.

    A process that moves production just now is killed, and a move that one left open is taken back with it: by
    default production then has what it had before that. Nothing is looked at twice: there is no trial, no idle window
    afterwards, and of the ledger nothing is needed. `tell` is told what happens meanwhile.

    Raises what `back_to` raises; BadInput, too, when another rollback was faster.
    """
    store = platform.store
    seen = store.pointer("production").version
    with seized(store, tell):
        pointer, left = store.pointer("production"), _left_open(store, tell)
        if left is None and pointer.version != seen and to is None:
            refuse_on_hold(pointer)  # it was done meanwhile
        target = _way_back(pointer, left, to)
        return _roll_back(platform, pointer, target, by, reason, retain, at_once=True)


def _left_open(store: Store, tell: Callable[[str], None]) -> Intent | None:
    """The move that was left open; none when what is known of it can't be read, which is said."""
    try:
        return store.intent("production")
    except ToolingError as error:
        tell(f"{error.what}: taken as none")
        return None


class _Way(NamedTuple):
    release: str
    generation: str


def _way_back(pointer: StagePointer, left: Intent | None, to: str | None) -> _Way:
    """What a rollback goes to. `left`: a move that was left open, which is taken back, or finished if it is one.

    Raises BadInput when there is nothing, or it has to be said.
    """
    if left is None:
        before = None
    elif left.action == "rollback":
        before = _Way(left.after, left.generation)
    else:
        before = _Way(left.before, left.generation_before) if left.before else None
    if before and to in (None, before.release):
        return before
    if to is None and pointer.hold:
        raise BadInput(
            "production was rolled back already, and is on hold",
            evidence=f"by {pointer.hold.by} at {pointer.hold.at:%Y-%m-%d %H:%M} UTC: {pointer.hold.reason}; "
            f"it has {pointer.release or 'nothing'}, retained: {', '.join(pointer.retained) or 'none'}",
            todo="say with --to which of them it is to go to now",
        )
    target = to or next(iter(pointer.retained), None)
    if target is None or target not in pointer.retained:
        raise BadInput(
            f"production cannot go back to {target or 'anything'}",
            evidence=f"retained: {', '.join(pointer.retained) or 'none'}",
            todo="choose one of the retained releases (`llama-release status`)",
        )
    return _Way(target, pointer.generation(target))


def _roll_back(
    platform: Platform,
    pointer: StagePointer,
    target: _Way,
    by: str,
    reason: str,
    retain: int,
    *,
    at_once: bool = False,
    progress: Progress = unseen,
) -> Promotion:
    """The caller holds production's lock."""
    release = platform.store.get_release(target.release)
    intent = Intent(
        stage="production",
        action="rollback",
        before=pointer.release,
        after=target.release,
        generation_before=pointer.generation(pointer.release),
        generation=target.generation,
        dossier=None,
        by=by,
        note=reason,
    )
    moved = _pointing(pointer, target.release, target.generation, _retained(pointer, target.release, retain))
    moved = moved.model_copy(update={"hold": Hold(reason=reason, by=by)})
    proof = _move(platform, intent, release, moved, at_once=at_once, progress=progress)
    return Promotion(
        release=release,
        replaced=pointer.release,
        dossier=None,
        approver=by,
        retained=moved.retained,
        at=intent.at,
        proof=proof,
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


def to_staging(
    platform: Platform, release: Release, generation: str | None = None, progress: Progress = unseen
) -> tuple[Endpoint, dict[str, object]]:
    """Have staging serve a release; where it answers, and the proof that it does.

    Of this generation, or without one as whichever it has. What was verified of an earlier server of the release is
    forgotten before another one takes its place: nobody has seen the new one come back yet.
    """
    store = platform.store
    pointer = store.pointer("staging")
    if generation is None:
        generation = pointer.generation(release.id)

    def check(at: Endpoint) -> None:
        for name in (STAGING, restore.NAME):
            store.forget_verification(release.id, name)
        store.forget_cycles(release.id)
        check_serving(at, release)

    endpoint = _deploy(platform, "staging", release, check, generation=generation, progress=progress)
    evidence = _prove_serving(platform, "staging", release)
    if (pointer.release, pointer.generation(release.id)) != (release.id, generation):
        store.save_pointer(_pointing(pointer, release.id, generation, ()))
    return endpoint, evidence


@stage("staging", "staging {release.label}")
def staging(row: Row, platform: Platform, release: Release, generation: str | None = None) -> Endpoint:
    """Staging serves the release at its own address. Recorded in the dossier."""
    row.progress(0, 1, "starting the server")
    endpoint, evidence = to_staging(platform, release, generation, row.progress)
    summary = f"up on {endpoint.base_url}, answers as {release.upstream.tag}-{release.tree[:9]}"
    warmed = platform.warm("staging", row.progress)
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
    row.done("; ".join(filter(None, (summary, warmed))), release=release.id)
    return endpoint


@stage("production", "{action} {dossier.release.label}")
def promote(
    row: Row,
    platform: Platform,
    dossier: Dossier,
    approval: Approval,
    retain: int,
    action: Literal["promote", "redeploy"] = "promote",
) -> Promotion:
    """Production serves the approved release. Refuses, or puts everything back, as `swap` says."""
    row.progress(0, 1, "new server up and verified before traffic moves")
    done = swap(platform, dossier, approval, retain, action, row.progress)
    row.done(*_told(platform, done), release=done.release.id)
    return done


@stage("rollback", "roll production back")
def rollback(row: Row, platform: Platform, to: str | None, by: str, reason: str, retain: int) -> Promotion:
    """Production serves a retained release again, a hold is set, and an idle window tells whether it comes back."""
    row.progress(0, 1, "retained server up and verified before traffic moves")
    done = back_to(platform, to, by, reason, retain, row.progress)
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
    proof = f"; {done.proof}" if done.proof else ""
    rows += [("proof", done.proof)] if done.proof else []
    return (
        f"{done.release.upstream.tag} answers at {at}{proof}; retained for rollback: {kept}",
        markdown_table(("what", "is"), [*rows, ("retained", kept), ("dossier", done.dossier or "none")]),
    )
