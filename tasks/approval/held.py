"""A flow run that waits for a person, on the Prefect server that holds it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx
from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound, PrefectHTTPStatusError
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled

from tasks import password
from tasks.release import Request, ToolingError

FORM_S = 30.0
"""Seconds in which the form of a run that has just paused appears on the server."""

Decided = dict[str, str]
"""What `tasks.approval.Decision` is filled in with."""


def api_url() -> str:
    """The API of the Prefect server that is in force here."""
    with get_client(sync_client=True) as client:
        return str(client.api_url)


@contextmanager
def server(address: str) -> Iterator[SyncPrefectClient]:
    """The Prefect server with this API is in force in the block; a store's password is told to a server that has it."""
    given = PREFECT_API_AUTH_STRING.value()
    page = address.rstrip("/").removesuffix("/api")  # httpx ends an address with a slash
    if given and password.ours(given) and not password.shows(page, given):
        given = None
    settings = {PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: given}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


@contextmanager
def password_of(store: Path) -> Iterator[None]:
    """The password of this store is in force, unless a server is named: for who answers from beside the run's own."""
    home = password.folder(store)
    needless = os.environ.get("PREFECT_API_URL") or not (home / password.NAME).exists()
    kept = {} if needless else {PREFECT_API_AUTH_STRING: password.keep(home)}
    with temporary_settings(set_defaults=kept):
        yield


def state(request: Request, address: str = "") -> State | None:
    """The state of the run that asks; None when its server does not answer or does not know it.

    `address`: another way to reach the server than the run's own.
    """
    try:
        with server(address or request.api_url) as client:
            return client.read_flow_run(UUID(request.run)).state
    except (ObjectNotFound, PrefectHTTPStatusError, httpx.HTTPError, RuntimeError, ValueError):
        return None  # ValueError: it answers no state, so somebody else has the port by now


def answer(run: UUID, given: Decided) -> None:
    """Have a paused run go on with a decision, on the server that is in force.

    Raises ToolingError when it does not take it.
    """
    deadline = time.monotonic() + FORM_S
    while True:
        try:
            resume_flow_run(run, run_input=given)
            return
        except Exception as error:
            # the pause is there a moment before its form is
            coming = "schema not found" in str(error) or isinstance(error, httpx.HTTPError)
            if not coming or time.monotonic() > deadline:
                raise ToolingError(
                    "the run did not take the decision", evidence=str(error), todo=f"look at flow run {run}"
                ) from error
        time.sleep(0.2)


def end(request: Request, why: Decided) -> None:
    """Have a run that waits wait no longer: a suspended one is cancelled, a paused one goes on and finds out.

    Nothing when it does not wait any more, or its server is gone.
    """
    now = state(request)
    if now is None or not now.is_paused():
        return
    with server(request.api_url) as client:
        if request.suspended:
            client.set_flow_run_state(UUID(request.run), Cancelled(message=why["note"]), force=True)
            return
        try:
            answer(UUID(request.run), why)
        except ToolingError as error:
            if not isinstance(error.__cause__, (NotPausedError, FlowPauseTimeout)):
                raise
