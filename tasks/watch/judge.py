"""What is wrong with production, from the series alone. tests/benchmarks/watch.py measures how often it is mistaken.

Whether it has become slower is asked of blocks, not of single probes. Times from one probe to the next are alike (the
same host, the same hour, the same neighbours), and a rank test of single ones, which takes them for independent, cries
wolf. So what the latest LATEST probes have in common is compared with what any LATEST consecutive probes of the
baseline had: whatever keeps single ones alike does so within the blocks of both sides (moving blocks: H. R. Kuensch,
"The jackknife and the bootstrap for general stationary observations", Ann. Stat. 17, 1989; that the newest block is
held against all earlier ones: Chernozhukov, Wuethrich, Zhu, "Exact and robust conformal inference methods for
predictive machine learning with dependent data", COLT 2018). A block counts by its lower median, which two outliers
can't raise. The baseline moves along, so a slow drift is none of it; docs/stages/production.md says what that can't
see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import takewhile
from statistics import median, median_low
from typing import Literal, NamedTuple

from tasks.release import BootKind, Latency, Model
from tasks.settings import WatchSettings
from tasks.watch.series import Series

Kind = Literal["down", "restores_fail", "errors_after_idle", "slower"]
GOOD_AGAIN = 3
"""So many good ones in a row end what so many bad ones began."""
BASELINE, REMEMBERED = 20, 200
"""The least and the most of production's own probes that are the baseline: those right before the latest."""
LATEST = 6
"""The latest probes, which are compared with the baseline: a block."""
WORST = 1.5
"""By how much further than the worst block of the baseline the latest one must be from the median (of logarithms)."""
KNOWN = 5
"""Probes of the baseline that came back from one snapshot, after which others from it are held against those alone."""

_BAD = (BootKind.FELL_BACK, BootKind.CRASHED)


class Case(NamedTuple):
    """One return from idle, or the answer to the first request after it."""

    at: datetime
    bad: bool
    told: str


class Finding(Model):
    """What people are to be told of."""

    kind: Kind
    summary: str
    in_a_row: int = 0
    last_good: datetime | None = None


class Measure(NamedTuple):
    """One number of an idle cycle, so that more is worse; and how a person reads it."""

    name: str
    pick: Callable[[Latency], float | None]
    shown: Callable[[float], str]


MEASURES = (
    Measure("first token after idle", lambda each: each.after_idle_s, "{:.2f} s".format),
    Measure("first token warm", lambda each: each.warm_s, "{:.3f} s".format),
    Measure(
        "generation",
        lambda each: 1 / each.tokens_per_s if each.tokens_per_s else None,
        lambda seconds: f"{1 / seconds:.1f} tokens/s",
    ),
)


def returns(series: Series) -> list[Case]:
    """How production came back from idle, oldest first: boot records but those that created a snapshot, and what our
    own probes found wrong with a return that looked right."""
    faults = {probe.boot_at or probe.at: probe for probe in series.probes if probe.fault}
    booted = {
        boot.at: Case(boot.at, boot.kind in _BAD, f"{boot.kind} {boot.reason}".strip())
        for boot in series.boots
        if boot.kind is not BootKind.CREATED
    }
    wrong = {at: Case(at, True, probe.fault) for at, probe in faults.items()}
    return [event for _, event in sorted({**booted, **wrong}.items())]


def first_answers(series: Series) -> list[Case]:
    """The answers to the first requests after idle windows, oldest first: users', and those that our own probes got."""
    theirs = [Case(wake.at, wake.status >= 500, f"HTTP {wake.status}") for wake in series.wakes]
    # what wakes a server for a probe is GET /health, which may be answered where a prompt is not
    ours = [Case(p.at, True, p.fault) for p in series.probes if p.kind is BootKind.CRASHED and p.fault]
    return sorted([*theirs, *ours])


def looks(series: Series) -> list[Case]:
    """Whether there was something that would answer, oldest first."""
    return [Case(look.at, bool(look.down), look.down) for look in series.looks]


CASES: dict[Kind, tuple[Callable[[Series], list[Case]], str]] = {
    "down": (looks, "looks found that nothing answers"),
    "restores_fail": (returns, "returns from idle failed"),
    "errors_after_idle": (first_answers, "first requests after idle got an error"),
}


def failing(kind: Kind, what: str, events: Sequence[Case], k: int, n: int) -> Finding | None:
    """Whether k of the last n are bad."""
    latest = events[-n:]
    bad = [event for event in latest if event.bad]
    if len(bad) < k:
        return None
    row = len(list(takewhile(lambda event: event.bad, reversed(events))))
    good = next((event.at for event in reversed(events) if not event.bad), None)
    return Finding(
        kind=kind,
        summary=f"{len(bad)} of the last {len(latest)} {what} ({bad[-1].told[:300]})",
        in_a_row=row,
        last_good=good,
    )


def recovered(events: Sequence[Case]) -> bool:
    """Whether the latest are good enough to say that it is over."""
    return len(events) >= GOOD_AGAIN and not any(event.bad for event in events[-GOOD_AGAIN:])


def alike(latencies: Sequence[Latency]) -> list[Latency]:
    """Production's own idle cycles that can be compared: restored ones, and where there is none, cold ones. Never those
    of staging: its host, its neighbours and its traffic are others."""
    ours = [each for each in latencies if each.stage == "production"]
    restored = [each for each in ours if each.kind is BootKind.RESTORED]
    return restored or [each for each in ours if each.kind is BootKind.COLD]


def without(latencies: Sequence[Latency], slow: Sequence[tuple[datetime, datetime]]) -> list[Latency]:
    """Those outside of the times when an incident was open, and of the latest ones by which each was found: a baseline
    with a slow week in it would find the next one normal."""
    left = list(latencies)
    for began, ended in slow:
        first = [each.at for each in alike(latencies) if each.at <= began][-LATEST:]
        since = first[0] if first else began
        left = [each for each in left if not since <= each.at <= ended]
    return left


def split(known: Sequence[Latency], since: datetime | None) -> tuple[list[Latency], list[Latency]]:
    """(baseline, latest): the latest after `since`, and those right before."""
    latest = [each for each in known if not since or each.at > since][-LATEST:]
    return [each for each in known if not latest or each.at < latest[0].at][-REMEMBERED:], latest


def sides(latencies: Sequence[Latency], since: datetime | None, measure: Measure) -> tuple[list[float], list[float]]:
    """(baseline, latest) in one measure, see `scaled`."""
    return scaled(*split([each for each in alike(latencies) if measure.pick(each) is not None], since), measure)


def scaled(baseline: Sequence[Latency], latest: Sequence[Latency], measure: Measure) -> tuple[list[float], list[float]]:
    """Both in one measure, as if all had come back from the same snapshot: on Modal each worker type has its own.

    From a snapshot that the baseline knows too little of they stand as they are: a new one may be what is slow.
    """
    by_snapshot: dict[str | None, list[float]] = {}
    for each, value in _picked(baseline, measure):
        by_snapshot.setdefault(each.snapshot, []).append(value)
    usual = {snapshot: median(values) for snapshot, values in by_snapshot.items() if len(values) >= KNOWN}
    whole = median(usual.values()) if usual else 1.0

    def scale(latencies: Sequence[Latency]) -> list[float]:
        return [value * whole / usual.get(each.snapshot, whole) for each, value in _picked(latencies, measure)]

    return scale(baseline), scale(latest)


def _picked(latencies: Sequence[Latency], measure: Measure) -> list[tuple[Latency, float]]:
    return [(each, value) for each in latencies if (value := measure.pick(each))]


def is_slower(baseline: Sequence[float], latest: Sequence[float], ratio: float) -> bool:
    """Whether the latest are beyond the baseline's median by this ratio, and well beyond its worst block.

    Nothing is known before there are BASELINE and LATEST of them.
    """
    if len(baseline) < BASELINE or len(latest) < LATEST:
        return False
    usual, level = median(baseline), median_low(latest)
    if level <= ratio * usual:
        return False
    worst = max(median_low(baseline[n : n + LATEST]) for n in range(len(baseline) - LATEST + 1))
    return math.log(level / usual) > WORST * math.log(worst / usual)


def slower(latencies: Sequence[Latency], since: datetime | None, ratio: float) -> Finding | None:
    """What the release has become slower at since then, if anything."""
    told = []
    for measure in MEASURES:
        baseline, latest = sides(latencies, since, measure)
        if is_slower(baseline, latest, ratio):
            was, is_now = median(baseline), median(latest)
            told.append(f"{measure.name} {measure.shown(is_now)}, its baseline {measure.shown(was)}")
    return Finding(kind="slower", summary="; ".join(told)) if told else None


def as_fast_again(latencies: Sequence[Latency], since: datetime, ratio: float) -> bool:
    """Whether the latest medians since then are back, half-way to the baseline of before at least."""
    for measure in MEASURES:
        known = [each for each in alike(latencies) if measure.pick(each) is not None]
        before = [each for each in known if each.at <= since][:-LATEST][-REMEMBERED:]
        baseline, latest = scaled(before, [each for each in known if each.at > since][-GOOD_AGAIN:], measure)
        if baseline and (len(latest) < GOOD_AGAIN or median(latest) > (1 + ratio) / 2 * median(baseline)):
            return False
    return True


def found(
    series: Series, latencies: Sequence[Latency], settings: WatchSettings, kind: Kind, since: datetime | None
) -> Finding | None:
    """What is wrong of this kind, by what was seen after `since`."""
    if kind == "slower":
        return slower(latencies, since, settings.slower)
    cases, what = CASES[kind]
    k = settings.failed_restores if kind == "restores_fail" else 1
    n = 1 if kind == "down" else settings.restores
    return failing(kind, what, [each for each in cases(series) if not since or each.at > since], k, n)


def proven(
    series: Series, latencies: Sequence[Latency], settings: WatchSettings, kind: Kind, since: datetime | None
) -> bool:
    """Whether our own probes alone show it, those left out during which others asked: no client has a part in that."""
    clear = [probe for probe in series.probes if not probe.unclear and not (since and probe.at <= since)]
    if kind == "errors_after_idle":
        return bool(clear) and clear[-1].kind is BootKind.CRASHED
    ours = {probe.boot_at for probe in clear}
    seen = {"boots": tuple(boot for boot in series.boots if boot.at in ours), "wakes": (), "probes": tuple(clear)}
    return found(series.model_copy(update=seen), latencies, settings, kind, since) is not None


def over(series: Series, latencies: Sequence[Latency], settings: WatchSettings, kind: Kind, began: datetime) -> bool:
    """Whether what began then is over."""
    if kind == "slower":
        return as_fast_again(latencies, began, settings.slower)
    return recovered([each for each in CASES[kind][0](series) if each.at > began])
