"""The interval as it narrowed, as one SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tasks.evals.sequential import Interval

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 28, 40
INK, GRID, BAND, LINE, LIMIT = "#333", "#ddd", "#bfdbfe", "#1d4ed8", "#b91c1c"


def svg(looks: Sequence[tuple[int, Interval]], margin: float, title: str) -> str:
    """Points of difference after each look (items asked, interval), the band between the bounds, and the margin.

    It has a light ground of its own, so it reads the same on a light and on a dark page.
    """
    most = max(n for n, _ in looks)
    reach = min(1.0, max(3 * margin, *(abs(i.estimate) * 1.5 for _, i in looks)))

    def x(items: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * items / most

    def y(difference: float) -> float:
        share = (reach - max(-reach, min(reach, difference))) / (2 * reach)
        return TOP + share * (HEIGHT - TOP - BOTTOM)

    def path(values: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in values)

    upper = [(0, reach), *((n, i.high) for n, i in looks)]
    lower = [(0, -reach), *((n, i.low) for n, i in looks)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}"><rect width="100%" height="100%" rx="6" fill="#fff"/>',
        f'<text x="{LEFT}" y="18">{escape(title)}</text>',
        f'<polygon points="{path(upper + lower[::-1])}" fill="{BAND}"/>',
    ]
    for value in (reach, 0.0, -reach):
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), GRID))
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{100 * value:+.3g}</text>')
    parts.append(_line(LEFT, y(-margin), WIDTH - RIGHT, y(-margin), LIMIT, ' stroke-dasharray="5 4"'))
    parts.append(f'<text x="{LEFT - 6}" y="{y(-margin) + 4:.1f}" text-anchor="end">{-100 * margin:+.3g}</text>')
    parts.append(f'<polyline points="{path([(n, i.estimate) for n, i in looks])}" fill="none" stroke="{LINE}"/>')
    for n, i in looks:
        told = f"{n} items: {100 * i.estimate:+.1f} [{100 * i.low:+.1f}, {100 * i.high:+.1f}]"
        parts.append(
            f'<circle cx="{x(n):.1f}" cy="{y(i.estimate):.1f}" r="3" fill="{LINE}"><title>{told}</title></circle>'
        )
    for items in sorted({looks[0][0], most}):
        parts.append(f'<text x="{x(items):.1f}" y="{HEIGHT - 22}" text-anchor="end">{items}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">items asked; points</text></svg>'
    )
    return "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'
