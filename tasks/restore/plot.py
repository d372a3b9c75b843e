"""Latency after idle and warm, across releases, as one SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from statistics import median

from tasks.console import visible
from tasks.release import BootKind, Latency, Release

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 44, 64
INK, GRID = "#333", "#ddd"
SERIES: tuple[tuple[str, str, Callable[[Latency], float]], ...] = (
    ("first request after idle", "#c2410c", lambda each: each.after_idle_s),
    ("warm", "#1d4ed8", lambda each: each.warm_s),
)


def svg(releases: Sequence[tuple[Release, Sequence[Latency]]]) -> str:
    """Seconds to the first token (logarithmic) of each release's cycles, in this order, and a bar at the median.

    It has a light ground of its own, so it reads the same on a light and on a dark page.
    """
    values = [pick(each) for _, cycles in releases for each in cycles for _, _, pick in SERIES]
    y, parts = scale(values, "release, oldest upstream build first")
    column = (WIDTH - LEFT - RIGHT) / max(1, len(releases))
    for number, (release, cycles) in enumerate(releases):
        middle = LEFT + column * (number + 0.5)
        parts.append(text(middle, HEIGHT - BOTTOM + 18, release.upstream.tag, "middle"))
        parts.append(text(middle, HEIGHT - BOTTOM + 32, release.id[:7], "middle"))
        for name, colour, pick in SERIES:
            for n, each in enumerate(cycles):
                told = f"{release.label} {each.kind}, {name}: {pick(each):.3f} s"
                hollow = name == SERIES[0][0] and each.kind is not BootKind.RESTORED
                parts.append(dot(middle + (n % 5 - 2) * 4, y(pick(each)), colour, hollow, told))
            at = y(median(map(pick, cycles)))
            parts.append(line(middle - 16, at, middle + 16, at, colour, 2))
    return page(parts)


def scale(values: Sequence[float], below: str) -> tuple[Callable[[float], float], list[str]]:
    """(where a number of seconds lies, the frame and its legend): powers of ten that hold all values."""
    low, high = _decades(values)

    def y(seconds: float) -> float:
        share = (math.log10(max(seconds, 1e-6)) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    return y, _frame(low, high, y, below)


def page(parts: Sequence[str]) -> str:
    """The SVG, on a light ground of its own, so that it reads the same on a light and on a dark page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" rx="6" fill="#fff"/>'
        + "".join(parts)
        + "</svg>"
    )


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that hold all values."""
    if not values:
        return -2, 1
    low, high = math.floor(math.log10(max(min(values), 1e-6))), math.ceil(math.log10(max(*values, 1e-6)))
    return low, max(high, low + 1)


def _frame(low: int, high: int, y: Callable[[float], float], below: str) -> list[str]:
    parts = [text(14, HEIGHT / 2, "seconds to the first token", "middle", f"rotate(-90 14 {HEIGHT / 2})")]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts += [line(LEFT, at, WIDTH - RIGHT, at, GRID, 1), text(LEFT - 8, at + 4, f"{10.0**power:g}", "end")]
    for place, (name, colour, _) in enumerate(SERIES):
        parts += [dot(LEFT + 180 * place + 6, 18, colour), text(LEFT + 180 * place + 16, 22, name)]
    parts += [dot(LEFT + 256, 18, SERIES[0][1], True), text(LEFT + 266, 22, "not from a snapshot")]
    return [*parts, text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, below, "middle")]


def dot(x: float, y: float, colour: str, hollow: bool = False, told: str = "") -> str:
    fill = "#fff" if hollow else colour
    title = f"<title>{escape(visible(told))}</title>" if told else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{colour}" opacity="0.75">{title}</circle>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def text(x: float, y: float, text: str, anchor: str = "start", turn: str = "") -> str:
    turned = f' transform="{turn}"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}"{turned}>{escape(visible(text))}</text>'
