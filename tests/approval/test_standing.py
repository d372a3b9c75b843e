"""When a question still stands: by the store alone, with no Prefect server anywhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import pytest

from tasks.approval import recorded, refuse
from tasks.approval.attend import given, stale
from tasks.release import Approval, BadInput, Hold, Request, StagePointer, ToolingError, Verdict, now
from tasks.store import Store
from tests.approval.asking import OTHER, RELEASE, a_dossier

NOWHERE = "http://127.0.0.1:9/api"


def a_request(store: Store, **changes: Any) -> Request:
    """An open question about a release that is verified and staged."""
    dossier = a_dossier(store)
    asked = Request(
        run="00000000-0000-4000-8000-000000000001",
        name="upgrade to b11434",
        api_url=NOWHERE,
        link="",
        suspended=True,
        tag="b11434",
        release=RELEASE.id,
        dossier=dossier.digest,
        required=dossier.required,
        expected=None,
        asked_at=now(),
        expires_at=now() + timedelta(hours=1),
    )
    return store.save_request(asked.model_copy(update=changes))


def move_production(store: Store) -> None:
    store.save_release(OTHER)
    store.save_pointer(StagePointer(stage="production", release=OTHER.id))


def move_staging(store: Store) -> None:
    store.save_pointer(StagePointer(stage="staging", release=OTHER.id))


def change_dossier(store: Store) -> None:
    a_dossier(store, verdict=Verdict.FAILED)


def change_evidence(store: Store) -> None:
    a_dossier(store, verdict=Verdict.INCONCLUSIVE)


def test_a_question_stands_while_nothing_moved(store: Store) -> None:
    request = a_request(store)
    assert stale(store, request) == ""
    refuse(store, request)
    refuse(store, None)
    assert store.request(request.run) == request


@pytest.mark.parametrize(
    ("moved", "why"),
    [
        (move_production, "production moved: asked to replace nothing, it is"),
        (move_staging, "staging serves"),
        (change_dossier, r"the dossier changed: asked about \w+, it is \w+ now; a failed: s"),
        (change_evidence, r"the dossier changed: asked about \w+, it is \w+ now\s"),
    ],
)
def test_an_answer_to_a_question_that_no_longer_stands_is_refused(store: Store, moved: Any, why: str) -> None:
    request = a_request(store)
    moved(store)
    with pytest.raises(BadInput, match=rf"no longer stands[\s\S]*{why}[\s\S]*it will ask again"):
        refuse(store, request)
    closed = store.request(request.run)
    assert closed
    assert closed.state == "withdrawn"
    assert [e.kind for e in store.ledger()] == ["approval_withdrawn"]


def test_an_answer_to_a_withdrawn_question_is_refused_with_the_reason(store: Store) -> None:
    request = a_request(store, state="withdrawn", reason="staging failed: it crashed")
    with pytest.raises(BadInput, match="staging failed: it crashed"):
        refuse(store, request)


def test_an_answer_to_an_expired_question_is_refused(store: Store) -> None:
    request = a_request(store, state="expired", reason="nobody decided until noon")
    with pytest.raises(ToolingError, match=r"nobody decided on dossier[\s\S]*until noon"):
        refuse(store, request)


def test_a_run_whose_release_is_in_production_already_is_not_refused(store: Store) -> None:
    request = a_request(store)
    store.save_pointer(StagePointer(stage="production", release=RELEASE.id))
    refuse(store, request)


def an_answer(request: Request, decision: Literal["approve", "reject"] = "approve") -> Approval:
    return Approval(
        release=request.release, dossier=request.dossier, expected=request.expected, version=request.version,
        request=request.key, decision=decision, approver="ada",
    )  # fmt: skip


def lift_a_hold(store: Store) -> None:
    """Production as it was, but for a hold that came and went."""
    pointer = store.pointer("production")
    store.save_pointer(pointer.model_copy(update={"hold": Hold(reason="broken", by="carol")}))
    store.save_pointer(pointer)


def test_an_approval_answers_its_own_question_only(store: Store) -> None:
    request = a_request(store)
    earlier = request.model_copy(update={"asked_at": request.asked_at - timedelta(seconds=1)})
    store.save_approval(an_answer(earlier))
    assert given(store, request) is None
    store.save_approval(an_answer(request))
    answer = given(store, request)
    assert answer and answer.request == request.key


def test_a_question_does_not_outlive_a_hold(store: Store) -> None:
    request = a_request(store)
    lift_a_hold(store)
    assert "or a hold did" in stale(store, request)


def test_what_a_run_that_died_was_given_is_taken_for_the_same_dossier_and_production_only(store: Store) -> None:
    request = a_request(store, state="answered")
    store.save_approval(an_answer(request))
    dossier, production = a_dossier(store), store.pointer("production")
    assert recorded(store, dossier, production) == store.approval(request.key)
    assert recorded(store, a_dossier(store, verdict=Verdict.INCONCLUSIVE), production) is None
    lift_a_hold(store)
    assert recorded(store, dossier, store.pointer("production")) is None, "it was for production before that"


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_an_approval_is_void_once_something_else_was_asked_or_it_was_rejected(
    store: Store, decision: Literal["approve", "reject"]
) -> None:
    request = a_request(store, state="answered")
    store.save_approval(an_answer(request))
    later = request.model_copy(update={"run": "another", "asked_at": request.asked_at + timedelta(seconds=1)})
    store.save_request(later.model_copy(update={"release": OTHER.id, "dossier": "other"}))
    assert recorded(store, a_dossier(store), store.pointer("production")) is None
    store.save_request(later)
    store.save_approval(an_answer(later, decision))
    found = recorded(store, a_dossier(store), store.pointer("production"))
    assert bool(found) is (decision == "approve")
