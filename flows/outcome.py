"""How a flow ends, and the guard that only one runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prefect import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.server import mark_crashed, settle
from tasks.release import Model, Release, now
from tasks.store import Store

Kind = Literal["promoted", "rolled_back", "rejected", "nothing_newer", "already_there"]

EXIT_CODES: dict[Kind, int] = {"promoted": 0, "rolled_back": 0, "nothing_newer": 0, "already_there": 0, "rejected": 4}
"""Exit codes of a flow that ended by itself; the errors of tasks/release.py carry theirs (1 failed, 2, 3)."""

ALONE = ("upgrade", "redeploy", "rollback")
"""The flows that hold the release lock from their first line to their last."""


class Outcome(Model):
    """What a flow came to."""

    kind: Kind
    release: Release | None = None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.kind]


def ended(kind: Kind, release: Release | None = None) -> State[Outcome]:
    """The final state of a flow run, named for a person in the Prefect page, with its Outcome as the result."""
    label = f": {release.label}" if release else ""
    return Completed(
        name=kind.replace("_", " ").capitalize(),
        message=f"{kind}{label}",
        data=Outcome(kind=kind, release=release),
    )


@contextmanager
def one_at_a_time(store: Store) -> Iterator[None]:
    """Hold the store's release lock. Runs that died, with it or without it, are marked crashed in Prefect.

    Raises ToolingError that names the run that holds it.
    """
    holder = {"flow_run": str(flow_run.id), "name": flow_run.name, "since": now().isoformat(timespec="seconds")}
    with store.lock("release", holder=holder, stale=lambda dead: mark_crashed(str(dead.get("flow_run")))):
        settle(ALONE, holder["flow_run"], now())
        yield
