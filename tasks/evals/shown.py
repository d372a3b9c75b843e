"""The gate's evidence, and what a person sees of it."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evals.gate import Standing
from tasks.evals.model import Item, ItemAnswer, Outcome
from tasks.evals.plot import svg
from tasks.evals.sequential import Interval
from tasks.release import Verdict, Verification
from tasks.report import markdown as as_text
from tasks.report import markdown_table
from tasks.settings import EvalSettings

MOST_TELLING = 10
RANKING = (
    "Ranked: items of the templates that lost most (lost minus gained) first, one of each template in turn; "
    "lost before gained."
)
COLUMNS = ("family", "items", "production", "candidate", "lost", "gained", "cut off", "points", "verdict")
Answers = Mapping[str, ItemAnswer]


def evidence(
    standing: Standing, candidate: Answers, production: Answers, protects: Mapping[str, str]
) -> dict[str, Any]:  # fmt: skip
    """Everything that the table, the plot and a reader need, as JSON. `production` may be empty."""
    rows = []
    for question in (*standing.families, standing.overall):
        items = [i for i in standing.asked if i.family == question.name or question is standing.overall]
        row: dict[str, Any] = {
            "family": question.name, "items": len(items), "decides": question.decides, "margin": question.margin,
            "candidate": sum(candidate[i.id].right for i in items), "protects": protects.get(question.name, ""),
            **{o.name.lower(): sum(candidate[i.id].outcome is o for i in items) for o in CUT},
        }  # fmt: skip
        if production:
            changes = Counter(candidate[i.id].right - production[i.id].right for i in items)
            row |= {
                "production": sum(production[i.id].right for i in items), "lost": changes[-1], "gained": changes[1],
                "interval": question.interval._asdict(), "verdict": question.verdict, "blind": question.blind,
            }  # fmt: skip
        rows.append(row)
    found: dict[str, Any] = {"families": rows, "asked": len(standing.asked)}
    if production:
        found["looks"] = [(n, *interval) for n, interval in standing.overall.looks]
        found["discordant"] = telling(standing.asked, candidate, production)
    return found


CUT = (Outcome.TRUNCATED, Outcome.THOUGHT_OUT)


def telling(items: Sequence[Item], candidate: Answers, production: Answers) -> list[dict[str, Any]]:
    """The MOST_TELLING items that changed, side by side, in the order that RANKING tells."""
    change = {i.id: candidate[i.id].right - production[i.id].right for i in items}
    net: Counter[str] = Counter()
    for item in items:
        net[item.template] += change[item.id]
    turn: Counter[tuple[str, int]] = Counter()
    ranked = []
    for item in items:
        if way := change[item.id]:
            ranked.append(((way, turn[item.template, way], net[item.template]), item))
            turn[item.template, way] += 1
    ranked.sort(key=lambda entry: entry[0])
    return [
        {
            "item": item.id, "gained": change[item.id] > 0, "prompt": _cell(item.prompt),
            "expected": item.expected.value, "production": _said(production[item.id]),
            "candidate": _said(candidate[item.id]),
        }
        for _, item in ranked[:MOST_TELLING]
    ]  # fmt: skip


def cost(answers: Sequence[ItemAnswer], settings: EvalSettings) -> dict[str, float]:
    """What these answers took: tokens in and out, seconds of asking, money by the settings' prices."""
    tokens = sum(a.prompt_tokens + a.completion_tokens for a in answers)
    seconds = sum(a.wall_s for a in answers)
    money = seconds / 3600 * settings.price_per_hour + tokens / 1e6 * settings.price_per_million_tokens
    return {"answers": len(answers), "tokens": tokens, "seconds": round(seconds, 1), "money": round(money, 4)}


def summary(standing: Standing, noise: Standing, settings: EvalSettings) -> str:
    """One line for a person."""
    overall = standing.overall
    said = f"{points(overall.interval)}, margin {100 * overall.margin:g}: {standing.verdict}"
    said += f" after {len(standing.asked)} of {settings.items} items"
    decided = [q for q in standing.families if q.decides and q.verdict is not Verdict.PASSED]
    said += "".join(f"; {q.name} {q.verdict} {points(q.interval)}" for q in decided)
    if worse := [q.name for q in standing.families if not q.decides and q.verdict is Verdict.FAILED]:
        said += f"; worse in {', '.join(worse)}"
    if standing.verdict is Verdict.INCONCLUSIVE:
        if overall.blind:
            said += f"; production has only {sum(overall.before)} right, so these items could not show any harm"
        elif overall.interval.high < 0:
            said += "; worse, but perhaps by less than the margin"
    changed = sum(d != 0 for d in noise.overall.differences)
    return f"{said}; production against itself: {changed} of {len(noise.asked)} changed"


def points(interval: Interval) -> str:
    return f"{100 * interval.estimate:+.1f} points [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def markdown(verification: Verification) -> str:
    """The verification for a person: families, the interval as it narrowed, what changed, what it cost."""
    seen = verification.evidence
    parts = [f"**{as_text(verification.summary)}**"]
    if families := seen.get("families"):
        parts.append(markdown_table(COLUMNS, map(family_row, families)))
    if poorer := [r for r in seen.get("families", []) if r["protects"] and r.get("lost", 0) > r.get("gained", 0)]:
        parts.append("\n".join(f"- {as_text(row['family'])} protects: {as_text(row['protects'])}" for row in poorer))
    if plot := interval_plot(seen):
        image = base64.b64encode(plot.encode())
        parts.append(f"![the interval as it narrowed](data:image/svg+xml;base64,{image.decode()})")
    if changed := seen.get("discordant"):
        rows = (
            ("gained" if d["gained"] else "lost", d["item"], *map(_cell, (d["prompt"], d["expected"])),
             *map(_cell, (d["production"], d["candidate"])))
            for d in changed
        )  # fmt: skip
        parts += [
            RANKING,
            markdown_table(("", "item", "prompt", "expected", "production", "candidate"), rows),
        ]
    if costs := seen.get("cost"):
        parts.append(markdown_table(
            ("asked", "answers", "tokens", "seconds", "money"),
            [(side, c["answers"], c["tokens"], c["seconds"], c["money"]) for side, c in costs.items()],
        ))  # fmt: skip
    parts += ["- " + as_text(f"{e['side']} {e['item']}: {_cell(e['error'])}") for e in seen.get("errors", [])]
    return "\n\n".join(parts) + "\n"


def interval_plot(seen: Mapping[str, Any]) -> str:
    """The SVG of the interval as it narrowed, from the gate's evidence; '' where nothing was compared."""
    looks = [(n, Interval(*interval)) for n, *interval in seen.get("looks", ())]
    return svg(looks, seen["families"][-1]["margin"], "candidate minus production") if looks else ""


def family_row(row: Mapping[str, Any]) -> list[object]:
    """A family's evidence, as COLUMNS says."""
    cut = row["truncated"] + row["thought_out"]
    if "interval" not in row:
        return [row["family"], row["items"], "-", row["candidate"], "-", "-", cut, "-", "-"]
    said = f"{row['verdict']}{' (decides)' if row['decides'] else ''}{', blind' if row['blind'] else ''}"
    return [
        row["family"], row["items"], row["production"], row["candidate"], row["lost"], row["gained"], cut,
        points(Interval(**row["interval"])), said,
    ]  # fmt: skip


def _said(answer: ItemAnswer) -> str:
    mark = {Outcome.TRUNCATED: " [cut off]", Outcome.THOUGHT_OUT: " [only thought, cut off]"}
    return answer.text + mark.get(answer.outcome, "")


def _cell(value: object) -> str:
    """Beginning and end of what is long: a question that comes after pages of text stands at their end."""
    text = str(value)
    return text if len(text) <= 240 else f"{text[:100]} ... {text[-130:]}"
