"""One Prefect server for as long as a command runs, and the terminal's side of an approval."""

from __future__ import annotations

import contextvars
import getpass
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import resume_flow_run
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.states import Crashed

from modal_app.redaction import redact
from tasks.process import die_with_parent
from tasks.release import ToolingError
from tasks.report import console

START_TIMEOUT_S = 90.0
POLL_S = 0.5

Decided = dict[str, str]
"""What `tasks.approval.Decision` is filled in with."""


@contextmanager
def prefect_server(store: Path) -> Iterator[str]:
    """The Prefect server to use: the one PREFECT_API_URL names, else one of our own on a free loopback port.

    Yields the address of its page. Raises ToolingError when it doesn't come up.
    """
    if given := os.environ.get("PREFECT_API_URL"):
        yield redact(given.removesuffix("/api"))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = f"http://127.0.0.1:{port}"
    home = store.absolute() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    env = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{page}/api",
        "PREFECT_UI_API_URL": f"{page}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    log = home / "server.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        _wait(page, process, log)
        with temporary_settings(
            {
                PREFECT_API_URL: f"{page}/api",
                PREFECT_UI_URL: page,
                PREFECT_LOCAL_STORAGE_PATH: home / "storage",
                PREFECT_SERVER_ANALYTICS_ENABLED: False,
            }
        ):
            yield page
            APILogWorker.drain_all(timeout=5)  # what is still queued would find no server
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(page: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{page}/api/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise ToolingError(
        "the Prefect server did not start",
        evidence=f"{log}:\n{log.read_text(errors='replace')[-800:]}",
        todo="set PREFECT_API_URL to a running server, or mend this one",
    )


def mark_crashed(flow_run_id: str) -> None:
    """Tell the Prefect server that a run's process is gone; nothing when it does not know the run or it has ended."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(flow_run_id))
        except (ObjectNotFound, ValueError):
            return
        if run.state is None or not run.state.is_final():
            client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)


@contextmanager
def approver_at_the_terminal(name: str | None) -> Iterator[Callable[[UUID], None]]:
    """While the flow runs: answer its pauses as `name`, or ask whoever sits at the terminal.

    Yields the function that is to be told the flow run's id. The Prefect page can answer as well; whoever is
    first decides.
    """
    if name is None and not (sys.stdin.isatty() and console.is_terminal):
        yield lambda _: None
        return
    told: list[UUID] = []
    stop = threading.Event()
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(_attend, told, stop, name), daemon=True)
    thread.start()
    try:
        yield told.append
    finally:
        stop.set()
        thread.join(5)


def _attend(told: list[UUID], stop: threading.Event, name: str | None) -> None:
    while not stop.wait(POLL_S):
        if told and _paused(told[-1]):
            if answer := _unattended(name) if name else _prompt(told[-1], stop):
                answer_pause(told[-1], answer)
            while not stop.wait(POLL_S) and _paused(told[-1]):
                pass


def _unattended(name: str) -> Decided:
    return {"decision": "approve", "approver": name, "note": "unattended"}


def answer_pause(flow_run_id: UUID, answer: Decided) -> None:
    """Resume a paused run with a decision. Raises ToolingError when the run does not take it."""
    deadline = time.monotonic() + 30
    while True:
        try:
            resume_flow_run(flow_run_id, run_input=answer)
            return
        except Exception as error:  # the pause is there a moment before its form is
            if time.monotonic() > deadline:
                raise ToolingError("the run did not take the decision", evidence=f"{error}") from error
            time.sleep(POLL_S)


def _paused(flow_run_id: UUID) -> bool:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
    return state is not None and state.is_paused()


def _prompt(flow_run_id: UUID, stop: threading.Event) -> Decided | None:
    who = getpass.getuser()
    console.print(f"  [bold]approve[/] this release as {who}? (approve / reject, and a note if you like): ", end="")
    while not stop.is_set() and _paused(flow_run_id):
        if select.select([sys.stdin], [], [], 1.0)[0]:
            decision, _, note = sys.stdin.readline().strip().partition(" ")
            if decision in ("approve", "reject"):
                return {"decision": decision, "approver": who, "note": note}
            console.print("  please say approve or reject: ", end="")
    return None
