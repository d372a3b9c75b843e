"""Which kinds of workers containers land on: each has its first container boot whole, and takes a snapshot of its own.

Modal does not tell what kinds there are. Until one was landed on, its first container is a first boot in the middle of
production, minutes long. So a release's snapshots are warmed before it is proved: cold starts are forced until so many
in a row landed on nothing new that a kind with a given share of the starts would have shown itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from modal_app.settings import ModalSettings
from tasks.platforms.modal.cost import usd
from tasks.release import BootKind, BootRecord

CERTAINTY = 0.95
RESTORE_S = 20.0
"""What a start from a snapshot takes before one was measured."""
WORTH = 0.8
"""A start from a snapshot is to take at most this share of a boot."""
_BOOTED = (BootKind.CREATED, BootKind.FELL_BACK)
AROUND_S = 8.0
"""What a start costs besides: the container is there while it is found idle, and ends."""


def enough(rare: float) -> int:
    """After how many starts in a row on known kinds a kind with this share of the starts would have shown itself.

    It stays unseen in all of them with (1 - rare) ** n, which is at most 1 - CERTAINTY: 14 for a fifth, 29 for a tenth.
    """
    return math.ceil(math.log(1 - CERTAINTY) / math.log(1 - rare))


def kinds(boots: Sequence[BootRecord]) -> list[str]:
    """The kinds of workers that containers came up on, in the order in which they were first seen."""
    return list(dict.fromkeys(boot.worker for boot in boots if boot.worker))


def quiet(boots: Sequence[BootRecord]) -> int:
    """How many of the latest starts came up on a kind that was known before them."""
    known: set[str] = set()
    count = 0
    for worker in (boot.worker for boot in boots if boot.worker):
        count = count + 1 if worker in known else 0
        known.add(worker)
    return count


def worth(boots: Sequence[BootRecord]) -> str:
    """Whether snapshots are worth it for this release, by what its starts took; '' before there are both kinds.

    A start from a snapshot takes what restores took, and where the restore fails a boot besides. GPU snapshots are an
    alpha feature of Modal's, which says itself that they can make it worse.
    """
    restored = [boot.health_s for boot in boots if boot.kind is BootKind.RESTORED and boot.health_s is not None]
    booted = [boot.health_s for boot in boots if boot.kind in _BOOTED and boot.health_s is not None]
    if not restored or not booted:
        return ""
    failed = sum(boot.kind is BootKind.FELL_BACK for boot in boots)
    rate = failed / (failed + len(restored))
    cold_s, warm_s = median(booted), median(restored) + rate * median(booted)
    figures = f"restored in {median(restored):.1f} s, booted in {cold_s:.1f} s, {failed} restores failed"
    better = warm_s < WORTH * cold_s
    advice = "snapshots are worth it" if better else "snapshots are not worth it: modal.snapshots = off"
    return f"{figures}: {advice}"


def price_usd(boots: Sequence[BootRecord], settings: ModalSettings, gpu: str | None) -> float:
    """About what one more start costs: a restore, as it took so far, and the container's end."""
    took = [boot.health_s for boot in boots if boot.kind is BootKind.RESTORED and boot.health_s is not None]
    seconds = (median(took) if took else RESTORE_S) + AROUND_S
    return usd(settings, seconds, gpu, settings.server_cpu, settings.server_memory_mb)
