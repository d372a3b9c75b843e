"""Prefect as the commands use it: a real server on loopback, real pauses, answers from everywhere a person may be."""

from __future__ import annotations

import contextvars
import importlib.metadata
import os
import pty
import re
import select
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from prefect import Flow, State, flow, get_client
from prefect.states import Pending, Running, Scheduled

from flows.__main__ import run_flow
from flows.outcome import ALONE, Outcome, ended, if_free, one_at_a_time
from flows.server import LOST_AFTER, mark_crashed, prefect_server, settle
from tasks.approval import ask
from tasks.approval.held import answer
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.proc import free_port
from tasks.release import Dossier, Event, Intent, ReleaseFailed, StagePointer, ToolingError, Verdict, now
from tasks.settings import ApprovalSettings, Settings
from tasks.store import Store
from tests.conftest import in_force, migrated
from tests.flows.conftest import REPOSITORY
from tests.test_release import a_release, seen
from tests.versions import PINS

pytestmark = pytest.mark.wire

RELEASE = a_release()
Found = TypeVar("Found")


def a_dossier(verdict: Verdict = Verdict.PASSED) -> Dossier:
    found = seen("a", verdict).model_copy(update={"release": RELEASE.id})
    return Dossier(release=RELEASE, required=("a",), verifications=(found,))


DOSSIER = a_dossier()


def asking(store: Store, dossier: Dossier = DOSSIER, timeout_s: int = 120) -> Flow[[], State[Outcome]]:
    @flow(name="asking")
    def one_question() -> State[Outcome]:
        with one_at_a_time(store):
            platform = LocalPlatform(Settings(store=store.root))
            store.save_release(dossier.release)
            store.save_pointer(StagePointer(stage="staging", release=dossier.release.id))
            for verification in dossier.verifications:
                store.record(verification)
            settings = Settings(store=store.root, approval=ApprovalSettings(timeout_s=timeout_s))
            given = ask(platform, dossier, store.pointer("production"), settings)
        return ended("promoted" if given.decision == "approve" else "rejected", dossier.release)

    return one_question


def wait_for(condition: Callable[[], Found], seconds: float = 240) -> Found:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("it never came")


def paused_runs() -> list[UUID]:
    with get_client(sync_client=True) as client:
        return [run.id for run in client.read_flow_runs() if run.state and run.state.is_paused()]


def state_of(run: UUID) -> str:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state
    assert state
    return state.name or ""


def in_a_process(store: Store, script: str) -> subprocess.Popen[bytes]:
    text = f"from tests.flows.test_server import *; store = Store(Path({str(store.root)!r}))\n{script}"
    return subprocess.Popen([sys.executable, "-c", text], cwd=REPOSITORY)


def test_the_installed_versions_are_the_pinned_ones_and_fit_our_bounds() -> None:
    """The pins of `tests.versions` where it made the environment."""
    lines = Path(os.environ.get(PINS, REPOSITORY / "constraints.txt")).read_text().split()
    assert not [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)]
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for text in importlib.metadata.requires("llama-release") or []:
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": of}) for of in ("", "test", "docs")):
            continue  # for another Python
        installed = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(installed, prereleases=True)
        assert Version(pinned[canonicalize_name(requirement.name)]) == Version(installed)


def test_our_server_comes_up_serves_its_page_and_the_api(page: str) -> None:
    assert httpx.get(f"{page}/api/health", trust_env=False).status_code == 200
    assert "<html" in httpx.get(f"{page}/v2/runs", headers={"Accept": "text/html"}, trust_env=False).text.lower()


def test_a_port_that_another_takes_first_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    migrated(tmp_path / "prefect")
    with socket.create_server(("127.0.0.1", 0)) as faster:
        ports = iter((faster.getsockname()[1], free_port()))
        monkeypatch.setattr("flows.server.free_port", lambda port: next(ports))  # noqa: ARG005 - as it is called
        with prefect_server(tmp_path) as page:
            assert httpx.get(f"{page}/api/health", trust_env=False).status_code == 200
    assert list(ports) == []


def test_a_command_that_fails_tells_its_own_server_and_ends_with_one_message(tmp_path: Path) -> None:
    """What it has logged is sent before that server stops: at exit Prefect tried to for a minute, and said so."""
    migrated(tmp_path / "prefect")
    left = Intent(stage="production", action="promote", before=None, after="0" * 12, dossier=None, by="ada")
    Store(tmp_path).open_intent(left)  # the flow undoes it first: else the command refuses without a server
    ours = {"LLAMA_RELEASE_STORE": str(tmp_path), "PREFECT_API_URL": ""}
    done = subprocess.run(
        [sys.executable, "-m", "flows", "rollback", "--reason", "why not", "--by", "carol"], cwd=REPOSITORY,
        env=os.environ | ours, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert "production cannot go back" in done.stdout
    assert "Error logging" not in done.stdout
    with closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:
        assert database.execute("select count(*) from log").fetchone()[0] > 0


def test_a_server_that_is_given_is_used_and_not_stopped(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{page}/api")
    with prefect_server(tmp_path) as used:
        assert used == page
    assert httpx.get(f"{page}/api/health", trust_env=False).status_code == 200
    assert list(tmp_path.iterdir()) == []


def test_an_unattended_approver_is_recorded_by_name(store: Store, page: str) -> None:
    outcome = run_flow(asking(store), page, "ada")
    assert outcome == Outcome(kind="promoted", release=DOSSIER.release)
    (recorded,) = store.approvals(RELEASE.id)
    assert (recorded.approver, recorded.decision, recorded.expected) == ("ada", "approve", None)
    assert [e.kind for e in store.ledger()] == ["approval_wanted", "approved"]


def test_a_rejection_ends_the_run_as_rejected_and_not_as_failed(store: Store, page: str) -> None:
    def reject() -> None:
        (run,) = wait_for(paused_runs)
        answer(run, {"decision": "reject", "approver": "bob", "note": "not today"})
        rejected.append(run)

    rejected: list[UUID] = []
    person = threading.Thread(target=contextvars.copy_context().run, args=(reject,))
    person.start()
    outcome = run_flow(asking(store), page, None)
    person.join()
    assert (outcome.kind, outcome.exit_code) == ("rejected", 4)
    assert state_of(rejected[0]) == "Rejected"
    assert store.ledger()[-1].summary == f"bob: reject dossier {DOSSIER.digest} not today"


def test_an_approval_given_to_a_run_that_died_is_not_asked_for_again(store: Store, page: str) -> None:
    run_flow(asking(store), page, "ada")
    assert run_flow(asking(store), page, None).kind == "promoted"
    assert [e.kind for e in store.ledger()].count("approval_wanted") == 1


def test_a_release_that_was_rolled_back_is_asked_about_again_and_says_so(store: Store, page: str) -> None:
    """The hold is lifted, production has what it had, the dossier is the same: and nobody has agreed to that."""
    run_flow(asking(store), page, "ada")
    why = {"before": RELEASE.id, "note": "tool calls broke"}
    store.log(Event(kind="rolled_back", release="r0", stage="production", summary="back on r0, by carol", detail=why))
    store.save_pointer(StagePointer(stage="production"))
    assert run_flow(asking(store), page, "bob").kind == "promoted"
    assert [e.approver for e in store.approvals(RELEASE.id)] == ["ada", "bob"]
    assert [("tool calls broke" in e.summary) for e in store.ledger() if e.kind == "approval_wanted"] == [False, True]


def test_nobody_is_asked_about_a_dossier_with_a_failed_verification(store: Store, page: str) -> None:
    bad = a_dossier(Verdict.FAILED)
    with pytest.raises(ReleaseFailed, match="may not be promoted"):
        run_flow(asking(store, bad), page, "ada")
    assert store.ledger() == []


def test_when_nobody_decides_in_time_it_is_our_trouble_and_nothing_is_recorded(store: Store, page: str) -> None:
    with pytest.raises(ToolingError, match="nobody decided"):
        run_flow(asking(store, timeout_s=3), page, None)
    assert store.approvals(RELEASE.id) == []


def test_a_second_run_is_refused_and_a_killed_run_is_marked_crashed_by_the_next(store: Store, page: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in in_force().items():
            patch.setenv(name, value)
        waiting = in_a_process(store, "asking(store)()")
        (run,) = wait_for(paused_runs)
        with pytest.raises(ToolingError, match="another process holds the lock"):
            run_flow(asking(store), page, "ada")
        waiting.kill()
        waiting.wait()
    assert state_of(run) == "Paused"
    assert run_flow(asking(store), page, "ada").kind == "promoted"
    assert state_of(run) == "Crashed"


@flow(name="watching")
def watching(store: Store, seconds: float) -> None:
    with if_free(store) as busy:
        assert not busy
        time.sleep(seconds)


def test_a_run_that_begins_while_another_looks_in_waits_for_it(
    store: Store, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in in_force().items():
            patch.setenv(name, value)
        looks_in = in_a_process(store, "watching.with_options(flow_run_name='restore watch')(store, 3)")
        wait_for(store.holders)
        assert run_flow(asking(store), page, "ada").kind == "promoted"
        assert looks_in.wait(60) == 0
    assert "waiting for restore watch to let go" in capsys.readouterr().out


@pytest.mark.usefixtures("page")
def test_marking_a_run_that_the_server_does_not_know_does_nothing() -> None:
    mark_crashed("00000000-0000-0000-0000-000000000000")
    mark_crashed("None")


@pytest.mark.usefixtures("page")
def test_runs_that_no_process_has_any_more_are_settled_after_a_while_and_no_others() -> None:
    def begun(name: str, state: State) -> UUID:
        return client.create_flow_run(Flow(lambda: None, name=name), state=state).id

    with get_client(sync_client=True) as client:
        lost = [begun("upgrade", Pending()), begun("rollback", Running())]
        others = [begun("upgrade", Running()), begun("watch", Running()), begun("upgrade", Scheduled())]
    before = [state_of(run) for run in others]
    settle(ALONE, str(others[0]), now() + LOST_AFTER / 2)
    assert [state_of(run) for run in lost] == ["Pending", "Running"]
    settle(ALONE, str(others[0]), now() + LOST_AFTER)
    assert [state_of(run) for run in lost] == ["Crashed", "Crashed"]
    assert [state_of(run) for run in others] == before


@pytest.mark.usefixtures("page")
def test_somebody_at_a_terminal_is_asked_and_answers_there(store: Store) -> None:
    script = (
        "from tests.flows.test_server import *; from flows.__main__ import run_flow\n"
        f"print('OUTCOME', run_flow(asking(Store(Path({str(store.root)!r}))), 'page', None).kind, flush=True)"
    )
    master, slave = pty.openpty()
    env = os.environ | in_force() | {"LOGNAME": "grace", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=env, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    said, answered = "", 0
    deadline = time.monotonic() + 240
    while not re.search(r"OUTCOME \w+\s", said) and time.monotonic() < deadline:
        if select.select([master], [], [], 0.5)[0]:
            said += os.read(master, 4096).decode(errors="replace")
        if answered == 0 and "approve / reject" in said:
            os.write(master, b"perhaps\n")
            answered = 1
        if answered == 1 and "please say approve, reject or show" in said:
            os.write(master, b"approve looks good\n")
            answered = 2
    process.wait(30)
    os.close(master)
    assert re.search(r"OUTCOME promoted", said), said
    (recorded,) = store.approvals(RELEASE.id)
    assert (recorded.approver, recorded.note) == ("grace", "looks good")
