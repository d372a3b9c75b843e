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
LIMIT = 200  # tokens: more than the script has
_MARKS = ("<|channel>", "<channel|>")
_THOUGHT = re.compile(r"\bt\d+")
_BUDGET = "guide 01 row 8: thinking_budget_tokens silently ignored; llama.cpp PR 21418 lost it, PR 21697 mended it"
_PARSED = "llama.cpp tools/server/README.md `--reasoning-format`; guide 01 row 2; llama.cpp PR 21418 (Gemma 4 parser)"


def thought_in(text: str) -> list[str]:
    """The words of thought in a text."""
    return _THOUGHT.findall(text)


def bounds(free: list[str], bounded: list[str], budget: int, field: str) -> str:
    """A summary when a budget of thought had its effect. Raises Unmet that names the field when it had none."""
    expect(bounded != free, f"{field} changes nothing: {len(free)} words with and without it")
    expect(len(bounded) <= budget, f"budget {budget} let {len(bounded)} words of thought through")
    return f"{len(bounded)} words of thought with budget {budget}, {len(free)} without"


def _thought(ctx: Context, **params: Any) -> list[str]:
    return thought_in(said(ctx.client.chat(PROMPT, max_tokens=LIMIT, **params)))


def _is_apart(reasoning: str, content: str) -> str:
    leaked = [mark for mark in _MARKS if mark in reasoning + content]
    expect(not leaked, f"raw tokens in the answer: {leaked}")
    expect(not _THOUGHT.search(content), f"thought in the content: {content[:80]!r}")
    expect(len(_THOUGHT.findall(reasoning)) == WORDS, f"the reasoning is {reasoning[:80]!r}, not {WORDS} words")
    expect(content == ANSWER, f"the content is {content[:80]!r}, not {ANSWER!r}")
    return f"{WORDS} words of reasoning, then the answer"


def _is_bounded(ctx: Context, budget: int) -> str:
    return bounds(_thought(ctx), _thought(ctx, thinking_budget_tokens=budget), budget, "thinking_budget_tokens")


@promise(
    "thinking.parsed",
    "thought is reasoning_content, and none of it is in content",
    _PARSED,
    server="scripted",
    must=True,
)
def parsed(ctx: Context) -> str:
    answer = ctx.client.chat(PROMPT, max_tokens=LIMIT)
    expect(answer.status == 200, f"the chat answered {answer.status}")
    message = at(answer.body, "choices", 0, "message")
    return _is_apart(message.get("reasoning_content") or "", message.get("content") or "")


@promise(
    "thinking.parsed_streamed", "a stream keeps thought and content apart too", _PARSED, server="scripted", must=True
)
def parsed_streamed(ctx: Context) -> str:
    stream = ctx.client.stream(PROMPT, max_tokens=LIMIT)
    expect(stream.status == 200, f"the stream answered {stream.status}")
    return _is_apart(streamed(stream, "reasoning_content"), streamed(stream, "content"))


@promise("thinking.budget_0", "thinking_budget_tokens 0 allows no thought", _BUDGET, server="scripted", must=True)
def budget_0(ctx: Context) -> str:
    return _is_bounded(ctx, 0)


@promise(
    "thinking.budget_1", "thinking_budget_tokens 1 allows one token of thought", _BUDGET, server="scripted", must=True
)
def budget_1(ctx: Context) -> str:
    return _is_bounded(ctx, 1)


@promise(
    "thinking.budget_2", "thinking_budget_tokens 2 allows two tokens of thought", _BUDGET, server="scripted", must=True
)
def budget_2(ctx: Context) -> str:
    return _is_bounded(ctx, 2)


@promise(
    "thinking.budget_6", "thinking_budget_tokens 6 allows six tokens of thought", _BUDGET, server="scripted", must=True
)
def budget_6(ctx: Context) -> str:
    summary = _is_bounded(ctx, 6)
    expect(_thought(ctx, thinking_budget_tokens=6), "budget 6 allowed no thought at all")
    return summary


@promise("thinking.budget_large", "a budget larger than the thought leaves it whole", _BUDGET, server="scripted")
def budget_large(ctx: Context) -> str:
    small, large = (_thought(ctx, thinking_budget_tokens=budget) for budget in (6, LIMIT))
    expect(large != small, f"budgets 6 and {LIMIT} both let {len(small)} words of thought through")
    expect(len(large) == WORDS, f"budget {LIMIT} let {len(large)} of {WORDS} words of thought through")
    return f"{len(large)} words of thought with budget {LIMIT}, {len(small)} with 6"


@promise(
    "thinking.reasoning_budget",
    "reasoning_budget_tokens is the budget too",
    "llama.cpp tools/server/README.md `reasoning_budget_tokens`; guide 07: verify that parameters have effects",
    server="scripted",
    known="the field came after b9105; before, a chat ignored it (thinking_budget_tokens works on every build)",
)
def reasoning_budget(ctx: Context) -> str:
    return bounds(_thought(ctx), _thought(ctx, reasoning_budget_tokens=6), 6, "reasoning_budget_tokens")


@promise(
    "thinking.effort_none",
    "reasoning_effort `none` leaves thought out",
    "OpenAI API `POST /v1/chat/completions`, reasoning_effort",
    server="scripted",
    known="llama.cpp PR 26045: ignored before; chat_template_kwargs turns thought off on every build",
)
def effort_none(ctx: Context) -> str:
    return bounds(_thought(ctx), _thought(ctx, reasoning_effort="none"), 0, "reasoning_effort none")


@promise(
    "thinking.adaptive",
    "a model that does not think answers all the same, with thinking on and with a budget",
    "guide 07: thinking is adaptive, don't assume that it will always happen",
    server="counting",
)
def adaptive(ctx: Context) -> str:
    plain = ctx.client.chat(PROMPT, max_tokens=LIMIT, temperature=0)
    for params in ({"chat_template_kwargs": {"enable_thinking": True}}, {"thinking_budget_tokens": 6}):
        answer = ctx.client.chat(PROMPT, max_tokens=LIMIT, temperature=0, **params)
        message = at(answer.body, "choices", 0, "message")
        expect(not message.get("reasoning_content"), f"with {params} it thinks: {message.get('reasoning_content')!r}")
        expect(said(answer) == said(plain), f"with {params} the answer is {said(answer)[:60]!r}")
    return f"{len(said(plain).split())} words, no thought"


@promise("thinking.answer_after_budget", "the answer comes after a spent budget", _BUDGET, server="scripted")
def answer_after_budget(ctx: Context) -> str:
    for budget in (0, 1, 2, 6):
        answer = ctx.client.chat(PROMPT, max_tokens=LIMIT, thinking_budget_tokens=budget)
        text, reason = said(answer), at(answer.body, "choices", 0, "finish_reason")
        expect(text.endswith(ANSWER), f"with budget {budget} the answer is {text[-80:]!r}")
        expect(reason == "stop", f"with budget {budget} finish_reason is {reason!r}")
    return f"{ANSWER!r} after budgets 0, 1, 2 and 6"


@promise(
    "thinking.can_be_turned_off",
    "chat_template_kwargs enable_thinking turns thought on and off, for one request",
    "guide 07: enable_thinking is per request via chat_template_kwargs",
    server="scripted",
)
def can_be_turned_off(ctx: Context) -> str:
    wanted = {"chat_template_kwargs": {"enable_thinking": True}}
    on, off, on_again = _thought(ctx, **wanted), _thought(ctx, **NO_THINKING), _thought(ctx)
    expect(on != off, f"enable_thinking changes nothing: {len(on)} words with and without it")
    expect(not off, f"enable_thinking=false let {len(off)} words of thought through")
    expect(on_again == on, "the next request did not think either")
    return f"{len(on)} words of thought, none when turned off"
