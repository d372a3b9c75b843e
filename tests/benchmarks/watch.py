"""How often the restore watch cries wolf, and how soon it notices: simulated releases, the product's own rules.

A month is 720 probes, one an hour, from the release's first probe on. What is simulated is the time to the first token
after idle; the other two measures are quieter (this GPU's decode rate is +-5% from run to run). A false alert is told
again only when LATEST probes have come since, as an incident that is over would be.
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
SETTINGS = WatchSettings()
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
AFTER_IDLE = MEASURES[0]
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


def latencies(series: Series) -> list[Latency]:
    known = Latency(stage="production", kind=BootKind.RESTORED, health_s=None, after_idle_s=1, warm_s=1)
    return [
        known.model_copy(update={"after_idle_s": float(value), "snapshot": snapshot, "at": BEGIN + timedelta(hours=n)})
        for n, (value, snapshot) in enumerate(zip(*series, strict=True))
    ]


def is_alert(probes: Sequence[Latency], known: int) -> bool:
    """Whether the watch finds it slower when it has seen so many probes."""
    baseline, latest = probes[max(0, known - LATEST - REMEMBERED) : known - LATEST], probes[known - LATEST : known]
    return is_slower(*scaled(baseline, latest, AFTER_IDLE), SETTINGS.slower)


def false_alerts(noise: Noise) -> float:
    """A month, on average."""
    found = 0
    for seed in range(MONTHS):
        probes, quiet_until = latencies(noise(np.random.default_rng((SEED, seed)), MONTH)), 0
        for known in range(BASELINE + LATEST, MONTH + 1):
            if known >= quiet_until and is_alert(probes, known):
                found, quiet_until = found + 1, known + LATEST
    return found / MONTHS


def doubled(noise: Noise, before: int) -> float:
    """The share of releases, twice as slow after so many probes, of which that is found within 6 probes."""
    found = 0
    for seed in range(DOUBLED):
        values, snapshots = noise(np.random.default_rng((SEED, 1, seed)), before + 6)
        values[before:] *= 2
        probes = latencies((values, snapshots))
        found += any(is_alert(probes, before + n) for n in range(1, 7))
    return found / DOUBLED


def failures(share: float) -> int:
    """Of the releases whose restores fail with this probability, each by itself, how many are an alert."""
    rng = np.random.default_rng(SEED)
    alarms = 0
    for _ in range(DOUBLED):
        cases = [Case(BEGIN + timedelta(hours=n), bool(bad), "") for n, bad in enumerate(rng.random(PROBES) < share)]
        alarms += any(
            failing("restores_fail", "", cases[:n], SETTINGS.failed_restores, SETTINGS.restores)
            for n in range(1, PROBES + 1)
        )
    return alarms


def main() -> Iterator[str]:
    yield (
        f"seed {SEED}; {MONTHS} months of {MONTH} probes for the false alerts, {DOUBLED} releases for each share; "
        f"an alert beyond {SETTINGS.slower} times the baseline ({BASELINE} to {REMEMBERED} probes), {LATEST} at a time"
    )
    yield "| noise | false alerts a month | twice as slow: within 6 probes, after 26 | after 60 | after 206 |"
    yield "| --- | --- | --- | --- | --- |"
    for name, noise in KINDS.items():
        shares = " | ".join(f"{doubled(noise, before):.1%}" for before in (26, 60, 206))
        yield f"| {name} | {false_alerts(noise):.2f} | {shares} |"
    for share in (0.02, 0.05, 0.1, 0.5):
        yield (
            f"restores that fail one by one in {share:.0%} of returns: {failures(share) / DOUBLED:.1%} of {DOUBLED} "
            f"releases are an alert ({SETTINGS.failed_restores} of {SETTINGS.restores}) within {PROBES} returns"
        )
