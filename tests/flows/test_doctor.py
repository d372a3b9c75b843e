"""`doctor` on a fake Modal: what is well, what is not, and that it changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.doctor import Finding, examine
from tasks.platforms.modal import Deployed, ModalPlatform
from tasks.platforms.modal.account import COMMAND_LIMIT_S, command
from tasks.release import StagePointer
from tasks.settings import LocalSettings, Settings
from tests.fakes.modal import FakeModal
from tests.modal_app.test_deployed import deployment
from tests.platforms.modal_stand import create_secret, fake_modal, platform_on_modal
from tests.platforms.stand import KEY_ENV

pytestmark = pytest.mark.wire

CHANGING = ("Create", "Publish", "Deploy", "Put", "Stop", "Update", "Delete", "Remove", "Map", "Precreate")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeModal]:
    with fake_modal(tmp_path_factory.mktemp("modal") / "fake") as fake:
        yield fake


@pytest.fixture
def platform(fake: FakeModal, tmp_path: Path) -> ModalPlatform:
    return platform_on_modal(tmp_path)


def found(platform: ModalPlatform) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(platform.settings)}


def test_an_empty_account_is_told_what_it_lacks_and_is_left_empty(fake: FakeModal, platform: ModalPlatform) -> None:
    before = len(fake.calls)
    seen = found(platform)
    assert not seen["secret"].well
    assert "modal secret create" in seen["secret"].todo
    assert [name for name, finding in seen.items() if not finding.well] == ["secret"]
    asked = {call.rpc for call in fake.calls[before:]}
    made = {rpc for rpc in asked if any(word in rpc for word in CHANGING)} - {"SecretGetOrCreate", "VolumeGetOrCreate"}
    assert made == set()
    assert all(
        not r.object_creation_type for rpc in ("SecretGetOrCreate", "VolumeGetOrCreate") for r in fake.requests(rpc)
    )


def test_a_working_account_is_well(fake: FakeModal, platform: ModalPlatform) -> None:
    create_secret()
    platform.store.save_pointer(StagePointer(stage="production"))
    seen = found(platform)
    assert all(finding.well for finding in seen.values()), seen
    assert "fake-workspace" in seen["account"].evidence
    assert "CUDA 12.8 ubuntu24.04" in seen["images"].evidence


def test_a_key_that_is_newer_than_the_snapshot_is_noticed(
    platform: ModalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = deployment("production", "1" * 12)
    command("deploy", "-m", "modal_app.app", env=made.baked(), limit_s=COMMAND_LIMIT_S)
    known = Deployed(release=made.release, definition="d", version=1, key=platform.key_mark)
    platform.store.files.write("deployments/production.json", known.model_dump_json())
    platform.store.save_pointer(StagePointer(stage="production", release=made.release))
    assert found(platform)["production"].well
    monkeypatch.setenv(KEY_ENV, "a-new-key")
    seen = found(platform)["production"]
    assert "newer than the snapshot of production" in seen.evidence
    assert "llama-release start" in seen.todo


def test_a_stage_that_does_not_serve_what_its_pointer_says_is_noticed(platform: ModalPlatform) -> None:
    platform.store.save_pointer(StagePointer(stage="staging", release="2" * 12))
    seen = found(platform)["staging"]
    assert "its pointer says 222222222222" in seen.evidence


def test_a_trial_that_a_killed_flow_left_is_named(platform: ModalPlatform) -> None:
    trial = deployment("trial").model_copy(update={"name": "llama-release-trial-dead"})
    command("deploy", "-m", "modal_app.app", env=trial.baked(), limit_s=COMMAND_LIMIT_S)
    seen = found(platform)["trials"]
    assert "llama-release-trial-dead" in seen.evidence
    assert "modal app stop llama-release-trial-dead --yes" in seen.todo


def test_the_command_prints_a_line_a_check_and_its_exit_code_is_that_of_the_first_fault(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows", "doctor", "--platform", "modal"], cwd=tmp_path, text=True,
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "fix  secret" in done.stdout
    assert "Traceback" not in done.stderr


def test_on_this_machine_it_tells_the_toolchain_and_what_an_idle_server_comes_back_from(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "store", local=LocalSettings(criu=str(tmp_path / "none")))
    seen = {finding.check: finding for finding in examine(settings)}
    assert seen["toolchain"].well
    assert seen["snapshots"].evidence.startswith("cold: ")
    assert str(tmp_path / "none") in seen["snapshots"].evidence
