"""Whether an answer is right: exact checks on normalised text, no judge and no partial credit."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from tasks.evals.model import Call, Expectation

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")
_FENCE = re.compile(r"```[a-zA-Z]*+\n?+(.*?)```", re.DOTALL)


def is_correct(expected: Expectation, text: str, calls: Sequence[Call] = ()) -> bool:
    """Whether an answer meets the expectation. Never raises: any text at all may come from a model.

    `calls`: those that the answer ends with; where text is expected there must be none.

    The rules, by kind:
    - `number`: the last number of the answer equals the value; `1,204`, `1204.0` and `1204` are the same.
    - `text`: equal, letter case included, after taking off surrounding white space, one code fence, one pair of
      quotes or backticks around the whole, and one final full stop that the value hasn't got.
    - `word`: the word occurs as a whole word, letter case ignored, and none of the distractors does.
    - `list`: split at commas and line ends, each part without bullet or number, white space, quotes, square
      brackets, a leading `and`, or a final full stop: the same parts in the same order, letter case ignored.
    - `json`: the first JSON object or array in the answer equals the value, whatever the order of its keys;
      numbers and strings are different, so are `true` and `1`. Words around it are allowed.
    - `rules`: every one of the rules (see `_keeps`) holds.
    - `calls`: these calls in any order, letter case and white space of strings ignored; without calls, any text.
    """
    if expected.kind == "calls":
        wanted = Counter(Call.model_validate(c).key for c in _as_list(expected.value))
        return Counter(c.key for c in calls) == wanted and bool(calls or text.strip())
    if calls:
        return False
    match expected.kind:
        case "number":
            return _last_number(text) == _as_float(expected.value)
        case "text":
            return _bare(text, str(expected.value)) == expected.value
        case "word":
            said = {w.casefold() for w in re.findall(r"\w+", text)}
            return str(expected.value).casefold() in said and not said & {d.casefold() for d in expected.distractors}
        case "list":
            return _parts(text) == [str(v).casefold() for v in _as_list(expected.value)]
        case "json":
            return any(_same(found, expected.value) for found in _first_json(text))
        case "rules":
            return all(_keeps(rule, text.strip()) for rule in _as_list(expected.value))
    raise ValueError(f"{expected.kind} is not judged here")


def _keeps(rule: dict[str, Any], text: str) -> bool:
    """Whether a text keeps `{name: value}`; words are runs of letters, digits, apostrophes and hyphens."""
    ((name, value),) = rule.items()
    words = re.findall(r"[\w'’-]+", text.casefold())
    match name:
        case "words":
            return len(words) == int(value)
        case "lines":
            return len([line for line in text.splitlines() if line.strip()]) == int(value)
        case "holds":
            return str(value).casefold() in words
        case "lacks":
            return str(value).casefold() not in text.casefold()
        case "starts":
            return bool(words) and words[0] == str(value).casefold()
        case "ends":
            return bool(words) and words[-1] == str(value).casefold()
    raise ValueError(f"there is no rule {name}")


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _as_float(value: JsonValue) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _as_list(value: JsonValue) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _bare(text: str, value: str) -> str:
    fenced = _FENCE.fullmatch(text.strip())
    text = (fenced.group(1) if fenced else text).strip()
    if text.endswith(".") and not value.endswith("."):
        text = text[:-1]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1]
    if text.endswith(".") and not value.endswith("."):
        text = text[:-1]
    return text.strip()


def _parts(text: str) -> list[str]:
    fenced = _FENCE.search(text)
    parts = [_BULLET.sub("", part) for part in re.split(r"[,\n]", fenced.group(1) if fenced else text)]
    bare = [re.sub(r"^and\s+", "", part.strip(" \t.\"'`[]*")).strip().casefold() for part in parts]
    return [part for part in bare if part]


def _first_json(text: str) -> list[Any]:
    decoder = json.JSONDecoder()
    for start in (m.start() for m in re.finditer(r"[\[{]", text)):
        try:
            return [decoder.raw_decode(text, start)[0]]
        except ValueError:
            continue
        except RecursionError:  # brackets without end: each further one would take as long
            return []
    return []


def _same(found: Any, value: Any) -> bool:
    if isinstance(found, bool) or isinstance(value, bool):
        return found is value
    if isinstance(found, dict) and isinstance(value, dict):
        return found.keys() == value.keys() and all(_same(found[k], value[k]) for k in value)
    if isinstance(found, list) and isinstance(value, list):
        return len(found) == len(value) and all(map(_same, found, value))
    return bool(found == value)
