"""Each start of a container is a restore, a boot, or a failure that is shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tasks.platforms.modal.starts import Ending, complete
from tasks.release import BootKind, BootRecord

BEGAN = datetime(2026, 11, 30, tzinfo=UTC)


def record(minute: int, kind: BootKind, release: str = "r1") -> tuple[str, BootRecord]:
    at = BEGAN + timedelta(minutes=minute)
    return f"{at.isoformat()} ta-{minute}", BootRecord(stage="staging", release=release, kind=kind, at=at)


def died(minute: int, task: str = "") -> Ending:
    return Ending(task or f"ta-{minute}", BEGAN + timedelta(minutes=minute), "Runner failed with exit code: 139")


def test_a_restore_that_crashed_before_another_container_booted_is_shown_in_its_place() -> None:
    records = dict([record(1, BootKind.CREATED), record(3, BootKind.CREATED), record(5, BootKind.RESTORED)])
    kinds = [boot.kind for boot in complete(records, [died(2), died(4)])]
    assert kinds == [
        BootKind.CREATED, BootKind.FELL_BACK, BootKind.CREATED, BootKind.FELL_BACK, BootKind.RESTORED,
    ]  # fmt: skip


def test_what_left_a_record_is_told_once_and_a_death_while_it_served_is_no_failed_restore() -> None:
    records = dict([record(1, BootKind.CREATED), record(3, BootKind.CRASHED)])
    assert complete(records, [died(2, "ta-1"), died(3)]) == [records[key] for key in sorted(records)]


def test_before_there_is_a_snapshot_no_restore_can_fail() -> None:
    records = dict([record(1, BootKind.CREATED), record(4, BootKind.CRASHED, "r2")])
    kinds = [boot.kind for boot in complete(records, [died(5)])]
    assert kinds[-1] is BootKind.CRASHED
    assert complete({}, [died(1)]) == []
