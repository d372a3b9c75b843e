"""A lock of the store for whoever can wait: one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tasks.console import console, one_line
from tasks.release import now
from tasks.store import Store, Taken

LOOK_IN_S = 10 * 60
"""How long anybody waits for the watch, which holds the release lock while it probes staging or starts production
again; it runs on the minutes on which upgrades are scheduled."""


@contextmanager
def held_in_turn(
    store: Store,
    name: str,
    holder: dict[str, Any],
    *,
    patience_s: float = 0,
    stale: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[None]:
    """Hold a lock of the store that is free in so many seconds, or that somebody holds who only looks in.

    Raises Taken.
    """
    began = time.monotonic()
    told = False
    with ExitStack() as held:
        while True:
            try:
                since = now().isoformat(timespec="seconds")
                held.enter_context(store.lock(name, holder={**holder, "since": since}, stale=stale))
                break
            except Taken as error:
                limit_s = max(patience_s, LOOK_IN_S) if error.holder.get("looks_in") else patience_s
                if time.monotonic() - began > limit_s:
                    raise
                if not told:
                    console.print(one_line(f"  waiting for {error.holder.get('name') or error.evidence} to let go"))
                    told = True
                time.sleep(0.5)
        yield
