"""What `explain` says of messages that are labelled by hand: right, half, wrong, unknown, and healthy lines diagnosed.

Only what it says itself is judged (symptom, cause, fix), not the line that it quotes. `first`: the explanation that
stands first is the right one, as a person reads it.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks.release import Model
from tasks.runbook import Match, explain

FOLDER = Path(__file__).parent.parent / "messages"
Verdict = Literal["right", "half", "wrong", "unknown"]
VERDICTS: tuple[Verdict, ...] = ("right", "half", "wrong", "unknown")


class Message(Model):
    """A text, and what is true of it."""

    id: str
    kind: str
    source: str
    text: str
    cause: str
    fix: str
    expect: tuple[str, ...] = Field(description="regular expressions that an explanation must hold")
    forbid: tuple[str, ...] = Field(description="what it must not hold")
    healthy: bool = False


def read(path: Path) -> list[Message]:
    """The messages of a file, one JSON document a line."""
    return [Message.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def judge(message: Message, said: Sequence[Match]) -> Verdict:
    """`right`: one explanation holds every idea and nothing forbidden; `half`: some idea; `wrong`: another cause, or
    anything at all of a healthy line."""
    if message.healthy:
        return "wrong" if said else "right"
    if not said:
        return "unknown"
    texts = [" | ".join(match.row.texts) for match in said]
    clean = [text for text in texts if not any(_has(pattern, text) for pattern in message.forbid)]
    if any(all(_has(pattern, text) for pattern in message.expect) for text in clean):
        return "right"
    if len(clean) < len(texts):
        return "wrong"
    return "half" if any(_has(pattern, text) for pattern in message.expect for text in clean) else "wrong"


def _has(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


def main() -> Iterator[str]:
    """Lines of the result for each file of messages."""
    for path in sorted(FOLDER.glob("*.jsonl")):
        yield from _measured(path)


def _measured(path: Path) -> Iterator[str]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for message in read(path):
        said = explain(message.text.splitlines())
        verdict = judge(message, said)
        counts[message.kind][verdict] += 1
        counts[message.kind]["first"] += verdict == "right" and judge(message, said[:1]) == "right"
        if verdict != "right":
            yield f"{verdict:<8}{message.id} {[match.row.id for match in said]} {json.dumps(message.text[:140])}"
    healthy = counts.pop("healthy", Counter())
    yield f"| {path.name} | " + " | ".join(VERDICTS) + " | all | first is right |"
    yield "| --- |" + " --- |" * 6
    for kind, seen in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        total = sum(seen[verdict] for verdict in VERDICTS)
        yield (
            f"| {kind} | " + " | ".join(str(seen[verdict]) for verdict in VERDICTS) + f" | {total} | {seen['first']} |"
        )
    yield f"healthy: {healthy['wrong']} of {healthy['wrong'] + healthy['right']} are diagnosed"
