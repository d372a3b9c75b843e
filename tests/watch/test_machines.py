"""Kinds of machine that production came up on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tasks.release import BootKind, BootRecord
from tasks.watch import machines


def boot(hour: int, kind: BootKind, worker: str = "") -> BootRecord:
    at = datetime(2026, 11, 30, tzinfo=UTC) + timedelta(hours=hour)
    return BootRecord(stage="production", release="r1", kind=kind, worker=worker, at=at, health_s=90.0)


def test_a_new_kind_of_machine_in_production_is_told_with_what_its_first_start_took() -> None:
    first, second = boot(1, BootKind.CREATED, "us, a"), boot(9, BootKind.CREATED, "eu, b")
    assert machines([first, boot(2, BootKind.RESTORED, "us, a")]) == ""
    assert machines([first, boot(2, BootKind.RESTORED, "us, a"), second]) == (
        "2 kinds of machine took a snapshot, the latest at 2026-11-30 09:00: that start booted whole in 90 s (eu, b)"
    )
    assert machines([boot(1, BootKind.CREATED), boot(2, BootKind.CREATED)]) == ""
