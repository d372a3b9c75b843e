"""`llama-release serve`: the deployments of prefect.yaml and a worker for them, until it is told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import get_current_settings

from flows.worker import POOL, TEMPLATE, Worker
from modal_app.child import everything
from tasks.platforms.local.proc import children
from tasks.process import die_with_parent, run
from tasks.release import BadInput, ToolingError

DEPLOYMENTS = Path(__file__).parent.parent / "prefect.yaml"
DEPLOY_LIMIT_S = 300
RUN_ENDS_S = 60
WORKER_ENDS_S = 10


def deploy() -> None:
    """All deployments of prefect.yaml are on the Prefect server in force, as they stand there.

    Raises BadInput without that file, ToolingError with Prefect's own words.
    """
    if not DEPLOYMENTS.is_file():
        raise BadInput(f"there is no {DEPLOYMENTS}", todo="run it from a checkout of llama-release")
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type=Worker.type, base_job_template=TEMPLATE))
        except ObjectAlreadyExists:  # of an earlier version, or changed since
            client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=TEMPLATE))
    words = ("deploy", "--all", "--no-prompt", "--prefect-file", DEPLOYMENTS)
    run((sys.executable, "-m", "prefect", *words), env=_environment(), timeout_s=DEPLOY_LIMIT_S)


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A worker of this folder and this environment. On exit its runs are ended first: Prefect shows them as crashed,
    and what they verified is kept. Runs that wait for a person have no process and are not touched.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.worker"], env=_environment(), stdin=subprocess.DEVNULL,
        start_new_session=True, preexec_fn=die_with_parent,
    )  # fmt: skip
    try:
        yield process
    finally:
        _stop(process)


def until_stopped(process: subprocess.Popen[bytes]) -> None:
    """Wait until somebody stops this process. Raises ToolingError when the worker ends by itself."""
    code = process.wait()
    raise ToolingError("the worker ended", evidence=f"exit code {code}; its own words are above", todo="serve again")


def _stop(process: subprocess.Popen[bytes]) -> None:
    told: set[int] = set()
    deadline = time.monotonic() + RUN_ENDS_S
    while (left := set(children(process.pid))) and time.monotonic() < deadline:
        for pid in left - told:  # once: another signal would interrupt what a run tells the server
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        told |= left
        time.sleep(0.2)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    process.terminate()
    try:
        process.wait(WORKER_ENDS_S)
    except subprocess.TimeoutExpired:  # Prefect's worker hangs when it is told to stop while a run goes on
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    """This process's environment and the Prefect settings in force in it."""
    return everything() | get_current_settings().to_environment_variables(exclude_unset=True)
