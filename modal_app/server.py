"""One llama-server in one container: booted, warmed up, snapshotted, and told apart after it came back."""

from __future__ import annotations

import hashlib
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
ADDRESS = f"http://127.0.0.1:{PORT}"
KEY = "LLAMA_API_KEY"
"""Where the Secret has the API key, and where llama-server looks for it."""
POLL_S = 0.1
RECORD_LIMIT_S = 10.0
STOP_GRACE_S = 10.0
QUIET_S = 1.0
"""How long nothing may be under way before a container that is to end stops: a request that was on its way to it when
Modal stopped sending any arrives within that."""
LAST_LINES = 40
_MEMORY = "memory.used,memory.total"


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
            if self.deployment.boots_before_snapshot:
                self._make_worth_a_snapshot()
        except Exception as error:
            self._crashed(error)
            raise

    def back(self) -> None:
        """A container serves from here on: say how it came up. Raises BootFailed when llama-server is not healthy."""
        began = time.monotonic()
        kind, reason = how_it_came(
            snapshots=self.deployment.boots_before_snapshot,
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
        # what fell back is in no snapshot: no restore is of it
        self._record(kind, reason, golden=self.golden if kind != "fell_back" else "")
        self.serving_since = time.time()
        self._use(until=None)

    def stop(self) -> None:
        """The container is going: end llama-server once what is in flight is answered.

        llama-server itself breaks its answers off when it is told to end. Whether Modal waits for them before it calls
        this is not documented, so it is waited for here, for as long as Modal lets it (`exit_grace_period`).
        """
        self._use(until=time.time())  # so far: this container may be ended any moment
        self._answer_to_the_end()
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
            return httpx.get(f"{ADDRESS}/health", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _answer_to_the_end(self) -> None:
        """Return once no request has been under way for QUIET_S, or the time for it is over."""
        began = quiet_since = time.monotonic()
        while (now := time.monotonic()) < began + self.deployment.exit_grace_s:
            if self._answering():
                if quiet_since == began:
                    print(json.dumps({"draining_s": self.deployment.exit_grace_s}), flush=True)
                quiet_since = now
            elif now - quiet_since >= QUIET_S:
                return
            time.sleep(POLL_S)

    def _answering(self) -> bool:
        """Whether a slot works on a request; not when it is not told, as with `--no-slots`."""
        key = os.environ.get(KEY)
        try:
            said = httpx.get(
                f"{ADDRESS}/slots", headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=5, trust_env=False,
            )  # fmt: skip
            return said.status_code == 200 and any(slot["is_processing"] for slot in said.json())
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return False

    # -- before the snapshot --------------------------------------------------------------------------------

    def _make_worth_a_snapshot(self) -> None:
        # a container that fell back boots the same way, and must not have what only a snapshot has
        self.golden = warm_up(
            ADDRESS, os.environ.get(KEY), vision=self.deployment.vision, nonce=self.deployment.nonce,
            plant=self.snapshotting,
        ).to_json()  # fmt: skip
        if self.deployment.gpu:
            used, total = gpu_memory_mb(self.deployment.gpus)
            limit = self.deployment.settings.gpu_memory_limit
            print(json.dumps({"gpu_memory_mb": used, "of_mb": total, "limit": limit}), flush=True)
            if used > limit * total:
                raise BootFailed(
                    f"no snapshot: {used} of {total} MB of GPU memory are in use after the warm-up, the limit is "
                    f"{limit:.0%}; take less context, fewer slots or a smaller KV cache type"
                )
            # the GPUs' memory is copied into the container's before it is written down
            needed = used * self.deployment.gpus + resident_mb(self.process.pid)
            if needed > (has := self.deployment.settings.server_memory_mb):
                raise BootFailed(
                    f"no snapshot: it needs {needed} MB of memory, {used} for each GPU and llama-server's own, "
                    f"and modal.server_memory_mb asks for {has}: raise it"
                )

    # -- boot records ---------------------------------------------------------------------------------------

    def _crashed(self, error: Exception) -> None:
        if getattr(self, "process", None) and self.process.poll() is None:
            self.process.kill()
        self._record("crashed", str(error) or repr(error), wait=True)

    def _record(self, kind: str, reason: str, *, golden: str = "", wait: bool = False) -> None:
        """One line in the log and one entry in the Dict. Serving never waits for the Dict.

        The golden answers first: each worker type has a snapshot of its own, with answers of its own (the nonce is the
        deployment's), so whoever sees the record of a boot must find those that go with it.
        """
        process = getattr(self, "process", None)
        boot = {
            "stage": self.deployment.stage,
            "release": self.deployment.release,
            "generation": self.deployment.generation,
            "deployment": self.deployment.mark,
            "kind": kind,
            "reason": reason[-1500:],
            "pid": process.pid if process else None,
            "snapshot": self.booted_by if kind in ("created", "restored") else None,
            "task": os.environ.get("MODAL_TASK_ID", ""),
            "worker": worker(gpu=self.deployment.gpu is not None),
            "health_s": None if kind == "crashed" else self.health_s,
            "at": datetime.now(UTC).isoformat(),
        }
        print(json.dumps({"boot": boot}), flush=True)
        key = f"{boot['at']} {os.environ.get('MODAL_TASK_ID', '')}"

        def write() -> None:
            try:
                if golden:  # again with each restore: an entry of a Dict that nobody touches for a week is gone
                    dict_of(self.deployment, "golden").put(self.booted_by, golden)
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
        return "cold", "llama-server is in no snapshot"
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


def worker(*, gpu: bool) -> str:
    """What kind of machine this is, as a snapshot of one kind cannot be restored on another (Modal's guide on memory
    snapshots): region, driver, CPU, and 8 hex characters over the CPU's features."""
    told = [os.environ.get("MODAL_CLOUD_PROVIDER", ""), os.environ.get("MODAL_REGION", "")]
    if gpu:
        told.append(_nvidia_smi("name,driver_version"))
    cpu = dict(line.split(":", 1) for line in _read("/proc/cpuinfo").partition("\n\n")[0].splitlines() if ":" in line)
    named = {name.strip(): value.strip() for name, value in cpu.items()}
    features = hashlib.sha256(" ".join(sorted(named.get("flags", "").split())).encode()).hexdigest()[:8]
    return ", ".join(filter(None, (*told, named.get("model name", ""), features)))


def _nvidia_smi(what: str) -> str:
    try:
        return " + ".join(gpus_say(what))
    except BootFailed:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def gpu_memory_mb(gpus: int = 1) -> tuple[int, int]:
    """(used, total) memory of the fullest GPU, MiB. Raises BootFailed when it cannot be read, or there are fewer."""
    try:
        found = [(int(used), int(total)) for used, total in (row.split(",") for row in gpus_say(_MEMORY))]
    except ValueError as error:
        raise BootFailed(f"the GPU's memory cannot be read: {error}") from error
    if len(found) < gpus:
        raise BootFailed(f"{gpus} GPUs were asked for (modal.gpu), and {len(found)} are there")
    return max(found, key=lambda each: each[0] / each[1])


def resident_mb(pid: int) -> int:
    """What a process has in memory, MiB; 0 when that is not told (proc(5), VmRSS)."""
    told = [line.split() for line in _read(f"/proc/{pid}/status").splitlines() if line.startswith("VmRSS:")]
    return int(told[0][1]) // 1024 if told else 0


def gpus_say(what: str) -> list[str]:
    """What nvidia-smi tells, a line for each GPU, comma-separated. Raises BootFailed when it tells nothing."""
    argv = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            argv, env=environment(DEVICES), capture_output=True, text=True, timeout=60, check=True
        ).stdout
        return [line.strip() for line in said.splitlines()]
    except (OSError, subprocess.SubprocessError) as error:
        raise BootFailed(f"nvidia-smi does not tell {what}: {error}") from error


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
