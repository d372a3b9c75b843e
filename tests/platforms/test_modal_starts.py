"""Each start of a container is a restore, a boot, or a failure that is shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from modal_app.settings import ModalSettings
from tasks.platforms.modal.conformance import price
from tasks.platforms.modal.starts import Ending, Moved, complete
from tasks.platforms.modal.warming import enough, kinds, price_usd, quiet, told, worth
from tasks.release import BootKind, BootRecord, Latency
from tasks.restore import Kept, by_machine
from tasks.restore.cycle import Cycle
from tasks.restore.deaths import later, latest

BEGAN = datetime(2026, 11, 30, tzinfo=UTC)


def record(minute: int, kind: BootKind, release: str = "r1") -> tuple[str, BootRecord]:
    at = BEGAN + timedelta(minutes=minute)
    task = f"ta-{minute}"
    return f"{at.isoformat()} {task}", BootRecord(stage="staging", release=release, kind=kind, at=at, task=task)


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


def test_a_death_is_of_what_the_stage_was_given_last_before_it_and_not_of_whoever_spoke_last() -> None:
    records = dict([record(1, BootKind.CREATED), record(2, BootKind.RESTORED)])
    moves = [Moved(release="r2", at=BEGAN + timedelta(minutes=3)), Moved(release="r1", at=BEGAN)]
    found = complete(records, [died(2, "ta-x"), died(5)], moves)
    silent = [boot for boot in found if boot not in records.values()]
    assert [(boot.release, boot.kind) for boot in silent] == [("r1", BootKind.FELL_BACK), ("r2", BootKind.CRASHED)]


def test_what_was_up_before_a_move_ends_because_of_it_and_is_no_failed_restore_of_anybody() -> None:
    """A candidate's container that was still booting, or was killed after its grace, is not on the record of what
    production went back to."""
    records = dict([record(1, BootKind.CREATED, "good"), record(9, BootKind.RESTORED, "good")])
    moves = [
        Moved(release="good", at=BEGAN + timedelta(minutes=5), before=("ta-1", "ta-bad")),
        Moved(release="bad", at=BEGAN + timedelta(minutes=3), before=("ta-1",)),
        Moved(release="good", at=BEGAN),
    ]
    found = complete(records, [died(6, "ta-bad"), died(7)], moves)
    assert [(boot.release, boot.task) for boot in found] == [("good", "ta-1"), ("good", "ta-7"), ("good", "ta-9")]


def test_a_snapshot_in_place_of_a_restore_that_failed_is_of_no_new_kind_of_worker() -> None:
    records = dict([record(1, BootKind.CREATED), record(2, BootKind.RESTORED), record(4, BootKind.CREATED)])
    records |= {key: boot.model_copy(update={"snapshot": boot.task, "health_s": 1.0}) for key, boot in records.items()}
    assert (len(kinds(boots := complete(records, []))), quiet(boots)) == (2, 0)
    assert (len(kinds(boots := complete(records, [died(3)]))), quiet(boots)) == (1, 2)


def test_a_restore_that_modal_tries_again_without_a_snapshot_is_one_start_of_two_containers() -> None:
    records = dict([record(1, BootKind.CREATED), record(4, BootKind.FELL_BACK)])
    failed = Ending("ta-first", BEGAN + timedelta(minutes=3), "Runner failed with exit code: 222")
    _, retry = complete(records, [failed])
    assert (retry.retry_of, retry.containers, retry.task) == ("ta-first", 2, "ta-4")
    assert "exit code: 222" in retry.reason
    assert worth_failed([*complete(records, [failed])]) == 1
    (_, waiting) = complete(dict([record(1, BootKind.CREATED)]), [failed])
    assert (waiting.kind, waiting.task) == (BootKind.FELL_BACK, "ta-first"), "its retry has not come up yet"


def worth_failed(boots: list[BootRecord]) -> int:
    return sum(boot.kind is BootKind.FELL_BACK for boot in boots)


def test_a_death_that_shows_late_is_of_the_cycle_in_whose_time_it_was() -> None:
    known = [record(1, BootKind.CREATED)[1]]
    first = [*known, record(3, BootKind.CREATED)[1]]  # what came up after the death at minute 2, which is not told yet
    cycle = Cycle(stage="staging", boots=tuple(later(first, known)), tolerance=0.001, since=latest(known))
    records = dict([record(1, BootKind.CREATED), record(3, BootKind.CREATED), record(5, BootKind.RESTORED)])
    now_known = complete(records, [died(2)])
    assert [boot.kind for boot in later(now_known, first)] == [BootKind.RESTORED]
    kept = Kept(cycles=(cycle,)).seen_again(now_known)
    assert (cycle.kind, kept.cycles[0].kind) == (BootKind.CREATED, BootKind.FELL_BACK)
    assert len(kept.cycles[0].boots) == 2


def test_starts_are_counted_by_the_machine_where_there_are_several() -> None:
    here, there = on("a", "a", "b"), on("b")
    assert by_machine([*here, *there]).startswith("all 4 starts of it, machine 1 (a): 2 restored; machine 2 (b): 2 res")
    assert by_machine(on("a", "a")) == ""


def on(*workers: str) -> list[BootRecord]:
    return [BootRecord(stage="staging", release="r1", kind=BootKind.RESTORED, worker=worker) for worker in workers]


def test_starts_are_counted_since_a_snapshot_was_taken_last_whatever_the_machines_say_of_themselves() -> None:
    first, second = created("ta-1"), created("ta-2")
    boots = [first, *on("a", "b", "c"), second, *on("d", "a")]
    assert (kinds(boots), quiet(boots)) == (["ta-1", "ta-2"], 2)
    assert (quiet([]), quiet([first]), quiet([first, *on("a", "", "x")])) == (0, 0, 3)


def created(snapshot: str) -> BootRecord:
    return BootRecord(stage="staging", release="r1", kind=BootKind.CREATED, snapshot=snapshot, worker=snapshot)


def test_a_kind_with_a_share_of_the_starts_is_found_with_95_percent_certainty() -> None:
    assert (enough(0.2), enough(0.1), enough(0.5)) == (14, 29, 5)
    for rare in (0.05, 0.2, 0.5):
        assert (1 - rare) ** enough(rare) <= 0.05 < (1 - rare) ** (enough(rare) - 1)


def took(kind: BootKind, *seconds: float) -> list[Latency]:
    return [Latency(stage="staging", kind=kind, after_idle_s=each, warm_s=0.1, health_s=0.0) for each in seconds]


def test_whether_snapshots_are_worth_it_follows_from_what_it_took_to_the_first_token() -> None:
    booted, restored = took(BootKind.CREATED, 90.0, 110.0), took(BootKind.RESTORED, 5.0, 7.0, 6.0)
    assert worth([*booted, *restored]) == (
        "first token in 6.0 s after a restore, in 100.0 s after a boot, 0 of 3 restores failed: snapshots are worth it"
    )
    assert worth([*booted, *took(BootKind.RESTORED, 85.0)]).endswith("they are not worth it: modal.snapshots = off")
    often = [*booted, *restored, *took(BootKind.FELL_BACK, *[110.0] * 9)]
    assert "9 of 12 restores failed: they are not worth it" in worth(often), "it takes the failed restore, and a boot"
    assert worth(booted) == worth(restored) == ""


def test_a_start_is_priced_by_the_time_to_its_first_token_and_not_at_all_without_a_price() -> None:
    per_second = 0.000542 + 4 * 0.0000131 + 32 * 0.00000222
    assert price_usd(took(BootKind.RESTORED, 12.0, 12.0), ModalSettings(), "L40S") == pytest.approx(20 * per_second)
    assert price_usd([], ModalSettings(), "L40S") == pytest.approx(28 * per_second)
    assert price_usd([], ModalSettings(gpu="H100:2"), "H100:2") is None
    assert (told(None, 3), told(0.02, 3)) == ("a price that is not known", "0.06 USD")
    unknown = price(ModalSettings(gpu="H100"))
    assert unknown.endswith("and a price that is not known (H100 is not in modal.prices_usd_per_s)")
