"""A rollback at once: from Enter to the earlier release's answer, beside the boot that it has to wait for.

A client asks production all the time, and what it gets tells which release answers and whether anything was lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform
from tasks.release import Endpoint, Release, StagePointer, ToolingError
from tests.benchmarks.released import copied
from tests.platforms.stand import until

ROUNDS = 4
TARGET_S = 2.0
"""What may come to the boot."""


@dataclass
class Asking:
    """Asks production for its model list, over and over."""

    endpoint: Endpoint
    seen: list[tuple[float, str]] = field(default_factory=list)
    """(when it was answered, alias)."""
    lost: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        while not self.stop.wait(0.01):
            try:
                with Client(self.endpoint) as client:
                    answer = client.get("/v1/models")
                self.seen.append((time.monotonic(), str(answer.body["data"][0]["id"])))
            except (ToolingError, LookupError, TypeError):
                self.lost += 1


def main() -> Iterator[str]:
    """Lines of a small table, measured on a copy of the newest release in the store that the settings name."""
    with copied() as (platform, release):
        yield from measured(platform, release)


def measured(platform: LocalPlatform, release: Release) -> Iterator[str]:
    """There and back again, the first time to a release that never served here."""
    pair = [release, release.model_copy(update={"argv": (*release.argv, "--alias", "other"), "alias": "other"})]
    for each in pair:
        platform.store.save_release(each)
    endpoint = platform.deploy("production", pair[0], lambda _: None)
    platform.deploy("production", pair[1], lambda _: None)
    pointer = StagePointer(stage="production", release=pair[1].id, retained=(pair[0].id,))
    platform.store.save_pointer(pointer)
    asking = Asking(endpoint)
    thread = threading.Thread(target=asking)
    thread.start()
    try:
        yield f"{'to':8}{'how':>10}{'answers after s':>17}{'its boot s':>12}{'the rest s':>12}"
        for turn in range(ROUNDS):
            to = pair[turn % 2]
            after_s = enter(platform, to, asking)
            boot = platform.boots("production")[-1]
            rest = after_s - (boot.health_s or 0)
            yield f"{to.alias[:7]:8}{boot.kind:>10}{after_s:17.2f}{boot.health_s or 0:12.2f}{rest:12.2f}"
    finally:
        asking.stop.set()
        thread.join(60)
    yield f"requests lost: {asking.lost} of {len(asking.seen) + asking.lost}; the target for the rest: {TARGET_S:.0f} s"


def enter(platform: LocalPlatform, to: Release, asking: Asking) -> float:
    """Run the command; seconds until the release answered for the first time."""
    env = os.environ | {
        "LLAMA_RELEASE_STORE": str(platform.store.root),
        "LLAMA_RELEASE_LOCAL__STAGING_PORT": "0",
        "LLAMA_RELEASE_LOCAL__PRODUCTION_PORT": "0",
    }
    argv = [sys.executable, "-m", "flows", "rollback", "--now", "--reason", "measured", "--by", "bench", "--to", to.id]
    began = time.monotonic()
    subprocess.run(argv, env=env, check=True, capture_output=True)

    def answered() -> list[float]:
        return [at - began for at, alias in list(asking.seen) if at > began and alias == to.alias]

    assert until(lambda: bool(answered()))
    return answered()[0]
