"""Gemma 4's thought channel: parsed apart, bounded by its budget, and left when it is not wanted.

Checked on the scripted model, which thinks `t1 t2 ... t60` and then answers, so that what is measured is the server.
Thought is counted wherever it shows up; only the `parsed` promises care about where.
"""

from __future__ import annotations

import re
from typing import Any

from tasks.contracts.chat import NO_THINKING, said, streamed
from tasks.contracts.promises import Context, at, expect, promise

PROMPT = "What is the answer?"
ANSWER = "The answer is forty-two."
WORDS = 60
_LIMIT = 200  # tokens: more than the script has
_MARKS = ("<|channel>", "<channel|>")
_THOUGHT = re.compile(r"\bt\d+")
_BUDGET = "guide 01 row 8: thinking_budget_tokens silently ignored; llama.cpp PR 21418 lost it, PR 21697 mended it"
_PARSED = "llama.cpp tools/server/README.md `--reasoning-format`; guide 01 row 2; llama.cpp PR 21418 (Gemma 4 parser)"


def _thought(ctx: Context, **params: Any) -> list[str]:
    return _THOUGHT.findall(said(ctx.client.chat(PROMPT, max_tokens=_LIMIT, **params)))


def _is_apart(reasoning: str, content: str) -> str:
    leaked = [mark for mark in _MARKS if mark in reasoning + content]
    expect(not leaked, f"raw tokens in the answer: {leaked}")
    expect(not _THOUGHT.search(content), f"thought in the content: {content[:80]!r}")
    expect(len(_THOUGHT.findall(reasoning)) == WORDS, f"the reasoning is {reasoning[:80]!r}, not {WORDS} words")
    expect(content == ANSWER, f"the content is {content[:80]!r}, not {ANSWER!r}")
    return f"{WORDS} words of reasoning, then the answer"


def _is_bounded(ctx: Context, budget: int) -> str:
    free, bounded = _thought(ctx), _thought(ctx, thinking_budget_tokens=budget)
    expect(bounded != free, f"thinking_budget_tokens changes nothing: {len(free)} words with and without it")
    expect(len(bounded) <= budget, f"budget {budget} let {len(bounded)} words of thought through")
    return f"{len(bounded)} words of thought with budget {budget}, {len(free)} without"


@promise("thinking.parsed", "thought is reasoning_content, and none of it is in content", _PARSED, server="scripted")
def parsed(ctx: Context) -> str:
    answer = ctx.client.chat(PROMPT, max_tokens=_LIMIT)
    expect(answer.status == 200, f"the chat answered {answer.status}")
    message = at(answer.body, "choices", 0, "message")
    return _is_apart(message.get("reasoning_content") or "", message.get("content") or "")


@promise("thinking.parsed_streamed", "a stream keeps thought and content apart too", _PARSED, server="scripted")
def parsed_streamed(ctx: Context) -> str:
    stream = ctx.client.stream(PROMPT, max_tokens=_LIMIT)
    expect(stream.status == 200, f"the stream answered {stream.status}")
    return _is_apart(streamed(stream, "reasoning_content"), streamed(stream, "content"))


@promise("thinking.budget_0", "thinking_budget_tokens 0 allows no thought", _BUDGET, server="scripted")
def budget_0(ctx: Context) -> str:
    return _is_bounded(ctx, 0)


@promise("thinking.budget_1", "thinking_budget_tokens 1 allows one token of thought", _BUDGET, server="scripted")
def budget_1(ctx: Context) -> str:
    return _is_bounded(ctx, 1)


@promise("thinking.budget_2", "thinking_budget_tokens 2 allows two tokens of thought", _BUDGET, server="scripted")
def budget_2(ctx: Context) -> str:
    return _is_bounded(ctx, 2)


@promise("thinking.budget_6", "thinking_budget_tokens 6 allows six tokens of thought", _BUDGET, server="scripted")
def budget_6(ctx: Context) -> str:
    summary = _is_bounded(ctx, 6)
    expect(_thought(ctx, thinking_budget_tokens=6), "budget 6 allowed no thought at all")
    return summary


@promise("thinking.answer_after_budget", "the answer comes after a spent budget", _BUDGET, server="scripted")
def answer_after_budget(ctx: Context) -> str:
    for budget in (0, 1, 2, 6):
        answer = ctx.client.chat(PROMPT, max_tokens=_LIMIT, thinking_budget_tokens=budget)
        text, reason = said(answer), at(answer.body, "choices", 0, "finish_reason")
        expect(text.endswith(ANSWER), f"with budget {budget} the answer is {text[-80:]!r}")
        expect(reason == "stop", f"with budget {budget} finish_reason is {reason!r}")
    return f"{ANSWER!r} after budgets 0, 1, 2 and 6"


@promise(
    "thinking.can_be_turned_off",
    "chat_template_kwargs enable_thinking=false leaves thought out, for one request",
    "guide 07: enable_thinking is per request via chat_template_kwargs",
    server="scripted",
)
def can_be_turned_off(ctx: Context) -> str:
    on, off, on_again = _thought(ctx), _thought(ctx, **NO_THINKING), _thought(ctx)
    expect(on != off, f"enable_thinking changes nothing: {len(on)} words with and without it")
    expect(not off, f"enable_thinking=false let {len(off)} words of thought through")
    expect(on_again == on, "the next request did not think either")
    return f"{len(on)} words of thought, none when turned off"
