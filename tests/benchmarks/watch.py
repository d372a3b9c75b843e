"""How often the restore watch cries wolf, and how soon it notices: simulated releases, the product's own rules.

A month is 720 probes, one an hour, from the release's first probe on. All three measures are there and any of them is
an alert: the noise that a row names is that of the first token after idle; first token warm and generation have AR(1)
0.6 of 10%, each its own (a GPU's decode rate is +-5% from run to run). A false alert is told again only when LATEST
probes have come since, as an incident that is over would be. What else alerts, failed restores, is there by itself and
in the total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from tasks.release import BootKind, Latency
from tasks.settings import WatchSettings
from tasks.watch.judge import BASELINE, LATEST, MEASURES, REMEMBERED, Case, failing, is_slower, scaled

SEED, MONTH, MONTHS, DOUBLED, PROBES = 2026, 720, 100, 400, 120
QUIET = 0.1
"""The noise of the two measures that need no restore."""
FAILING = 0.01
"""Of a good snapshot, the share of returns that fail."""
SETTINGS = WatchSettings()
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
Series = tuple[NDArray[np.float64], Sequence[str]]
"""Seconds of each probe, and the snapshot that it came back from."""
Noise = Callable[[np.random.Generator, int], Series]


def independent(spread: float, outliers: float = 0.0) -> Noise:
    """Log-normal; so many are 2 to 10 times as long, as cold starts are when a host is new."""

    def made(rng: np.random.Generator, n: int) -> Series:
        values = np.exp(spread * rng.standard_normal(n))
        return values * np.where(rng.random(n) < outliers, rng.uniform(2, 10, n), 1), [""] * n

    return made


def autoregressive(spread: float, share: float) -> Noise:
    """AR(1) in the logarithm: each takes over this share of the last one's distance from the usual."""

    def made(rng: np.random.Generator, n: int) -> Series:
        steps, value, values = rng.standard_normal(n), rng.standard_normal(), np.empty(n)
        for at in range(n):
            values[at] = value = share * value + (1 - share**2) ** 0.5 * steps[at]
        return np.exp(spread * values), [""] * n

    return made


def hosts(apart: float, stay: float, told: bool) -> Noise:
    """Four hosts, apart by this spread, one of which stays for the next probe with this probability; 10% noise."""

    def made(rng: np.random.Generator, n: int) -> Series:
        level, at, seen = apart * rng.standard_normal(4), 0, []
        for _ in range(n):
            at = at if rng.random() < stay else int(rng.integers(4))
            seen.append(at)
        values = np.exp(level[seen] + 0.1 * rng.standard_normal(n))
        return values, [str(each) if told else "" for each in seen]

    return made


def drifting(times: float, noise: Noise) -> Noise:
    """So many times as slow after a month, by a little each hour."""

    def made(rng: np.random.Generator, n: int) -> Series:
        values, snapshots = noise(rng, n)
        return values * times ** (np.arange(n) / MONTH), snapshots

    return made


def daily(amount: float, noise: Noise) -> Noise:
    def made(rng: np.random.Generator, n: int) -> Series:
        values, snapshots = noise(rng, n)
        return values * np.exp(amount * np.sin(2 * np.pi * np.arange(n) / 24)), snapshots

    return made


KINDS: dict[str, Noise] = {
    "independent, 15%": independent(0.15),
    "independent, 30%": independent(0.3),
    "independent, 15%, one in 20 is 2 to 10 times as long": independent(0.15, 0.05),
    "AR(1) 0.6, 15%": autoregressive(0.15, 0.6),
    "AR(1) 0.8, 15%": autoregressive(0.15, 0.8),
    "AR(1) 0.6, 20%": autoregressive(0.2, 0.6),
    "AR(1) 0.6, 30%": autoregressive(0.3, 0.6),
    "AR(1) 0.8, 30%": autoregressive(0.3, 0.8),
    "AR(1) 0.95, 30%": autoregressive(0.3, 0.95),
    "hosts 30% apart, told by their snapshots, any": hosts(0.3, 0.0, True),
    "hosts 30% apart, told by their snapshots, one stays (0.9)": hosts(0.3, 0.9, True),
    "hosts 30% apart, not told, any": hosts(0.3, 0.0, False),
    "hosts 30% apart, not told, one stays (0.9)": hosts(0.3, 0.9, False),
    "drift to twice in a month, 15%": drifting(2, independent(0.15)),
    "drift to twice in a month, AR(1) 0.6, 15%": drifting(2, autoregressive(0.15, 0.6)),
    "day and night +-20%, 10%": daily(0.2, independent(0.1)),
}


def latencies(
    rng: np.random.Generator, noise: Noise, n: int, times: NDArray[np.float64] | None = None
) -> list[Latency]:
    """So many probes in all three measures; what is slower is so in the time to the first token after idle."""
    after_idle, snapshots = noise(rng, n)
    (warm, _), (speed, _) = (autoregressive(QUIET, 0.6)(rng, n) for _ in range(2))
    after_idle = after_idle * (1 if times is None else times)
    known = Latency(stage="production", kind=BootKind.RESTORED, health_s=None, after_idle_s=1, warm_s=1)
    return [
        known.model_copy(
            update={
                "after_idle_s": float(after_idle[at]), "warm_s": float(warm[at]), "tokens_per_s": float(speed[at]),
                "snapshot": snapshots[at], "at": BEGIN + timedelta(hours=at),
            }
        )
        for at in range(n)
    ]  # fmt: skip


def is_alert(probes: Sequence[Latency], known: int) -> bool:
    """Whether the watch finds it slower, in whichever measure, when it has seen so many probes."""
    baseline, latest = probes[max(0, known - LATEST - REMEMBERED) : known - LATEST], probes[known - LATEST : known]
    return any(is_slower(*scaled(baseline, latest, each, SETTINGS.slower), SETTINGS.slower) for each in MEASURES)


def false_alerts(noise: Noise) -> float:
    """A month, on average, of all three measures together."""
    found = 0
    for seed in range(MONTHS):
        probes, quiet_until = latencies(np.random.default_rng((SEED, seed)), noise, MONTH), 0
        for known in range(BASELINE + LATEST, MONTH + 1):
            if known >= quiet_until and is_alert(probes, known):
                found, quiet_until = found + 1, known + LATEST
    return found / MONTHS


def doubled(noise: Noise, before: int) -> float:
    """The share of releases, twice as slow after so many probes, of which that is found within 6 probes."""
    found = 0
    times = np.where(np.arange(before + 6) < before, 1.0, 2.0)
    for seed in range(DOUBLED):
        probes = latencies(np.random.default_rng((SEED, 1, seed)), noise, before + 6, times)
        found += any(is_alert(probes, before + n) for n in range(1, 7))
    return found / DOUBLED


def failures(share: float) -> int:
    """Of the releases whose restores fail with this probability, each by itself, how many are an alert."""
    return sum(
        bool(alerts_of_failures(np.random.default_rng((SEED, 2, seed)), share, PROBES)) for seed in range(DOUBLED)
    )


def alerts_of_failures(rng: np.random.Generator, share: float, probes: int) -> int:
    """Alerts because of failed restores in so many probes; a new one only after LATEST more."""
    cases = [Case(BEGIN + timedelta(hours=n), bool(bad), "") for n, bad in enumerate(rng.random(probes) < share)]
    alarms = quiet_until = 0
    for n in range(1, probes + 1):
        latest = cases[max(0, n - SETTINGS.restores) : n]
        if n >= quiet_until and failing("restores_fail", "", latest, SETTINGS.failed_restores, SETTINGS.restores):
            alarms, quiet_until = alarms + 1, n + LATEST
    return alarms


def main() -> Iterator[str]:
    yield (
        f"seed {SEED}; {MONTHS} months of {MONTH} probes for the false alerts, {DOUBLED} releases for each share; "
        f"an alert beyond {SETTINGS.slower} times the baseline ({BASELINE} to {REMEMBERED} probes), {LATEST} at a time"
    )
    failed = (
        sum(alerts_of_failures(np.random.default_rng((SEED, 3, n)), FAILING, MONTH) for n in range(MONTHS)) / MONTHS
    )
    yield f"restores that fail in {FAILING:.0%} of returns: {failed:.2f} alerts a month, which the total has too"
    yield "| noise | false alerts a month, in total | twice as slow: within 6 probes, after 26 | after 60 | after 206 |"
    yield "| --- | --- | --- | --- | --- |"
    for name, noise in KINDS.items():
        shares = " | ".join(f"{doubled(noise, before):.1%}" for before in (26, 60, 206))
        yield f"| {name} | {false_alerts(noise) + failed:.2f} | {shares} |"
    for share in (0.02, 0.05, 0.1, 0.5):
        yield (
            f"restores that fail one by one in {share:.0%} of returns: {failures(share) / DOUBLED:.1%} of {DOUBLED} "
            f"releases are an alert ({SETTINGS.failed_restores} of {SETTINGS.restores}) within {PROBES} returns"
        )
