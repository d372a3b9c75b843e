"""Latency of one release in production over time, as one SVG."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from statistics import median

from tasks.release import BootKind, Latency, Release
from tasks.restore.plot import BOTTOM, HEIGHT, LEFT, RIGHT, SERIES, WIDTH, dot, line, page, scale, text
from tasks.watch.judge import BASELINE, alike, split


def svg(release: Release, latencies: Sequence[Latency]) -> str:
    """Seconds to the first token (logarithmic) of a release's idle cycles over time, and a line at its baseline."""
    values = [pick(each) for each in latencies for _, _, pick in SERIES]
    y, parts = scale(values, f"{release.label}, UTC")
    begin = latencies[0].at
    whole = max(latencies[-1].at - begin, timedelta(seconds=1))
    baseline, _ = split(alike(latencies), None)
    for name, colour, pick in SERIES:
        for each in latencies:
            x = LEFT + 8 + (WIDTH - LEFT - RIGHT - 16) * ((each.at - begin) / whole)
            told = f"{each.at:%Y-%m-%d %H:%M} {each.stage} {each.kind}, {name}: {pick(each):.3f} s"
            hollow = name == SERIES[0][0] and each.kind is not BootKind.RESTORED
            parts.append(dot(x, y(pick(each)), colour, hollow, told))
        if len(baseline) >= BASELINE:
            at = y(median(map(pick, baseline)))
            parts.append(line(LEFT, at, WIDTH - RIGHT, at, colour, 1))
    for moment, x, anchor in ((begin, LEFT, "start"), (latencies[-1].at, WIDTH - RIGHT, "end")):
        parts.append(text(x, HEIGHT - BOTTOM + 18, f"{moment:%Y-%m-%d %H:%M}", anchor))
    return page(parts)
