"""POST /v1/responses: what Cursor and Codex CLI speak."""

from __future__ import annotations

import json
from typing import Any

from tasks.contracts.chat import NO_THINKING, PROMPT
from tasks.contracts.promises import Context, at, expect, promise
from tasks.contracts.thinking import ANSWER, LIMIT, WORDS, bounds, thought_in
from tasks.endpoint import Answer

_SOURCE = "OpenAI API `POST /v1/responses`; guide 07: Cursor and Codex CLI use it"


def _ask(ctx: Context, **params: Any) -> Answer:
    body = {"model": ctx.release.alias, "input": PROMPT, "temperature": 0, **NO_THINKING, **params}
    answer = ctx.client.post("/v1/responses", body)
    expect(answer.status == 200, f"/v1/responses answered {answer.status}")
    return answer


def output_text(response: Any) -> str:
    """All output_text of the messages in a response object."""
    messages = [item for item in at(response, "output") if item.get("type") == "message"]
    parts = [part for message in messages for part in at(message, "content")]
    return "".join(at(part, "text") for part in parts if part.get("type") == "output_text")


@promise("responses.answers", "a response is completed, or cut by its limit, and holds text", _SOURCE, anywhere=True)
def answers(ctx: Context) -> str:
    body = _ask(ctx, max_output_tokens=8).body
    kind, status = at(body, "object"), at(body, "status")
    right = kind == "response" and status in ("completed", "incomplete")  # which, stops.limit_of_response says
    expect(right, f"object is {kind!r} and status {status!r}")
    text = output_text(body) or " ".join(_thought(body))
    expect(text.strip(), "the response holds no output_text")
    return f"{len(text)} characters"


@promise(
    "responses.usage", "a response counts input and output tokens, and total is their sum", _SOURCE, server="scripted"
)
def usage(ctx: Context) -> str:
    counted = at(_ask(ctx, max_output_tokens=4).body, "usage")
    came, went, total = (at(counted, f"{part}_tokens") for part in ("input", "output", "total"))
    expect(came > 0 and 0 < went <= 4, f"usage counts {came} input and {went} of at most 4 output tokens")
    expect(total == came + went, f"total_tokens is {total}, not {came} + {went}")
    return f"{came} + {went} = {total} tokens"


@promise("responses.max_output_tokens", "max_output_tokens bounds the response", _SOURCE, server="scripted")
def max_output_tokens(ctx: Context) -> str:
    whole = output_text(_ask(ctx).body)
    cut = output_text(_ask(ctx, max_output_tokens=2).body)
    expect(cut != whole, f"max_output_tokens changes nothing: {cut!r} with and without it")
    expect(len(cut.split()) == 2, f"max_output_tokens 2 gives {cut!r}")
    return f"{cut!r} of {whole!r}"


@promise(
    "responses.streamed",
    "a streamed response sends its text in several deltas and ends with response.completed",
    _SOURCE,
    server="scripted",
)
def is_streamed(ctx: Context) -> str:
    lines = str(_ask(ctx, stream=True).body).splitlines()
    try:
        events = [json.loads(line[5:]) for line in lines if line.startswith("data:") and "[DONE]" not in line]
    except ValueError:
        expect(False, "an event of the stream is not JSON")
    expect(events, "the stream holds no events")
    deltas = [at(event, "delta") for event in events if event.get("type") == "response.output_text.delta"]
    expect(len(deltas) > 1, f"the text came in {len(deltas)} deltas")
    last = events[-1]
    expect(last.get("type") == "response.completed", f"the last event is {last.get('type')!r}")
    final = output_text(at(last, "response"))
    expect("".join(deltas) == final, f"the deltas say {''.join(deltas)!r}, the final response {final!r}")
    return f"{len(deltas)} deltas, then response.completed"


def _thinking(ctx: Context, **params: Any) -> Any:
    thinks = {"chat_template_kwargs": {"enable_thinking": True}, "max_output_tokens": LIMIT}
    return _ask(ctx, **(thinks | params)).body


def _thought(response: Any) -> list[str]:
    items = [item for item in at(response, "output") if item.get("type") == "reasoning"]
    parts = [part for item in items for part in [*(item.get("content") or []), *(item.get("summary") or [])]]
    return thought_in("".join(part.get("text") or "" for part in parts) + output_text(response))


@promise(
    "responses.thinking_parsed",
    "thought is a reasoning item, and none of it is in the text",
    _SOURCE,
    server="scripted",
)
def thinking_parsed(ctx: Context) -> str:
    body = _thinking(ctx)
    words, text = _thought(body), output_text(body)
    expect(text == ANSWER, f"the text is {text[:80]!r}, not {ANSWER!r}")
    expect(len(words) == WORDS, f"{len(words)} words of thought, not {WORDS}")
    return f"{WORDS} words of reasoning, then the answer"


@promise(
    "responses.thinking_off",
    "chat_template_kwargs enable_thinking=false leaves thought out of a response",
    f"{_SOURCE}; guide 07: enable_thinking is per request via chat_template_kwargs",
    server="scripted",
)
def thinking_off(ctx: Context) -> str:
    return bounds(_thought(_thinking(ctx)), _thought(_thinking(ctx, **NO_THINKING)), 0, "enable_thinking")


@promise(
    "responses.budget",
    "thinking_budget_tokens 6 bounds a response's thought",
    f"{_SOURCE}; guide 01 row 8: thinking_budget_tokens silently ignored",
    server="scripted",
)
def budget(ctx: Context) -> str:
    bounded = _thinking(ctx, thinking_budget_tokens=6)
    expect(output_text(bounded) == ANSWER, f"the text is {output_text(bounded)[:80]!r}")
    return bounds(_thought(_thinking(ctx)), _thought(bounded), 6, "thinking_budget_tokens")


@promise(
    "responses.effort_none",
    "reasoning effort `none` leaves thought out of a response",
    f"{_SOURCE}, reasoning.effort",
    server="scripted",
    known="llama.cpp PR 26045: ignored before; chat_template_kwargs turns thought off on every build",
)
def effort_none(ctx: Context) -> str:
    free = _ask(ctx, chat_template_kwargs={}, max_output_tokens=LIMIT).body
    none = _ask(ctx, chat_template_kwargs={}, max_output_tokens=LIMIT, reasoning={"effort": "none"}).body
    return bounds(_thought(free), _thought(none), 0, "reasoning.effort none")
