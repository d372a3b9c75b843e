"""The verdict of the gate: a candidate's answers against the baseline's, item by item."""

from __future__ import annotations

from typing import Any

from tasks.evals.interval import CONFIDENCE, Interval, tango
from tasks.evals.items import Family, Item, generate
from tasks.evals.model import Answers, Outcome
from tasks.release import Verdict, Verification, digest_of
from tasks.settings import Settings

NAME = "evals"
PROMISE = (
    "Answers are no worse than the baseline's by more than the margin: paired non-inferiority, Tango's score interval "
    "(Statistics in Medicine 17, 1998), two-sided 90%, so one-sided 95% at the lower bound."
)


def basis(baseline: str | None, set_digest: str, settings: Settings) -> str:
    """What the verdict depends on beside the candidate: a digest of baseline release id, item set and margin."""
    return digest_of([baseline, set_digest, settings.evals.margin])[:12]


def gate(candidate: Answers, baseline: Answers | None, settings: Settings) -> Verification:
    """The verification `evals`.

    With the interval of (share right of the candidate) - (share right of the baseline) over the same items:
    - `passed`: its lower bound is above -margin. Equal answers pass.
    - `failed`: its upper bound is below -margin.
    - `inconclusive`: anything between; also no baseline; also a baseline with so few right answers that a candidate
      that gets every item wrong would not fail either (no assay sensitivity, ICH E10).
    - `errored`: an item of either side has no answer, or the two were not asked the same items.
    Truncated answers count as wrong.
    """
    margin = settings.evals.margin
    items = generate(candidate.seed, candidate.count).items
    evidence: dict[str, Any] = {
        "n": candidate.count,
        "set_digest": candidate.set_digest,
        "margin": margin,
        "confidence": CONFIDENCE,
        "method": "Tango 1998, paired score interval",
        "baseline": baseline.release if baseline else None,
        "tokens": _sides(candidate, baseline, lambda a: a.tokens),
        "seconds": _sides(candidate, baseline, lambda a: a.seconds),
        "families": _families(items, candidate, baseline),
    }

    def verification(verdict: Verdict, summary: str) -> Verification:
        return Verification(
            name=NAME, release=candidate.release, verdict=verdict, summary=summary, promise=PROMISE, evidence=evidence,
            basis=basis(baseline.release if baseline else None, candidate.set_digest, settings),
            seconds=candidate.seconds,
        )  # fmt: skip

    trouble = _trouble(candidate, baseline)
    if trouble:
        evidence["errors"] = _errors(candidate, baseline)
        return verification(Verdict.ERRORED, trouble)
    right = _right(candidate)
    if baseline is None:
        return verification(
            Verdict.INCONCLUSIVE, f"{len(right)} of {candidate.count} right; nothing to compare with: the first release"
        )
    before = _right(baseline)
    interval = tango(len(right - before), len(before - right), candidate.count)
    blind = tango(0, len(before), candidate.count).high >= -margin
    evidence |= {
        "interval": interval._asdict(),
        "gained": len(right - before),
        "lost": len(before - right),
        "discordant": _discordant(items, candidate, baseline),
    }
    verdict = Verdict.INCONCLUSIVE if blind else _verdict(interval, margin)
    summary = f"{_points(interval)}, margin {_number(margin)}: {verdict} on {candidate.count} items"
    if blind:
        summary += f"; the baseline has only {len(before)} right, so this set could not show any harm"
    elif verdict is Verdict.INCONCLUSIVE and interval.high < 0:
        summary += "; worse, but perhaps by less than the margin"
    return verification(verdict, summary)


def table(verification: Verification) -> str:
    """The verification as Markdown: the verdict, the families, and the items that changed side by side."""
    evidence = verification.evidence
    lines = [f"**{verification.summary}**", "", "| family | items | baseline | candidate | lost | gained | truncated |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for row in evidence["families"]:
        cells = [row[k] for k in ("family", "n", "baseline", "candidate", "lost", "gained", "truncated")]
        lines.append(f"| {' | '.join('-' if c is None else str(c) for c in cells)} |")
    for title, key in (("Lost", False), ("Gained", True)):
        rows = [d for d in evidence.get("discordant", []) if d["gained"] is key]
        if rows:
            lines += ["", f"{title}:", "", "| prompt | expected | baseline | candidate |", "|---|---|---|---|"]
        lines += [
            f"| {' | '.join(_cell(d[k]) for k in ('prompt', 'expected', 'baseline', 'candidate'))} |" for d in rows
        ]
    for error in evidence.get("errors", []):
        lines += ["", f"- {error['side']} {error['item']}: {_cell(error['error'])}"]
    return "\n".join(lines) + "\n"


def _verdict(interval: Interval, margin: float) -> Verdict:
    if interval.low > -margin:
        return Verdict.PASSED
    return Verdict.FAILED if interval.high < -margin else Verdict.INCONCLUSIVE


def _right(answers: Answers) -> set[str]:
    return {a.item for a in answers.having(Outcome.CORRECT)}


def _trouble(candidate: Answers, baseline: Answers | None) -> str:
    if baseline and baseline.set_digest != candidate.set_digest:
        return f"not the same items: set {candidate.set_digest}, baseline {baseline.set_digest}"
    for side, answers in (("candidate", candidate), ("baseline", baseline)):
        if answers and not answers.complete:
            given = len(answers.answers) - len(answers.having(Outcome.ERRORED))
            return f"{answers.count - given} of {answers.count} items have no answer of the {side}: run it again"
    return ""


def _errors(candidate: Answers, baseline: Answers | None) -> list[dict[str, str]]:
    return [
        {"side": side, "item": a.item, "error": a.error}
        for side, answers in (("candidate", candidate), ("baseline", baseline))
        for a in (answers.having(Outcome.ERRORED) if answers else ())
    ]


def _sides(candidate: Answers, baseline: Answers | None, what: Any) -> dict[str, Any]:
    return {"candidate": what(candidate), "baseline": what(baseline) if baseline else None}


def _families(items: tuple[Item, ...], candidate: Answers, baseline: Answers | None) -> list[dict[str, Any]]:
    right, before = _right(candidate), _right(baseline) if baseline else None
    truncated = {a.item for a in candidate.having(Outcome.TRUNCATED)}
    rows = []
    for family in (*Family, None):
        ids = {i.id for i in items if family in (None, i.family)}
        rows.append(
            {
                "family": family or "all",
                "n": len(ids),
                "baseline": None if before is None else len(ids & before),
                "candidate": len(ids & right),
                "lost": None if before is None else len(ids & (before - right)),
                "gained": None if before is None else len(ids & (right - before)),
                "truncated": len(ids & truncated),
            }
        )
    return rows


def _discordant(items: tuple[Item, ...], candidate: Answers, baseline: Answers) -> list[dict[str, Any]]:
    ours, theirs = ({a.item: a for a in side.answers} for side in (candidate, baseline))
    changed = _right(candidate) ^ _right(baseline)
    return [
        {
            "item": item.id,
            "gained": ours[item.id].outcome is Outcome.CORRECT,
            "prompt": item.prompt,
            "expected": item.expected.value,
            "baseline": _said(theirs[item.id].outcome, theirs[item.id].text),
            "candidate": _said(ours[item.id].outcome, ours[item.id].text),
        }
        for item in items
        if item.id in changed
    ]


def _said(outcome: Outcome, text: str) -> str:
    return f"{text} [cut off]" if outcome is Outcome.TRUNCATED else text


def _points(interval: Interval) -> str:
    low, high = f"{100 * interval.low:+.1f}", f"{100 * interval.high:+.1f}"
    return f"{100 * interval.estimate:+.1f} points [{low}, {high}]"


def _number(share: float) -> str:
    return f"{100 * share:g}"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")[:300]
