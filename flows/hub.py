"""`llama-release hub`: the commit that a repository of the Hub is pinned to."""

from __future__ import annotations

from tasks import hub
from tasks.console import console
from tasks.platforms import open_store
from tasks.release import Event
from tasks.settings import load


def update() -> None:
    """Pin `server.hub_model`'s repository as the Hub has it now, and say what that changes. Downloads nothing.

    Raises BadInput and ToolingError as `hub.update`; then nothing is changed.
    """
    settings = load()
    store = open_store(settings)
    with hub.pinning(store, "hub update"):
        before, found = hub.update(store, settings)
        same = before is not None and dict(hub.files_of(before)) == dict(hub.files_of(found))
        if before and same and before.pin.commit == found.pin.commit:
            console.print(f"nothing newer: {found}", soft_wrap=True)
            return
        files = "with the same files" if same else f"with {hub.names_of(before.chosen)}" if before else ""
        was = f", was {before.pin.commit[:12]} {files}" if before else ""
        store.log(Event(kind="hub.updated", summary=f"{found}{was}"))
    console.print(f"{found}{was}", soft_wrap=True)
    console.print("production serves what it served; `llama-release upgrade --to bN` takes this", soft_wrap=True)
