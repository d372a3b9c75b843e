"""What no dossier is whole without, and what a flow does before anything else: no server of a release runs here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import check_parameters
from flows.redeploy import redeploy
from flows.required import required
from flows.restore_watch import restore_watch
from flows.rollback import rollback
from flows.upgrade import upgrade
from tasks import contracts
from tasks.contracts.scripted import build as build_model
from tasks.contracts.scripted import thinks_forever
from tasks.release import BadInput, Hold, Intent, Request, StagePointer, now
from tasks.store import Store
from tests.flows.conftest import REPOSITORY
from tests.test_release import a_release

RELEASE, OTHER = a_release(), a_release(alias="other")
ON_HOLD = StagePointer(stage="production", hold=Hold(reason="tool calls broke", by="carol"))


def test_a_dossier_is_whole_with_the_verification_of_every_stage_and_every_promise() -> None:
    stages = {"patches", "preflight", "surface", "staging", "restore", "evals"}
    assert set(required()) == stages | set(contracts.required())


def test_a_name_and_a_reason_are_not_blank() -> None:
    for given in ({"by": "  ", "reason": "worse"}, {"by": "ada", "reason": ""}):
        with pytest.raises(BadInput, match="rollback does not take this"):
            check_parameters(rollback, **given)
    check_parameters(rollback, by="ada", reason="worse")


@pytest.fixture
def machine(
    page: str,  # noqa: ARG001 - it is in force
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Store:
    """The store of a machine that has all that an upgrade needs but a package index, in force here."""
    for name in [name for name in os.environ if name.startswith(("LLAMA_", "PREFECT_", "PIP_"))]:
        monkeypatch.delenv(name)
    model = build_model(thinks_forever(), tmp_path / "model.gguf")
    for name, value in {
        "LLAMA_RELEASE_STORE": tmp_path / "store",
        "LLAMA_RELEASE_CACHE": tmp_path / "cache",
        "LLAMA_RELEASE_PATCHES": REPOSITORY / "patches",
        "LLAMA_RELEASE_SERVER__MODEL": model,
        "LLAMA_RELEASE_LOCAL__STAGING_PORT": 0,
        "LLAMA_RELEASE_LOCAL__PRODUCTION_PORT": 0,
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_RETRIES": 0,
    }.items():
        monkeypatch.setenv(name, str(value))
    store = Store(tmp_path / "store")
    for release in (RELEASE, OTHER):
        store.save_release(release)
    return store


FLOWS: dict[str, Callable[[], Any]] = {
    "upgrade": upgrade,
    "redeploy": lambda: redeploy(by="ada", reason="new key"),
    "rollback": lambda: rollback(by="ada", reason="worse"),
    "restore watch": restore_watch,
}


@pytest.mark.wire
@pytest.mark.parametrize("name", FLOWS)
def test_a_move_that_was_left_open_is_undone_before_anything_else(name: str, machine: Store) -> None:
    machine.open_intent(
        Intent(stage="production", action="promote", before=None, after=RELEASE.id, dossier=None, by="ada")
    )
    machine.save_pointer(ON_HOLD)
    refused = nullcontext() if name == "restore watch" else pytest.raises(BadInput)  # there is nothing else to do here
    with refused:
        FLOWS[name]()
    assert machine.intent("production") is None
    assert next(event.kind for event in machine.ledger()) == "move_undone"


@pytest.mark.wire
@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler here, which an upgrade looks for first")
def test_a_hold_stops_an_upgrade_before_upstream_is_asked(machine: Store) -> None:
    machine.save_pointer(ON_HOLD)
    with pytest.raises(BadInput, match="production is on hold"):
        upgrade()


@pytest.mark.wire
def test_only_what_production_has_or_retains_is_redeployed_and_during_a_hold_only_what_it_has(machine: Store) -> None:
    machine.save_pointer(ON_HOLD.model_copy(update={"release": RELEASE.id}))
    with pytest.raises(BadInput, match=rf"with what it has or retains, not with {OTHER.id}"):
        redeploy(by="ada", reason="new key", release=OTHER.id)
    machine.save_pointer(ON_HOLD.model_copy(update={"release": RELEASE.id, "retained": (OTHER.id,)}))
    with pytest.raises(BadInput, match="production is on hold"):
        redeploy(by="ada", reason="new key", release=OTHER.id)
    assert machine.redeploy() is None


@pytest.mark.wire
def test_the_watch_looks_after_questions_and_leaves_the_release_lock_to_others(machine: Store) -> None:
    asked = Request(
        run="00000000-0000-4000-8000-000000000001", name="upgrade to b11434", api_url="http://127.0.0.1:9/api", link="",
        suspended=False, tag="b11434", release=RELEASE.id, dossier="d", required=(), expected=None, asked_at=now(),
        expires_at=now() + timedelta(hours=1),
    )  # fmt: skip
    machine.save_request(asked)
    with machine.lock("release", holder={"name": "an upgrade"}):
        restore_watch()
        assert machine.ledger() == [], "it belongs to whoever holds the lock"
    restore_watch()
    (told,) = machine.ledger()
    assert (told.kind, told.summary.rpartition(": ")[2]) == ("approval_withdrawn", "its process ended")
