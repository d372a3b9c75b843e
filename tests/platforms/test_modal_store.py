"""The store on a Volume: documents, what is kept on this machine, and locks that outlive their holders' machines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest
from grpclib import Status

from modal_app.settings import ModalSettings
from tasks.evals.collect import Book
from tasks.evals.model import ItemAnswer, Outcome
from tasks.platforms.modal import account
from tasks.platforms.modal import store as modal_store
from tasks.platforms.modal.store import LEASE_S, RENEW_S, VolumeFiles
from tasks.release import Event, Hold, Intent, StagePointer, ToolingError
from tasks.store import Store
from tests.fakes.modal import FakeModal, Fault
from tests.platforms.modal_stand import fake_modal

pytestmark = [pytest.mark.wire, pytest.mark.filterwarnings("error::modal.exception.AsyncUsageWarning")]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeModal]:
    with fake_modal(tmp_path / "fake") as fake:
        yield fake


def on_machine(tmp_path: Path, name: str) -> Store:
    """The one store, as another machine sees it."""
    return Store(tmp_path / name, VolumeFiles(ModalSettings(), tmp_path / name / "mirror"))


@pytest.fixture
def store(tmp_path: Path, fake: FakeModal) -> Store:  # noqa: ARG001 - where the store is
    return on_machine(tmp_path, "here")


def test_what_one_machine_writes_another_reads(store: Store, tmp_path: Path) -> None:
    pointer = StagePointer(stage="production", release="r1", hold=Hold(reason="why", by="carol"))
    store.save_pointer(pointer)
    store.save_pointer(pointer.model_copy(update={"release": "r2"}))
    assert on_machine(tmp_path, "there").pointer("production").release == "r2"
    assert store.pointer("staging") == StagePointer(stage="staging")


def test_the_ledger_is_in_order_and_read_once(store: Store, fake: FakeModal, tmp_path: Path) -> None:
    for n in range(3):
        store.log(Event(kind=f"k{n}", summary="s"))
    there = on_machine(tmp_path, "there")
    assert [event.kind for event in there.ledger()] == ["k0", "k1", "k2"]
    before = len(fake.requests("VolumeGetFile2"))
    assert [event.kind for event in there.ledger()] == ["k0", "k1", "k2"]
    assert len(fake.requests("VolumeGetFile2")) == before


def test_what_is_not_there_is_nothing_and_removing_it_no_error(store: Store) -> None:
    assert store.files.read("stages/production.json") is None
    assert store.files.names("releases/*.json") == []
    store.close_intent("production")
    intent = Intent(stage="production", action="promote", before=None, after="r", dossier=None, by="a")
    store.open_intent(intent)
    assert store.intent("production") == intent
    store.close_intent("production")
    assert store.intent("production") is None


def test_answers_grow_here_and_are_shared_with_other_machines(store: Store, tmp_path: Path) -> None:
    here = Book(store.answers_path("r1", "set"))
    here.keep(ItemAnswer(item="1", outcome=Outcome.CORRECT))
    assert not Book(on_machine(tmp_path, "early").answers_path("r1", "set"))
    store.share_answers(here.path)
    there = on_machine(tmp_path, "there")
    assert Book(there.answers_path("r1", "set"))["1"].right
    assert not Book(there.answers_path("r1", "set", again=True))
    store.files.remove("answers/r1")
    assert not Book(on_machine(tmp_path, "late").answers_path("r1", "set"))


def test_a_folder_is_removed_with_all_that_is_in_it(store: Store) -> None:
    for name in ("a", "b"):
        store.files.write(f"dossiers/r1/{name}.json", "{}")
    store.files.write("dossiers/r2/a.json", "{}")
    store.files.remove("dossiers/r1")
    assert store.files.names("dossiers/*/*.json") == ["dossiers/r2/a.json"]


def test_a_held_lock_is_refused_with_its_holders_name_and_is_free_afterwards(store: Store, tmp_path: Path) -> None:
    there = on_machine(tmp_path, "there")
    with store.lock("release", holder={"name": "upgrade to b1"}):
        with pytest.raises(ToolingError, match="another process holds the lock release") as caught:
            there.lock("release", holder={}).__enter__()
        assert "upgrade to b1" in caught.value.evidence
        with there.lock("production", holder={}):
            pass
    with pytest.raises(ZeroDivisionError), there.lock("release", holder={}):
        raise ZeroDivisionError
    told: list[object] = []
    with store.lock("release", holder={}, stale=told.append):
        assert told == [], "who let go has left nothing"


def test_the_lock_of_a_killed_process_of_this_machine_is_free_at_once(store: Store, tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from tests.platforms.test_modal_store import on_machine\n"
        "held = on_machine(Path(sys.argv[1]), 'child').lock('release', holder={'name': 'killed'})\n"
        "held.__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60, check=False)
    told: list[dict[str, object]] = []
    with store.lock("release", holder={}, stale=told.append):
        assert [left["name"] for left in told] == ["killed"]


def test_the_process_of_this_machine_that_holds_a_lock_is_known_while_it_renews_its_lease(store: Store) -> None:
    assert store.lock_holder("production") is None
    with store.lock("production", holder={}):
        assert store.lock_holder("production") == os.getpid()
    assert store.lock_holder("production") is None
    locks = modal.Dict.from_name("llama-release-locks", create_if_missing=True)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
    for holder, pid in (
        (mine, os.getpid()),
        ({**mine, "renewed": time.time() - 3 * RENEW_S}, None),
        ({**mine, "host": "elsewhere"}, None),
    ):
        locks.put("production/7", json.dumps(holder))
        assert store.lock_holder("production") == pid


@pytest.mark.parametrize(("silent_s", "free"), [(LEASE_S - 60, False), (LEASE_S + 1, True)])
def test_a_holder_on_another_machine_keeps_its_lock_while_it_renews_its_lease(
    store: Store, silent_s: float, free: bool
) -> None:
    locks = modal.Dict.from_name("llama-release-locks", create_if_missing=True)
    holder = {"host": "elsewhere", "pid": 1, "name": "theirs", "renewed": time.time() - silent_s}
    locks.put("release/7", json.dumps(holder))
    told: list[dict[str, object]] = []
    if free:
        with store.lock("release", holder={}, stale=told.append):
            assert [left["name"] for left in told] == ["theirs"]
    else:
        with pytest.raises(ToolingError, match="another process holds the lock"):
            store.lock("release", holder={}).__enter__()


def test_a_lease_is_renewed_while_the_lock_is_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modal_store, "RENEW_S", 0.01)
    locks = modal.Dict.from_name("llama-release-locks", create_if_missing=True)
    with store.lock("release", holder={}):
        first = json.loads(locks["release/1"])
        assert (first["host"], first["pid"]) == (socket.gethostname(), os.getpid())
        deadline = time.monotonic() + 20
        while json.loads(locks["release/1"])["renewed"] == first["renewed"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(locks["release/1"])["renewed"] > first["renewed"]


@pytest.mark.parametrize("slept", [False, True], ids=["noticed when it is renewed", "noticed before a write"])
def test_a_holder_that_has_lost_its_lease_changes_nothing_more(
    slept: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modal_store, "RENEW_S", 600)
    locks = modal.Dict.from_name("llama-release-locks", create_if_missing=True)
    there = on_machine(tmp_path, "there")
    assert isinstance(store.files, VolumeFiles)
    with store.lock("release", holder={}):
        store.save_pointer(StagePointer(stage="staging", release="r1"))
        locks.put("release/1", json.dumps({"host": "elsewhere", "pid": 1, "renewed": 0}))
        with there.lock("release", holder={"name": "another"}):
            if slept:
                monkeypatch.setattr(modal_store, "LEASE_S", 0.0)  # more than half of it has gone by
            else:
                with pytest.raises(ToolingError, match="was lost"):
                    store.files._leases[0].renew()  # as its thread does
            for change in (
                lambda: store.save_pointer(StagePointer(stage="staging", release="r2")),
                lambda: store.close_intent("production"),
                lambda: store.log(Event(kind="promoted", summary="s")),
            ):
                with pytest.raises(ToolingError, match="the lock release was lost: another process has it"):
                    change()
            assert there.pointer("staging").release == "r1"
            assert there.ledger() == []
            there.save_pointer(StagePointer(stage="staging", release="r3"))
    assert json.loads(locks["release/2"]) == {"free": True}
    assert "release/1" not in locks
    store.save_pointer(StagePointer(stage="staging", release="r4"))


def test_a_volume_that_does_not_answer_is_a_problem_within_a_minute_and_says_so_before(
    fake: FakeModal, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert account.VOLUME_LIMIT_S + account.TELL_S <= 60
    files = store.files
    files.write("x/a.json", "1")
    monkeypatch.setattr("tasks.platforms.modal.store.VOLUME_LIMIT_S", 2.0)
    monkeypatch.setattr("tasks.platforms.modal.account.TELL_S", 0.5)
    for down in (0, 503):
        fake.lifecycle.blocks_down = down
        with pytest.raises(ToolingError, match="Modal's Volume does not answer: writing x/b.json"):
            files.write("x/b.json", f"what {down} keeps back")
        assert "waiting for Modal's Volume: writing x/b.json" in capsys.readouterr().out
    fake.lifecycle.blocks_down = 503
    with pytest.raises(ToolingError, match="reading x/a.json"):
        files.read("x/a.json")
    fake.lifecycle.blocks_down = None
    assert files.read("x/a.json") == "1"
    assert files.read("x/b.json") is None, "what was given up is not written later"
    fake.faults.arm(Fault("VolumePutFiles2", Status.RESOURCE_EXHAUSTED, "inodes of this volume are used up", times=9))
    with pytest.raises(ToolingError, match="a limit of the Modal workspace was met: writing x/c.json") as caught:
        files.write("x/c.json", "2")
    assert "inodes of this volume" in caught.value.evidence


@pytest.mark.usefixtures("fake")
def test_of_many_who_want_a_lock_at_once_one_has_it(tmp_path: Path) -> None:
    inside: list[int] = []
    outcomes: list[str] = []
    start, done = threading.Barrier(6), threading.Barrier(6)

    def want(n: int) -> None:
        mine = on_machine(tmp_path, f"machine-{n}")
        start.wait()
        try:
            with mine.lock("release", holder={"n": n}):
                inside.append(n)
                outcomes.append("held")
                done.wait()
        except ToolingError:
            outcomes.append("refused")
            done.wait()

    threads = [threading.Thread(target=want, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["held"] + ["refused"] * 5


def test_one_who_was_too_slow_for_its_turn_does_not_get_in(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks while nobody holds the lock, and puts its turn when others have had theirs and one holds it."""
    there = on_machine(tmp_path, "there")
    with there.lock("release", holder={}):
        pass
    looked = modal_store._turns
    held = there.lock("release", holder={"name": "faster"})
    others = iter([True])

    def slow(locks: modal.Dict, name: str) -> list[int]:
        found = looked(locks, name)
        if next(others, False):
            with there.lock("release", holder={}):
                pass
            held.__enter__()
        return found

    monkeypatch.setattr(modal_store, "_turns", slow)
    with pytest.raises(ToolingError, match="another process holds the lock"):
        store.lock("release", holder={}).__enter__()
    with pytest.raises(ToolingError, match="another process holds the lock"):
        on_machine(tmp_path, "third").lock("release", holder={}).__enter__()
    held.__exit__(None, None, None)
    with store.lock("release", holder={}):
        pass
