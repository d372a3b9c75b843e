"""A real Prefect server, a real deployment, and what a worker does: one process for each time that a run runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.objects import FlowRun

from tasks.release import Request
from tasks.store import Store
from tests.approval.asking import ENTRYPOINT, asking
from tests.conftest import in_force, own_prefect
from tests.flows.conftest import PATIENCE_S, REPOSITORY


@pytest.fixture(scope="package")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server of our own, in force for these tests and for the processes that they start."""
    with own_prefect(tmp_path_factory.mktemp("prefect")) as address, pytest.MonkeyPatch.context() as patch:
        for name, value in in_force().items():
            patch.setenv(name, value)
        yield address


@dataclass
class Deployed:
    """The asking flow as a deployment."""

    id: UUID
    store: Store

    def create(self, **parameters: object) -> UUID:
        with get_client(sync_client=True) as client:
            run = client.create_flow_run_from_deployment(
                self.id, parameters={"root": str(self.store.root), **parameters}
            )
        return run.id

    def execute(self, run: UUID) -> FlowRun:
        """Run a run to where its process ends; the run as it is then."""
        subprocess.run(
            [sys.executable, "-m", "prefect", "flow-run", "execute", str(run)],
            cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, timeout=PATIENCE_S, check=True,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        return self.read(run)

    def read(self, run: UUID) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(run)

    def state(self, run: UUID) -> tuple[str, str]:
        """(name, message) of a run's state."""
        state = self.read(run).state
        assert state
        return state.name or "", state.message or ""

    def request(self, run: UUID) -> Request:
        found = self.store.request(str(run))
        assert found
        return found

    def suspended(self, **parameters: object) -> UUID:
        """A run that has asked, and whose process has ended."""
        run = self.create(**parameters)
        self.execute(run)
        assert self.state(run)[0] == "Suspended"
        return run


@pytest.fixture
def deployed(page: str, store: Store) -> Deployed:  # noqa: ARG001 - the server that is in force
    name = f"of {store.root.parent.name}"
    # as prefect.yaml does: without a pull step each run is given a copy of the whole checkout, its .venv too
    pull = {"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}
    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name(asking.name)
        made = client.create_deployment(flow, name, entrypoint=ENTRYPOINT, pull_steps=[pull])
    return Deployed(made, store)
