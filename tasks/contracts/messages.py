"""POST /v1/messages: what Claude Code speaks."""

from __future__ import annotations

import json
from typing import Any

from tasks.contracts.chat import NO_THINKING, PROMPT
from tasks.contracts.promises import Context, at, expect, promise
from tasks.contracts.thinking import ANSWER, LIMIT, WORDS, bounds, thought_in
from tasks.endpoint import Answer

_SOURCE = "Anthropic API `POST /v1/messages`; llama.cpp tools/server/README.md"


def _ask(ctx: Context, **params: Any) -> Answer:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": ctx.release.alias, "messages": messages, "max_tokens": 100, "temperature": 0, **NO_THINKING}
    answer = ctx.client.post("/v1/messages", body | params)
    expect(answer.status == 200, f"/v1/messages answered {answer.status}")
    return answer


def text(message: Any) -> str:
    """The text of all text blocks of a message."""
    return "".join(at(block, "text") for block in at(message, "content") if block.get("type") == "text")


@promise(
    "messages.answers", "a message is an assistant's, holds text and says why it stopped", _SOURCE, server="scripted"
)
def answers(ctx: Context) -> str:
    whole, cut = _ask(ctx).body, _ask(ctx, max_tokens=2).body
    kind, role = at(whole, "type"), at(whole, "role")
    expect((kind, role) == ("message", "assistant"), f"type is {kind!r} and role {role!r}")
    expect(text(whole).strip(), "the message holds no text")
    reasons = at(whole, "stop_reason"), at(cut, "stop_reason")
    expect(reasons == ("end_turn", "max_tokens"), f"stop_reason is {reasons[0]!r}, and {reasons[1]!r} at the limit")
    return repr(text(whole))


@promise("messages.usage", "a message counts input and output tokens", _SOURCE, server="scripted")
def usage(ctx: Context) -> str:
    counted = at(_ask(ctx, max_tokens=4).body, "usage")
    came, went = at(counted, "input_tokens"), at(counted, "output_tokens")
    expect(came + (counted.get("cache_read_input_tokens") or 0) > 0, f"usage counts {came} input tokens")
    expect(0 < went <= 4, f"usage counts {went} of at most 4 output tokens")
    return f"{came} and {went} tokens"


@promise("messages.max_tokens", "max_tokens bounds the message", _SOURCE, server="scripted")
def max_tokens(ctx: Context) -> str:
    whole, cut = (at(answer.body, "usage", "output_tokens") for answer in (_ask(ctx), _ask(ctx, max_tokens=2)))
    expect(cut != whole, f"max_tokens changes nothing: {cut} tokens with and without it")
    expect(cut == 2, f"max_tokens 2 gives {cut} tokens")
    return f"{cut} of {whole} tokens"


@promise("messages.stop_sequences", "a stop sequence ends the message before it", _SOURCE, server="scripted")
def stop_sequences(ctx: Context) -> str:
    whole, cut = text(_ask(ctx).body), text(_ask(ctx, stop_sequences=["is"]).body)
    expect(cut != whole, f"stop_sequences changes nothing: {cut!r} with and without it")
    expect(cut == whole.split("is", 1)[0], f"stop at 'is' gives {cut!r}")
    return f"{cut!r} of {whole!r}"


@promise(
    "messages.streamed",
    "a streamed message begins with message_start, sends its text in deltas and ends with message_stop",
    _SOURCE,
    server="scripted",
)
def is_streamed(ctx: Context) -> str:
    lines = str(_ask(ctx, stream=True).body).splitlines()
    events = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
    kinds = [at(event, "type") for event in events]
    expect(
        kinds[:1] == ["message_start"] and kinds[-1:] == ["message_stop"],
        f"the events are {kinds[:1]} ... {kinds[-1:]}",
    )
    deltas = [at(event, "delta", "text") for event in events if event.get("delta", {}).get("type") == "text_delta"]
    whole = text(_ask(ctx).body)
    expect(len(deltas) > 1, f"the text came in {len(deltas)} deltas")
    expect("".join(deltas) == whole, f"the deltas say {''.join(deltas)!r}, unstreamed it is {whole!r}")
    return f"{len(deltas)} deltas"


@promise(
    "messages.count_tokens",
    "count_tokens says how many tokens a message would read",
    "Anthropic API `POST /v1/messages/count_tokens`",
    server="scripted",
)
def count_tokens(ctx: Context) -> str:
    asked = {"model": ctx.release.alias, "messages": [{"role": "user", "content": PROMPT}], **NO_THINKING}
    counted = at(ctx.client.post("/v1/messages/count_tokens", asked).body, "input_tokens")
    used = at(_ask(ctx).body, "usage")
    read = at(used, "input_tokens") + (used.get("cache_read_input_tokens") or 0)
    expect(counted == read, f"count_tokens says {counted}, the message read {read}")
    return f"{counted} tokens"


def _thinking(ctx: Context, **params: Any) -> Any:
    return _ask(ctx, **({"max_tokens": LIMIT, "chat_template_kwargs": {"enable_thinking": True}} | params)).body


def _thought(message: Any) -> list[str]:
    return thought_in("".join(block.get("thinking") or block.get("text") or "" for block in at(message, "content")))


@promise(
    "messages.thinking_parsed", "thought is a thinking block, and none of it is in the text", _SOURCE, server="scripted"
)
def thinking_parsed(ctx: Context) -> str:
    body = _thinking(ctx)
    expect(text(body) == ANSWER, f"the text is {text(body)[:80]!r}, not {ANSWER!r}")
    expect(len(_thought(body)) == WORDS, f"{len(_thought(body))} words of thought, not {WORDS}")
    return f"{WORDS} words of thinking, then the answer"


@promise(
    "messages.thinking_off",
    "chat_template_kwargs enable_thinking=false leaves thought out of a message",
    f"{_SOURCE}; guide 07: enable_thinking is per request via chat_template_kwargs",
    server="scripted",
    known="llama.cpp PR 22154: ignored on b8672, heard on b9105",
)
def thinking_off(ctx: Context) -> str:
    return bounds(_thought(_thinking(ctx)), _thought(_thinking(ctx, **NO_THINKING)), 0, "enable_thinking")


@promise(
    "messages.budget", "thinking.budget_tokens 6 bounds a message's thought", f"{_SOURCE}, thinking", server="scripted"
)
def budget(ctx: Context) -> str:
    bounded = _thinking(ctx, thinking={"type": "enabled", "budget_tokens": 6})
    expect(text(bounded) == ANSWER, f"the text is {text(bounded)[:80]!r}")
    return bounds(_thought(_thinking(ctx)), _thought(bounded), 6, "thinking.budget_tokens")


@promise(
    "messages.thinking_disabled",
    "thinking `disabled` leaves thought out of a message",
    f"{_SOURCE}, thinking",
    server="scripted",
    known="llama.cpp PR 20479 (open) and 21470 (closed): only the type `enabled` is read; chat_template_kwargs works",
)
def thinking_disabled(ctx: Context) -> str:
    free = _thought(_ask(ctx, max_tokens=LIMIT, chat_template_kwargs={}).body)
    off = _thought(_ask(ctx, max_tokens=LIMIT, chat_template_kwargs={}, thinking={"type": "disabled"}).body)
    return bounds(free, off, 0, "thinking disabled")
