"""POST /v1/chat/completions: the contract with every OpenAI client."""

from __future__ import annotations

from typing import Any

from tasks.contracts.promises import Context, Unmet, at, expect, promise
from tasks.endpoint import Answer, Stream

NO_THINKING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
EXACT: dict[str, Any] = {"temperature": 0, "seed": 1, "cache_prompt": False, **NO_THINKING}
"""The same request gives the same answer: no chance, no cached prefix, no thinking where the template has a say."""
PROMPT = "Write one sentence about rivers."
OPENAI = "OpenAI API `POST /v1/chat/completions`"
EFFECT = f"{OPENAI}; guide 07: verify that parameters have effects"
_TRIES = 3
_STREAM_SHARE = 0.9  # a live stream has its first token before this share of the whole time
_STREAM_TOKENS = (12, 48, 192, 768)
"""Tokens of each try: a client that a busy machine stalls sees a short stream at once, however live it is."""


def said(answer: Answer) -> str:
    """Reasoning and content of a chat answer, one after the other. Raises Unmet when it is not a 200."""
    expect(answer.status == 200, f"{answer.path} answered {answer.status}")
    message = at(answer.body, "choices", 0, "message")
    return (message.get("reasoning_content") or "") + (message.get("content") or "")


def streamed(stream: Stream, field: str) -> str:
    """One field of all deltas of a stream, put together."""
    deltas = [choice.get("delta") or {} for event in stream.events for choice in event.get("choices") or []]
    return "".join(delta.get(field) or "" for delta in deltas)


@promise(
    "chat.answers",
    "an unstreamed chat answer is a chat.completion with an assistant's text",
    OPENAI,
    must=True,
    anywhere=True,
)
def answers(ctx: Context) -> str:
    answer = ctx.client.chat(PROMPT, max_tokens=12, **EXACT)
    text = said(answer)
    expect(at(answer.body, "object") == "chat.completion", f"object is {answer.body.get('object')!r}")
    expect(at(answer.body, "choices", 0, "message", "role") == "assistant", "the role is not assistant")
    expect(text.strip(), "the answer holds no text")
    return f"{len(text)} characters in {answer.seconds:.2f} s"


@promise("chat.usage", "usage counts prompt and completion tokens, and total is their sum", OPENAI, anywhere=True)
def usage(ctx: Context) -> str:
    answer = ctx.client.chat(PROMPT, max_tokens=4, **EXACT)
    counted = at(answer.body, "usage")
    prompt, completion, total = (at(counted, f"{part}_tokens") for part in ("prompt", "completion", "total"))
    expect(prompt > 0 and 0 < completion <= 4, f"usage counts {prompt} prompt and {completion} of at most 4 tokens")
    expect(total == prompt + completion, f"total_tokens is {total}, not {prompt} + {completion}")
    return f"{prompt} + {completion} = {total} tokens"


@promise(
    "chat.stream_usage",
    "a stream asked for usage (stream_options) counts tokens as the unstreamed answer does, and no other stream does",
    f"{OPENAI}, stream_options",
    server="scripted",
)
def stream_usage(ctx: Context) -> str:
    whole = at(ctx.client.chat(PROMPT, max_tokens=4, **EXACT).body, "usage")
    asked = ctx.client.stream(PROMPT, max_tokens=4, stream_options={"include_usage": True}, **EXACT)
    plain = ctx.client.stream(PROMPT, max_tokens=4, **EXACT)
    counted = [event["usage"] for event in asked.events if event.get("usage")]
    expect(counted, "no event of the stream has usage")
    for part in ("prompt_tokens", "completion_tokens", "total_tokens"):
        streams, answers = at(counted[-1], part), at(whole, part)
        expect(streams == answers, f"{part} is {streams} streamed and {answers} not")
    expect(not any(event.get("usage") for event in plain.events), "a stream that was not asked for usage has it too")
    return f"{at(counted[-1], 'total_tokens')} tokens in both"


@promise("chat.finish_length", "finish_reason is `length` when max_tokens ends the answer", OPENAI, server="scripted")
def finish_length(ctx: Context) -> str:
    answer = ctx.client.chat(PROMPT, max_tokens=2, **EXACT)
    reason = at(answer.body, "choices", 0, "finish_reason")
    expect(reason == "length", f"finish_reason is {reason!r} after 2 of 2 tokens")
    return "length"


@promise("chat.finish_stop", "finish_reason is `stop` when the model ends its turn", OPENAI, server="scripted")
def finish_stop(ctx: Context) -> str:
    answer = ctx.client.chat(PROMPT, max_tokens=64, **EXACT)
    reason = at(answer.body, "choices", 0, "finish_reason")
    expect(reason == "stop", f"finish_reason is {reason!r} after the model's end of turn")
    return "stop"


@promise("chat.max_tokens", "max_tokens bounds the answer", EFFECT, server="scripted", must=True)
def max_tokens(ctx: Context) -> str:
    whole = said(ctx.client.chat(PROMPT, **EXACT))
    cut = said(ctx.client.chat(PROMPT, max_tokens=3, **EXACT))
    expect(cut != whole, f"max_tokens changes nothing: {cut!r} with and without it")
    expect(whole.startswith(cut) and len(cut.split()) == 3, f"max_tokens 3 gives {cut!r}")
    return f"{len(cut.split())} words with it, {len(whole.split())} without"


@promise("chat.stop_sequence", "a stop sequence ends the answer before it", EFFECT, server="scripted")
def stop_sequence(ctx: Context) -> str:
    whole = said(ctx.client.chat(PROMPT, **EXACT))
    cut = said(ctx.client.chat(PROMPT, stop=["is"], **EXACT))
    expect(cut != whole, f"stop changes nothing: {cut!r} with and without it")
    expect(cut == whole.split("is", 1)[0], f"stop at 'is' gives {cut!r}")
    return f"{cut!r} of {whole!r}"


@promise("chat.stream_chunks", "a streamed answer comes in several chunks", OPENAI, server="scripted")
def stream_chunks(ctx: Context) -> str:
    stream = ctx.client.stream(PROMPT, max_tokens=12, **EXACT)
    expect(stream.status == 200, f"the stream answered {stream.status}")
    kinds = {event.get("object") for event in stream.events}
    expect(kinds == {"chat.completion.chunk"}, f"events are {sorted(map(str, kinds))}")
    expect(len(stream.events) >= 4, f"{len(stream.events)} chunks for 4 words")
    return f"{len(stream.events)} chunks"


@promise("chat.stream_live", "a stream sends tokens as they come, not all at the end", f"{OPENAI}; guide 05: TTFT")
def stream_live(ctx: Context) -> str:
    shares = []
    for tokens in _STREAM_TOKENS:
        stream = ctx.client.stream(PROMPT, max_tokens=tokens, ignore_eos=True, **EXACT)
        expect(stream.ttft_s is not None, "the stream holds no text")
        shares.append((stream.ttft_s or 0.0) / stream.arrived_s[-1])
        if shares[-1] < _STREAM_SHARE:
            return f"the first token came after {shares[-1]:.0%} of the time"
    raise Unmet(f"the first token came after {', '.join(f'{share:.0%}' for share in shares)} of the time")


@promise("chat.stream_ends", "a stream ends with a finish_reason and `[DONE]`", OPENAI, server="scripted", must=True)
def stream_ends(ctx: Context) -> str:
    stream = ctx.client.stream(PROMPT, max_tokens=4, **EXACT)
    expect(stream.finish_reason, "no chunk has a finish_reason")
    expect(stream.done, "the stream did not end with [DONE]")
    return f"{stream.finish_reason}, then [DONE]"


@promise(
    "chat.stream_same_text",
    "at temperature 0 a stream holds the unstreamed answer's text",
    OPENAI,
    must=True,
    anywhere=True,
)
def stream_same_text(ctx: Context) -> str:
    whole = said(ctx.client.chat(PROMPT, max_tokens=12, **EXACT))
    for _ in range(_TRIES):
        stream = ctx.client.stream(PROMPT, max_tokens=12, **EXACT)
        text = streamed(stream, "reasoning_content") + streamed(stream, "content")
        if text == whole:
            return f"the same {len(text)} characters"
        again = said(ctx.client.chat(PROMPT, max_tokens=12, **EXACT))
        if again != whole:  # what is batched together on a GPU moves what is said
            return f"unstreamed it is not the same twice: {whole!r}, {again!r}"
    raise Unmet(f"streamed {text!r}, unstreamed {whole!r}")
