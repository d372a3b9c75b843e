"""A store whose disk has no byte left: a small tmpfs of its own, which says ENOSPC as any full disk does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks.endpoint import Client
from tasks.promote import back_to, lift_hold, swap
from tasks.release import Approval, BootKind, Build, Dossier, Event, Hold, Release, ToolingError, Verdict, Verification
from tasks.settings import Settings
from tasks.store import RESERVE_BYTES, Store
from tests.doctor.machines import fill, free_bytes, small_disk
from tests.platforms.conftest import platform_at, stand_of
from tests.platforms.stand import Stand

DISK_BYTES = 300_000_000
"""A build and a scripted model take 16 MB, two snapshots 60 MB."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(small_disk(tmp_path / "disk", f"size={DISK_BYTES}"))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        yield folder


@pytest.fixture
def stand(
    request: pytest.FixtureRequest, disk: Path, base: Settings, build: Build, scripted_model: Path
) -> Iterator[Stand]:
    """Production serves the second release, retains the first, and is on hold; its server is idle."""
    snapshots = getattr(request, "param", "off")
    with stand_of(platform_at(disk, snapshots=snapshots), base, build, scripted_model) as made:
        for release, before in ((made.first, None), (made.second, made.first.id)):
            _promote(made, release, before)
        pointer = made.platform.store.pointer("production")
        made.platform.store.save_pointer(pointer.model_copy(update={"hold": Hold(reason="why", by="me")}))
        assert made.platform.idle("production") == 0
        yield made


@pytest.mark.real
@pytest.mark.parametrize("stand", ["auto"], indirect=True)
def test_production_wakes_and_the_way_back_works_on_a_full_disk(stand: Stand) -> None:
    store = stand.platform.store
    fill(store.root)
    boots = len(stand.platform.boots("production"))
    assert _says(stand) == "second"
    (boot,) = stand.platform.boots("production")[boots:]
    snapshots = stand.platform.snapshots().kind == "disk"
    assert boot.kind is (BootKind.RESTORED if snapshots else BootKind.COLD), boot.reason
    assert lift_hold(store, "me").reason == "why"
    back_to(stand.platform, None, "me", "the new one is slow", retain=2)
    assert _says(stand) == "first"
    assert store.pointer("production").hold
    assert [event.kind for event in store.ledger()][-3:] == ["hold_lifted", "rolled_back", "rollback_proof"]
    _all_whole(store)


@pytest.mark.real
def test_with_its_reserve_gone_too_production_wakes_and_freed_space_is_enough_to_go_on(stand: Stand) -> None:
    store = stand.platform.store
    filler = fill(store.root)
    (store.root / "reserve").write_bytes(b"")
    fill(store.root, "more")
    before = store.pointer("production")
    assert _says(stand) == "second"
    with pytest.raises(ToolingError, match="could not write"):
        lift_hold(store, "me")
    assert store.pointer("production") == before
    _all_whole(store)
    stand.platform.idle("production")
    filler.unlink()
    assert _says(stand) == "second"
    assert stand.platform.boots("production")
    lift_hold(store, "me")
    back_to(stand.platform, None, "me", "the new one is slow", retain=2)
    assert _says(stand) == "first"
    assert (store.root / "reserve").stat().st_size == RESERVE_BYTES


@pytest.mark.real
def test_an_activator_that_was_killed_comes_back_on_a_full_disk(stand: Stand) -> None:
    fill(stand.platform.store.root)
    stand.platform.shut_down("production")
    stand.platform.ensure("production")
    assert _says(stand) == "second"


def test_the_last_line_of_the_ledger_is_whole(disk: Path) -> None:
    store = Store(disk)
    fill(disk)
    said = 0
    with pytest.raises(ToolingError, match="No space left on device"):
        while True:
            store.log(Event(kind="said", summary=f"line {said}" + " and more" * 500))
            said += 1
    assert [event.summary.split(" and ")[0] for event in store.ledger()] == [f"line {n}" for n in range(said)]
    _all_whole(store)


def test_a_file_that_does_not_fit_leaves_nothing_behind(disk: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(os.urandom(DISK_BYTES + 1))
    store = Store(disk)
    free = free_bytes(disk)
    with pytest.raises(ToolingError, match="can't be copied into the store"):
        store.put_file(model)
    assert not list(disk.rglob("*model.gguf*"))
    assert free - free_bytes(disk) < 100_000  # its hash is remembered
    model.write_bytes(b"small")
    assert store.file(store.put_file(model)).read_bytes() == b"small"


def test_the_reserve_is_taken_by_pieces_and_put_aside_again(disk: Path) -> None:
    store = Store(disk)
    pointer = store.pointer("production")
    store.save_pointer(pointer)
    filler = fill(disk)
    for number in range(40):  # as a rollback writes them, and a neighbour who takes what is freed
        store.log(Event(kind="said", summary=f"{number}"))
        fill(disk, f"neighbour-{number}")
    assert 0 < (disk / "reserve").stat().st_size < RESERVE_BYTES
    filler.unlink()
    store.save_pointer(pointer)
    assert (disk / "reserve").stat().st_size == RESERVE_BYTES


def test_a_lock_is_held_on_a_full_disk(disk: Path) -> None:
    store = Store(disk)
    fill(disk)
    with store.lock("production", holder={"doing": "x" * 5000}), pytest.raises(ToolingError, match="another process"):
        store.lock("production", holder={}).__enter__()
    with store.lock("production", holder={}):
        pass


def _all_whole(store: Store) -> None:
    """Every document can be read, and no half of one lies beside it."""
    for path in store.root.rglob("*.json"):
        json.loads(path.read_text())
    assert not list(store.root.rglob(".*.json.*"))


def _promote(stand: Stand, release: Release, expected: str | None) -> None:
    seen = Verification(name="a", release=release.id, verdict=Verdict.PASSED, summary="s")
    dossier = Dossier(release=release, required=("a",), verifications=(seen,))
    approval = Approval(
        release=release.id, dossier=dossier.digest, expected=expected, decision="approve", approver="alice",
        version=stand.platform.store.pointer("production").version,
    )  # fmt: skip
    swap(stand.platform, dossier, approval, retain=2)


def _says(stand: Stand) -> str:
    """The alias of the release that answers in production."""
    with Client(stand.platform.endpoint("production")) as client:
        answer = client.chat("Hello", max_tokens=2)
    assert answer.status == 200, answer.body
    return str(answer.body["model"])
