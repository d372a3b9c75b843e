"""Production on this machine, served from real snapshots, and the restore watch run on it as Prefect runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from flows.outcome import Outcome
from flows.restore_watch import restore_watch
from tasks.contracts.scripted import Script
from tasks.contracts.scripted import build as build_model
from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.control import Status
from tasks.platforms.local.snapshot import snapshots_folder
from tasks.release import BootKind, Build, Event, Release, StagePointer, now
from tasks.settings import Settings
from tasks.watch import alerts, series
from tasks.watch.series import Series
from tests.conftest import own_prefect
from tests.platforms.conftest import platform_at, stand_of
from tests.platforms.stand import KEY_ENV, Stand

SCRIPT = Script(("model\nThe answer is forty-two.<turn|>",))


@dataclass
class Production:
    """The first of two releases in production, the second one retained."""

    stand: Stand

    @property
    def platform(self) -> LocalPlatform:
        return self.stand.platform

    @property
    def release(self) -> Release:
        return self.stand.first

    def watch(self, *, due: bool = False) -> None:
        """One run of the restore watch, whose next probe is due or was made just now."""
        alerts.change(self.platform.store, probed_at=None if due else now())
        outcome = Outcome.model_validate(restore_watch())
        assert outcome.kind == "watched"

    def idle(self) -> None:
        assert self.platform.idle("production") == 0

    def ask(self) -> int:
        """The status that a user's request gets."""
        with Client(self.platform.endpoint("production")) as client:
            return client.chat("Hello", max_tokens=2).status

    def status(self) -> Status:
        found = self.platform.status("production")
        assert found
        return found

    def kinds(self) -> list[BootKind]:
        return [boot.kind for boot in self.platform.boots("production")]

    def series(self) -> Series:
        return series.load(self.platform.store, self.release)

    def events(self, kind: str) -> list[Event]:
        return [event for event in self.platform.store.ledger() if event.kind == kind]

    def damage(self) -> None:
        """Cut off the largest file of the snapshot."""
        images = snapshots_folder(self.platform.store.root, "production").glob(f"{self.release.id}*/images/*")
        largest = max(images, key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)


@pytest.fixture(scope="package")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server of our own."""
    with own_prefect(tmp_path_factory.mktemp("prefect")) as address:
        yield address


@pytest.fixture(scope="module")
def stood(base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("watch")
    platform = platform_at(folder / "store", idle_s=600, snapshots="auto")
    if (ability := platform.snapshots()).kind == "cold":
        pytest.skip(f"no snapshots here: {ability.why}")
    with stand_of(platform, base, build, build_model(SCRIPT, folder / "model.gguf")) as made:
        made.platform.store.save_release(made.second)
        yield made


@pytest.fixture
def production(
    stood: Stand,
    page: str,  # noqa: ARG001 - the server that the watch runs on
    monkeypatch: pytest.MonkeyPatch,
) -> Production:
    """Idle, in production just now, and nothing known of it."""
    store, local = stood.platform.store, stood.platform.settings.local
    made = Production(stood)
    stood.platform.deploy("production", stood.first, lambda _: None)
    made.idle()
    store.files.remove("watch.json")
    store.files.remove("watch")
    store.files.remove(f"series/{stood.first.id}")
    store.files.remove("ledger")
    store.save_pointer(
        StagePointer(stage="production", release=stood.first.id, since=now(), retained=(stood.second.id,))
    )
    for name, value in {
        "STORE": store.root, "LOCAL__STAGING_PORT": 0, "LOCAL__PRODUCTION_PORT": 0, "LOCAL__IDLE_S": local.idle_s,
        "LOCAL__START_TIMEOUT_S": local.start_timeout_s, "SERVER__API_KEY_ENV": KEY_ENV, "RESTORE__WAIT_S": 0,
        "WATCH__DRILL_DAYS": 0,
    }.items():  # fmt: skip
        monkeypatch.setenv(f"LLAMA_RELEASE_{name}", str(value))
    return made
