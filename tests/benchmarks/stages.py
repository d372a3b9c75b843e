"""Seconds per stage of an upgrade, and what is spent outside the stages' own work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from flows import demo
from tasks.settings import load
from tasks.store import Store


def main() -> Iterator[str]:
    """Lines of the report, from the demo's upgrade to the newer build run twice in one process each.

    The first run makes what is missing; the second one verifies anew on finished builds, which is what is timed.
    """
    env = os.environ | {"DEMO_APPROVER": "bench", "DEMO_KEEP": ""}
    env.pop("DEMO_KEEP")
    for label in ("first run", "second run"):
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "flows", "demo"], env=env, capture_output=True, text=True)
        whole = time.monotonic() - start
        if done.returncode:
            yield f"the demo exited {done.returncode}:\n{done.stdout}{done.stderr}"
            return
        yield f"{label} of the demo: {whole:.0f} s"
    store = Store(load().store)
    events = store.ledger()
    begin = max(n for n, e in enumerate(events) if e.kind == "stage.upstream")
    rows = [e for e in events[begin:] if e.kind.startswith("stage.")]
    for event in rows:
        yield f"  {event.kind.removeprefix('stage.'):<12} {event.detail['seconds']:8.2f} s"
    inside = sum(float(e.detail["seconds"]) for e in rows)
    first = rows[0].at.timestamp() - float(rows[0].detail["seconds"])
    span = rows[-1].at.timestamp() - first
    outside = 100 * (1 - inside / span)
    yield f"upgrade to {demo.NEWER}: {span:.1f} s from first to last stage, {outside:.1f}% outside the stages"
