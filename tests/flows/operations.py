"""What docs/operations.md tells a person to do, done as it stands there."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests.flows.conftest import PATIENCE_S, REPOSITORY

PAGE = REPOSITORY / "docs" / "operations.md"
LINES = PAGE.read_text(encoding="utf-8").splitlines()
COMMAND_S = 240


def words_of(line: str) -> list[str]:
    """A command line of the page, word by word. Fails when the page does not have it."""
    assert f"$ {line}" in LINES, f"{PAGE.name} does not say: {line}"
    return shlex.split(line)


def environment(home: Path, **more: str) -> dict[str, str]:
    """A person's shell that has nothing of ours set, but finds our commands."""
    ours = ("LLAMA_", "PREFECT_", "DEMO_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return env | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), env["PATH"])),
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "COLUMNS": "160",
        **more,
    }


@dataclass
class Shell:
    """A folder and an environment in which commands of the page are run."""

    folder: Path
    env: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, line: str, *more: str, code: int = 0) -> str:
        """Run a command of the page to its end; what it printed."""
        done = subprocess.run(
            [*words_of(line), *more], cwd=self.folder, env=self.env, text=True, timeout=COMMAND_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == code, f"{line} exited {done.returncode}:\n{done.stdout}"
        return done.stdout

    def start(self, line: str, *more: str, log: str) -> subprocess.Popen[bytes]:
        """Start a command of the page that stays; its words go to a file in the folder."""
        with open(self.folder / log, "wb") as output:
            process = subprocess.Popen(
                [*words_of(line), *more], cwd=self.folder, env=self.env,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def said(self, log: str) -> str:
        return (self.folder / log).read_text(errors="replace")

    def processes(self) -> list[int]:
        """Pids of all that runs in this environment, whoever started it."""
        mine = f"PREFECT_HOME={self.folder}/"
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if mine in _environ(pid)]

    def end(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait(10)


def _environ(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


@dataclass
class Api:
    """Prefect's HTTP API, as its page uses it."""

    url: str
    password: str = ""
    csrf: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Asked as Prefect's clients do: with a CSRF token where the server gives one."""
        if method != "GET" and not self.csrf:
            client = str(uuid4())
            given = self._ask("GET", f"/csrf-token?client={client}")
            self.csrf = {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": given.json().get("token", "")}
        return self._ask(method, path, body)

    def _ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Again while its SQLite database is locked, which the server says by 503."""
        user, _, password = self.password.partition(":")
        auth = (user, password) if self.password else None

        def ask() -> httpx.Response:
            return httpx.request(
                method, f"{self.url}{path}", json=body, auth=auth, headers=self.csrf, timeout=60, trust_env=False
            )

        deadline = time.monotonic() + PATIENCE_S
        while (answer := ask()).status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.5)
        return answer

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/deployments/name/{name}").raise_for_status().json())

    def create(self, name: str, parameters: dict[str, object], **more: object) -> httpx.Response:
        """Ask for a run with these parameters, whatever they are."""
        deployment = self.deployment(name)["id"]
        return self.call("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": parameters, **more})

    def begin(self, name: str, parameters: dict[str, object]) -> str:
        """A run with these parameters; its id."""
        answer = self.create(name, parameters)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def scheduled(self, name: str, schedule: str = "") -> dict[str, datetime]:
        """When each run starts that the server made for a deployment's schedules, or for this one of them."""
        body = {"flow_runs": {"deployment_id": {"any_": [self.deployment(name)["id"]]}}}
        runs = self.call("POST", "/flow_runs/filter", body).raise_for_status().json()
        return {
            r["id"]: datetime.fromisoformat(r["expected_start_time"])
            for r in runs
            if r["auto_scheduled"] and schedule in r["idempotency_key"]
        }

    @contextlib.contextmanager
    def every(self, seconds: int, name: str) -> Iterator[str]:
        """A schedule of this interval for a deployment, beside those that it has; its id."""
        schedules = f"/deployments/{self.deployment(name)['id']}/schedules"
        (made,) = self.call("POST", schedules, [{"schedule": {"interval": seconds}}]).raise_for_status().json()
        try:
            yield str(made["id"])
        finally:
            self.call("DELETE", f"{schedules}/{made['id']}").raise_for_status()

    def state(self, run: str) -> tuple[str, str]:
        """(name, message) of a run's state."""
        state = self.call("GET", f"/flow_runs/{run}").raise_for_status().json()["state"]
        return state["name"], state["message"] or ""

    def reaches(self, run: str, *names: str) -> str:
        """Wait until a run's state has one of these names; its message."""
        seen = wait_for(lambda: (state := self.state(run))[0] in ("Failed", "Crashed", *names) and state)
        assert seen[0] in names, json.dumps([seen, self.logs(run)], indent=1)
        return str(seen[1])

    def logs(self, run: str) -> str:
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
        return "\n".join(line["message"] for line in self.call("POST", "/logs/filter", body).json())


def wait_for(condition: Callable[[], Any], limit_s: float = PATIENCE_S) -> Any:
    """What the condition gives as soon as it is true. Fails when it never is."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.5)
    return found


def serving(shell: Shell, *more: str) -> tuple[subprocess.Popen[bytes], Api]:
    """`llama-release serve` as soon as it takes runs."""
    process = shell.start("llama-release serve", "--port", "0", *more, log="serve.log")
    wait_for(lambda: "started!" in shell.said("serve.log") or process.poll() is not None)
    assert process.poll() is None, shell.said("serve.log")
    return process, own_api(shell.folder / "store")


def own_api(store: Path, page: str = "") -> Api:
    """That of a Prefect server which our commands started for this store: at this page, or that of `serve`."""
    home = store / "prefect"
    return Api(f"{page or (home / 'serving').read_text()}/api", (home / "password").read_text().strip())
