"""What is wrong with production, from the series alone. tests/benchmarks/watch.py measures how often it is mistaken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import takewhile
from statistics import median
from typing import Literal, NamedTuple

from tasks.release import BootKind, Latency, Model
from tasks.settings import WatchSettings
from tasks.watch.series import Series

Kind = Literal["down", "restores_fail", "errors_after_idle", "slower"]
GOOD_AGAIN = 3
"""So many good ones in a row end what so many bad ones began."""
BASELINE, LATEST = 10, 7
"""Idle cycles: the release's first ones, and the latest, that are compared."""
ALPHA = 0.0025
"""Of a one-sided exact Mann-Whitney test at each look: the latest are as the first were."""

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
    """The answers to the first requests after idle windows, oldest first: our own and users'."""
    return [Case(wake.at, wake.status >= 500, f"HTTP {wake.status}") for wake in series.wakes]


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
    """The idle cycles that can be compared: restored ones, and where there is none, cold ones."""
    restored = [each for each in latencies if each.kind is BootKind.RESTORED]
    return restored or [each for each in latencies if each.kind is BootKind.COLD]


def sides(latencies: Sequence[Latency], since: datetime | None, measure: Measure) -> tuple[list[float], list[float]]:
    """(baseline, latest): the release's first idle cycles, and the latest of production after `since`."""
    known = [(each, value) for each in alike(latencies) if (value := measure.pick(each)) is not None]
    later = [v for each, v in known[BASELINE:] if each.stage == "production" and not (since and each.at <= since)]
    return [value for _, value in known[:BASELINE]], later[-LATEST:]


def is_slower(baseline: Sequence[float], latest: Sequence[float], ratio: float) -> bool:
    """Whether the latest are beyond the baseline by the ratio of their medians, and not by chance.

    Whatever their distribution, when nothing changed the second holds with a probability of at most ALPHA.
    """
    if len(baseline) < BASELINE or len(latest) < LATEST or median(latest) <= ratio * median(baseline):
        return False
    from scipy.stats import mannwhitneyu  # it takes a second to load

    return bool(mannwhitneyu(latest, baseline, alternative="greater", method="exact").pvalue <= ALPHA)


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
    """Whether the latest medians since then are back, half-way to the baseline at least."""
    for measure in MEASURES:
        baseline, latest = sides(latencies, since, measure)
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
