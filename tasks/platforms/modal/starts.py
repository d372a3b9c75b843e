"""Containers that started and never said how they came up.

A container writes its boot record when it is up. One that dies in its restore writes none: it is another container
that answers, and a boot record of that one tells of no failure. So what Modal's own log says of containers is held
against the records: each start is a restore, a boot, or a failure that is shown. What neither tells, Modal's count of
started containers does (`apps.started`, which the restore probe compares with these).
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import modal
from modal.exception import NotFoundError
from pydantic import Field

from modal_app.settings import ModalSettings
from tasks.console import console, one_line
from tasks.platforms.modal.account import told
from tasks.platforms.modal.apps import SERVER
from tasks.release import BootKind, BootRecord, Model, Problem

LINES = 400
"""How many of the log's latest lines of Modal's own are read: each container has a few."""
EVERY_S = 1.0
"""How often the log is read at most while no boot record is new."""
_ENDED_BADLY = re.compile(
    r"exit(?:ed)?(?: with)?(?: code)?:? *(?P<code>1\d\d|2\d\d)\b|out of memory|snapshot restore failed", re.IGNORECASE
)
"""What Modal writes of a container that failed: its exit code (139 for SIGSEGV, 128, 137 for a kill, 222 when the SDK
itself saw the restore fail), or why."""
RETRY_LIMIT = timedelta(minutes=30)
"""How long the boot of what was started in place of a failed restore may take, and the wait for a machine."""
_TOLD_TO_END = ("130", "143")
"""Exit codes of what was told to end (SIGINT, SIGTERM): nothing that dies by itself has them."""
_RETRIED = re.compile(r"\b222\b|snapshot restore failed", re.IGNORECASE)
"""Of a restore that the SDK saw fail: Modal starts the container again without a snapshot."""


class Moved(Model):
    """A release that a stage was given, and when: what starts from then on is of it."""

    release: str
    generation: str = ""
    definition: str = Field(default="", description="of all that was deployed")
    at: datetime = Field(description="before it was deployed, by this machine's clock")
    before: tuple[str, ...] = Field(default=(), description="the containers that were up: they end because of it")


class Ending(NamedTuple):
    """A container that failed, by Modal's own log."""

    task: str
    at: datetime
    words: str

    @property
    def retried(self) -> bool:
        return bool(_RETRIED.search(self.words))


class Log:
    """What Modal's log says of the containers of an app, as far as it was read."""

    def __init__(self, settings: ModalSettings, app: str) -> None:
        self._settings, self._app = settings, app
        self._endings: list[Ending] = []
        self._records, self._read_at, self._unread = -1, float("-inf"), False
        self.ours: set[str] = set()
        """Containers that we ended: how they ended is no failure."""

    def endings(self, records: int) -> list[Ending]:
        """The containers that failed, oldest first, each once. Read anew when there are more boot records than before,
        or after EVERY_S. What could not be read is said, and what is known from before holds."""
        if records != self._records or time.monotonic() - self._read_at > EVERY_S:
            try:
                self._endings = endings(self._settings, self._app)
                self._unread = False
            except Problem as error:
                if not self._unread:
                    console.print(f"  restores that failed may not be seen just now: {one_line(error.what)}")
                self._unread = True
            self._records, self._read_at = records, time.monotonic()
        return [each for each in self._endings if each.task not in self.ours]

    def silent(self, records: Collection[BootRecord], since: datetime) -> list[Ending]:
        """Those that failed since then without a word, and are not started again by Modal as they are."""
        said = {boot.task for boot in records}
        found = self.endings(len(records))
        return [each for each in found if each.at >= since and each.task not in said and not each.retried]


def endings(settings: ModalSettings, app: str) -> list[Ending]:
    """The containers of an app that failed, oldest first, each once; none when it is not deployed."""
    found: dict[str, Ending] = {}
    with told(f"reading what became of the containers of {app}"):
        try:
            server = modal.Server.from_name(app, SERVER, environment_name=settings.environment)
            for entry in server.logs.tail(LINES, source="system"):
                task = next((each for each in entry.context_ids if each.startswith("ta-")), "")
                how = _ENDED_BADLY.search(entry.message)
                if task and how and how["code"] not in _TOLD_TO_END:
                    found.setdefault(task, Ending(task, entry.timestamp, entry.message.strip()))
        except NotFoundError:
            return []
    return sorted(found.values(), key=lambda each: each.at)


def complete(
    records: Mapping[str, BootRecord], found: Sequence[Ending], moves: Sequence[Moved] = ()
) -> list[BootRecord]:
    """All starts, oldest first: those that left a record (key -> record), and those that failed without one.

    Such a one is of what the stage was given last before it (`moves`, the latest first); where that is not known, of
    the release whose record is nearest before it. Without either there is nothing to tell it by. One that was up before
    a move ended because of it, in whatever way. A restore that failed and was started again without a snapshot is one
    start with its retry's record, which names it.
    """
    said = sorted(records.values(), key=lambda boot: boot.at)
    tasks = {key.rpartition(" ")[2] for key in records} | {boot.task for boot in said if boot.task}
    for each in (each for each in found if each.retried and each.task not in tasks):
        if retry := _retry_of(each, said):
            words = f"{retry.reason}; {each.task} ended before: {each.words}"
            at = said.index(retry)
            said[at] = retry.model_copy(update={"reason": words, "retry_of": each.task})
            tasks.add(each.task)
    ended = {task for move in moves for task in move.before}
    silent = [_failed(each, said, moves) for each in found if each.task not in tasks | ended]
    return sorted([*said, *filter(None, silent)], key=lambda boot: boot.at)


def _retry_of(ending: Ending, said: Iterable[BootRecord]) -> BootRecord | None:
    """The record of the container that was started in place of one: Modal does that at once, and a boot takes its time.

    What ended longer ago has lost its retry's record: a Dict forgets what nobody asks for in a week.
    """
    until = ending.at + RETRY_LIMIT
    later = (boot for boot in said if boot.kind is BootKind.FELL_BACK and not boot.retry_of)
    return next((boot for boot in later if ending.at <= boot.at <= until), None)


def _failed(ending: Ending, said: Sequence[BootRecord], moves: Sequence[Moved]) -> BootRecord | None:
    before = [boot for boot in said if boot.at <= ending.at]
    of: Moved | BootRecord | None = next((move for move in moves if move.at <= ending.at), None)
    of = of or next(iter(before[-1:] or said[:1]), None)
    if of is None or not (said or moves):
        return None
    words = f"container {ending.task} left no boot record: {ending.words}"
    mine = [boot for boot in before if (boot.release, boot.generation) == (of.release, of.generation)]
    snapshot = ending.retried or any(boot.kind in (BootKind.CREATED, BootKind.RESTORED) for boot in mine)
    where = "died in its restore, or in a first boot on another kind of worker: "
    return BootRecord(
        stage=said[0].stage if said else "", release=of.release, generation=of.generation, task=ending.task,
        at=ending.at, kind=BootKind.FELL_BACK if snapshot else BootKind.CRASHED,
        reason=f"{'the restore failed: ' if ending.retried else where}{words}" if snapshot else words,
    )  # fmt: skip
