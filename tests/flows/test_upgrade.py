"""One long story on one machine: upgrades that are killed, rejected, raced, finished and rolled back.

The steps build on each other and run in order; each looks at the store, the servers and what the commands said.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tasks.release import StageName
from tests.conftest import NEWER, OLDER, migrated
from tests.flows.conftest import KEY, PATIENCE_S, REPOSITORY, Machine, Traffic
from tests.flows.operations import own_api
from tests.platforms.stand import command_lines, until

pytestmark = pytest.mark.real


def answered_by(machine: Machine, stage: StageName = "production") -> str:
    """The build that answers a chat request at a stage's own address."""
    endpoint = machine.platform.endpoint(stage)
    answer = httpx.post(
        f"{endpoint.base_url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=120,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["system_fingerprint"]).split("-")[0]


def traffic(machine: Machine) -> Traffic:
    return Traffic(machine.platform.endpoint("production").base_url)


def compiling(machine: Machine) -> set[int]:
    """Pids of what compiles for anybody who shares this machine's cache."""
    pattern = f"(ninja|cc1plus|sccache).*{machine.env['LLAMA_RELEASE_CACHE']}/compile"
    return {pid for pid, words in command_lines().items() if re.search(pattern, " ".join(words))}


def builds_seen(seen: Traffic) -> set[str]:
    return {f.split("-")[0] for f in seen.fingerprints}


def test_the_first_release_goes_the_whole_way(machine: Machine) -> None:
    said = machine.run("upgrade", "--to", OLDER, "--approver", "alice")
    assert "0001-gemma4-thinking-tags upstreamed: 4 of 4 probes pass on upstream's own code" in said
    assert "5 of 5 probes fail without it, 5 of 5 probes pass with it" in said
    assert machine.production() == OLDER == answered_by(machine)
    (promoted,) = machine.events("promoted")
    assert "by alice" in promoted.summary


def test_bad_input_is_one_clear_error_and_changes_nothing(machine: Machine) -> None:
    before = machine.store.ledger()
    said = machine.run("upgrade", "--to", "b11402", code=2)
    assert "upstream has no release b11402" in said
    assert "b11401, b11434" in said
    assert "Traceback" not in said
    assert machine.production() == OLDER
    assert machine.store.ledger() == before, "it is refused before there is a run"


def test_a_plan_says_what_would_happen_and_does_nothing(machine: Machine) -> None:
    before = sorted(p for p in machine.store.root.rglob("*.json"))
    plan = json.loads(machine.run("plan", "--to", NEWER, "--json"))
    assert plan["target"]["build"] == 11434
    assert plan["build"] is None
    assert [p["status"] for p in plan["patches"]] == ["upstreamed", "clean"]
    assert sorted(p for p in machine.store.root.rglob("*.json")) == before


def test_killed_in_the_middle_of_the_build_nothing_looks_finished(machine: Machine) -> None:
    log_folder = machine.store.root / "logs"

    def half_way() -> bool:
        text = "".join(p.read_text(errors="replace") for p in log_folder.glob(f"build-{NEWER}-*.log"))
        return bool(re.search(r"^\[(1\d\d)/\d+\]", text, re.MULTILINE))

    with traffic(machine) as seen:
        machine.kill_when(half_way, "upgrade", "--to", NEWER)
        left = compiling(machine)
    assert {b.tag for b in machine.store.builds()} == {OLDER}
    assert machine.production() == OLDER
    assert builds_seen(seen) == {OLDER}
    assert seen.lost == []
    assert until(lambda: not left & compiling(machine), 30.0)  # at the latest when what was being compiled is done


def test_killed_while_a_person_thinks_everything_verified_is_kept(machine: Machine) -> None:
    machine.kill_when(lambda: len(machine.events("approval_wanted")) == 2, "upgrade", "--to", NEWER)
    assert machine.production() == OLDER == answered_by(machine)
    assert answered_by(machine, "staging") == NEWER


def test_a_second_upgrade_is_refused_and_a_rejection_is_no_failure(machine: Machine) -> None:
    verified = {
        p: p.stat().st_mtime_ns
        for p in machine.store.root.glob("dossiers/*/*.json")
        if p.stem not in ("preflight", "patches")
    }
    page = machine.start("upgrade", "--to", NEWER)
    deadline = time.monotonic() + PATIENCE_S
    while len(machine.events("approval_wanted")) < 3 and time.monotonic() < deadline:
        assert page.poll() is None, page.communicate()[0]
        time.sleep(0.1)
    refused = machine.run("upgrade", "--to", NEWER, code=3)
    assert "another process holds the lock" in refused
    assert f"upgrade to {NEWER}" in refused

    reject_in_the_page(machine, page)
    assert page.stdout
    said = page.stdout.read()
    assert page.wait(120) == 4, said
    assert "rejected" in said
    assert "recorded before" in said
    assert re.search(r"build +\w+ reused", said)
    assert machine.production() == OLDER
    assert machine.events("rejected")[-1].summary.startswith("bob: reject")
    assert verified == {p: p.stat().st_mtime_ns for p in verified}


def reject_in_the_page(machine: Machine, page: subprocess.Popen[str]) -> None:
    """Fill in the form as the Prefect page does: through its server's HTTP API."""
    assert page.stdout
    found = None
    while found is None:
        line = page.stdout.readline()
        assert line, "the page's address was never printed"
        found = re.search(r"(http://\S+)/v2/runs/flow-run/(\S+)", line)
    form = {"run_input": {"decision": "reject", "approver": "bob", "note": "not on a Friday"}}
    answer = own_api(machine.store.root, found[1]).call("POST", f"/flow_runs/{found[2]}/resume", form)
    assert answer.status_code in (200, 201), answer.text
    assert answer.json()["status"] == "ACCEPT", answer.text


def test_killed_with_the_intent_open_production_is_the_old_release_or_the_new(machine: Machine) -> None:
    with traffic(machine) as seen:
        machine.kill_when(lambda: machine.store.intent("production"), "upgrade", "--to", NEWER, "--approver", "alice")
        assert machine.production() in (OLDER, NEWER)
        machine.run("upgrade", "--to", NEWER, "--approver", "alice")
        time.sleep(1)
    assert machine.store.intent("production") is None
    assert machine.production() == NEWER == answered_by(machine)
    assert builds_seen(seen) == {OLDER, NEWER}
    assert seen.lost == []
    assert len([e for e in machine.events("promoted") if NEWER in e.summary.split(",")[0]]) == 1


def test_the_earlier_release_is_retained_and_rollback_goes_there_and_holds(machine: Machine) -> None:
    with traffic(machine) as seen:
        machine.run("rollback", "--to", OLDER, "--reason", "tool calls broke", "--by", "carol")
        time.sleep(1)
    assert machine.production() == OLDER == answered_by(machine)
    assert seen.lost == []
    pointer = machine.store.pointer("production")
    assert pointer.hold
    assert (pointer.hold.by, pointer.hold.reason) == ("carol", "tool calls broke")
    refused = machine.run("upgrade", "--to", NEWER, "--approver", "alice", code=2)
    assert "production is on hold" in refused
    assert "tool calls broke" in refused
    machine.run("hold", "lift", "--by", "carol")
    assert machine.store.pointer("production").hold is None


def test_killed_right_after_the_pointer_moved_the_next_run_finishes_the_promotion(machine: Machine) -> None:
    before = len(machine.events("promoted"))
    with traffic(machine) as seen:
        machine.kill_when(lambda: machine.production() == NEWER, "upgrade", "--to", NEWER, "--approver", "alice")
        said = machine.run("upgrade", "--to", NEWER)
    assert "already there" in said
    assert machine.store.intent("production") is None
    assert machine.production() == NEWER == answered_by(machine)
    assert len(machine.events("promoted")) == before + 1
    assert seen.lost == []


def test_status_and_history_tell_the_story_in_tables_and_in_json(machine: Machine) -> None:
    status = {s["stage"]: s for s in json.loads(machine.run("status", "--json"))}
    assert machine.store.get_release(status["production"]["release"]).upstream.tag == NEWER
    assert [machine.store.get_release(r).upstream.tag for r in status["production"]["retained"]] == [OLDER]
    assert NEWER in machine.run("status")
    kinds = [e["kind"] for e in json.loads(machine.run("history", "--json", "--last", "500"))]
    assert kinds.count("rolled_back") == 1
    assert "hold_lifted" in kinds
    assert "promoted" in machine.run("history")


def test_the_api_key_is_in_no_file_of_the_store(machine: Machine) -> None:
    def texts() -> list[Path]:
        return [p for p in machine.store.root.rglob("*") if p.is_file() and p.stat().st_size < 50_000_000]

    assert [str(p) for p in texts() if KEY.encode() in p.read_bytes()] == []


def test_every_stage_left_its_evidence_in_prefect_and_no_run_is_stuck(machine: Machine) -> None:
    with closing(sqlite3.connect(machine.store.root / "prefect" / "prefect.db")) as database:
        keys = {key for (key,) in database.execute("select key from artifact where type = 'markdown'")}
        states = [state for (state,) in database.execute("select state_type from flow_run")]
    stages = {
        "upstream",
        "patches",
        "build",
        "proof",
        "preflight",
        "contracts",
        "staging",
        "restore",
        "evals",
        "production",
    }
    assert stages | {"rollback"} <= keys
    assert set(states) <= {"COMPLETED", "FAILED", "CRASHED"}
    assert states.count("CRASHED") == 4  # as many as were killed


def test_the_flow_runs_as_any_prefect_flow_does(machine: Machine) -> None:
    home = machine.store.root / "prefect-home"
    migrated(home)
    done = subprocess.run(
        [sys.executable, "-m", "flows.upgrade"],
        cwd=REPOSITORY,
        env=machine.env | {"PREFECT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert "target none" in done.stdout
    assert "Nothing newer" in done.stderr
