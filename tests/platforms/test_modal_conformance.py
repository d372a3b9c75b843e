"""What an account's Modal does, found out on the fake as it would be on Modal."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import modal
import pytest

from modal_app.settings import ModalSettings
from tasks.platforms.modal import ModalPlatform, apps, conformance
from tasks.platforms.modal.conformance import Conformance, Item, Start, _of_starts, with_failures
from tasks.platforms.modal.doctor import checks
from tasks.platforms.modal.starts import Ending
from tests.fakes.modal import FakeModal, Lifecycle, Worker
from tests.platforms.modal_stand import fake_modal, platform_on_modal

pytestmark = [pytest.mark.wire, pytest.mark.filterwarnings("error::modal.exception.AsyncUsageWarning")]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeModal]:
    with fake_modal(tmp_path / "fake") as fake:
        yield fake


@pytest.fixture
def platform(tmp_path: Path, fake: FakeModal) -> ModalPlatform:  # noqa: ARG001 - what it talks to
    return platform_on_modal(tmp_path)


BEGAN = datetime(2026, 11, 30, tzinfo=UTC)


def quiet(_done: int, _total: int, _what: str) -> None:
    pass


def test_what_an_account_does_is_found_kept_and_shown_and_nothing_is_left(
    fake: FakeModal, platform: ModalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "STARTS", 5)
    monkeypatch.setattr(conformance, "STREAM_S", 6)
    here, there = Worker(), Worker(region="us-west-2")
    fake.lifecycle.coming, fake.lifecycle.between = [here, there, here, there, here], 0.5
    fake.lifecycle.failing = [0, 139]
    found = platform.conformance(quiet)
    items = {item.name: item for item in found.items}
    assert [start.kind for start in found.starts] == ["created", "created", "restored", "failed", "restored"]
    assert items["kinds of workers"].seen.startswith("2: ")
    assert items["snapshots"].as_assumed is False and "1 failed" in items["snapshots"].seen
    for name in (
        "a starting server", "replacement", "exit grace", "proxy authentication", "a container that dies",
        "Server.stats", "the clock",
    ):  # fmt: skip
        assert items[name].as_assumed, items[name]
    gpu = items["the GPU after a restore"]
    assert (gpu.as_assumed, gpu.seen[:16]) == (False, "2 x no driver: l")  # an L40S is asked for, and not here
    assert conformance.load(platform.store) == found
    assert "other than assumed: snapshots" in dict(checks(platform.settings))["conformance"]()
    assert apps.version(platform.settings.modal, "llama-release-conformance") is None
    assert platform.on_volume.files.read(conformance.PARTLY) is None
    again = Lifecycle.of(found)
    assert [worker.weight for worker in again.workers] == [4, 1] and again.failure_rate == pytest.approx(1 / 3)
    assert 0 < again.between < 1 and not again.holds and again.replaces_old


def test_an_account_where_it_is_otherwise_is_told_so_with_what_follows(
    fake: FakeModal, platform: ModalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that was killed goes on with the starts that it had."""
    monkeypatch.setattr(conformance, "STARTS", 2)
    monkeypatch.setattr(conformance, "STREAM_S", 120)
    platform.store.files.write(
        conformance.PARTLY,
        Conformance(
            sdk=modal.__version__, gpu="L40S", snapshots="gpu", starts=(Start(kind="created", worker="w"),)
        ).model_dump_json(),
    )
    fake.lifecycle.holds, fake.lifecycle.exit_grace = True, False
    found = platform.conformance(quiet)
    otherwise = {item.name: item for item in found.differences}
    assert len(found.starts) == 2 and found.starts[0].worker == "w"
    assert otherwise["a starting server"].seen == "requests waited for an answer"
    assert (
        "was cut after" in otherwise["exit grace"].seen and "promotion cuts streams" in otherwise["exit grace"].follows
    )


def at(second: int, kind: str = "created", **more: Any) -> Start:
    return Start(kind=kind, task=f"ta-{second}", at=BEGAN + timedelta(seconds=second), **more)


def test_a_start_failed_only_when_another_container_died_in_its_time() -> None:
    def died(second: int, task: str = "ta-x") -> Ending:
        return Ending(task, BEGAN + timedelta(seconds=second), "Runner failed with exit code: 139")

    found = [at(10), at(20, "restored"), at(30)]
    assert [s.kind for s in with_failures(found, [died(15)])] == ["created", "failed", "created"]
    assert [s.kind for s in with_failures(found, [died(25)])] == ["created", "restored", "failed"]
    assert with_failures(found, [died(5), died(35), died(15, "ta-10")]) == found, (
        "before, after, and once it had served"
    )
    assert with_failures([Start(kind="created"), at(20)], [died(15)])[1].kind == "created"


def test_the_gpu_is_judged_by_restored_starts_and_unknown_only_where_there_is_none() -> None:
    def gpu(settings: ModalSettings, *found: Start) -> bool | None:
        return {item.name: item for item in _of_starts([*found], settings)}["the GPU after a restore"].as_assumed

    with_gpu, without = ModalSettings(), ModalSettings(gpu="")
    right, wrong = at(1, "restored", gpu="right"), at(2, "restored", gpu="4 of 9 words are wrong after 1 counts")
    assert gpu(with_gpu, right, right) is True
    assert gpu(with_gpu, wrong, wrong) is False, "always wrong in the same way is wrong"
    assert gpu(with_gpu, right, at(3, "restored")) is False, "what is not told is not right"
    assert gpu(with_gpu, at(4, gpu="right")) is None
    assert gpu(without, wrong) is None


def test_what_could_not_be_seen_is_no_difference() -> None:
    item = Item(name="n", assumed="a", seen="not seen: x", as_assumed=None)
    assert Conformance(sdk="1", gpu="L40S", snapshots="gpu", items=(item,)).differences == ()
