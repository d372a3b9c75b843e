"""The app that finds out what this account's Modal does: `llama-release conformance` deploys, asks and removes it.

A server of some lines of Python stands where llama-server would, with a buffer on the GPU where the model would be:
what it finds is about Modal alone, and a start costs seconds. Nothing of the real apps is touched, and the store is
mounted read-only.
"""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import modal

from modal_app import images
from modal_app.deployment import STORE, store_volume
from modal_app.gpu_check import GpuFault, HeldBuffer
from modal_app.server import PORT, how_it_came, worker
from modal_app.settings import ModalSettings

VARIANT = "LLAMA_RELEASE_CONFORMANCE"
"""Any word: another one is another version of the app, with snapshots of its own."""
READ_BYTES = 512 * 1024 * 1024
READERS = (1, 4)
QUIET_S = 1.0

settings = ModalSettings.load()
variant = os.environ.get(VARIANT, "")
name = f"{settings.app}-conformance"
app = modal.App(name)

serve = app.server(
    image=images.runtime(settings, settings.baked() | {VARIANT: variant}),
    gpu=settings.gpu or None,
    volumes={STORE: store_volume(settings).read_only()},
    port=PORT,
    unauthenticated=bool(settings.open),
    target_concurrency=8,
    min_containers=0,
    scaledown_window=settings.idle_s,
    startup_timeout=600,
    exit_grace_period=settings.exit_grace_s,
    routing_region=settings.routing_region,
    compute_region=list(settings.compute_region) or None,
    enable_memory_snapshot=settings.snapshots != "off",
    experimental_options={"enable_gpu_snapshot": True} if settings.snapshots == "gpu" and settings.gpu else None,
)


@serve
class Llama:
    """What `modal_app.server.LlamaServer` is for llama-server."""

    @modal.enter(snap=True)
    def boot(self) -> None:
        began = time.monotonic()
        self.booted_by = os.environ.get("MODAL_TASK_ID", "")
        self.snapshotting = os.environ.get("MODAL_ENABLE_SNAP_RESTORE") == "1"
        self.buffer, self.gpu = held(bool(settings.gpu)) if settings.snapshots != "cpu" else (None, "")
        self.streams = 0
        self.boot_s = round(time.monotonic() - began, 3)

    @modal.enter(snap=False)
    def back(self) -> None:
        began = time.monotonic()
        task = os.environ.get("MODAL_TASK_ID", "")
        kind, _ = how_it_came(
            snapshots=settings.snapshots != "off", snapshotting=self.snapshotting, booted_by=self.booted_by, task=task
        )
        if settings.snapshots == "cpu":  # there is no GPU before
            self.buffer, self.gpu = held(bool(settings.gpu))
        if self.buffer:
            self.gpu = checked(self.buffer)
        self.record = {
            "task": task, "kind": kind, "snapshot": self.booted_by, "variant": variant, "gpu": self.gpu,
            "worker": worker(gpu=bool(settings.gpu)), "at": time.time(), "memory_mb": memory_mb(),
            "seconds": self.boot_s if kind != "restored" else round(time.monotonic() - began, 3),
        }  # fmt: skip
        boots = modal.Dict.from_name(f"{name}-boots", create_if_missing=True)
        boots.put(f"{self.record['at']:.3f} {task}", json.dumps(self.record))
        threading.Thread(target=self._listen, daemon=True).start()

    @modal.exit()
    def leave(self) -> None:
        """As for llama-server: what is under way goes on for as long as Modal lets it."""
        end, quiet_since = time.monotonic() + settings.exit_grace_s, time.monotonic()
        while time.monotonic() < end and time.monotonic() - quiet_since < QUIET_S:
            if self.streams:
                quiet_since = time.monotonic()
            time.sleep(0.1)

    def _listen(self) -> None:
        ThreadingHTTPServer(("0.0.0.0", PORT), _handler(self)).serve_forever()


def held(gpu: bool) -> tuple[HeldBuffer | None, str]:
    """A buffer on the GPU, or why there is none."""
    if not gpu:
        return None, "no GPU is asked for"
    try:
        return HeldBuffer(), ""
    except GpuFault as error:
        return None, str(error)


def checked(buffer: HeldBuffer) -> str:
    """'right', or what is wrong with the GPU."""
    try:
        buffer.check()
    except GpuFault as error:
        return str(error)
    return "right"


def memory_mb() -> int:
    """What this container has in memory, MiB; 0 when it is not told (cgroup v2)."""
    try:
        return int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")) // 2**20
    except (OSError, ValueError):
        return 0


def read_speeds(folder: Path) -> dict[str, float]:
    """Readers -> MB/s of the largest file below a folder, each a part that nobody has read; {} when there is none."""
    found = max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda each: each.stat().st_size, default=None
    )
    if found is None:
        return {}
    share = min(READ_BYTES, found.stat().st_size // len(READERS))
    speeds = {}
    for turn, readers in enumerate(READERS):
        began = time.monotonic()
        parts = [(found, turn * share + n * share // readers, share // readers) for n in range(readers)]
        with ThreadPoolExecutor(readers) as pool:
            done = sum(pool.map(_read, parts))
        speeds[str(readers)] = round(done / 1e6 / max(1e-6, time.monotonic() - began), 1)
    return speeds


def _read(part: tuple[Path, int, int]) -> int:
    path, start, length = part
    done = 0
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while done < length and (got := len(file.read(min(8 * 2**20, length - done)))):
            done += got
    return done


def _handler(llama: Llama) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/stream/"):
                return self._stream(int(self.path.rpartition("/")[2]))
            if self.path == "/die":
                os._exit(139)
            said: dict[str, Any] = llama.record | {"now": time.time(), "token": "Modal-Secret" in self.headers}
            if self.path == "/volume":
                said["speeds"] = read_speeds(Path(STORE, "files"))
            return self._say(json.dumps(said).encode())

        def _say(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, seconds: int) -> None:
            llama.streams += 1
            try:
                self.send_response(200)
                self.end_headers()
                for second in range(seconds):
                    self.wfile.write(b"%d\n" % second)
                    self.wfile.flush()
                    time.sleep(1)
                self.wfile.write(b"end\n")
            finally:
                llama.streams -= 1

        def log_message(self, *_: object) -> None:
            pass

    return Handler
