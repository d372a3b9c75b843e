"""Containers that started and never said how they came up.

A container writes its boot record when it is up. One that dies in its restore writes none: it is another container
that answers, and a boot record of that one tells of no failure. So what Modal's own log says of containers is held
against the records: each start is a restore, a boot, or a failure that is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import modal
from modal.exception import NotFoundError

from modal_app.settings import ModalSettings
from tasks.platforms.modal.account import told
from tasks.platforms.modal.apps import SERVER
from tasks.release import BootKind, BootRecord

LINES = 400
"""How many of the log's latest lines of Modal's own are read: each container has a few."""
_ENDED_BADLY = re.compile(
    r"exit(?:ed)?(?: with)?(?: code)?:? *(?:1\d\d|2\d\d)\b|out of memory|snapshot restore failed", re.IGNORECASE
)
"""What Modal writes of a container that failed: its exit code (139 for SIGSEGV, 128, 137 for a kill, 222 when the SDK
itself saw the restore fail), or why."""


class Ending(NamedTuple):
    """A container that failed, by Modal's own log."""

    task: str
    at: datetime
    words: str


def endings(settings: ModalSettings, app: str) -> list[Ending]:
    """The containers of an app that failed, oldest first, each once; none when it is not deployed."""
    found: dict[str, Ending] = {}
    with told(f"reading what became of the containers of {app}"):
        try:
            server = modal.Server.from_name(app, SERVER, environment_name=settings.environment)
            for entry in server.logs.tail(LINES, source="system"):
                task = next((each for each in entry.context_ids if each.startswith("ta-")), "")
                if task and _ENDED_BADLY.search(entry.message):
                    found.setdefault(task, Ending(task, entry.timestamp, entry.message.strip()))
        except NotFoundError:
            return []
    return sorted(found.values(), key=lambda each: each.at)


def complete(records: Mapping[str, BootRecord], found: list[Ending]) -> list[BootRecord]:
    """All starts, oldest first: those that left a record (key -> record), and those that failed without one.

    Such a one is of the deployment whose record is nearest before it; without any there is nothing to tell it by.
    """
    said = [records[key] for key in sorted(records)]
    tasks = {key.rpartition(" ")[2] for key in records}
    silent = [_failed(each, said) for each in found if each.task not in tasks]
    return sorted([*said, *filter(None, silent)], key=lambda boot: boot.at)


def _failed(ending: Ending, said: list[BootRecord]) -> BootRecord | None:
    before = [boot for boot in said if boot.at <= ending.at] or said[:1]
    if not before:
        return None
    of, words = before[-1], f"container {ending.task} left no boot record: {ending.words}"
    mine = [boot for boot in before if (boot.release, boot.generation) == (of.release, of.generation)]
    snapshot = any(boot.kind in (BootKind.CREATED, BootKind.RESTORED) for boot in mine)
    return BootRecord(
        stage=of.stage, release=of.release, generation=of.generation, task=ending.task, at=ending.at,
        kind=BootKind.FELL_BACK if snapshot else BootKind.CRASHED,
        reason=f"the restore failed: {words}" if snapshot else words,
    )  # fmt: skip
