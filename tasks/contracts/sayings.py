"""What an answer says, in one shape for the four APIs, whole or streamed: so that two of them can be compared.

A stream is read strictly. What a client could not put together again is Unmet here: a piece of a call without its index
(llama.cpp issue 18591), a delta behind the end, an id that changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tasks.contracts.promises import Unmet, at, expect

DONE = "[DONE]"


@dataclass(frozen=True)
class Saying:
    """One choice of one answer. A field that an API does not tell is None."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    """(function, its arguments as JSON, keys sorted)"""
    reason: str | None = None
    """Why it stopped, in the API's own word."""
    stopped_by: str | None = None
    """The stop sequence that ended it."""
    model: str | None = None
    read: int | None = None
    """Tokens of the prompt, with those that came from the cache."""
    wrote: int | None = None
    timed: tuple[int, int] | None = None
    """Tokens read and written as the timings count them."""
    logprobs: str | None = None
    """Token by token, as JSON."""


def differences(one: Saying, other: Saying) -> dict[str, str]:
    """Field -> `this, that`: what two sayings do not agree on, of what both tell."""
    pairs = [(f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(Saying)]
    return {n: f"{_short(a)}, {_short(b)}" for n, a, b in pairs if a is not None and b is not None and a != b}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}... {text[-36:]}"


def events_of(text: Any) -> list[tuple[str | None, Any]]:
    """(name or None, data as JSON, or DONE) of each event of a stream. Raises Unmet for what is no event."""
    expect(isinstance(text, str), f"the stream is no stream: {_short(text)}")
    found = []
    for block in str(text).replace("\r\n", "\n").split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        named = dict(line.partition(":")[::2] for line in lines)
        expect(set(named) <= {"event", "data", "id", "retry"} and "data" in named, f"no event: {block[:80]!r}")
        expect(len(lines) == len(named), f"two events in one: {block[:80]!r}")
        data = named["data"].strip()
        name = named["event"].strip() if "event" in named else None
        found.append((name, data if data == DONE else _json(data, "an event of the stream")))
    expect(found, "the stream holds no event")
    return found


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Unmet(f"{what} is not JSON: {text[:80]!r}") from None


def _arguments(text: Any) -> str:
    return json.dumps(_json(str(text), "a call's arguments") if isinstance(text, str) else text, sort_keys=True)


def _one(values: Sequence[Any], what: str) -> Any:
    """The one value that all of these are. Raises Unmet when they differ."""
    different = sorted({json.dumps(value) for value in values})
    expect(len(different) == 1, f"{what} changes: {', '.join(different[:3])}")
    return values[0]


def _timed(body: Any) -> tuple[int, int] | None:
    times = body.get("timings")
    return (at(times, "cache_n") + at(times, "prompt_n"), at(times, "predicted_n")) if times else None


def _usage(usage: Any) -> tuple[int, int]:
    read, wrote, total = (at(usage, f"{part}_tokens") for part in ("prompt", "completion", "total"))
    expect(total == read + wrote, f"total_tokens is {total}, not {read} + {wrote}")
    return read, wrote


def _envelope(events: Sequence[Any], kind: str) -> Any:
    for event in events:
        expect(isinstance(at(event, "created"), int), f"created is {event['created']!r}")
    expect(_one([at(event, "object") for event in events], "object") == kind, f"object is not {kind!r}")
    _one([at(event, "id") for event in events], "the stream's id")
    return _one([at(event, "model") for event in events], "the stream's model")


def _data(text: Any) -> list[Any]:
    """The events of an OpenAI stream: unnamed, JSON each, `[DONE]` once and at the end."""
    events = events_of(text)
    expect([data for _, data in events].count(DONE) == 1, f"{DONE} came {[d for _, d in events].count(DONE)} times")
    expect(events[-1][1] == DONE, f"something came after {DONE}")
    return [data for _, data in events[:-1]]


# chat completions


def _call(call: Any) -> tuple[str, str]:
    expect(at(call, "type") == "function", f"a call's type is {call['type']!r}")
    expect(isinstance(at(call, "id"), str) and call["id"], f"a call's id is {call['id']!r}")
    return str(at(call, "function", "name")), _arguments(at(call, "function", "arguments"))


def _differ(ids: Sequence[Any]) -> None:
    expect(len(set(ids)) == len(ids), f"two calls have one id: {list(ids)}")


def chat(body: Any) -> list[Saying]:
    """The choices of a chat.completion, by index."""
    expect(at(body, "object") == "chat.completion", f"object is {body['object']!r}")
    read, wrote = _usage(at(body, "usage"))
    found = {}
    for choice in at(body, "choices"):
        message = at(choice, "message")
        calls = message.get("tool_calls") or []
        expect(at(message, "role") == "assistant", f"the role is {message['role']!r}")
        said = tuple(map(_call, calls))
        _differ([call["id"] for call in calls])
        found[at(choice, "index")] = Saying(
            content=message.get("content") or "", reasoning=message.get("reasoning_content") or "",
            calls=said, reason=at(choice, "finish_reason"), model=at(body, "model"),
            read=read, wrote=wrote, timed=_timed(body), logprobs=_logprobs([choice]),
        )  # fmt: skip
    return _in_order(found, len(body["choices"]))


def _logprobs(choices: Sequence[Any]) -> str:
    tokens = [token for choice in choices for token in ((choice.get("logprobs") or {}).get("content") or [])]
    # a whole answer tells the end of its turn too, a token of no text; a stream does not (b11434)
    told = [token for token in tokens if at(token, "token")]
    return json.dumps([[t["token"], round(at(t, "logprob"), 4), len(at(t, "top_logprobs"))] for t in told])


def _in_order(found: dict[int, Saying], count: int) -> list[Saying]:
    expect(sorted(found) == list(range(count)), f"{count} choices have the indexes {sorted(found)}")
    return [found[n] for n in range(count)]


def streamed_chat(text: Any) -> list[Saying]:
    """The choices of a streamed chat, by index, each put together of its deltas."""
    events = _data(text)
    model = _envelope(events, "chat.completion.chunk")
    counted = [at(event, "usage") for event in events if event.get("usage")]
    timed = [_timed(event) for event in events if event.get("timings")]
    by_index: dict[int, list[Any]] = {}
    for event in events:
        for choice in at(event, "choices"):
            by_index.setdefault(at(choice, "index"), []).append(choice)
    found = {index: _of_deltas(choices) for index, choices in by_index.items()}
    if len(found) == 1:  # of several choices the usage and the timings are of one
        read, wrote = _usage(counted[-1]) if counted else (None, None)
        (index,) = found
        found[index] = replace(found[index], read=read, wrote=wrote, timed=timed[-1] if timed else None)
    found = {index: replace(said, model=model) for index, said in found.items()}
    return _in_order(found, len(found))


def _only_reason(choices: Sequence[Any]) -> str:
    reasons = [choice["finish_reason"] for choice in choices if at(choice, "finish_reason")]
    expect(len(reasons) == 1, f"finish_reason came {len(reasons)} times")
    return str(reasons[0])


def _of_deltas(choices: Sequence[Any]) -> Saying:
    deltas = [at(choice, "delta") for choice in choices]
    reason = _only_reason(choices)
    expect(choices[-1]["finish_reason"], "a delta came after the finish_reason")
    roles = [n for n, delta in enumerate(deltas) if "role" in delta]
    expect(roles == [0], f"the role came with the deltas {roles} of {len(deltas)}")
    expect(deltas[0]["role"] == "assistant", f"the role is {deltas[0]['role']!r}")
    return Saying(
        content="".join(delta.get("content") or "" for delta in deltas),
        reasoning="".join(delta.get("reasoning_content") or "" for delta in deltas),
        calls=_calls_of(deltas), reason=reason, logprobs=_logprobs(choices),
    )  # fmt: skip


def _calls_of(deltas: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    parts: dict[int, list[Any]] = {}
    for delta in deltas:
        for part in delta.get("tool_calls") or []:
            expect(isinstance(part.get("index"), int), f"a piece of a call has no index: {_short(part)}")
            parts.setdefault(part["index"], []).append(part)
    expect(sorted(parts) == list(range(len(parts))), f"the calls have the indexes {sorted(parts)}")
    for pieces in parts.values():
        later = [piece["id"] for piece in pieces[1:] if piece.get("id")]
        expect(set(later) <= {pieces[0].get("id")}, "a call's id changes")
        named = [piece for piece in pieces[1:] if at(piece, "function").get("name")]
        expect(not named, f"a call is named twice: {_short(pieces)}")
    _differ([at(parts[n][0], "id") for n in parts])
    whole = [{**parts[n][0], "function": {**parts[n][0]["function"], "arguments": _joined(parts[n])}} for n in parts]
    return tuple(map(_call, whole))


def _joined(pieces: Sequence[Any]) -> str:
    return "".join(at(piece, "function").get("arguments") or "" for piece in pieces)


# completions


def completion(body: Any) -> list[Saying]:
    """The choices of a text_completion, by index."""
    expect(at(body, "object") == "text_completion", f"object is {body['object']!r}")
    read, wrote = _usage(at(body, "usage"))
    found = {
        at(choice, "index"): Saying(
            content=at(choice, "text"), reason=at(choice, "finish_reason"), model=at(body, "model"), read=read,
            wrote=wrote, timed=_timed(body), logprobs=_logprobs([choice]),
        )
        for choice in at(body, "choices")
    }  # fmt: skip
    return _in_order(found, len(body["choices"]))


def streamed_completion(text: Any) -> list[Saying]:
    """The one choice of a streamed completion."""
    events = _data(text)
    model = _envelope(events, "text_completion")
    choices = [choice for event in events for choice in at(event, "choices")]
    reason = _only_reason(choices)
    counted = [_usage(event["usage"]) for event in events if event.get("usage")]
    timed = [_timed(event) for event in events if event.get("timings")]
    read, wrote = counted[-1] if counted else (None, None)
    content = "".join(at(choice, "text") for choice in choices)
    return [
        Saying(
            content=content, reason=reason, model=model, read=read, wrote=wrote,
            timed=timed[-1] if timed else None, logprobs=_logprobs(choices),
        )
    ]  # fmt: skip


# llama-server's own completion


def native(body: Any) -> list[Saying]:
    """What a /completion says."""
    return [
        Saying(
            content=at(body, "content"), reason=at(body, "stop_type"), stopped_by=at(body, "stopping_word"),
            model=at(body, "model"), read=at(body, "tokens_evaluated"), wrote=at(body, "tokens_predicted"),
            timed=_timed(body), logprobs=_native_logprobs([body]),
        )
    ]  # fmt: skip


def streamed_native(text: Any) -> list[Saying]:
    """What a streamed /completion says: it has no `[DONE]`, its last event has `stop`."""
    events = [data for _, data in events_of(text) if data != DONE]
    stops = [at(event, "stop") for event in events]
    expect(stops[-1] is True and not any(stops[:-1]), f"`stop` stands at {[n for n, s in enumerate(stops) if s]}")
    last = {"completion_probabilities": [], **events[-1]}
    (said,) = native(last)
    whole = "".join(at(event, "content") for event in events)
    return [replace(said, content=whole, logprobs=_native_logprobs(events))]


def _native_logprobs(bodies: Sequence[Any]) -> str:
    tokens = [token for body in bodies for token in body.get("completion_probabilities") or []]
    return json.dumps([[at(t, "id"), round(t.get("logprob", t.get("prob")), 4)] for t in tokens])


# responses


def _are_of_their_names(events: Sequence[tuple[str | None, Any]]) -> None:
    for name, data in events:
        expect(at(data, "type") == name, f"an event called {name!r} is of the type {data['type']!r}")


def response(body: Any) -> list[Saying]:
    """What a response object says."""
    expect(at(body, "object") == "response", f"object is {body['object']!r}")
    usage = at(body, "usage")
    read, wrote, total = (at(usage, f"{part}_tokens") for part in ("input", "output", "total"))
    expect(total == read + wrote, f"total_tokens is {total}, not {read} + {wrote}")
    items = at(body, "output")
    by_kind = {kind: [i for i in items if i.get("type") == kind] for kind in ("reasoning", "message", "function_call")}
    _differ([at(item, "call_id") for item in by_kind["function_call"]])
    return [
        Saying(
            content=_parts(by_kind["message"]), reasoning=_parts(by_kind["reasoning"]),
            calls=tuple((at(i, "name"), _arguments(at(i, "arguments"))) for i in by_kind["function_call"]),
            reason=at(body, "status"), model=at(body, "model"), read=read, wrote=wrote,
        )
    ]  # fmt: skip


def _parts(items: Sequence[Any]) -> str:
    return "".join(at(part, "text") for item in items for part in item.get("content") or [])


def streamed_response(text: Any) -> list[Saying]:
    """What a streamed response says: what its deltas make up must be what it completes with."""
    events = events_of(text)
    expect(events[0][0] == "response.created", f"the first event is {events[0][0]!r}")
    events = [(name, data) for name, data in events if data != DONE]
    _are_of_their_names(events)
    last = events[-1][1]
    expect(last["type"] in ("response.completed", "response.incomplete"), f"the last event is {last['type']!r}")
    _one([at(data, "response", "id") for _, data in events if "response" in data], "the response's id")
    (said,) = response(at(last, "response"))
    deltas = {
        kind: "".join(at(data, "delta") for _, data in events if data["type"] == f"response.{kind}.delta")
        for kind in ("output_text", "reasoning_text", "function_call_arguments")
    }
    expect(deltas["output_text"] == said.content, f"the deltas say {_short(deltas['output_text'])}, not the text")
    expect(deltas["reasoning_text"] == said.reasoning, "the deltas of the thought are not the thought")
    sent = "".join(
        str(at(item, "arguments")) for item in last["response"]["output"] if item.get("type") == "function_call"
    )
    expect(deltas["function_call_arguments"] == sent, "the deltas of the arguments are not the arguments")
    _items_open_and_close(events)
    return [said]


def _items_open_and_close(events: Sequence[tuple[str | None, Any]]) -> None:
    opened = [at(d, "item", "id") for _, d in events if d["type"] == "response.output_item.added"]
    closed = [at(d, "item", "id") for _, d in events if d["type"] == "response.output_item.done"]
    expect(sorted(opened) == sorted(closed), f"{len(opened)} items are added, {len(closed)} are done")
    stray = [d["item_id"] for _, d in events if "item_id" in d and d["item_id"] not in opened]
    expect(not stray, f"a delta is of the item {stray[:1]}, which was never added")


# messages


def message(body: Any) -> list[Saying]:
    """What a message says."""
    expect((at(body, "type"), at(body, "role")) == ("message", "assistant"), "it is no assistant's message")
    blocks = at(body, "content")
    calls = [block for block in blocks if at(block, "type") == "tool_use"]
    _differ([at(call, "id") for call in calls])
    return [
        Saying(
            content="".join(at(b, "text") for b in blocks if b["type"] == "text"),
            reasoning="".join(at(b, "thinking") for b in blocks if b["type"] == "thinking"),
            calls=tuple((at(b, "name"), _arguments(at(b, "input"))) for b in calls),
            reason=at(body, "stop_reason"), stopped_by=at(body, "stop_sequence") or "",
            model=at(body, "model"), read=_message_read(at(body, "usage")), wrote=at(body, "usage", "output_tokens"),
        )
    ]  # fmt: skip


def _message_read(usage: Any) -> int:
    return int(at(usage, "input_tokens")) + int(usage.get("cache_read_input_tokens") or 0)


@dataclass
class _Block:
    kind: str
    start: Any
    text: str = ""
    closed: bool = False


_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking"),
           "tool_use": ("input_json_delta", "partial_json")}  # fmt: skip


@dataclass
class _Blocks:
    """The content blocks of a streamed message as its events come in."""

    found: list[_Block] = field(default_factory=list)

    def take(self, event: Any) -> None:
        kind = at(event, "type")
        if kind == "content_block_start":
            expect(at(event, "index") == len(self.found), f"block {len(self.found)} has the index {event['index']}")
            self.found.append(_Block(at(event, "content_block", "type"), event["content_block"]))
        elif kind == "content_block_delta":
            self._add(self._open(event), at(event, "delta"))
        elif kind == "content_block_stop":
            self._open(event).closed = True

    def _open(self, event: Any) -> _Block:
        index: int = at(event, "index")
        expect(isinstance(index, int) and index < len(self.found), f"no block {index} was started")
        expect(not self.found[index].closed, f"something came for block {index} after its end")
        return self.found[index]

    def _add(self, block: _Block, delta: Any) -> None:
        if at(delta, "type") == "signature_delta":
            return
        name, field_ = _DELTAS.get(block.kind, ("", ""))
        expect(delta["type"] == name, f"a block of {block.kind} has a {delta['type']}")
        block.text += at(delta, field_)

    def of(self, kind: str) -> Iterator[_Block]:
        expect(all(block.closed for block in self.found), "a block was never closed")
        return (block for block in self.found if block.kind == kind)


def streamed_message(text: Any) -> list[Saying]:
    """What a streamed message says, put together of its blocks."""
    events = [(name, data) for name, data in events_of(text) if data != DONE and at(data, "type") != "ping"]
    _are_of_their_names(events)
    kinds = [data["type"] for _, data in events]
    for kind, place in (("message_start", 0), ("message_delta", -2), ("message_stop", -1)):
        expect(
            kinds.count(kind) == 1 and kinds[place:][:1] == [kind], f"{kind} came {kinds.count(kind)} times: {kinds}"
        )
    blocks = _Blocks()
    for _, data in events:
        blocks.take(data)
    start, end = at(events[0][1], "message"), events[-2][1]
    calls = list(blocks.of("tool_use"))
    _differ([at(block.start, "id") for block in calls])
    return [
        Saying(
            content="".join(b.text for b in blocks.of("text")),
            reasoning="".join(b.text for b in blocks.of("thinking")),
            calls=tuple((at(b.start, "name"), _arguments(b.text or "{}")) for b in calls),
            reason=at(end, "delta", "stop_reason"), stopped_by=at(end, "delta", "stop_sequence") or "",
            model=at(start, "model"), read=_message_read(at(start, "usage")), wrote=at(end, "usage", "output_tokens"),
        )
    ]  # fmt: skip


Reader = Callable[[Any], list[Saying]]
READERS: dict[str, tuple[Reader, Reader]] = {
    "/v1/chat/completions": (chat, streamed_chat),
    "/v1/completions": (completion, streamed_completion),
    "/completion": (native, streamed_native),
    "/v1/responses": (response, streamed_response),
    "/v1/messages": (message, streamed_message),
}
"""Route -> how its whole answer is read, and how its stream is."""
