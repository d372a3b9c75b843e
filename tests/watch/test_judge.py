"""What is called wrong, and what is called over, by the series alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.release import BootKind, BootRecord, Latency, StageName, Wake
from tasks.settings import WatchSettings
from tasks.watch.judge import (
    BASELINE,
    GOOD_AGAIN,
    KNOWN,
    LATEST,
    REMEMBERED,
    Slow,
    found,
    is_slower,
    over,
    proven,
    returns,
    without,
)
from tasks.watch.series import Probe, Series

SETTINGS = WatchSettings()
START = datetime(2026, 11, 1, tzinfo=UTC)
R, F, C, NEW = BootKind.RESTORED, BootKind.FELL_BACK, BootKind.CRASHED, BootKind.CREATED
COLD = BootKind.COLD


def hour(n: int) -> datetime:
    return START + timedelta(hours=n)


def came(*kinds: BootKind) -> Series:
    boots = (BootRecord(stage="production", release="r", kind=kind, at=hour(n)) for n, kind in enumerate(kinds))
    return Series(release="r", boots=tuple(boots))


def took(
    seconds: Sequence[float], stage: StageName = "production", kind: BootKind = R, start: int = 0
) -> list[Latency]:
    return [
        Latency(stage=stage, kind=kind, health_s=0.1, after_idle_s=s, warm_s=0.1, tokens_per_s=50.0, at=hour(start + n))
        for n, s in enumerate(seconds)
    ]


@pytest.mark.parametrize(
    ("kinds", "bad"),
    [
        ((F, F), False),
        ((F, F, F), True),
        ((F, R, C, R, F), True),
        ((F, F, R, R, R, F), False),
        ((F, NEW, F, NEW, NEW), False),
        ((R,) * 9 + (F, F, C), True),
    ],
)
def test_three_of_the_last_five_returns_are_an_alert(kinds: tuple[BootKind, ...], bad: bool) -> None:
    assert bool(found(came(*kinds), [], SETTINGS, "restores_fail", None)) is bad


def test_an_alert_says_how_many_in_a_row_and_when_it_was_good_last() -> None:
    alert = found(came(R, F, R, F, C), [], SETTINGS, "restores_fail", None)
    assert alert
    assert (alert.in_a_row, alert.last_good) == (2, hour(2))
    assert alert.summary == "3 of the last 5 returns from idle failed (crashed)"


def test_a_return_that_only_a_probe_saw_through_counts_as_failed_once() -> None:
    series = came(R, R, F)
    lied = Probe(kind=R, fault="recorded as restored, but the nonce is gone", boot_at=hour(1), at=hour(1))
    unclear = Probe(kind=R, unclear="a user was there", boot_at=hour(0), at=hour(0))
    seen = returns(series.model_copy(update={"probes": (unclear, lied)}))
    assert [case.bad for case in seen] == [False, True, True]


def test_what_was_over_before_begins_nothing_again() -> None:
    series = came(F, F, F, R, R)
    assert found(series, [], SETTINGS, "restores_fail", None)
    assert found(series, [], SETTINGS, "restores_fail", hour(2)) is None


@given(st.lists(st.sampled_from((R, F, C)), max_size=12))
def test_nothing_is_over_at_the_moment_that_it_begins(kinds: list[BootKind]) -> None:
    series = came(*kinds)
    if found(series, [], SETTINGS, "restores_fail", None):
        assert not over(series, [], SETTINGS, "restores_fail", hour(len(kinds)))


def test_failed_restores_are_over_after_good_ones_in_a_row() -> None:
    began = hour(2)
    for kinds, ended in (((R, R), False), ((R, R, F, R, R), False), ((F, R, R, R), True)):
        assert over(came(F, F, F, *kinds), [], SETTINGS, "restores_fail", began) is ended


def test_an_error_to_the_first_request_after_idle_is_an_alert_a_refusal_of_it_is_none() -> None:
    def answered(*statuses: int) -> Series:
        wakes = (
            Wake(stage="production", release="r", status=status, first_byte_s=1, probe=False, at=hour(n))
            for n, status in enumerate(statuses)
        )
        return Series(release="r", wakes=tuple(wakes))

    assert found(answered(200, 401, 404), [], SETTINGS, "errors_after_idle", None) is None
    alert = found(answered(200, 502, 200), [], SETTINGS, "errors_after_idle", None)
    assert alert
    assert (alert.in_a_row, alert.last_good) == (0, hour(2))
    assert not over(answered(503, 200, 200), [], SETTINGS, "errors_after_idle", hour(0))
    assert over(answered(503, 200, 200, 200), [], SETTINGS, "errors_after_idle", hour(0))


BASE = [1.0, 1.1, 0.9, 1.05, 0.95, 1.2, 0.85, 1.0, 1.02, 0.98] * (BASELINE // 10)
NOTHING = Series(release="r")


def is_slow(latencies: Sequence[Latency], since: datetime | None = None) -> bool:
    return found(NOTHING, latencies, SETTINGS, "slower", since) is not None


@pytest.mark.parametrize(
    ("latest", "slow"),
    [
        ([2.0, 2.1, 1.9, 2.2, 2.0, 1.95], True),
        ([1.4, 1.45, 1.4, 1.4, 1.4, 1.45], False),  # surely slower, but not by much
        ([9.0, 0.9, 9.0, 1.0, 9.0, 0.95], False),  # half of them slower by much: outliers
        ([9.0, 0.9, 9.0, 1.0, 9.0, 9.0], True),
        ([2.0] * (LATEST - 1), False),
    ],
)
def test_slower_is_by_much_and_in_most_of_the_latest(latest: list[float], slow: bool) -> None:
    assert is_slower(BASE, latest, 1.5) is slow


def test_nothing_is_known_before_there_is_a_baseline() -> None:
    assert is_slower(BASE, [9.0] * LATEST, 1.5)
    assert not is_slower(BASE[1:], [9.0] * LATEST, 1.5)


def test_what_its_baseline_has_been_for_as_long_is_not_slower() -> None:
    """Noise that stays for a while, as a busy neighbour does: times as slow stood in the baseline side by side."""
    slow_hours = [*BASE, *[1.6] * LATEST, *BASE, *[1.6] * LATEST, *BASE]
    spread_out = [each for n, base in enumerate(BASE) for each in ((base, 1.6) if n < LATEST else (base,))]
    assert not is_slower(slow_hours, [1.7] * LATEST, 1.5)
    assert is_slower(slow_hours, [2.8] * LATEST, 1.5)
    assert is_slower(spread_out, [1.7] * LATEST, 1.5)


def test_one_outlier_in_the_baseline_hides_nothing() -> None:
    assert is_slower([*BASE[1:], 30.0], [2.0] * LATEST, 1.5)


@pytest.mark.parametrize("at", range(BASELINE - 4))
def test_neither_does_one_disturbance_wherever_it_was(at: int) -> None:
    """A busy hour after the promotion, which the baseline remembers for 200 probes."""
    disturbed = [*BASE[:at], *[5.0] * 4, *BASE[at + 4 :]]
    assert is_slower(disturbed, [2.0] * LATEST, 1.5)
    assert is_slower(disturbed + BASE * 9, [2.0] * LATEST, 1.5)


def test_a_slow_drift_is_followed() -> None:
    month = [1 + n / 720 for n in range(720)]  # twice as slow at its end
    assert not any(is_slow(took(month[:n][-REMEMBERED - LATEST :])) for n in range(BASELINE + LATEST, 720, 50))
    assert is_slow(took([*month, *[2 * month[-1]] * LATEST]))


def test_a_baseline_is_of_productions_own_probes_that_are_alike() -> None:
    baseline, slow = took(BASE), took([3.0] * LATEST, start=40)
    assert is_slow(baseline + slow)
    assert not is_slow(took(BASE, "staging") + slow)
    assert not is_slow(baseline + took([3.0] * LATEST, kind=F, start=40))
    assert not is_slow(baseline + took([3.0] * LATEST, "staging", start=40))


def on(snapshot: str, seconds: Sequence[float], start: int = 0) -> list[Latency]:
    return [each.model_copy(update={"snapshot": snapshot}) for each in took(seconds, start=start)]


def test_a_worker_type_is_compared_with_itself_once_it_is_known() -> None:
    """A slow one that happens to come six times in a row is nothing new; one that has become slower is."""
    few = by_turns("quick", [*BASE * 2], "slow", [2.2] * KNOWN)
    assert not is_slow(few + on("slow", [2.2] * LATEST, start=100))
    assert is_slow(few + on("slow", [4.4] * LATEST, start=100))
    assert is_slow(few + on("quick", [2.0] * LATEST, start=100))
    assert is_slow(on("quick", BASE) + on("new", [3.0] * LATEST, start=100))


def test_one_that_is_slow_beyond_measure_is_no_normal() -> None:
    few = by_turns("quick", [*BASE * 2], "slow", [3.0] * KNOWN)
    assert is_slow(few + on("slow", [3.0] * LATEST, start=100))


def test_what_takes_the_place_of_another_for_good_is_compared_with_it() -> None:
    """After a redeploy every snapshot is new, and what is slow about them is no kind of machine."""
    for later in (KNOWN + LATEST, KNOWN + LATEST + 3):
        assert is_slow(on("before", BASE[:15]) + on("after", [2.0] * later, start=50)), later
    after = by_turns("one", [2.0] * 8, "other", [2.2] * 6, start=50)
    assert is_slow(on("before", BASE[:15]) + after)
    assert not is_slow(on("before", BASE[:15]) + on("after", [1.1] * (KNOWN + LATEST), start=50))


def by_turns(
    one: str, seconds: Sequence[float], other: str, seconds_of_other: Sequence[float], start: int = 0
) -> list[Latency]:
    """A probe an hour; those of the other spread evenly between those of the one."""
    step = len(seconds) / len(seconds_of_other)
    names = sorted(
        [(n, one, value) for n, value in enumerate(seconds)]
        + [(step * (n + 0.5), other, value) for n, value in enumerate(seconds_of_other)]
    )
    return [each for n, (_, name, value) in enumerate(names) for each in on(name, [value], start + n)]


def test_each_measure_is_told_by_itself_in_its_own_unit() -> None:
    slow = [each.model_copy(update={"tokens_per_s": 20.0}) for each in took([1.0] * LATEST, start=40)]
    alert = found(NOTHING, took(BASE) + slow, SETTINGS, "slower", None)
    assert alert and alert.summary == "generation 20.0 tokens/s, its baseline 50.0 tokens/s"


def test_it_is_as_fast_again_when_the_latest_are_half_way_back() -> None:
    known, began = took(BASE) + took([3.0] * LATEST, start=40), hour(50)
    for seconds, ended in ((1.1, True), (1.4, False)):
        later = took([seconds] * GOOD_AGAIN, start=51)
        assert over(NOTHING, known + later, SETTINGS, "slower", began) is ended
        assert not over(NOTHING, known + later[1:], SETTINGS, "slower", began)


def test_where_nothing_is_known_of_before_nothing_is_over() -> None:
    """A release that came up cold, was found slow, and is restored since."""
    known, began = took(BASE, kind=COLD) + took([3.0] * LATEST, kind=COLD, start=40), hour(50)
    assert not over(NOTHING, known + took([1.0], start=51), SETTINGS, "slower", began)
    assert not over(NOTHING, known + took([3.0] * GOOD_AGAIN, start=51), SETTINGS, "slower", began)
    assert over(NOTHING, known + took([1.0] * GOOD_AGAIN, start=51), SETTINGS, "slower", began)
    assert not over(NOTHING, took([1.0] * GOOD_AGAIN, start=51), SETTINGS, "slower", began)


def test_a_slow_time_that_is_over_is_no_part_of_the_baseline() -> None:
    slow, good = took([3.0] * 2 * LATEST, start=40), took([1.0] * GOOD_AGAIN, start=60)
    again = took([3.0] * LATEST, start=70)
    latencies = took(BASE) + slow + good + again
    period = Slow(release="r", began=hour(45), ended=hour(65))
    assert not is_slow(latencies, hour(65))
    assert without(latencies, [period], "r") == took(BASE) + again
    assert is_slow(without(latencies, [period], "r"), hour(65))
    assert without(latencies, [period], "another") == latencies


def test_an_error_that_a_server_sent_to_a_probe_is_an_error_after_idle() -> None:
    """What woke the server for it was answered with 200, and the prompt was not."""
    alert = found(probed(ERROR), [], SETTINGS, "errors_after_idle", None)
    assert alert and "/completion: 500" in alert.summary
    assert found(probed(Probe(kind=F, fault="answers differ")), [], SETTINGS, "errors_after_idle", None) is None


def test_a_probe_that_got_no_answer_is_a_failed_return_of_which_it_takes_several() -> None:
    """The wire between it and us may be what failed."""
    lost = [Probe(kind=C, fault="crashed: ConnectError", at=hour(n)) for n in range(3)]
    for kind in ("errors_after_idle", "restores_fail"):
        assert found(probed(*lost[:2]), [], SETTINGS, kind, None) is None
        assert not proven(probed(*lost[:2]), [], SETTINGS, kind, None)
    assert found(probed(*lost), [], SETTINGS, "errors_after_idle", None) is None
    assert found(probed(*lost), [], SETTINGS, "restores_fail", None)
    assert proven(probed(*lost), [], SETTINGS, "restores_fail", None)


def test_errors_to_probes_end_with_good_probes_where_nothing_tells_of_users() -> None:
    """On Modal nobody sees what users got."""
    good = [Probe(kind=R, at=hour(2 + n)) for n in range(3)]
    unclear = Probe(kind=R, unclear="others asked meanwhile", at=hour(4))
    assert over(probed(ERROR, *good), [], SETTINGS, "errors_after_idle", hour(1))
    assert not over(probed(ERROR, *good[:2], unclear), [], SETTINGS, "errors_after_idle", hour(1))


def test_that_the_health_of_a_server_was_good_does_not_make_up_for_its_answer_to_a_probe() -> None:
    wakes = tuple(
        Wake(stage="production", release="r", status=200, first_byte_s=1, probe=True, at=hour(n)) for n in range(2, 5)
    )
    series = NOTHING.model_copy(update={"wakes": wakes})
    assert not over(probed(ERROR, series=series), [], SETTINGS, "errors_after_idle", hour(1))


ERROR = Probe(kind=C, fault="crashed: /completion: 500 out of memory", status=500, at=hour(1))


def probed(*probes: Probe, series: Series | None = None) -> Series:
    return (series or Series(release="r")).model_copy(update={"probes": probes})


@given(
    st.lists(st.sampled_from((F, C)), max_size=8),
    st.lists(st.sampled_from((200, 400, 500, 502, 503)), max_size=8),
    st.booleans(),
)
def test_nothing_that_clients_meet_is_proof(kinds: list[BootKind], statuses: list[int], forged: bool) -> None:
    """Their requests crash servers, get errors, come during our probes, and say that they are our own."""
    wakes = tuple(
        Wake(stage="production", release="r", status=status, first_byte_s=9, probe=forged, at=hour(n))
        for n, status in enumerate(statuses)
    )
    theirs = came(*kinds).model_copy(update={"wakes": wakes})
    unclear = [
        Probe(kind=k, unclear="others asked meanwhile", boot_at=hour(n), at=hour(n)) for n, k in enumerate(kinds)
    ]
    for kind in ("restores_fail", "errors_after_idle", "slower"):
        assert not proven(probed(*unclear, series=theirs), [], SETTINGS, kind, None)


def test_our_own_probes_are_proof() -> None:
    errors = [ERROR.model_copy(update={"at": hour(n)}) for n in range(3)]
    assert proven(probed(*errors), [], SETTINGS, "errors_after_idle", None)
    assert not proven(probed(*errors), [], SETTINGS, "errors_after_idle", hour(0))
    assert not proven(probed(ERROR), [], SETTINGS, "errors_after_idle", None)
    good = [Probe(kind=R, at=hour(3 + n)) for n in range(3)]
    assert not proven(probed(*errors, *good), [], SETTINGS, "errors_after_idle", None)
    woken = [Probe(kind=F, boot_at=hour(n), at=hour(n)) for n in range(3)]
    assert proven(probed(*woken, series=came(F, F, F)), [], SETTINGS, "restores_fail", None)
    assert not proven(probed(*woken[:2], series=came(F, F, F)), [], SETTINGS, "restores_fail", None)
    assert proven(probed(), took(BASE) + took([3.0] * LATEST, start=40), SETTINGS, "slower", None)
