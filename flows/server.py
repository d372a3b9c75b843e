"""One Prefect server for as long as a command runs, and the terminal's side of an approval."""

from __future__ import annotations

import contextvars
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.states import Crashed

from modal_app import child
from modal_app.redaction import redact
from tasks import password
from tasks.approval import held, terminal
from tasks.console import console, styled, user_name
from tasks.platforms.local.proc import free_port, holder
from tasks.process import die_with_parent
from tasks.release import BadInput, ToolingError
from tasks.store import write_atomic
from tasks.troubles import Troubles

START_TIMEOUT_S = 300.0
SERVING = "serving"
"""The file in Prefect's folder that holds the address of the page that `llama-release serve` runs."""
POLL_S = 0.5
LOST_AFTER = timedelta(hours=1)
"""No run waits as long for the release lock, nor needs so long to end once it has let go of it."""
UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


@contextmanager
def prefect_server(store: Path, port: int | None = None, open_to_all: bool = False) -> Iterator[str]:
    """The Prefect server to use: the one PREFECT_API_URL names, else the one that `llama-release serve` runs for this
    store, else one of our own on loopback.

    With a port (`serve` gives it; 0: any) it is our own, there, and others find it. Yields the address of its page.
    Our own asks for the store's password and serves only who calls it by its own name. Open to all, it leaves both to a
    proxy in front.

    Raises BadInput when the port is taken or there is such a server, ToolingError when it doesn't come up or answer.
    """
    if given := os.environ.get("PREFECT_API_URL"):
        _check_answering()
        yield redact(given.removesuffix("/api"))
        return
    home = password.folder(store)
    serving, secret = home / SERVING, password.keep(home)
    proxy = os.environ.get("PREFECT_UI_URL", "").rstrip("/")
    if page := _answering(serving, secret):
        if port is not None:
            raise BadInput(
                "`llama-release serve` runs for this store already", evidence=page, todo="stop that one first"
            )
        with _in_force(page, home, secret, proxy):
            yield page
    elif port is None:
        with _own_server(home, 0, secret) as page, _in_force(page, home, secret):
            yield page
    else:
        with _own_server(home, port, secret, proxy, open_to_all) as page, _in_force(page, home, secret, proxy):
            write_atomic(serving, page)
            try:
                yield page
            finally:
                serving.unlink(missing_ok=True)


@contextmanager
def _own_server(home: Path, port: int, secret: str, proxy: str = "", open_to_all: bool = False) -> Iterator[str]:
    """On this port; 0: any, and another one when somebody is faster than the server, which binds it seconds later.

    `proxy`: the address at which people reach it, if not its own.
    """
    log = home / "server.log"
    for more in (2, 1, 0):
        page = f"http://127.0.0.1:{_free(port)}"
        process = _start(page, home, log, secret, proxy, open_to_all)
        try:
            if _comes_up(page, process, log, secret, others=0 if port else more):
                yield page
                return
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def _start(page: str, home: Path, log: Path, secret: str, proxy: str, open_to_all: bool) -> subprocess.Popen[bytes]:
    own = sorted({page, page.replace("127.0.0.1", "localhost"), proxy or page})
    env = child.environment(child.PYTHON, child.PREFECT, child.PROXY, child.TLS) | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{page}/api",
        "PREFECT_UI_API_URL": f"{proxy or page}/api",
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(own),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    if open_to_all:
        del env["PREFECT_SERVER_API_AUTH_STRING"]
        own = []
    with open(log, "w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.door", page, *own],
            env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, preexec_fn=die_with_parent,
            start_new_session=True,  # Ctrl-C at the terminal is for the runs first: they tell this server
        )  # fmt: skip


@contextmanager
def _in_force(page: str, home: Path, secret: str, proxy: str = "") -> Iterator[None]:
    with temporary_settings(
        {
            PREFECT_API_URL: f"{page}/api",
            PREFECT_API_AUTH_STRING: secret,
            PREFECT_UI_URL: proxy or page,
            PREFECT_LOCAL_STORAGE_PATH: home / "storage",
            PREFECT_SERVER_ANALYTICS_ENABLED: False,
        }
    ):
        try:
            yield
        finally:  # what is still queued would find no server, and Prefect would go on trying for a minute at exit
            APILogWorker.drain_all(timeout=5)


def _free(port: int) -> int:
    try:
        return free_port(port=port)
    except OSError as error:
        raise BadInput(
            f"port {port} is taken", evidence=f"by {holder(port)}", todo="give another with --port"
        ) from error


def _answering(serving: Path, secret: str) -> str:
    """The page of the server that `serve` runs; '' when there is none, or it was killed and left its file."""
    try:
        page = serving.read_text(encoding="utf-8")
    except OSError:
        return ""
    return page if password.shows(page, secret) else ""


def _check_answering() -> None:
    """Raises ToolingError when the Prefect server in force does not answer."""
    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():
            raise ToolingError(
                "the Prefect server that PREFECT_API_URL names does not answer",
                evidence=f"{client.api_url}: {error}",
                todo="start it, correct its address, or unset PREFECT_API_URL: a server is then started here",
            )


def _comes_up(page: str, process: subprocess.Popen[bytes], log: Path, secret: str, others: int) -> bool:
    """Wait until it answers; false when its port was taken meanwhile, and others are left to try.

    Raises ToolingError when it does not come up.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if password.shows(page, secret):
            return True
        time.sleep(0.2)
    said = log.read_text(errors="replace")
    if others and process.poll() is not None and "already in use" in said:
        return False
    raise ToolingError(
        "the Prefect server did not start",
        evidence=f"{log}:\n{said[-800:]}",
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


def settle(flows: Sequence[str], mine: str, at: datetime) -> None:
    """Mark as crashed what else is pending or running of these flows, and at this time has been for LOST_AFTER.

    To be called with the release lock held: whoever runs without it waits for it or ends, so nobody has that run any
    more. Its worker was killed, or its end could not be told because the Prefect server was away.
    """
    with get_client(sync_client=True) as client:
        open_runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(flows))),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED))),
        )
        for run in open_runs:
            if str(run.id) != mine and run.state is not None and run.state.timestamp < at - LOST_AFTER:
                message = f"{run.state.name} since {run.state.timestamp:%Y-%m-%d %H:%M} UTC, and no process has it"
                client.set_flow_run_state(run.id, Crashed(message=message), force=True)


@contextmanager
def approver_at_the_terminal(
    name: str | None, troubles: Troubles, show: Callable[[str], None]
) -> Iterator[Callable[[UUID], None]]:
    """While the flow runs: answer its pauses as `name`, or ask whoever sits at the terminal.

    `show` prints what a run asks, for whoever wants to see it first. Yields the function that is to be told the flow
    run's id. The Prefect page can answer as well; whoever is first decides.
    """
    if name is None and not (sys.stdin.isatty() and console.is_terminal):
        yield lambda _: None
        return
    told: list[UUID] = []
    stop = threading.Event()
    context = contextvars.copy_context()

    def answer() -> held.Decided | None:
        return _unattended(name) if name else _prompt(told[-1], stop, show)

    thread = threading.Thread(target=lambda: context.run(_attend, told, stop, answer, troubles), daemon=True)
    thread.start()
    try:
        yield told.append
    finally:
        stop.set()
        thread.join(5)


def _attend(
    told: list[UUID], stop: threading.Event, answer: Callable[[], held.Decided | None], troubles: Troubles
) -> None:
    while not stop.wait(POLL_S):
        with troubles.outlived("asking for approval at the terminal"):  # a server that is busy answers later
            if told and _paused(told[-1]):
                _answer_pause(told[-1], stop, answer())


def _answer_pause(flow_run_id: UUID, stop: threading.Event, answer: held.Decided | None) -> None:
    if answer:
        try:
            held.answer(flow_run_id, answer)
        except ToolingError as error:  # somebody in the Prefect page was first
            console.print("  " + str(error).replace("\n", "\n  "))
    while not stop.wait(POLL_S) and _paused(flow_run_id):
        pass


def _unattended(name: str) -> held.Decided:
    return {"decision": "approve", "approver": name, "note": "unattended"}


def _paused(flow_run_id: UUID) -> bool:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
    return state is not None and state.is_paused()


def _prompt(flow_run_id: UUID, stop: threading.Event, show: Callable[[str], None]) -> held.Decided | None:
    """None when the run waits no more, or nobody can type any more: the page is still there."""
    who = user_name()
    asked = f" this release as {who}? (approve / reject / show, and a note if you like): "
    console.print("  ", styled("approve", "bold"), asked, sep="", end="")
    while not stop.is_set() and _paused(flow_run_id):
        if not select.select([sys.stdin], [], [], 1.0)[0]:
            continue
        if not (line := sys.stdin.readline()):
            return None
        if decided := terminal.typed(line):
            return {"decision": decided[0], "approver": who, "note": decided[1]}
        if line.strip().lower() == "show":
            show(str(flow_run_id))
        console.print("  please say approve, reject or show: ", end="")
    return None
