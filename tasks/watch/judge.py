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
from tasks.watch.series import Probe, Series

Kind = Literal["down", "restores_fail", "errors_after_idle", "slower"]
GOOD_AGAIN = 3
"""So many good ones in a row end what so many bad ones began."""
BASELINE, REMEMBERED = 20, 200
"""The least and the most of production's own probes that are the baseline: those right before the latest."""
LATEST = 6
"""The latest probes, which are compared with the baseline: a block."""
WORST = 2.0
"""By how much further than the worst block of the baseline but one the latest one must be from the median (of
logarithms)."""
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


class Slow(Model):
    """An incident that is over: from when to when a release was slower than its baseline."""

    release: str
    began: datetime
    ended: datetime


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
    """The answers to the first requests after idle windows, oldest first: users', and those that our own probes got.

    An error is a 5xx that a server sent. That a probe got no answer, or not in time, may be the wire's doing or ours:
    it is a failed return, of which it takes several.
    """
    # what wakes a server for a probe is GET /health, which may be answered where a prompt is not: the probe tells
    theirs = [Case(w.at, w.status >= 500, f"HTTP {w.status}") for w in series.wakes if w.status >= 500 or not w.probe]
    ours = [
        Case(probe.at, _got_an_error(probe), probe.fault)
        for probe in series.probes
        if not probe.unclear and (_got_an_error(probe) or not probe.fault)
    ]
    return sorted([*theirs, *ours])


def _got_an_error(probe: Probe) -> bool:
    return probe.status is not None and probe.status >= 500


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


def without(latencies: Sequence[Latency], slow: Sequence[Slow], release: str) -> list[Latency]:
    """Those outside of the times when an incident of this release was open, and of the latest ones by which each was
    found: a baseline with a slow week in it would find the next one normal."""
    left, compared = list(latencies), [seen.at for seen in alike(latencies)]
    for each in slow:
        if each.release != release:
            continue
        since = min([at for at in compared if at <= each.began][-LATEST:], default=each.began)
        left = [seen for seen in left if not since <= seen.at <= each.ended]
    return left


def split(known: Sequence[Latency], since: datetime | None) -> tuple[list[Latency], list[Latency]]:
    """(baseline, latest): the latest after `since`, and those right before."""
    latest = [each for each in known if not since or each.at > since][-LATEST:]
    return [each for each in known if not latest or each.at < latest[0].at][-REMEMBERED:], latest


def sides(
    latencies: Sequence[Latency], since: datetime | None, measure: Measure, ratio: float
) -> tuple[list[float], list[float]]:
    """(baseline, latest) in one measure, see `scaled`."""
    known = [each for each in alike(latencies) if measure.pick(each) is not None]
    return scaled(*split(known, since), measure, ratio)


def scaled(
    baseline: Sequence[Latency], latest: Sequence[Latency], measure: Measure, ratio: float
) -> tuple[list[float], list[float]]:
    """Both in one measure, as if all had come back from the same snapshot: on Modal each worker type has its own.

    From a snapshot that the baseline knows too little of they stand as they are: a new one may be what is slow. So do
    they from one that took the place of others, as after a redeploy: only snapshots that came by turns are levelled.
    And none is taken for faster than it is by more than `ratio`, beyond which it is slow and no other normal.
    """
    places: dict[str | None, list[int]] = {}
    values: dict[str | None, list[float]] = {}
    for place, (each, value) in enumerate(_picked(baseline, measure)):
        places.setdefault(each.snapshot, []).append(place)
        values.setdefault(each.snapshot, []).append(value)
    usual = {snapshot: median(known) for snapshot, known in values.items() if len(known) >= KNOWN}

    def factor(snapshot: str | None) -> float:
        if snapshot not in usual:
            return 1.0
        first, last = places[snapshot][0], places[snapshot][-1]
        by_turns = [level for each, level in usual.items() if places[each][0] <= last and first <= places[each][-1]]
        return max(median_low(by_turns) / usual[snapshot], 1 / ratio)

    factors = {snapshot: factor(snapshot) for snapshot in {each.snapshot for each in (*baseline, *latest)}}

    def scale(latencies: Sequence[Latency]) -> list[float]:
        return [value * factors[each.snapshot] for each, value in _picked(latencies, measure)]

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
    return math.log(level / usual) > WORST * math.log(_worst_but_one(baseline) / usual)


def _worst_but_one(baseline: Sequence[float]) -> float:
    """The level of the worst block that has no probe in common with the very worst: what happened once, an hour in
    which the host was busy, would else hide all that is no worse for as long as the baseline remembers it."""
    levels = [median_low(baseline[n : n + LATEST]) for n in range(len(baseline) - LATEST + 1)]
    worst = levels.index(max(levels))
    return max(level for n, level in enumerate(levels) if abs(n - worst) >= LATEST)


def slower(latencies: Sequence[Latency], since: datetime | None, ratio: float) -> Finding | None:
    """What the release has become slower at since then, if anything."""
    told = []
    for measure in MEASURES:
        baseline, latest = sides(latencies, since, measure, ratio)
        if is_slower(baseline, latest, ratio):
            was, is_now = median(baseline), median(latest)
            told.append(f"{measure.name} {measure.shown(is_now)}, its baseline {measure.shown(was)}")
    return Finding(kind="slower", summary="; ".join(told)) if told else None


def as_fast_again(latencies: Sequence[Latency], since: datetime, ratio: float) -> bool:
    """Whether the latest medians since then are back, half-way to the baseline of before at least, however they came
    up. Where nothing is known of before, nothing is known to be over."""
    compared = False
    for measure in MEASURES:
        known = [each for each in latencies if measure.pick(each) is not None]
        before = alike([each for each in known if each.at <= since])[:-LATEST][-REMEMBERED:]
        later = alike([each for each in known if each.at > since])[-GOOD_AGAIN:]
        if not before:
            continue
        compared = True
        baseline, latest = scaled(before, later, measure, ratio)
        if len(latest) < GOOD_AGAIN or median(latest) > (1 + ratio) / 2 * median(baseline):
            return False
    return compared


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
    """Whether our own probes alone show it, those left out during which others asked: no client has a part in that.

    Never by one probe: production may be moved because of it.
    """
    clear = tuple(probe for probe in series.probes if not probe.unclear and not (since and probe.at <= since))
    ours = {probe.boot_at for probe in clear}
    seen = series.model_copy(
        update={"boots": tuple(boot for boot in series.boots if boot.at in ours), "wakes": (), "probes": clear}
    )
    if kind == "errors_after_idle":
        return failing(kind, "", first_answers(seen), settings.failed_restores, settings.restores) is not None
    return found(seen, latencies, settings, kind, since) is not None


def over(series: Series, latencies: Sequence[Latency], settings: WatchSettings, kind: Kind, began: datetime) -> bool:
    """Whether what began then is over."""
    if kind == "slower":
        return as_fast_again(latencies, began, settings.slower)
    return recovered([each for each in CASES[kind][0](series) if each.at > began])
