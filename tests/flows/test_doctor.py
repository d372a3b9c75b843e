"""`doctor` on a fake Modal and as a command: what is well, what is not, how it ends; and `explain`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.doctor import ONLY_WARNINGS, Finding, examine, exit_code
from tasks.doctor import Severity
from tasks.platforms.modal import Deployed, ModalPlatform
from tasks.platforms.modal.account import COMMAND_LIMIT_S, command
from tasks.release import StagePointer
from tasks.settings import LocalSettings, ServerSettings, Settings
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
def platform(fake: FakeModal, tmp_path: Path) -> ModalPlatform:  # noqa: ARG001 - what the platform talks to
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


def test_a_working_account_is_well(platform: ModalPlatform) -> None:
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
    assert "llama-release redeploy" in seen.todo


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


def command_line(*words: str, cwd: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_RELEASE_")}
    return subprocess.run(
        [sys.executable, "-m", "flows", *words], cwd=cwd, text=True, input=stdin, env=clean | env,
        capture_output=True, timeout=120,
    )  # fmt: skip


def test_the_command_prints_a_line_a_check_and_its_exit_code_is_that_of_the_first_fault(tmp_path: Path) -> None:
    done = command_line("doctor", "--platform", "modal", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "fix  secret" in done.stdout
    assert "Traceback" not in done.stderr


def finding(severity: Severity, code: int = 0) -> Finding:
    return Finding(section="machine", check="disk", severity=severity, evidence="", exit_code=code)


def test_the_exit_code_follows_the_severity() -> None:
    note, warned, first, second = (
        finding(Severity.NOTE), finding(Severity.WARNING), finding(Severity.ERROR, 3), finding(Severity.ERROR, 1),
    )  # fmt: skip
    assert exit_code([finding(Severity.OK), note]) == 0
    assert exit_code([note, warned]) == ONLY_WARNINGS
    assert exit_code([warned, first, second]) == 3


def test_json_has_every_finding_with_its_severity_and_its_rows_of_the_runbook(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LLAMA_RELEASE_API_KEY=nobody-may-see-this\n")
    done = command_line("doctor", "--json", cwd=tmp_path)
    found = {each["check"]: each for each in json.loads(done.stdout)}
    assert found["toolchain"]["severity"] == "ok", found["toolchain"]
    assert (found["API key"]["severity"], found["API key"]["runbook"]) == ("warning", ["api-key", "client-no-key"])
    assert done.returncode == ONLY_WARNINGS, done.stdout + done.stderr
    assert "nobody-may-see-this" not in done.stdout + done.stderr


def test_settings_that_are_wrong_are_a_finding_and_no_traceback(tmp_path: Path) -> None:
    done = command_line("doctor", "--json", cwd=tmp_path, LLAMA_RELEASE_RETAIN="none")
    (only,) = json.loads(done.stdout)
    assert (only["check"], only["severity"], done.returncode) == ("settings", "error", 2)
    assert "retain" in only["evidence"]


def test_a_platform_that_cannot_be_opened_is_a_finding(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "store", local=LocalSettings(host="0.0.0.0"))
    last = list(examine(settings))[-1]
    assert (last.check, last.severity) == ("platform", Severity.ERROR)
    assert "reachable from other machines" in last.evidence


def test_a_check_that_breaks_is_a_finding_and_the_others_are_made(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_bytes(b"\xff\xfe")
    settings = Settings(store=tmp_path / "store", server=ServerSettings(chat_template=template))
    seen = {finding.check: finding for finding in examine(settings)}
    assert seen["thinking"].evidence.startswith("the check itself broke: UnicodeDecodeError")
    assert (seen["thinking"].exit_code, seen["locks"].severity) == (3, Severity.OK)


def test_explain_tells_symptom_cause_and_fix_of_a_message_and_of_a_log(tmp_path: Path) -> None:
    message = command_line("explain", "error: invalid argument: --no-mmap", cwd=tmp_path)
    assert message.returncode == 0
    for word in ("does not know --no-mmap", "b10884", "--load-mode", "guide 01 row 4"):
        assert word in message.stdout
    refused = "Unauthorized: Invalid API Key\n"
    log = f"all well\n{refused}{refused}request exceeds the available context size\n"
    several = command_line("explain", "--json", cwd=tmp_path, stdin=log)
    assert [(m["row"]["id"], m["at"], m["count"]) for m in json.loads(several.stdout)] == [
        ("api-key", 2, 2),
        ("context-overflow", 4, 1),
    ]


def test_explain_says_what_to_collect_when_it_knows_nothing(tmp_path: Path) -> None:
    unknown = command_line("explain", "the moon is in the wrong phase", cwd=tmp_path)
    assert unknown.returncode == 1
    for word in ("Not known", "llama-release doctor --json", "llama-server --version"):
        assert word in unknown.stdout


def test_on_this_machine_it_tells_the_toolchain_and_what_an_idle_server_comes_back_from(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "store", local=LocalSettings(criu=str(tmp_path / "none")))
    seen = {finding.check: finding for finding in examine(settings)}
    assert seen["toolchain"].well
    assert seen["snapshots"].evidence.startswith("cold: ")
    assert str(tmp_path / "none") in seen["snapshots"].evidence
