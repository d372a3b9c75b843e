"""What the restore watch has seen of a release in production: bounded series, kept in the store."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

from pydantic import Field

from modal_app.warmup import Golden
from tasks.platforms import LastHour
from tasks.release import BootKind, BootRecord, Model, Release, Wake, now
from tasks.store import Store

KEPT = 500
"""Entries of each series that are kept: the latest."""

T = TypeVar("T")


class Look(Model):
    """Production at one moment, seen without waking it or keeping it awake."""

    servers: int
    in_flight: int | None = None
    answered: int | None = None
    errors: int | None = None
    down: str = Field(default="", description="why nothing would answer a request; '' when something would")
    metrics: dict[str, float] = Field(default_factory=dict, description="of /metrics; empty where it was not asked")
    gpu_used_mb: int | None = None
    gpu_total_mb: int | None = None
    last_hour: LastHour | None = None
    at: datetime = Field(default_factory=now)


class Probe(Model):
    """Production woken once by us."""

    kind: BootKind
    fault: str = Field(default="", description="why it was no good return from idle; '' when it was")
    unclear: str = Field(default="", description="why nothing can be told from it; '' when something can")
    status: int | None = Field(default=None, description="of the HTTP error that the server sent, if it sent one")
    boot_at: datetime | None = Field(default=None, description="of the boot record that it made")
    at: datetime = Field(default_factory=now)


class Series(Model):
    """All of one release, each oldest first. Its latencies lie with those of the restore probe, in `series/<id>/`."""

    release: str
    looks: tuple[Look, ...] = ()
    boots: tuple[BootRecord, ...] = ()
    wakes: tuple[Wake, ...] = ()
    probes: tuple[Probe, ...] = ()


def load(store: Store, release: Release) -> Series:
    return store.watched(release.id, Series) or Series(release=release.id)


def save(store: Store, series: Series) -> Series:
    """Written without the oldest of what is too much."""
    kept = series.model_copy(
        update={name: getattr(series, name)[-KEPT:] for name in ("looks", "boots", "wakes", "probes")}
    )
    store.save_watched(series.release, kept)
    return kept


def golden(store: Store, release: Release) -> Golden | None:
    """What production said when it was last asked on a platform without snapshots; None before that."""
    text = store.files.read(_golden(release))
    return Golden.from_json(text) if text else None


def keep_golden(store: Store, release: Release, found: Golden) -> None:
    store.files.write(_golden(release), found.to_json())


def _golden(release: Release) -> str:
    return f"watch/{release.id}.golden.json"
