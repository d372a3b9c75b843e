"""What a flood of clients, a full disk and killed processes do to production, on the newest release in the store.

The last lines are a short soak's; `python -m tests.benchmarks soak` is the long one.
"""

from __future__ import annotations

import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import httpx

from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.control import activator_log_path
from tasks.promote import back_to, lift_hold
from tasks.release import BootKind, Endpoint, Release
from tasks.settings import load
from tasks.store import DAMAGED, Store
from tests.benchmarks import soak
from tests.benchmarks.released import copy_build, newest
from tests.doctor.machines import fill, small_disk

SILENT = 1100
ASKED = 50
DESCRIPTORS = 1024
"""What Linux gives a process that asks for no more."""
DISK_BYTES = 1 << 30
SOAK_CYCLES, SEED = 10, 2030
"""Each kind of fault strikes once at least."""


def main() -> Iterator[str]:
    """Lines of the result."""
    release = newest(Store(load().store))
    with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder, _served(Path(folder), release) as served:
        yield from flooded(served)
    with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder, ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(Path(folder, "disk"), f"size={DISK_BYTES}"))
        except subprocess.CalledProcessError:
            yield "full disk: no file system can be mounted here (it takes root)"
        else:
            yield from on_a_full_disk(stack.enter_context(_served(disk, release)))
    yield from soak.main(SOAK_CYCLES, SEED)


def flooded(platform: LocalPlatform) -> Iterator[str]:
    """What users and the control socket notice of clients that only connect, and how many of those are held."""
    endpoint = platform.endpoint("production")
    before = _asked(endpoint)
    with ExitStack() as silent:
        for _ in range(SILENT):
            silent.enter_context(socket.create_connection(_address(endpoint), timeout=30))
        during = _asked(endpoint)
        began = time.monotonic()
        status = platform.status("production")
        control_s = time.monotonic() - began
    assert status is not None
    log = activator_log_path(platform.store.root, "production").stat().st_size
    with_them, without = (1000 * median(seconds) for seconds in (during, before))
    yield f"silent clients    {SILENT}, with {DESCRIPTORS} descriptors {status.connections} connections are held"
    yield f"  answered        {len(during)} of {ASKED}, median {with_them:.0f} ms ({without:.0f} ms without them)"
    yield f"  control socket  {1000 * control_s:.0f} ms; activator.log {log / 1000:.0f} kB"


def on_a_full_disk(platform: LocalPlatform) -> Iterator[str]:
    """Whether production wakes, and the way back works, without a byte left; and whether all documents are whole."""
    store = platform.store
    platform.idle("production")
    fill(store.root)
    began = time.monotonic()
    (woken,) = _asked(platform.endpoint("production"), 1)
    boots = len(platform.boots("production"))
    yield f"full disk         woke in {woken:.2f} s, {platform.boots('production')[-1].kind}"
    began = time.monotonic()
    back_to(platform, None, "bench", "why not", retain=2)
    lift_hold(store, "bench")
    assert not any(boot.kind is BootKind.CRASHED for boot in platform.boots("production")[boots:])
    took_s = time.monotonic() - began
    events = store.ledger()
    assert not any(event.kind == DAMAGED for event in events), events
    yield f"  way back        rolled back, proved, hold lifted in {took_s:.1f} s; {len(events)} events whole"


@contextmanager
def _served(root: Path, release: Release) -> Iterator[LocalPlatform]:
    """Production serves the second of two releases, each a scripted model on the build of this one."""
    settings = load()
    known = Store(settings.store)
    platform = soak.platform_at(root / "store", settings.cache)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        copy_build(known, platform.store, release.build)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, DESCRIPTORS), hard))
        try:
            for each in soak.releases_of(platform.store, [release, release], root):
                soak.move(platform, each, back=False)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        yield platform
    finally:
        platform.shut_down()


def _asked(endpoint: Endpoint, times: int = ASKED) -> list[float]:
    """Seconds of each answer. Raises AssertionError for one that is none."""
    found = []
    with Client(endpoint) as client:
        for _ in range(times):
            answer = client.chat("Hello", max_tokens=4)
            assert answer.status == 200, answer.body
            found.append(answer.seconds)
    return found


def _address(endpoint: Endpoint) -> tuple[str, int]:
    url = httpx.URL(endpoint.base_url)
    assert url.port is not None
    return url.host, url.port
