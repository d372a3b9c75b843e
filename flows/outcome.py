"""How a flow ends, and the guard that only one runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from tasks.release import Model, Release, ToolingError, now
from tasks.store import Store
from tasks.turns import held_in_turn

# Prefect takes two seconds to load: a command that is refused before a run says how it ends without it
if TYPE_CHECKING:
    from prefect import State

Kind = Literal[
    "promoted", "redeployed", "rolled_back", "rejected", "nothing_newer", "already_there", "waiting",
    "watched", "nothing_to_watch",
]  # fmt: skip

EXIT_CODES: dict[Kind, int] = dict.fromkeys(get_args(Kind), 0) | {"rejected": 4}
"""Exit codes of a flow that ended by itself; the errors of tasks/release.py carry theirs (1 failed, 2, 3)."""

ALONE = ("upgrade", "redeploy", "rollback")
"""The flows that hold the release lock from their first line to their last."""


class Outcome(Model):
    """What a flow came to."""

    kind: Kind
    release: Release | None = None
    note: str = Field(default="", description="what else there is to know")

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.kind]


def ended(kind: Kind, release: Release | None = None, note: str = "") -> State[Outcome]:
    """The final state of a flow run, named for a person in the Prefect page, with its Outcome as the result."""
    from prefect.states import Completed

    label = f": {release.label}" if release else ""
    return Completed(
        name=kind.replace("_", " ").capitalize(),
        message=f"{kind}{label}" + (f"; {note}" if note else ""),
        data=Outcome(kind=kind, release=release, note=note),
    )


@contextmanager
def one_at_a_time(
    store: Store, name: str = "release", *, patience_s: float = 0, looks_in: bool = False
) -> Iterator[None]:
    """Hold the store's release lock, or another one. A flow run that died with it is marked crashed in Prefect, and
    with the release lock held, so is what else of ALONE has been left there.

    Who holds it and only looks in (`looks_in`) is waited for. Raises Taken, which names the run that holds it, when it
    is not free in so many seconds.
    """
    from prefect.runtime import flow_run

    from flows.server import settle

    holder = {"flow_run": str(flow_run.id), "name": flow_run.name, **({"looks_in": True} if looks_in else {})}
    with held_in_turn(store, name, holder, patience_s=patience_s, stale=_crashed):
        if name == "release":
            settle(ALONE, holder["flow_run"], now())
        yield


@contextmanager
def if_free(store: Store) -> Iterator[str]:
    """Look in: hold the store's release lock where nobody has it; yields '', or who has it: nothing is held then."""
    with ExitStack() as held:
        try:
            held.enter_context(one_at_a_time(store, looks_in=True))
            taken = ""
        except ToolingError as error:
            taken = f"{error.what}: {error.evidence}"
        yield taken


def _crashed(holder: dict[str, Any]) -> None:
    from flows.server import mark_crashed

    mark_crashed(str(holder.get("flow_run")))
