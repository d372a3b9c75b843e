"""Runs of a deployment: they end while a person thinks, and go on from the top when one has decided."""

from __future__ import annotations

import pytest

from tasks.approval import held
from tests.approval.conftest import Deployed

pytestmark = pytest.mark.wire

APPROVED = {"decision": "approve", "approver": "ada", "note": "fine"}


def test_a_suspended_run_holds_no_lock_and_goes_on_with_the_answer(deployed: Deployed) -> None:
    run = deployed.suspended()
    asked = deployed.request(run)
    assert (asked.state, asked.suspended, asked.tag) == ("open", True, "b11434")
    with deployed.store.lock("release", holder={}):
        pass
    held.answer(run, APPROVED)
    assert deployed.execute(run).state.name == "Promoted"  # type: ignore[union-attr]
    assert deployed.request(run).state == "answered"
    recorded = deployed.store.approval(asked.dossier)
    assert recorded
    assert (recorded.approver, recorded.note) == ("ada", "fine")
    assert [e.kind for e in deployed.store.ledger()] == ["approval_wanted", "approved"]
