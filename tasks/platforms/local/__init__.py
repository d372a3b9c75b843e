"""The local platform: real llama-server processes on this machine, each stage behind an activator."""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from modal_app import child, wall
from modal_app.warmup import Golden
from tasks.faults import Fault
from tasks.platforms import Progress, Sight, refuse_open_host, unseen
from tasks.platforms.local import compile, server, snapshot
from tasks.platforms.local.boot import DUMP_LIMIT_S
from tasks.platforms.local.control import (
    KEY_VARIABLE,
    Control,
    Deployment,
    Status,
    activator_log_path,
    deployment_path,
    load_all,
    load_deployment,
    load_wakes,
    problem_from,
    run_folder,
    save_deployment,
)
from tasks.platforms.local.proc import gpu_memory_mb, is_alive
from tasks.platforms.local.snapshot import Ability, Wanted
from tasks.release import (
    BadInput,
    BootRecord,
    Build,
    Endpoint,
    Recipe,
    Release,
    SourceTree,
    StageName,
    ToolingError,
)
from tasks.settings import Settings
from tasks.store import Store, with_reserve

ACTIVATOR_START_S = 120.0
"""For one that hangs: one that fails ends at once, and what it imports takes long on a busy machine."""
IDLE_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0

_activators: list[subprocess.Popen[bytes]] = []
"""Those that this process started, so that the ones that have ended can be reaped."""


class LocalPlatform:
    """Implements tasks.platforms.Platform. Raises BadInput for an open host without an API key."""

    name = "local"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.store)
        self._logs: dict[str, Path] = {}
        """Address of a trial's server -> its log, while it is up."""
        refuse_open_host(settings)

    def build(self, source: SourceTree, recipe: Recipe, progress: Progress) -> Build:
        """The build of this source tree: made, or taken from the store. Raises ReleaseFailed when it won't compile."""
        return compile.build(source, recipe, self.store, self.settings, progress)

    def built(self, source: SourceTree, recipe: Recipe) -> Build | None:
        """The finished build that `build` would reuse, if there is one."""
        return compile.finished(source, recipe, self.store, self.settings)

    def avoids(self, recipe: Recipe) -> tuple[Fault, ...]:
        """The known faults that a build of this recipe would have here, and is kept from."""
        return compile.striking(recipe, self.settings)

    @contextmanager
    def trial(self, release: Release, *, wait: bool = True) -> Iterator[Endpoint]:
        """A server of its own with a random key, gone on exit.

        With `wait=False` it listens but may still load. Raises `runbook.failure` of the server's own words when it
        doesn't come up; ReleaseFailed when it dies before the exit, whatever a client made of that, ToolingError for
        SIGKILL.
        """
        limit_s = self.settings.local.start_timeout_s
        folder = self.store.root / "run" / "trials"
        started = server.start(self.store, release, secrets.token_urlsafe(32), folder, limit_s, walled=True)
        try:
            if wait:
                server.wait_healthy(started, limit_s)
            with server.telling_deaths(started):
                self._logs[started.endpoint.base_url] = started.log
                yield started.endpoint
        finally:
            self._logs.pop(started.endpoint.base_url, None)
            started.stop()

    def said(self, trial: Endpoint) -> str:
        """What the server of a trial that is up has written to its log so far."""
        log = self._logs[trial.base_url].read_text(encoding="utf-8", errors="replace")
        return log.partition("\n")[2]  # the first line is ours: the command

    def inherits(self) -> tuple[str, ...]:
        """The names of this process's environment variables that servers see too, sorted."""
        return server.inherited()

    def deploy(
        self,
        stage: StageName,
        release: Release,
        check: Callable[[Endpoint], object],
        *,
        generation: str = "",
        at_once: bool = False,  # noqa: ARG002 - nothing here waits for more than its boot
        progress: Progress = unseen,  # noqa: ARG002 - the activator tells of itself
    ) -> Endpoint:
        """The stage serves this release from now on; nothing happens when it does already, with the same key and
        generation.

        `check` is given the new server before traffic moves. What it raises leaves the stage as it was.
        Raises `runbook.failure` when the new server doesn't come up, ToolingError when something is missing here.
        """
        server.command(self.store, release)
        self.store.save_release(release)
        self.ensure(stage)
        # a start, its warm-up and dump; when that fails, another start
        with self._control(stage, 3 * self.settings.local.start_timeout_s + DUMP_LIMIT_S) as control:
            try:
                prepared = control.prepare(release.id, self._key, generation)
                if not prepared.serving:
                    check(Endpoint(base_url=prepared.base_url, api_key=self._key))
                    control.commit(release.id)
            except BaseException:
                self._undo(control)
                raise
        return self.endpoint(stage)

    def check_keys(self) -> None:
        """Nothing: a server here may well have no key."""

    def serving(self, stage: StageName) -> tuple[str, str] | None:
        """(release id, generation) that the stage serves, with whatever key; None when its activator serves nothing."""
        status = self.status(stage)
        return (status.release, status.generation) if status and status.release else None

    def knows_key(self, stage: StageName) -> bool:
        """Whether the servers of a stage whose activator runs were started with the API key of today."""
        with self._control(stage) as control:
            return control.has_key(self._key)

    def ensure(self, stage: StageName) -> Endpoint:
        """The stage's activator runs and serves what deployment.json says; started if it doesn't run.

        Raises BadInput when its port is taken, ToolingError when it doesn't start.
        """
        if self.status(stage) is None:
            self._start_activator(stage)
        return self._address(stage)

    def endpoint(self, stage: StageName) -> Endpoint:
        """Where the stage answers. Raises BadInput when it serves nothing."""
        if not self._serves(stage):
            raise BadInput(
                f"{stage} serves nothing",
                evidence=f"no release in {deployment_path(self.store.root, stage)}",
                todo="deploy a release to it",
            )
        return self._address(stage)

    def address(self, stage: StageName) -> str:
        """Where the stage answers; '' when it serves nothing."""
        return self._address(stage).base_url if self._serves(stage) else ""

    def idle(self, stage: StageName) -> int:
        """Stop the stage's server once no request is in flight (up to a minute); llama-server processes left."""
        if self.status(stage) is None:
            return 0
        with self._control(stage, IDLE_LIMIT_S + 30) as control:
            return control.idle(IDLE_LIMIT_S)

    def warm(self, stage: StageName, progress: Progress) -> str:  # noqa: ARG002 - this is one machine
        """Nothing: a snapshot is made and used here."""
        return ""

    holds_requests = True
    """The activator does."""

    def foretells(self, stage: StageName) -> tuple[str, ...]:  # noqa: ARG002
        """Nothing: what a deployment changes here is the release."""
        return ()

    def started(self, stage: StageName, since: datetime) -> int | None:  # noqa: ARG002
        """Nobody counts beside the boot records: the activator that starts a server writes them."""
        return None

    def version(self, stage: StageName) -> str:
        """The first snapshot of what the stage serves: one that is taken anew is another server."""
        _, generation = self.serving(stage) or ("", "")
        boots = (boot for boot in self.boots(stage) if boot.generation == generation and boot.snapshot)
        return str(first.snapshot) if (first := next(boots, None)) else ""

    def unforce(self, stage: StageName) -> str:  # noqa: ARG002 - the activator forces an idle window by itself
        """Nothing: an idle window that is forced here ends with the request for it."""
        return ""

    def rest(self, stage: StageName, since: Sight) -> None:
        """Let the stage's server go idle at once if no user asked anything since then."""
        if since.answered is not None and self.status(stage) is not None:
            with self._control(stage) as control:
                control.idle(0, answered=since.answered)

    def boots(self, stage: StageName) -> list[BootRecord]:
        """Boot records of the stage, oldest first. Raises ToolingError for a damaged one."""
        return load_all(run_folder(self.store.root, stage) / "boots", BootRecord)

    def logs(self, stage: StageName) -> Path:
        """The log of the stage's latest server; earlier ones lie beside it."""
        return run_folder(self.store.root, stage) / "servers" / "server.log"

    def sight(self, stage: StageName) -> Sight:
        """The stage as its activator knows it. Past the activator, its server can be asked without being kept up."""
        wakes, status = load_wakes(self.store.root, stage), self.status(stage)
        if status is None:
            down = "its activator does not run" if self._serves(stage) else "it was stopped"
            return Sight(servers=0, wakes=wakes, down=down)
        gpu = gpu_memory_mb() if self.settings.recipe.backend == "cuda" else None
        return Sight(
            servers=status.servers,
            starting=status.state == "starting",
            in_flight=status.in_flight,
            answered=status.answered,
            errors=status.errors,
            wakes=wakes,
            aside=Endpoint(base_url=status.server_url, api_key=self._key) if status.server_url else None,
            stays=self.snapshots().kind == "memory",
            gpu_used_mb=gpu[0] if gpu else None,
            gpu_total_mb=gpu[1] if gpu else None,
        )

    def revive(self, stage: StageName) -> str:
        """Start the activator of a stage that serves a release, if it was killed, or the machine was started anew.

        Raises BadInput when its port is taken, ToolingError when it doesn't start.
        """
        if not self._serves(stage) or self.status(stage) is not None:
            return ""
        self._start_activator(stage)
        return f"the activator of {stage} was gone, and was started again"

    def golden(self, stage: StageName, _snapshot: str | None = None) -> Golden | None:
        """What the stage's server answered before its snapshot; None when there is no snapshot."""
        deployment = load_deployment(self.store.root, stage)
        if deployment is None or deployment.release is None:
            return None
        name = snapshot.folder_name(deployment.release, self._key, deployment.generation)
        return snapshot.load_golden(snapshot.snapshots_folder(self.store.root, stage) / name)

    def snapshots(self) -> Ability:
        """What an idle server comes back from on this machine, and by what, or why it can't."""
        return snapshot.snapshots_here(self._wanted, gpu=self.settings.recipe.backend == "cuda")

    def status(self, stage: StageName) -> Status | None:
        """What the stage's activator does just now; None when it doesn't run."""
        with self._control(stage) as control:
            return control.running()

    def stop(self, stage: StageName) -> None:
        """The stage serves nothing from now on, and its snapshots are gone; its port is kept for it."""
        self.shut_down(stage)
        deployment = load_deployment(self.store.root, stage)
        if deployment is not None:
            save_deployment(self.store.root, stage, Deployment(port=deployment.port))
        snapshot.sweep(snapshot.snapshots_folder(self.store.root, stage), set(), half_taken=True)

    def shut_down(self, stage: StageName | None = None) -> None:
        """End the activator of a stage, or of both, once what is in flight is answered; `ensure` brings it back."""
        for each in (stage,) if stage else get_args(StageName):
            self._stop_activator(each)

    def _serves(self, stage: StageName) -> str | None:
        """The release that the stage's activator serves, or would if it ran."""
        deployment = load_deployment(self.store.root, stage)
        return deployment.release if deployment is not None else None

    def _address(self, stage: StageName) -> Endpoint:
        deployment = load_deployment(self.store.root, stage)
        assert deployment is not None, "an activator writes it before it is ready"
        return Endpoint(base_url=f"http://{_dialled(self.settings.local.host)}:{deployment.port}", api_key=self._key)

    @property
    def _wanted(self) -> Wanted:
        return Wanted.of(self.settings)

    # -- the activator's process --------------------------------------------------------------------

    @property
    def _key(self) -> str | None:
        key = self.settings.api_key
        return key.get_secret_value() if key is not None else None

    def _control(self, stage: StageName, timeout_s: float = 30.0) -> Control:
        return Control(self.store.root, stage, timeout_s=timeout_s)

    def _undo(self, control: Control) -> None:
        """Leave the stage as it was: an activator that serves nothing is no part of that."""
        try:
            control.abort()
            if control.status().release is None:
                self._stop_activator(control.stage)
        except ToolingError:
            pass  # what made us undo says more

    def _stop_activator(self, stage: StageName) -> None:
        status = self.status(stage)
        if status is None:
            return
        with self._control(stage) as control:
            control.stop(STOP_LIMIT_S)
        deadline = time.monotonic() + STOP_LIMIT_S + 15
        while time.monotonic() < deadline:
            if not is_alive(status.pid):
                _activators[:] = [each for each in _activators if each.poll() is None]
                return
            time.sleep(0.02)
        raise ToolingError(
            f"the activator of {stage} does not end",
            evidence=f"pid {status.pid}",
            todo=f"read {activator_log_path(self.store.root, stage)}",
        )

    def _start_activator(self, stage: StageName) -> None:
        path = activator_log_path(self.store.root, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        with with_reserve(path, lambda: open(path, "ab")) as output:
            process = subprocess.Popen(
                self._activator_argv(stage), env=self._activator_env(), start_new_session=True, close_fds=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output,
            )  # fmt: skip
        _activators.append(process)
        said = _first_line(process, ACTIVATOR_START_S)
        if said.get("ready"):
            return
        if "problem" not in said:
            process.kill()
        process.wait()
        if self._another_runs(stage, said):
            return
        if "problem" in said:
            raise problem_from(said["problem"])
        raise ToolingError(
            f"the activator of {stage} did not start", evidence=server.own_words(path), todo=f"read {path}"
        )

    def _another_runs(self, stage: StageName, said: dict[str, Any]) -> bool:
        """Whether someone else started the activator at the same moment (the lock let only one in)."""
        if said.get("alone", True):
            return not said and self.status(stage) is not None
        deadline = time.monotonic() + ACTIVATOR_START_S
        while time.monotonic() < deadline:
            if self.status(stage) is not None:
                return True
            time.sleep(0.05)
        return False

    def _activator_argv(self, stage: StageName) -> list[str]:
        local = self.settings.local
        port = local.staging_port if stage == "staging" else local.production_port
        return [
            sys.executable, "-m", "tasks.platforms.local.activator", "--store", str(self.store.root),
            "--stage", stage, "--host", local.host, "--port", str(port),
            "--idle-s", str(local.idle_s), "--start-timeout-s", str(local.start_timeout_s),
            "--snapshots", local.snapshots, "--snapshot-depth", local.snapshot_depth, "--criu", self._wanted.criu,
        ]  # fmt: skip

    def _activator_env(self) -> dict[str, str]:
        env = child.environment(child.PYTHON, child.DEVICES)
        here = str(Path(__file__).parents[3])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (here, env.get("PYTHONPATH"))))
        env[wall.NAMED] = os.pathsep.join(map(str, wall.named()))
        return env | ({KEY_VARIABLE: self._key} if self._key else {})


def _first_line(process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any]:
    """The one JSON line that an activator says when it is ready or can't be; {} when it says nothing."""
    assert process.stdout is not None
    with process.stdout as pipe:
        if not select.select([pipe], [], [], timeout_s)[0]:
            return {}
        line = pipe.readline()
    return dict(json.loads(line)) if line.strip() else {}


def _dialled(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{reached}]" if ":" in reached else reached
