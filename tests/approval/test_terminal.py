"""`llama-release approve`: a real command against real waiting runs on a real Prefect server."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest

from tasks.approval import terminal
from tasks.release import BadInput, ToolingError
from tasks.store import Store
from tests.approval.conftest import Deployed
from tests.approval.test_attend import open_question
from tests.approval.test_standing import a_request, an_answer, move_production
from tests.flows.conftest import REPOSITORY


def approve(store: Store, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows", "approve", *words],
        cwd=REPOSITORY, env=os.environ | {"LLAMA_RELEASE_STORE": str(store.root), "COLUMNS": "160"}, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
    )  # fmt: skip


@pytest.mark.wire
def test_a_run_that_waits_goes_on_with_what_was_said_in_a_terminal(deployed: Deployed, page: str) -> None:
    request = open_question(deployed, page)
    done = approve(deployed.store, request.name, "--by", "ada", "--note", "looks good")
    assert done.returncode == 0, done.stderr
    assert f"dossier {request.dossier}" in done.stdout
    assert deployed.state(UUID(request.run))[0] == "Resuming"
    refused = approve(deployed.store, request.run, "--reject")
    assert refused.returncode == 2
    assert "the run does not wait: it is Resuming" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.wire
def test_a_shell_with_nothing_set_answers_with_what_the_store_knows(
    deployed: Deployed, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = open_question(deployed, page)
    kept = deployed.store.root / "prefect" / "password"
    kept.parent.mkdir(parents=True)
    kept.write_text(os.environ["PREFECT_API_AUTH_STRING"])
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    monkeypatch.delenv("PREFECT_API_URL")
    done = approve(deployed.store, request.run, "--by", "ada")
    assert done.returncode == 0, done.stderr
    assert deployed.state(UUID(request.run))[0] == "Resuming"


def test_a_run_that_nobody_knows_is_named_with_those_that_wait(store: Store) -> None:
    with pytest.raises(BadInput, match=r"no run x has asked[\s\S]*waiting: none"):
        terminal.find(store, "x")
    request = a_request(store)
    with pytest.raises(BadInput, match=rf"waiting: {request.run} \(upgrade to b11434\)"):
        terminal.find(store, "x")
    assert terminal.find(store, request.run) == terminal.find(store, request.name) == request


@pytest.mark.parametrize("state", ["withdrawn", "expired"])
def test_a_question_that_has_ended_cannot_be_answered(store: Store, state: Any) -> None:
    request = a_request(store, state=state, reason="as it was")
    with pytest.raises(BadInput, match=f"it is {state}: as it was"):
        terminal.decide(store, request, "approve", "ada", "")


def test_a_question_is_answered_once(store: Store) -> None:
    request = a_request(store)
    store.save_approval(an_answer(request, "reject"))
    with pytest.raises(BadInput, match="ada decided at .* UTC: reject"):
        terminal.decide(store, request, "approve", "bob", "")


def test_nobody_can_approve_when_production_has_moved(store: Store) -> None:
    request = a_request(store)
    move_production(store)
    with pytest.raises(BadInput, match="production moved"):
        terminal.decide(store, request, "approve", "ada", "")


def test_a_server_that_is_gone_is_said_to_be(store: Store) -> None:
    request = a_request(store)
    with pytest.raises(ToolingError, match=r"is not there[\s\S]*127.0.0.1:9"):
        terminal.decide(store, request, "approve", "ada", "")
