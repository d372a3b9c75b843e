"""What happens while a person thinks: real runs that wait on a real Prefect server, staging played."""

from __future__ import annotations

import contextvars
import threading
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import State, get_client
from prefect.input.run_input import keyset_from_paused_state
from prefect.states import Paused, Running, Suspended

from tasks.approval import Decision, attend, held, waiting
from tasks.approval.attend import close
from tasks.release import BadInput, Request, now
from tasks.store import Store
from tests.approval.asking import RELEASE, asking, platform_on
from tests.approval.conftest import Deployed
from tests.approval.test_standing import a_request, change_dossier, move_production, move_staging
from tests.platforms.stand import until

pytestmark = pytest.mark.wire

HOUR = timedelta(hours=1)


def open_question(deployed: Deployed, page: str, suspended: bool = True, **changes: Any) -> Request:
    """A run that waits for a person, as `ask` leaves it."""
    run = deployed.create()
    request = a_request(deployed.store, run=str(run), api_url=f"{page}/api", suspended=suspended, **changes)
    waits: State[None] = (Suspended if suspended else Paused)(timeout_seconds=3600, pause_key=request.key)
    keys = keyset_from_paused_state(waits)
    waits.state_details.run_input_keyset = {str(name): key for name, key in keys.items()}
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Running(), force=True)
        client.set_flow_run_state(run, waits, force=True)
    Decision.save(keys, run)
    return request


def look(deployed: Deployed, **approval_settings: int) -> list[str]:
    """What one look after the open questions adds to the ledger."""
    before = len(deployed.store.ledger())
    attend(*platform_on(deployed.store.root, **approval_settings))
    return [e.kind for e in deployed.store.ledger()[before:]]


def test_a_question_that_stands_is_left_alone_and_keeps_another_upgrade_waiting(deployed: Deployed, page: str) -> None:
    request = open_question(deployed, page)
    assert look(deployed) == []
    assert waiting(deployed.store, RELEASE) == request
    assert deployed.state(UUID(request.run))[0] == "Suspended"


def test_reminders_come_at_their_interval(deployed: Deployed, page: str) -> None:
    request = open_question(deployed, page, asked_at=now() - HOUR)
    assert look(deployed, remind_s=1800, probe_s=86400) == ["approval_reminder"]
    assert look(deployed, remind_s=1800, probe_s=86400) == []
    (reminder,) = deployed.store.ledger()
    assert reminder.detail["command"] == f"llama-release approve {request.run}"


@pytest.mark.parametrize(
    ("moved", "why"),
    [(move_production, "production moved"), (move_staging, "staging serves"), (change_dossier, "the dossier changed")],
)
def test_a_question_that_no_longer_stands_is_withdrawn_and_its_run_cancelled(
    deployed: Deployed, page: str, moved: Any, why: str
) -> None:
    request = open_question(deployed, page)
    moved(deployed.store)
    assert look(deployed) == ["approval_withdrawn"]
    assert look(deployed) == []
    closed = deployed.request(UUID(request.run))
    assert closed.state == "withdrawn"
    name, message = deployed.state(UUID(request.run))
    assert name == "Cancelled"
    assert message == f"withdrawn: {closed.reason}"
    assert why in message


def test_a_question_that_nobody_answers_expires(deployed: Deployed, page: str) -> None:
    request = open_question(deployed, page, expires_at=now())
    assert look(deployed) == ["approval_expired"]
    assert deployed.request(UUID(request.run)).state == "expired"
    assert deployed.state(UUID(request.run))[0] == "Cancelled"


def test_an_answered_run_is_left_alone_however_late_its_worker_is(deployed: Deployed, page: str) -> None:
    request = open_question(deployed, page, expires_at=now() + timedelta(seconds=1))
    with get_client(sync_client=True) as client:
        client.resume_flow_run(UUID(request.run), run_input={"decision": "approve", "approver": "ada"})
    deployed.store.save_request(request.model_copy(update={"expires_at": now()}))
    move_staging(deployed.store)
    assert look(deployed) == []
    assert deployed.state(UUID(request.run))[0] == "Resuming"


def test_a_question_whose_run_was_ended_elsewhere_is_closed(deployed: Deployed, page: str) -> None:
    request = open_question(deployed, page)
    close(deployed.store, request, "withdrawn", "bob cancelled it")
    deployed.store.save_request(request)
    assert waiting(deployed.store, RELEASE) is None
    assert look(deployed) == ["approval_withdrawn"]
    assert deployed.request(UUID(request.run)).reason == "its run ended: withdrawn: bob cancelled it"


def test_a_question_that_waited_in_a_process_of_its_own_died_with_it(deployed: Deployed, page: str) -> None:
    request = open_question(deployed, page, suspended=False)
    assert waiting(deployed.store, RELEASE) is None
    assert look(deployed) == ["approval_withdrawn"]
    assert deployed.request(UUID(request.run)).reason == "its process ended"


@pytest.mark.usefixtures("page")
def test_a_question_whose_prefect_server_is_gone_keeps_nobody_waiting(store: Store) -> None:
    a_request(store)
    assert waiting(store, RELEASE) is None


@pytest.mark.usefixtures("page")
def test_a_paused_run_ends_with_the_reason_when_its_question_is_withdrawn(store: Store) -> None:
    def meanwhile() -> None:
        until(lambda: any(r.state == "open" and (s := held.state(r)) and s.is_paused() for r in store.requests()), 60)
        move_production(store)

    person = threading.Thread(target=contextvars.copy_context().run, args=(meanwhile,))
    person.start()
    with pytest.raises(BadInput, match=r"no longer stands[\s\S]*production moved"):
        asking(str(store.root))
    person.join()
    (request,) = store.requests()
    assert request.state == "withdrawn"
    assert store.approval(request.key) is None
    assert [e.kind for e in store.ledger()] == ["approval_wanted", "approval_withdrawn"]
    assert not [t for t in threading.enumerate() if t.name == "attend"]
