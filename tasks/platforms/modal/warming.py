"""Which kinds of workers containers land on: each has its first container boot whole, and takes a snapshot of its own.

Modal does not tell what kinds there are. Until one was landed on, its first container is a first boot in the middle of
production, minutes long. So a release's snapshots are warmed before it is proved: cold starts are forced until so many
in a row landed on nothing new that a kind with a given share of the starts would have shown itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, median

from modal_app.settings import ModalSettings
from tasks.platforms.modal.cost import is_priced, usd
from tasks.release import BootKind, BootRecord, Latency

CERTAINTY = 0.95
RESTORE_S = 20.0
"""What a start from a snapshot takes before one was measured."""
WORTH = 0.8
"""A start from a snapshot is to take at most this share of a boot."""
AROUND_S = 8.0
"""What a start costs besides: the container is there while it is found idle, and ends."""


def enough(rare: float) -> int:
    """After how many starts in a row on known kinds a kind with this share of the starts would have shown itself.

    It stays unseen in all of them with (1 - rare) ** n, which is at most 1 - CERTAINTY: 14 for a fifth, 29 for a tenth.
    """
    return math.ceil(math.log(1 - CERTAINTY) / math.log(1 - rare))


def kinds(boots: Sequence[BootRecord]) -> list[str]:
    """The snapshots that were taken, in their order: one for each kind of worker, by Modal's own idea of a kind. What a
    container tells of its machine is finer than that, and would never come to an end."""
    return list(dict.fromkeys(boot.snapshot for boot in _new(boots) if boot.snapshot))


def _new(boots: Sequence[BootRecord]) -> list[BootRecord]:
    """Those that took the first snapshot of a kind: not the one that came up in place of a restore that failed."""
    before = [None, *boots]
    pairs = zip(before, boots, strict=False)
    return [boot for last, boot in pairs if boot.kind is BootKind.CREATED and not _failed_silently(last)]


def _failed_silently(boot: BootRecord | None) -> bool:
    return boot is not None and boot.kind is BootKind.FELL_BACK and boot.health_s is None


def quiet(boots: Sequence[BootRecord]) -> int:
    """How many starts there were since a kind took its first snapshot."""
    new = _new(boots)
    since = boots[boots.index(new[-1]) + 1 :] if new else boots
    return sum(not _failed_silently(boot) for boot in since)


def worth(took: Sequence[Latency]) -> str:
    """Whether snapshots are worth it for this release, by what starts took from the request to the first token; ''
    before there are both ways.

    A start from a snapshot is a restore, or one that failed and the boot after it. GPU snapshots are an alpha feature
    of Modal's, which says itself that they can make it worse.
    """
    booted = [each.after_idle_s for each in took if each.kind is BootKind.CREATED]
    failed = [each.after_idle_s for each in took if each.kind is BootKind.FELL_BACK]
    restored = [each.after_idle_s for each in took if each.kind is BootKind.RESTORED]
    if not booted or not restored:
        return ""
    cold_s, warm_s = median(booted), mean([*restored, *failed])
    figures = (
        f"first token in {median(restored):.1f} s after a restore, in {cold_s:.1f} s after a boot, "
        f"{len(failed)} of {len(failed) + len(restored)} restores failed"
    )
    better = warm_s < WORTH * cold_s
    return f"{figures}: " + ("snapshots are worth it" if better else "they are not worth it: modal.snapshots = off")


def price_usd(took: Sequence[Latency], settings: ModalSettings, gpu: str | None) -> float | None:
    """About what one more start costs: the time to its first token, as it was so far, and the container's end. None
    where the GPU is not in the price table."""
    restored = [each.after_idle_s for each in took if each.kind is BootKind.RESTORED]
    seconds = (median(restored) if restored else RESTORE_S) + AROUND_S
    return usd(settings, seconds, gpu, settings.server_cpu, settings.server_memory_mb) if is_priced(settings) else None


def told(price: float | None, starts: int) -> str:
    """What so many starts cost, in words."""
    return f"{starts * price:.2f} USD" if price is not None else "a price that is not known"
