"""What `server.hub_model` stands for, and whether its files can be had."""

from __future__ import annotations

from collections.abc import Iterator

from tasks import hub
from tasks.doctor import Check, Seen, note
from tasks.hub.remote import Unreachable
from tasks.release import BadInput
from tasks.settings import Settings
from tasks.store import Store


def checks(settings: Settings, store: Store) -> Iterator[Check]:
    if settings.server.hub_model:
        yield "hub", lambda: repository(settings, store)


def repository(settings: Settings, store: Store) -> str | Seen:
    """The files that it stands for, whether they are here, and whether the repository has moved on since it was pinned.
    Raises what keeps an upgrade from having them."""
    found = hub.look(store, settings)
    assert found
    missing = found.missing(store)
    size = sum(file.size_bytes for file in missing)
    where = f"the upgrade has {size / 1e9:.2f} GB to fetch" if missing else "all is here"
    try:
        moved = hub.moved_on(store, found)
    except (Unreachable, BadInput) as problem:
        if missing:
            raise
        return f"{found}; {where}; the Hub could not be asked whether it is still so: {problem.what}"
    said = f"{found}; {where}"
    if not moved:
        return said
    more = "" if moved == found.differs else f"; {moved}"
    return note(f"{said}{more}", "`llama-release hub update` takes that for the next release")
