"""The worker of `llama-release serve`: it runs our flows, and nothing that the Prefect API could be made to say."""

from __future__ import annotations

import abc
import asyncio
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from tasks.release import BadInput

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse

POOL = "llama-release"
ENTRYPOINTS = {
    "upgrade": "flows.upgrade.upgrade",
    "redeploy": "flows.redeploy.redeploy",
    "rollback": "flows.rollback.rollback",
    "restore-watch": "flows.restore_watch.restore_watch",
    "patches-watch": "flows.patches_watch.patches_watch",
}
TEMPLATE: dict[str, Any] = {
    "job_configuration": {"working_dir": "."},
    "variables": {
        "type": "object",
        "properties": {"working_dir": {"type": "string", "enum": ["."]}},  # as prefect.yaml has it
        "additionalProperties": False,
    },
}
"""What a run or a deployment may set of how it is run: nothing. The Prefect server refuses the rest."""


class Fixed(ProcessJobConfiguration):
    """How a run is started: one of our flows, in this folder and this environment.

    Job variables, the pool's template, a deployment's entrypoint and its pull steps are what whoever has the password
    can change; none of them is read.
    """

    @classmethod
    async def from_template_and_values(
        cls,
        base_job_template: dict[str, Any],  # noqa: ARG003 - as Prefect calls it
        values: dict[str, Any],  # noqa: ARG003
        client: PrefectClient | None = None,  # noqa: ARG003
    ) -> Fixed:
        return cls(command=shlex.join((sys.executable, "-m", "prefect.engine")), working_dir=Path.cwd())

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        flow: Flow | None = None,
        work_pool: WorkPool | None = None,
        worker_name: str | None = None,
        worker_id: UUID | None = None,
    ) -> None:
        """Raises BadInput for a flow that is none of ours."""
        super().prepare_for_flow_run(flow_run, deployment, flow, work_pool, worker_name, worker_id)
        entrypoint = ENTRYPOINTS.get(flow.name if flow else "")
        if entrypoint is None:
            raise BadInput(f"this worker runs {', '.join(ENTRYPOINTS)} and nothing else")
        self.env["PREFECT__FLOW_ENTRYPOINT"] = entrypoint  # with it, prefect.engine 3.9 asks no deployment for code


class Worker(ProcessWorker, abc.ABC):
    """A process worker that starts what is Fixed."""

    # `abc.ABC` keeps it out of Prefect's registry of worker types, which would warn that `process` is taken.
    job_configuration = Fixed

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Start a run and wait for its end."""
        # For the hooks of a run that crashed, Prefect 3.9 loads its flow into the worker, pull steps and all. Ours has
        # none; a run without a deployment has nothing to load.
        return await super().run(flow_run.model_copy(update={"deployment_id": None}), configuration, task_status)


def main() -> None:
    """Run what is due, until a signal."""
    told: list[str] = []
    setup_signal_handlers_worker(os.getpid(), "the worker", told.append)
    try:
        asyncio.run(Worker(work_pool_name=POOL, name=socket.gethostname()).start())
    except BaseException:  # a KeyboardInterrupt, or what Prefect 3.9 makes of it while it starts a run: anyio's errors
        if not told:
            raise


if __name__ == "__main__":
    main()
