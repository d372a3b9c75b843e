"""One llama-server in one container: booted, warmed up, snapshotted, and told apart after it came back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import modal

from modal_app.child import DEVICES, environment, serving
from modal_app.deployment import STORE, Deployment
from modal_app.redaction import redact, redacted
from modal_app.warmup import warm_up

PORT = 8080
KEY = "LLAMA_API_KEY"
"""Where the Secret has the API key, and where llama-server looks for it."""
POLL_S = 0.1
RECORD_LIMIT_S = 10.0
STOP_GRACE_S = 10.0
LAST_LINES = 40


class LlamaServer:
    """The life of a serving container. `modal_app/app.py` says which method Modal calls when.

    With snapshots Modal calls `boot` once, freezes the whole container with the GPU's memory, and begins every later
    container as a copy of that: with llama-server running, its model on the GPU, and this object as `boot` left it.
    `back` runs in each of them, the first one too.
    """

    deployment: Deployment

    def boot(self) -> None:
        """Start llama-server and wait for it; where a snapshot will be taken, make it worth one. Raises BootFailed."""
        self.booted_by = os.environ.get("MODAL_TASK_ID", "")
        # Modal sets it for containers that make a snapshot or come from one (modal/_container_entrypoint.py).
        self.snapshotting = os.environ.get("MODAL_ENABLE_SNAP_RESTORE") == "1"
        self.golden = ""
        self.began, self.booted_at = time.monotonic(), time.time()
        try:
            self._start()
            wait_until(self._ready, self._alive, self.deployment.settings.start_timeout_s)
            self.health_s = round(time.monotonic() - self.began, 3)
            if self.deployment.snapshot:
                self._make_worth_a_snapshot()
        except Exception as error:
            self._crashed(error)
            raise

    def back(self) -> None:
        """A container serves from here on: say how it came up. Raises BootFailed when llama-server is not healthy."""
        began = time.monotonic()
        kind, reason = how_it_came(
            snapshots=self.deployment.snapshot,
            snapshotting=self.snapshotting,
            booted_by=self.booted_by,
            task=os.environ.get("MODAL_TASK_ID", ""),
        )
        try:
            wait_until(self._ready, self._alive, self.deployment.settings.start_timeout_s)
        except BootFailed as error:
            self._crashed(error)
            raise
        if kind == "restored":
            self.health_s = round(time.monotonic() - began, 3)
        # what fell back is in no snapshot: the next restore is not of it
        self._record(kind, reason, golden=self.golden if kind != "fell_back" else "")
        self.serving_since = time.time()
        self._use(until=None)

    def stop(self) -> None:
        """The container is going: end llama-server once what is in flight is answered."""
        told = self._use(until=time.time())
        self.process.terminate()
        try:
            self.process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        told.join(RECORD_LIMIT_S)

    # -- llama-server ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        argv = self.deployment.command(Path(STORE), PORT)
        print(json.dumps({"argv": redacted(argv), "release": self.deployment.release}), flush=True)
        # The release is served as it is: no setting reaches it through the environment, and no secret but its key.
        # The build brings its own libraries; ggml looks for its backends beside the binary.
        env = serving(Path(argv[0]).parent) | self.deployment.env
        if key := os.environ.get(KEY):
            env[KEY] = key
        self.process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        )  # fmt: skip
        self.said: deque[str] = deque(maxlen=LAST_LINES)
        threading.Thread(target=self._pass_on, daemon=True).start()

    def _pass_on(self) -> None:
        """Its log is the container's log; the last lines are kept to be quoted."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            sys.stdout.write(line)
            sys.stdout.flush()

    def _alive(self) -> str:
        """How it ended, in its own words; '' while it runs."""
        code = self.process.poll()
        if code is None:
            return ""
        time.sleep(POLL_S)  # its last words are on their way
        return f"llama-server ended with {code}: " + "\n".join(list(self.said)[-8:])

    def _ready(self) -> bool:
        if not self.deployment.wait:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", PORT)) == 0
        try:
            return httpx.get(f"http://127.0.0.1:{PORT}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    # -- before the snapshot --------------------------------------------------------------------------------

    def _make_worth_a_snapshot(self) -> None:
        address = f"http://127.0.0.1:{PORT}"
        self.golden = warm_up(address, os.environ.get(KEY), vision=self.deployment.vision).to_json()
        if self.deployment.gpu:
            used, total = gpu_memory_mb()
            limit = self.deployment.settings.gpu_memory_limit
            print(json.dumps({"gpu_memory_mb": used, "of_mb": total, "limit": limit}), flush=True)
            if used > limit * total:
                raise BootFailed(
                    f"no snapshot: {used} of {total} MB of GPU memory are in use after the warm-up, the limit is "
                    f"{limit:.0%}; take less context, fewer slots or a smaller KV cache type"
                )

    # -- boot records ---------------------------------------------------------------------------------------

    def _crashed(self, error: Exception) -> None:
        if getattr(self, "process", None) and self.process.poll() is None:
            self.process.kill()
        self._record("crashed", str(error) or repr(error), wait=True)

    def _record(self, kind: str, reason: str, *, golden: str = "", wait: bool = False) -> None:
        """One line in the log and one entry in the Dict. Serving never waits for the Dict.

        The golden answers first: each worker type has a snapshot of its own, with answers and a nonce of its own, so
        whoever sees the record of a boot must find those that go with it.
        """
        process = getattr(self, "process", None)
        boot = {
            "stage": self.deployment.stage,
            "release": self.deployment.release,
            "generation": self.deployment.generation,
            "kind": kind,
            "reason": reason[-1500:],
            "pid": process.pid if process else None,
            "snapshot": self.booted_by if kind in ("created", "restored") else None,
            "health_s": None if kind == "crashed" else self.health_s,
            "at": datetime.now(UTC).isoformat(),
        }
        print(json.dumps({"boot": boot}), flush=True)
        key = f"{boot['at']} {os.environ.get('MODAL_TASK_ID', '')}"

        def write() -> None:
            try:
                if golden:
                    goldens = dict_of(self.deployment, "golden")
                    goldens.put(self.booted_by, golden)
                    goldens.put(self.deployment.stage, golden)
            finally:
                dict_of(self.deployment, "boots").put(key, json.dumps(boot))

        writer = apart(write)
        if wait:
            writer.join(RECORD_LIMIT_S)

    def _use(self, until: float | None) -> threading.Thread:
        """What this container costs is known from how long it was there; read by tasks/platforms/modal/cost.py."""
        settings, task = self.deployment.settings, os.environ.get("MODAL_TASK_ID", "")
        # a restored container did not boot: what `boot` took was paid by the one that made the snapshot
        since = self.serving_since if task != self.booted_by else self.booted_at
        use = {
            "stage": self.deployment.stage, "release": self.deployment.release, "gpu": self.deployment.gpu,
            "cpu": settings.server_cpu, "memory_mb": settings.server_memory_mb, "since": since, "until": until,
        }  # fmt: skip
        uses = modal.Dict.from_name(f"{settings.app}-uses", create_if_missing=True)
        return apart(lambda: uses.put(task, json.dumps(use)))


class BootFailed(Exception):
    """llama-server did not come up."""


def how_it_came(*, snapshots: bool, snapshotting: bool, booted_by: str, task: str) -> tuple[str, str]:
    """(kind of boot, why we say so).

    A restored container is a copy of the one that booted, in another task. When a restore fails (exit 222), Modal
    starts a container without a snapshot: it answers like any other, and only this tells it apart.
    """
    if not snapshots:
        return "cold", "no snapshot is taken of a trial"
    if task != booted_by:
        return "restored", f"task {task}, from the snapshot that {booted_by} made"
    if snapshotting:
        return "created", f"task {task} booted and made the snapshot"
    return "fell_back", f"task {task} was started without a snapshot"


def wait_until(ready: Callable[[], bool], ended: Callable[[], str], limit_s: float) -> None:
    """Return when it is ready. Raises BootFailed when it ended, or was not ready in time."""
    deadline = time.monotonic() + limit_s
    while not ready():
        if words := ended():
            raise BootFailed(words)
        if time.monotonic() > deadline:
            raise BootFailed(f"llama-server was not ready in {limit_s:.0f} s")
        time.sleep(POLL_S)


def gpu_memory_mb() -> tuple[int, int]:
    """(used, total) memory of the first GPU, MiB. Raises BootFailed when it cannot be read."""
    argv = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            argv, env=environment(DEVICES), capture_output=True, text=True, timeout=60, check=True
        ).stdout
        used, total = said.splitlines()[0].split(",")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise BootFailed(f"the GPU's memory cannot be read: {error}") from error
    return int(used), int(total)


def dict_of(deployment: Deployment, what: str) -> modal.Dict:
    """The Dict of a stage's boots or golden answers. Trials have one of their own each."""
    return modal.Dict.from_name(f"{deployment.name}-{what}", create_if_missing=True)


def apart(call: Callable[[], Any]) -> threading.Thread:
    """Make a call that may take its time, in a thread of its own: whatever comes of it, serving goes on."""

    def run() -> None:
        try:
            call()
        except Exception as error:
            print(json.dumps({"not_recorded": redact(repr(error))}), flush=True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
