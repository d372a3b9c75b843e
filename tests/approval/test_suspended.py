"""Runs of a deployment: they end while a person thinks, and go on from the top when one has decided."""

from __future__ import annotations

import pytest

from tasks.approval import held
from tests.approval.asking import RELEASE
from tests.approval.conftest import Deployed
from tests.approval.test_standing import move_production

pytestmark = pytest.mark.wire

APPROVED = {"decision": "approve", "approver": "ada", "note": "fine"}


def test_a_suspended_run_holds_no_lock_and_goes_on_with_the_answer(deployed: Deployed) -> None:
    run = deployed.suspended()
    asked = deployed.request(run)
    assert (asked.state, asked.suspended, asked.tag) == ("open", True, "b11434")
    with deployed.store.lock("release", holder={}):
        pass
    held.answer(run, APPROVED)
    deployed.execute(run)
    assert deployed.state(run)[0] == "Promoted"
    assert deployed.request(run).state == "answered"
    recorded = deployed.store.approval(asked.key)
    assert recorded
    assert (recorded.approver, recorded.note) == ("ada", "fine")
    assert [e.kind for e in deployed.store.ledger()] == ["approval_wanted", "approved"]


def test_another_run_waits_behind_the_question_and_an_answer_is_refused_when_production_moved(
    deployed: Deployed,
) -> None:
    run = deployed.suspended()
    another = deployed.execute(deployed.create()).state
    assert another
    assert (another.name, another.message) == ("Waiting", f"waiting: {RELEASE.label}; {run}")
    held.answer(run, APPROVED)
    move_production(deployed.store)
    refused = deployed.execute(run).state
    assert refused
    assert refused.is_failed()
    assert "no longer stands" in (refused.message or "")
    assert "production moved" in (refused.message or "")
    assert deployed.request(run).state == "withdrawn"
