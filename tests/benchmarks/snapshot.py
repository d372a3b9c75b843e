"""What a snapshot is worth: a cold boot and a restore in turn, each to the first token, and what its bytes cost.

    python -m tests.benchmarks snapshot        SmolLM2 on this machine, with fewer slots and less context, too
    python -m tests.benchmarks.snapshot --server .../llama-server --model ....gguf --criu .../criu --gpu \\
        --folder /dev/shm/snapshot -- -ngl 99 -c 262144 -np 4 --flash-attn on

The second form needs nothing but Python, and measures both depths on a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tasks import criu as criu_tool
from tasks import cuda_checkpoint
from tasks.criu_images import checksums, leave_out_zeros
from tests.benchmarks.released import newest

ROUNDS = 5
LIMIT_S = 600.0
ARGV = ("--load-mode", "none", "--jinja", "--flash-attn", "on", "--threads", "1")
SHAPES = {
    "4 slots of 8192 tokens": ("--ctx-size", "32768", "--parallel", "4"),
    "2 slots of 4096 tokens": ("--ctx-size", "8192", "--parallel", "2"),
    "2 slots of 1024 tokens": ("--ctx-size", "2048", "--parallel", "2"),
    "1 slot of 4096 tokens": ("--ctx-size", "4096", "--parallel", "1"),
}


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Running:
    """A llama-server, or the `unshare` above a restored one; dies with this process."""

    def __init__(self, argv: list[str], port: int, output: Path) -> None:
        self.port = port
        self.began = time.monotonic()
        with open(output, "ab") as file:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the llama-server itself."""
        pid = self.process.pid
        while below := children(pid):
            pid = below[0]
        return pid

    def first_token_s(self) -> float:
        """Seconds from the start of the process to the first token of a completion."""
        while self.ask("GET", "/health") != 200:
            if self.process.poll() is not None:
                raise SystemExit(f"it ended with {self.process.returncode}: see its log")
            time.sleep(0.002)
        if self.complete("Hello") != 200:
            raise SystemExit("no answer")
        return time.monotonic() - self.began

    def complete(self, prompt: str) -> int | None:
        return self.ask("POST", "/completion", json.dumps({"prompt": prompt, "n_predict": 1}))

    def ask(self, method: str, path: str, body: str | None = None) -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except OSError:
            return None
        finally:
            connection.close()

    def end(self) -> None:
        """It is gone on return."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Bench:
    """One configuration of a server, and where its snapshot goes."""

    server: Path
    argv: tuple[str, ...]
    criu: str
    folder: Path
    gpu: bool

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def output(self) -> Path:
        return self.folder / "server.log"

    def cold(self) -> Running:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        argv = [str(self.server), *self.argv, "--host", "127.0.0.1", "--port", str(port)]
        return Running(argv, port, self.output)

    def back(self, port: int) -> Running:
        """Restored, every byte of its snapshot read meanwhile; what the GPU held is in place."""
        argv = criu_tool.restore_argv(self.criu, self.images, self.folder / "restore.log", self.output)
        running = Running(argv, port, self.output)
        read(self)
        while not criu_tool.waits(running.pid):
            if running.process.poll() is not None:
                raise SystemExit(f"no restore: {criu_tool.complaint(self.folder / 'restore.log', 'it ended')}")
            time.sleep(0.002)
        os.kill(running.pid, signal.SIGCONT)
        if self.gpu:
            while running.ask("GET", "/health") != 200:
                time.sleep(0.002)
            cuda_checkpoint.resume(running.pid, timeout_s=LIMIT_S)
        return running


@dataclass(frozen=True)
class Timed:
    """Seconds of something, and how many bytes it moved."""

    what: str
    seconds: float
    size: int

    def __str__(self) -> str:
        rate = self.size / self.seconds / 1e9
        return f"  {self.what:52}{self.size / 1e6:10.0f} MB{self.seconds:9.3f} s{rate:8.2f} GB/s"


def timed(what: str, size: int, act: Callable[[], object]) -> Timed:
    began = time.monotonic()
    act()
    return Timed(what, time.monotonic() - began, size)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.img"))


def disk(name: str, bench: Bench, rounds: int, *, copies: bool) -> Iterator[str]:
    """Lines of one configuration: dumped once, then cold boots and restores in turn."""
    running = bench.cold()
    running.first_token_s()
    running.complete("Who are you?")
    bench.images.mkdir()
    emptied = cuda_checkpoint.suspend(running.pid, timeout_s=LIMIT_S) if bench.gpu else 0.0
    began = time.monotonic()
    criu_tool.dump(bench.criu, running.pid, bench.images, timeout_s=LIMIT_S)
    dumped = time.monotonic() - began
    whole = size_of(bench.images)
    began = time.monotonic()
    leave_out_zeros(bench.images)
    lessened, size = time.monotonic() - began, size_of(bench.images)
    port = running.port
    running.end()
    cold: list[float] = []
    back: list[float] = []
    for _ in range(rounds):
        for seconds, start in ((cold, bench.cold), (back, lambda: bench.back(port))):
            running = start()
            seconds.append(running.first_token_s())
            running.end()
    ratio = median(back) / median(cold)
    yield (
        f"{name:26}{spread(cold)}{spread(back)}{ratio:7.2f}{size / 1e6:10.0f}{whole / 1e6:10.0f}"
        f"{dumped:9.2f}{lessened:9.2f}"
    )
    if not copies:
        return
    yield f"  where the bytes go, with {name}:"
    if bench.gpu:
        yield f"  the GPU was emptied in {emptied:.2f} s"
    yield str(Timed("dump by CRIU", dumped, whole))
    yield str(timed("plain copy of the snapshot's files", size, lambda: copy_of(bench)))
    yield str(timed("reading them again and their checksums", size, lambda: read(bench)))
    yield str(Timed("checksums, and restore by CRIU to the first token", median(back), size))
    yield str(timed("reading the same bytes into fresh memory", size, lambda: into_memory(bench)))


def copy_of(bench: Bench) -> None:
    shutil.copytree(bench.images, bench.folder / "copy")
    shutil.rmtree(bench.folder / "copy")


def read(bench: Bench) -> None:
    checksums(bench.images, bench.images.glob("*.img"))


def into_memory(bench: Bench) -> None:
    for path in bench.images.glob("*.img"):
        path.read_bytes()


def memory(bench: Bench, rounds: int) -> Iterator[str]:
    """Lines of depth `memory`: the GPU of a process emptied into its RAM and filled again."""
    running = bench.cold()
    cold = running.first_token_s()
    full = gpu_bytes()
    emptied, filled, back = [], [], []
    for _ in range(rounds):
        emptied.append(cuda_checkpoint.suspend(running.pid, timeout_s=LIMIT_S))
        os.kill(running.pid, signal.SIGSTOP)
        size = full - gpu_bytes()
        began = time.monotonic()
        os.kill(running.pid, signal.SIGCONT)
        filled.append(cuda_checkpoint.resume(running.pid, timeout_s=LIMIT_S))
        running.began = began
        back.append(running.first_token_s())
    running.end()
    yield f"depth memory: cold {cold:.2f} s, back {median(back):.2f} s, ratio {median(back) / cold:.2f}"
    yield str(Timed("emptying the GPU", median(emptied), size))
    yield str(Timed("filling it again", median(filled), size))
    for what, seconds, moved in plain_gpu_copies(min(size, 8 << 30)):
        yield str(Timed(what, seconds, moved))


def gpu_bytes() -> int:
    """Bytes in use on all GPUs."""
    argv = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return sum(int(line) << 20 for line in said.split())


def plain_gpu_copies(size: int) -> Iterator[tuple[str, float, int]]:
    """(what, seconds, bytes) of copies between the first GPU and RAM, fresh and pinned."""
    cuda = ctypes.CDLL(cuda_checkpoint.LIBRARY)

    def call(name: str, *arguments: object) -> None:
        if code := getattr(cuda, name)(*arguments):
            raise SystemExit(f"{name}: {code}")

    device, context, there, pinned = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuMemAlloc_v2", ctypes.byref(there), ctypes.c_size_t(size))
    call("cuMemAllocHost_v2", ctypes.byref(pinned), ctypes.c_size_t(size))
    fresh = (ctypes.c_char * size)()
    for name, here in (("fresh memory", fresh), ("pinned memory", pinned)):
        for what, call_name, to, source in (
            (f"plain copy from the GPU into {name}", "cuMemcpyDtoH_v2", here, there),
            (f"plain copy from {name} to the GPU", "cuMemcpyHtoD_v2", there, here),
        ):
            began = time.monotonic()
            call(call_name, to, source, ctypes.c_size_t(size))
            yield what, time.monotonic() - began, size


def spread(seconds: list[float]) -> str:
    return f"{median(seconds):8.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


HEAD = (
    f"{'configuration':26}{'cold boot s':>20}{'restore s':>20}{'ratio':>7}{'MB':>10}{'as dumped':>10}"
    f"{'dump s':>9}{'less s':>9}"
)  # fmt: skip


def main() -> Iterator[str]:
    """Lines of a table, measured on the newest release in the store that the settings name."""
    from tasks.platforms.local.snapshot import Wanted, snapshots_here
    from tasks.settings import load
    from tasks.store import Store

    settings = load()
    store, criu = Store(settings.store), criu_tool.find(settings.local.criu, settings.cache)
    ability = snapshots_here(Wanted(True, "disk", criu), gpu=False)
    if ability.kind == "cold":
        yield str(ability)
        return
    release = newest(store)
    yield f"{release.files['model'].name} on {release.upstream.tag}, {ability}; {ROUNDS} boots each, in turn, to the "
    yield "first token of a short completion: median (fastest-slowest). A restore includes the check of every byte."
    yield HEAD
    for name, shape in SHAPES.items():
        argv = ("--model", str(store.file(release.files["model"])), *ARGV, *shape)
        with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder:
            bench = Bench(store.build_dir(release.build) / "llama-server", argv, criu, Path(folder), gpu=False)
            yield from disk(name, bench, ROUNDS, copies=shape is SHAPES["2 slots of 4096 tokens"])


def alone() -> None:
    """The command line of the module itself: one configuration, on a machine with nothing of ours installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--criu", help="without it, only depth memory is measured")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "llama-release-bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("argv", nargs="*", help="more for llama-server, behind --")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, mode=0o700)
    argv = ("--model", str(given.model), "--load-mode", "none", *given.argv)
    bench = Bench(given.server.absolute(), argv, given.criu or "", given.folder, given.gpu)
    try:
        if given.gpu:
            print(cuda_checkpoint.why_not() or cuda_checkpoint.hardware(), flush=True)
            for line in memory(bench, given.rounds):
                print(line, flush=True)
        if given.criu:
            print(f"CRIU {criu_tool.version(given.criu)}", HEAD, sep="\n", flush=True)
            for line in disk("depth disk", bench, given.rounds, copies=True):
                print(line, flush=True)
    except (criu_tool.CriuFailed, cuda_checkpoint.CudaFailed) as error:
        sys.exit(str(error))
    finally:
        print(f"logs: {bench.output}; remove {given.folder} when done")
        shutil.rmtree(bench.images, ignore_errors=True)


if __name__ == "__main__":
    alone()
