"""Twins: two ways of asking for the same must be answered with the same.

Checked on the models whose words are a script, so that no difference is chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tasks.contracts.chat import EXACT, NO_THINKING
from tasks.contracts.conversations import bodies
from tasks.contracts.promises import Context, at, expect, promise, slot_count
from tasks.contracts.sampling import NEUTRAL, token_of
from tasks.contracts.sampling import PROMPT as COUNT
from tasks.contracts.sayings import READERS, Saying, differences
from tasks.contracts.scripted import TURN_END
from tasks.contracts.thinking import LIMIT, PROMPT
from tasks.contracts.toolbox import PROMPT as CALL
from tasks.contracts.toolbox import TOOLS
from tasks.contracts.wire import Wire
from tasks.endpoint import chat_body

CHAT, COMPLETIONS, NATIVE, RESPONSES, MESSAGES = READERS
_OPENAI = "OpenAI API, streaming: the deltas of a stream make up the answer"
_SAME: dict[str, Any] = {"temperature": 0, "seed": 1, "cache_prompt": False}
_USER = [{"role": "user", "content": PROMPT}]
_OFF: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
_AFTER = "model\n<channel|>"  # the scripted models answer at once
_TRIES = 2  # more; on a GPU that others use too, what is batched together moves what is said
StatusAndBody = tuple[int, Any]
_ENDED = ("stop", "tool_calls", "eos", "word", "end_turn", "stop_sequence", "tool_use")  # of itself, not by the limit


def ask(ctx: Context, route: str, body: dict[str, Any]) -> list[Saying]:
    """What a whole answer says, choice by choice. Raises Unmet when it is none."""
    answer = ctx.client.post(route, body)
    expect(answer.status == 200, f"{route} answered {answer.status}: {str(answer.body)[:120]}")
    return READERS[route][0](answer.body)


def ask_streamed(ctx: Context, route: str, body: dict[str, Any]) -> list[Saying]:
    """What a streamed answer says, choice by choice. Raises Unmet when no client could put it together."""
    asked = {**body, "stream": True}
    if route in (CHAT, COMPLETIONS):
        asked["stream_options"] = {"include_usage": True}
    answer = ctx.client.post(route, asked)
    expect(answer.status == 200, f"{route} answered {answer.status} to a stream: {str(answer.body)[:120]}")
    kind = answer.headers.get("content-type", "text/event-stream")
    expect(kind.startswith("text/event-stream"), f"a stream of {route} is {kind!r}")
    return READERS[route][1](answer.body)


def agree(ctx: Context, route: str, variants: Iterable[dict[str, Any]]) -> str:
    """A summary when each of these requests is answered the same whole and streamed.

    What a server does not say twice in the same words is no fault of its streams: a field counts where its whole
    answers agree on it, and each of its streams says something else.
    """
    count = 0
    for body in variants:
        whole, apart = _compared(ctx, route, body)
        for _ in range(_TRIES if apart else 0):
            again, still = _compared(ctx, route, body)
            unsteady = {name for one, other in zip(whole, again, strict=False) for name in differences(one, other)}
            apart = {name: said for name, said in apart.items() if name in still and name not in unsteady}
        said = "; ".join(f"{name}: {each}" for name, each in apart.items())
        expect(not apart, f"whole and streamed differ in {said} ({_but(body)})")
        count += 1
    return f"{count} requests of {route}, the same whole and streamed"


def _compared(ctx: Context, route: str, body: dict[str, Any]) -> tuple[list[Saying], dict[str, str]]:
    """(the whole answer, what of a field is streamed otherwise), but for what stops.held_back tells of."""
    whole, streamed = ask(ctx, route, body), ask_streamed(ctx, route, body)
    expect(len(whole) == len(streamed), f"{len(whole)} choices whole, {len(streamed)} streamed")
    stops = (*body.get("stop", ()), *body.get("stop_sequences", ()))
    apart: dict[str, str] = {}
    for one, other in zip(whole, streamed, strict=True):
        apart |= differences(one, other if one.reason in _ENDED else _with_held_back(one, other, stops))
    return whole, apart


def _with_held_back(whole: Saying, streamed: Saying, stops: Sequence[str]) -> Saying:
    """The stream with what it lacks at its end, where that might have begun a stop sequence."""

    def completed(said: str, sent: str) -> str:
        held = said.startswith(sent) and any(stop.startswith(said.removeprefix(sent)) for stop in stops)
        return said if held else sent

    return replace(
        streamed,
        content=completed(whole.content, streamed.content),
        reasoning=completed(whole.reasoning, streamed.reasoning),
    )


def _but(body: dict[str, Any]) -> str:
    left = {n: v for n, v in body.items() if n not in ("messages", "input", "prompt", "tools", *_SAME)}
    return json.dumps(left)[:160]


def _chats(messages: Any, *more: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"messages": messages, "max_tokens": LIMIT, **_SAME, **each} for each in more]


@promise(
    "twins.chat",
    "a streamed chat makes up the unstreamed answer, and counts as it does",
    _OPENAI,
    server="scripted",
    anywhere=True,
)
def chats(ctx: Context) -> str:
    thinks: tuple[dict[str, Any], ...] = ({}, {"max_tokens": 7}, {"thinking_budget_tokens": 3}, {"stop": ["t5 t6"]})
    answers: tuple[dict[str, Any], ...] = ({}, {"max_tokens": 2}, {"stop": ["answer is"]}, {"stop": ["no", "wer i"]})
    return agree(ctx, CHAT, _chats(_USER, *thinks, *(_OFF | each for each in answers)))


@promise(
    "twins.completions",
    "a streamed completion makes up the unstreamed one, and counts as it does",
    _OPENAI,
    server="scripted",
    anywhere=True,
)
def completions(ctx: Context) -> str:
    asked = {"prompt": _AFTER, "max_tokens": LIMIT, **_SAME}
    return agree(ctx, COMPLETIONS, (asked | each for each in ({}, {"max_tokens": 2}, {"stop": ["answer is"]})))


@promise(
    "twins.native",
    "a streamed /completion makes up the unstreamed one, stop type and stop word too",
    "llama.cpp tools/server/README.md `POST /completion`",
    server="scripted",
    anywhere=True,
)
def native(ctx: Context) -> str:
    asked = {"prompt": _AFTER, "n_predict": LIMIT, **_SAME}
    more: tuple[dict[str, Any], ...] = ({}, {"n_predict": 2}, {"stop": ["answer is"]}, {"n_probs": 3})
    return agree(ctx, NATIVE, (asked | each for each in more))


@promise(
    "twins.responses",
    "a streamed response makes up the unstreamed one, and counts as it does",
    "OpenAI API `POST /v1/responses`, streaming events",
    server="scripted",
    anywhere=True,
)
def responses(ctx: Context) -> str:
    asked = bodies(_USER, LIMIT, **_SAME)[RESPONSES]
    return agree(
        ctx, RESPONSES, (asked | each for each in ({}, _OFF, {"max_output_tokens": 7}, _OFF | {"stop": ["is"]}))
    )


@promise(
    "twins.messages",
    "a streamed message makes up the unstreamed one, and counts as it does",
    "Anthropic API `POST /v1/messages`, streaming events",
    server="scripted",
    anywhere=True,
)
def messages(ctx: Context) -> str:
    asked = bodies(_USER, LIMIT, **_SAME)[MESSAGES]
    more: tuple[dict[str, Any], ...] = ({}, _OFF, {"max_tokens": 7}, _OFF | {"stop_sequences": ["is"]})
    return agree(ctx, MESSAGES, (asked | each for each in more))


def _calls(route: str) -> dict[str, Any]:
    return bodies([{"role": "user", "content": CALL}], 60, TOOLS, **_SAME)[route]


@promise(
    "twins.chat_calls",
    "streamed tool calls make up the unstreamed ones: index, id, type, name and arguments",
    f"{_OPENAI}; llama.cpp issue 18591",
    server="calling",
)
def chat_calls(ctx: Context) -> str:
    two: dict[str, Any] = {"parallel_tool_calls": True, "logit_bias": [[token_of(ctx, TURN_END), -100]]}
    return agree(ctx, CHAT, [_calls(CHAT), _calls(CHAT) | two | {"max_tokens": 6}])


@promise(
    "twins.responses_calls",
    "a streamed response's function calls make up the unstreamed ones",
    "OpenAI API `POST /v1/responses`, streaming events",
    server="calling",
    known="b9105: a streamed function_call has no id, so its deltas are of nothing",
)
def responses_calls(ctx: Context) -> str:
    return agree(ctx, RESPONSES, [_calls(RESPONSES)])


@promise(
    "twins.messages_calls",
    "a streamed message's tool uses make up the unstreamed ones",
    "Anthropic API `POST /v1/messages`, streaming events",
    server="calling",
)
def messages_calls(ctx: Context) -> str:
    return agree(ctx, MESSAGES, [_calls(MESSAGES)])


@promise(
    "twins.logprobs",
    "a stream tells each token's log-probability as the unstreamed answer does",
    "OpenAI API `POST /v1/chat/completions`, logprobs",
    server="counting",
    anywhere=True,
)
def logprobs(ctx: Context) -> str:
    asked = {**NO_THINKING, "logprobs": True, "top_logprobs": 3, "max_tokens": 12, "seed": 3, "temperature": 1.5}
    said = agree(ctx, CHAT, [{**chat_body(COUNT), **_SAME, **asked}])
    (whole,) = ask(ctx, CHAT, {**chat_body(COUNT), **_SAME, **asked})
    tokens = "".join(token for token, _, _ in json.loads(whole.logprobs or "[]"))
    # a thought has tokens that are in no content, and a character may be cut into tokens that are no text
    told = whole.content.strip() in tokens or "\ufffd" in tokens
    expect(told, f"the log-probabilities are of {tokens!r}, the text is {whole.content!r}")
    return said


@promise(
    "twins.choices",
    "n gives n answers, by index, whole and streamed",
    "OpenAI API `POST /v1/chat/completions`, n",
    server="counting",
)
def choices(ctx: Context) -> str:
    if slot_count(ctx) < 2:
        return "one slot: one answer"
    asked = {**chat_body(COUNT), **NEUTRAL, **_SAME, "temperature": 1.5, "max_tokens": 12}
    different = set()
    for seed in range(4):
        whole, streamed = (each(ctx, CHAT, {**asked, "n": 2, "seed": seed}) for each in (ask, ask_streamed))
        expect([len(whole), len(streamed)] == [2, 2], f"n 2 gives {len(whole)} choices whole, {len(streamed)} streamed")
        texts = [[said.content for said in each] for each in (whole, streamed)]
        expect(texts[0] == texts[1], f"whole the choices are {texts[0]}, streamed {texts[1]}")
        different.add(texts[0][0] == texts[0][1])
    expect(False in different, "the two answers of n 2 were the same with each of 4 seeds")
    return "2 answers to n 2"


def _as_chat_says(ctx: Context, asked: dict[str, dict[str, Any]]) -> str:
    (chat,) = ask(ctx, CHAT, asked[CHAT])
    for route in (RESPONSES, MESSAGES):
        (said,) = ask(ctx, route, asked[route])
        for name in ("content", "reasoning", "calls", "model", "read", "wrote"):
            one, other = getattr(chat, name), getattr(said, name)
            expect(one == other, f"{name} is {str(one)[-60:]!r} of a chat, {str(other)[-60:]!r} of {route}")
    return f"{chat.read} and {chat.wrote} tokens in each"


@promise(
    "twins.apis_agree",
    "chat completions, responses, messages and completions answer a conversation alike",
    "guide 07: Cursor, Codex CLI and Claude Code talk to one model",
    server="scripted",
)
def apis_agree(ctx: Context) -> str:
    turns = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "So."}, {"role": "user", "content": PROMPT},
    ]  # fmt: skip
    for params in (_SAME, _SAME | _OFF):
        said = _as_chat_says(ctx, bodies(turns, LIMIT, **params))
    prompt = at(ctx.client.post("/apply-template", {"messages": turns, **_OFF}).body, "prompt")
    (chat,) = ask(ctx, CHAT, bodies(turns, LIMIT, **_SAME, **_OFF)[CHAT])
    (completed,) = ask(ctx, COMPLETIONS, {"prompt": prompt, "max_tokens": LIMIT, **_SAME})
    for name in ("content", "read", "wrote"):
        one, other = getattr(chat, name), getattr(completed, name)
        expect(one == other, f"{name} is {one!r} of a chat, {other!r} of a completion of its prompt")
    return said


@promise(
    "twins.apis_agree_on_calls",
    "a conversation with tool calls and results reads and says the same on each API",
    "guide 07: Cursor, Codex CLI and Claude Code talk to one model",
    server="calling",
)
def apis_agree_on_calls(ctx: Context) -> str:
    first: list[dict[str, Any]] = [{"role": "user", "content": CALL}]
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"days":3}'}}
    second = [
        *first, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]  # fmt: skip
    return ", ".join(_as_chat_says(ctx, bodies(turns, 60, TOOLS, **_SAME)) for turns in (first, second))


def _spelled(body: dict[str, Any], served: str) -> Sequence[tuple[str, str, Any]]:
    """(what is other about it, route, body) of the same request."""
    parts = [{"role": "user", "content": [{"type": "text", "text": body["messages"][0]["content"]}]}]
    without = {name: value for name, value in body.items() if name != "max_tokens"}
    return [
        ("the route without /v1", "/chat/completions", body),
        ("max_completion_tokens", CHAT, {**without, "max_completion_tokens": body["max_tokens"]}),
        ("n_predict", CHAT, {**without, "n_predict": body["max_tokens"]}),
        ("fields in another order", CHAT, dict(reversed(body.items()))),
        ("content in parts", CHAT, {**body, "messages": parts}),
        ("its model named", CHAT, {**body, "model": served}),  # of another one errors.unknown_model tells
        ("a field that nobody knows", CHAT, {**body, "x-unknown": {"a": [1]}}),
        ("a stop that never comes", CHAT, {**body, "stop": ["never said"]}),
        ("n 1", CHAT, {**body, "n": 1}),
        ("stream false", CHAT, {**body, "stream": False}),
        ("the same once more", CHAT, body),
    ]


@promise(
    "twins.spellings",
    "the same request in other words gets the same answer",
    "OpenAI API `POST /v1/chat/completions`; JSON, RFC 8259: order and escapes mean nothing",
    server="scripted",
    anywhere=True,
)
def spellings(ctx: Context) -> str:
    body = {**chat_body(PROMPT + " \u00e4\U0001f600"), "max_tokens": 12, **EXACT, "chat_template_kwargs": {}}

    def plain() -> StatusAndBody:
        answer = ctx.client.post(CHAT, body)
        return answer.status, answer.body

    status, said = plain()
    expect(status == 200, f"a chat answered {status}")
    wanted = _told(said)
    with ctx.client.wire() as wire:
        ways = _ways(ctx, wire, body)
        for what, way in ways.items():
            for _ in range(1 + _TRIES):
                status, said = way()
                expect(status == 200, f"with {what} it answered {status}")
                if _told(said) == wanted or _told(plain()[1]) != wanted:
                    break
            else:
                expect(False, f"with {what} the answer is {_told(said)}, not {wanted}")
    return f"{len(ways)} ways to ask, one answer"


def _ways(ctx: Context, wire: Wire, body: dict[str, Any]) -> Mapping[str, Callable[[], StatusAndBody]]:
    """What is other about it -> asks the same in that way."""
    raw = json.dumps(body).encode()

    def post(route: str, other: Any) -> StatusAndBody:
        answer = ctx.client.post(route, other)
        return answer.status, answer.body

    def write(content: bytes) -> StatusAndBody:
        answer = ctx.client.request("POST", CHAT, content=content)
        return answer.status, answer.body

    def send(sent: bytes | list[bytes]) -> StatusAndBody:
        heard = wire.ask("POST", CHAT, [ctx.client.bearer], sent)
        return heard.status, json.loads(heard.body)

    return (
        {what: partial(post, route, other) for what, route, other in _spelled(body, ctx.release.alias)}
        | {what: partial(write, content) for what, content in _written(body).items()}
        | {"chunks": partial(send, [raw[:9], raw[9:40], raw[40:]])}
        | {what: partial(send, raw) for what in ("one piece", "one piece, again")}
    )


def _written(body: dict[str, Any]) -> dict[str, bytes]:
    return {
        "escapes": json.dumps(body, ensure_ascii=True).encode(),
        "plain UTF-8": json.dumps(body, ensure_ascii=False).encode(),
        "much white space": json.dumps(body, indent=4).encode() + b"\r\n ",
    }


def _told(body: Any) -> str:
    choice = at(body, "choices", 0)
    usage = {name: at(body, "usage", name) for name in ("prompt_tokens", "completion_tokens")}
    return json.dumps([at(choice, "message"), at(choice, "finish_reason"), usage], sort_keys=True)
