"""How often the restore watch cries wolf, and how soon it notices: simulated releases, the product's own rules.

A release is its baseline and 120 probes after it: 30 days at the 4 a day that are the default. Latencies are
log-normal; `outliers`: one in twenty is 2 to 10 times as long, as cold starts are when a host is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from statistics import median

import numpy as np

from tasks.settings import WatchSettings
from tasks.watch.judge import BASELINE, LATEST, Case, failing, is_slower

RELEASES, PROBES = 500, 120
SETTINGS = WatchSettings()


def first_alarm(values: list[float]) -> int | None:
    """After how many probes behind the baseline the watch says that it has become slower."""
    baseline = values[:BASELINE]
    for n in range(LATEST, len(values) - BASELINE + 1):
        if is_slower(baseline, values[BASELINE + n - LATEST : BASELINE + n], SETTINGS.slower):
            return n
    return None


def latencies(spread: float, outliers: bool, times: float) -> Iterator[list[float]]:
    """Of each release, the probes after the baseline so many `times` as slow."""
    rng = np.random.default_rng(7)
    for _ in range(RELEASES):
        values = np.exp(spread * rng.standard_normal(BASELINE + PROBES))
        if outliers:
            values *= np.where(rng.random(values.shape) < 0.05, rng.uniform(2, 10, values.shape), 1)
        values[BASELINE:] *= times
        yield values.tolist()


def failures(share: float) -> int:
    """Of the releases whose restores fail with this probability, each by itself, how many are an alert."""
    rng, begin = np.random.default_rng(7), datetime(2026, 1, 1)
    alarms = 0
    for _ in range(RELEASES):
        cases = [Case(begin + timedelta(hours=n), bool(bad), "") for n, bad in enumerate(rng.random(PROBES) < share)]
        alarms += any(
            failing("restores_fail", "", cases[:n], SETTINGS.failed_restores, SETTINGS.restores)
            for n in range(1, PROBES + 1)
        )
    return alarms


def main() -> Iterator[str]:
    yield f"{RELEASES} releases, {PROBES} probes each; an alert beyond {SETTINGS.slower} times the baseline"
    yield "| spread | outliers | false alerts | twice as slow: noticed | after probes (median) |"
    yield "| --- | --- | --- | --- | --- |"
    for spread in (0.1, 0.2, 0.3, 0.5):
        for outliers in (False, True):
            false = sum(first_alarm(values) is not None for values in latencies(spread, outliers, 1))
            noticed = [n for values in latencies(spread, outliers, 2) if (n := first_alarm(values)) is not None]
            yield (
                f"| {spread:.0%} | {'5%' if outliers else 'none'} | {false / RELEASES:.1%} "
                f"| {len(noticed) / RELEASES:.0%} | {median(noticed) if noticed else '-'} |"
            )
    for share in (0.02, 0.05, 0.1, 0.5):
        yield (
            f"restores that fail one by one in {share:.0%} of returns: {failures(share) / RELEASES:.1%} of releases "
            f"are an alert ({SETTINGS.failed_restores} of {SETTINGS.restores}) within {PROBES} returns"
        )
