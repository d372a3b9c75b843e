"""When a question still stands: by the store alone, with no Prefect server anywhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tasks.approval import recorded, refuse
from tasks.approval.attend import given, stale
from tasks.release import Approval, BadInput, Request, StagePointer, ToolingError, Verdict, now
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


def test_an_approval_from_before_the_question_does_not_answer_it(store: Store) -> None:
    request = a_request(store)
    approval = Approval(
        release=RELEASE.id, dossier=request.dossier, expected=None, decision="reject", approver="bob",
        at=request.asked_at - timedelta(seconds=1),
    )  # fmt: skip
    store.save_approval(approval)
    assert given(store, request) is None
    later = approval.model_copy(update={"at": now()})
    store.save_approval(later)
    assert given(store, request) == later


def test_what_a_run_that_died_was_given_is_taken_for_the_same_dossier_and_production_only(store: Store) -> None:
    dossier = a_dossier(store)
    approval = Approval(
        release=RELEASE.id, dossier=dossier.digest, expected=None, decision="approve", approver="ada"
    )  # fmt: skip
    store.save_approval(approval)
    assert recorded(store, dossier, None) == approval
    assert recorded(store, dossier, OTHER.id) is None, "it was to replace nothing"
    assert recorded(store, a_dossier(store, verdict=Verdict.INCONCLUSIVE), None) is None
    store.save_approval(approval.model_copy(update={"decision": "reject"}))
    assert recorded(store, dossier, None) is None
