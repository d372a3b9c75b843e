"""A real Prefect server and worker with the upgrade deployed, in processes that can be killed and started again."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from tasks.platforms.local.proc import free_port
from tasks.process import die_with_parent
from tests.conftest import migrated
from tests.flows.operations import Api
from tests.platforms.stand import until

REPOSITORY = Path(__file__).parent.parent.parent
PATIENCE_S = 400.0
POOL = "machines"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

Part = Literal["server", "worker"]


@dataclass(frozen=True)
class Kill:
    """A point in a process's own course: just before, or right after, its nth event of this kind with these words."""

    words: str
    """Searched in the event's arguments; of an `os.rename` also in the file that is put in its place."""
    event: Literal["os.rename", "open", "subprocess.Popen"] = "os.rename"
    nth: int = 1
    after: bool = False


@dataclass
class Deployed:
    """Prefect on one machine, with its database and everything else under `home`."""

    home: Path
    env: dict[str, str]
    parts: dict[Part, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        migrated(self.home)
        self.port = free_port()
        self.plan = self.home / "kill.json"
        killing = Path(__file__).parent / "killing"
        self.env = self.env | {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": os.pathsep.join((str(killing), str(REPOSITORY))),
            "KILL_PLAN": str(self.plan),
        }

    # -- processes ----------------------------------------------------------------------------------

    def start(self, part: Part) -> None:
        argv = {
            "server": ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)],
            "worker": ["worker", "start", "--pool", POOL, "--type", "process", "--name", "the worker"],
        }[part]
        with open(self.home / f"{part}.log", "ab") as log:
            self.parts[part] = subprocess.Popen(
                [sys.executable, "-m", "prefect", *argv], cwd=REPOSITORY, env=self.env,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent,
            )  # fmt: skip
        if part == "server":
            assert until(self._healthy, PATIENCE_S), (self.home / "server.log").read_text()[-2000:]

    def kill(self, part: Part) -> None:
        process = self.parts.pop(part)
        process.kill()
        process.wait(30)

    def close(self) -> None:
        """End both, the worker with what it has started."""
        for part in ("worker", "server"):
            if process := self.parts.pop(part, None):
                process.send_signal(signal.SIGINT if part == "worker" else signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.env['PREFECT_API_URL']}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    # -- the API ------------------------------------------------------------------------------------

    def api(self, method: str, path: str, **body: Any) -> Any:
        answer = Api(self.env["PREFECT_API_URL"]).call(method, f"/{path}", body or None)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def deploy(self) -> None:
        """The deployment of the upgrade, for the worker, which must have made its pool."""

        def pool() -> bool:
            names = {found["name"] for found in self.api("POST", "work_pools/filter", limit=10)}
            return POOL in names

        assert until(pool, PATIENCE_S), (self.home / "worker.log").read_text()[-2000:]
        flow = self.api("POST", "flows/", name="upgrade")
        made = self.api(
            "POST", "deployments/", name="production", flow_id=flow["id"], entrypoint="flows.upgrade.upgrade",
            work_pool_name=POOL, enforce_parameter_schema=False,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}],
            job_variables={"working_dir": str(REPOSITORY)},
        )  # fmt: skip
        self.deployment = made["id"]

    def run(self, kill: Kill | None = None, **parameters: Any) -> str:
        """Schedule a run, to be killed there; its id."""
        if kill:
            self.aim(kill)
        made = self.api("POST", f"deployments/{self.deployment}/create_flow_run", parameters=parameters)
        return str(made["id"])

    def aim(self, kill: Kill) -> None:
        """The next process that starts here and gets there dies there."""
        assert not self.plan.exists(), self.plan.read_text()
        temporary = self.plan.with_suffix(".new")
        temporary.write_text(json.dumps(vars(kill)))
        temporary.replace(self.plan)

    def hours_later(self) -> None:
        """Runs that are pending or running have been so for long: their state's times in the database are changed."""
        statement = (
            "update flow_run_state set timestamp = strftime('%Y-%m-%d %H:%M:%f000', timestamp, '-3 hours') "
            "where id in (select state_id from flow_run where state_type in ('PENDING', 'RUNNING'))"
        )
        with closing(sqlite3.connect(self.home / "prefect.db", timeout=60)) as database, database:
            database.execute(statement)

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.api("GET", f"flow_runs/{run}")["state"])

    def states(self) -> dict[str, str]:
        """Run -> type of its state."""
        return {run["id"]: run["state_type"] for run in self.api("POST", "flow_runs/filter", limit=200)}

    def supervise(self) -> None:
        """Start the worker again when it has ended by itself: it does when the server is away for a while."""
        if (worker := self.parts.get("worker")) and worker.poll() is not None:
            self.start("worker")

    def wait(self, run: str, done: Callable[[], object], limit_s: float = PATIENCE_S) -> None:
        """Until that is so. Fails when the run ends first, or time does."""
        deadline = time.monotonic() + limit_s
        while not done():
            self.supervise()
            state = self.state(run) if self.parts.get("server") else {"type": "?"}
            ended = state["type"] in FINAL
            assert not (ended and not done()), f"the run ended first: {state}\n{self.said()}"
            assert time.monotonic() < deadline, f"it never was so; the run: {state}\n{self.said()}"
            time.sleep(0.1)

    def killed(self, run: str) -> None:
        """Wait until the run's process has died at its point."""
        self.wait(run, lambda: not self.plan.exists())

    def answer(self, run: str, decision: str) -> None:
        """Fill in the form as the Prefect page does, once the run asks."""

        def taken() -> bool:
            form = {"decision": decision, "approver": "alice", "note": ""}
            url = f"{self.env['PREFECT_API_URL']}/flow_runs/{run}/resume"
            answer = httpx.post(url, json={"run_input": form}, timeout=60, trust_env=False)
            return answer.is_success and answer.json()["status"] == "ACCEPT"

        self.wait(run, lambda: self.state(run)["type"] == "PAUSED")
        assert until(taken, 60.0, 0.5)

    def ended(self, run: str) -> dict[str, Any]:
        """The run's final state, once it has one."""
        assert until(lambda: self.state(run)["type"] in FINAL, PATIENCE_S, 0.2), f"{self.state(run)}\n{self.said()}"
        return self.state(run)

    def said(self) -> str:
        """The end of what the worker and its runs printed."""
        return (self.home / "worker.log").read_text(errors="replace")[-4000:]


@contextmanager
def prefect_on(home: Path, env: dict[str, str]) -> Iterator[Deployed]:
    """Server, worker and deployment; nothing of them is left."""
    made = Deployed(home, env)
    try:
        made.start("server")
        made.start("worker")
        made.deploy()
        yield made
    finally:
        made.close()
