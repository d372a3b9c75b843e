"""Bad requests: refused as the client's fault, and without harm."""

from __future__ import annotations

from collections.abc import Callable

from tasks.contracts.auth import WRONG_KEY
from tasks.contracts.promises import Context, at, expect, promise, slot_tokens
from tasks.endpoint import Answer

_ROUTE = "/v1/chat/completions"
_MALFORMED = b'{"messages": [{"role": "user", "content": '
_PADDING_BYTES = 16 << 20  # as much as a few photographs in base64
_SOURCE = "OpenAI API errors: a request that is wrong is a 4xx; guide 05: alert on 5xx"


@promise(
    "errors.malformed_json",
    "a body that is not JSON gets a 4xx",
    _SOURCE,
    known="a 500 on b8672, b9105 and b10605, a 400 on b11434",
    anywhere=True,
)
def malformed_json(ctx: Context) -> str:
    status = ctx.client.request("POST", _ROUTE, content=_MALFORMED).status
    expect(400 <= status < 500, f"malformed JSON got {status}")
    return str(status)


@promise("errors.missing_messages", "a chat without `messages` gets a 4xx", _SOURCE, anywhere=True)
def missing_messages(ctx: Context) -> str:
    status = ctx.client.post(_ROUTE, {"max_tokens": 1}).status
    expect(400 <= status < 500, f"a chat without messages got {status}")
    return str(status)


@promise("errors.wrong_type", "a chat whose `messages` is no list gets a 4xx", _SOURCE, anywhere=True)
def wrong_type(ctx: Context) -> str:
    status = ctx.client.post(_ROUTE, {"messages": "Hi", "max_tokens": 1}).status
    expect(400 <= status < 500, f"messages as a string got {status}")
    return str(status)


@promise(
    "errors.wrong_value",
    "a parameter of a wrong type gets a 4xx",
    _SOURCE,
    known="old builds take the default for it and say nothing",
)
def wrong_value(ctx: Context) -> str:
    for name, value in (("temperature", "hot"), ("max_tokens", "many")):
        status = ctx.client.chat("Hi", **{"max_tokens": 1, name: value}).status
        expect(400 <= status < 500, f"{name} {value!r} got {status}")
    return "temperature and max_tokens refused"


@promise(
    "errors.wrong_tools",
    "tools that are no list get a 4xx",
    _SOURCE,
    known="a 500 on every build from b8672 to b11434: the right words, the wrong side blamed",
)
def wrong_tools(ctx: Context) -> str:
    status = ctx.client.chat("Hi", max_tokens=1, tools="all").status
    expect(400 <= status < 500, f"tools 'all' got {status}")
    return str(status)


@promise("errors.object", "a refused request gets an error object with code, message and type", _SOURCE, anywhere=True)
def error_object(ctx: Context) -> str:
    ask: dict[str, Callable[[], Answer]] = {
        "no messages": lambda: ctx.client.post(_ROUTE, {"max_tokens": 1}),
        "an unknown route": lambda: ctx.client.get("/v1/nothing"),
    }
    if ctx.client.endpoint.api_key:  # a server without one refuses nobody
        ask["a wrong key"] = lambda: ctx.client.post("/tokenize", {"content": "Hi"}, key=WRONG_KEY)
    kinds = []
    for what, refused in ask.items():
        answer = refused()
        error = at(answer.body, "error")
        expect(at(error, "code") == answer.status, f"{what}: code {error.get('code')!r} with status {answer.status}")
        expect(at(error, "message") and at(error, "type"), f"{what}: message or type is empty")
        kinds.append(f"{what}: {error['type']}")
    return ", ".join(kinds)


@promise("errors.unknown_route", "an unknown route gets 404", _SOURCE, anywhere=True)
def unknown_route(ctx: Context) -> str:
    status = ctx.client.get("/v1/nothing").status
    expect(status == 404, f"an unknown route got {status}")
    return "404"


@promise(
    "errors.unknown_model",
    "a chat with a model that is not served gets 404",
    "OpenAI API errors, model_not_found",
    known="with one model llama-server answers whatever model is named; it names the served one in its answer",
)
def unknown_model(ctx: Context) -> str:
    status = ctx.client.chat("Hi", max_tokens=1, model="no-such-model").status
    expect(status == 404, f"an unknown model got {status}")
    return "404"


@promise(
    "errors.too_long",
    "the error of a prompt that is too long says how long it is and what fits",
    "llama.cpp exceed_context_size_error: n_prompt_tokens and n_ctx; guide 05: errors must show what was wrong",
)
def too_long(ctx: Context) -> str:
    fits = slot_tokens(ctx)
    answer = ctx.client.chat("river " * (fits + 64), max_tokens=1)
    error = at(answer.body, "error")
    came, limit = at(error, "n_prompt_tokens"), at(error, "n_ctx")
    expect(came > limit == fits, f"the error speaks of {came} tokens and a limit of {limit}; a slot has {fits}")
    return f"{came} tokens, {limit} fit"


@promise(
    "errors.large_body",
    "a body of 16 MB is read whole and answered, or refused with 413",
    "guide 08: vision and text; an image travels in the body as base64",
)
def large_body(ctx: Context) -> str:
    status = ctx.client.chat("Hi", max_tokens=1, metadata={"padding": "x" * _PADDING_BYTES}).status
    expect(status in (200, 413), f"a body of {_PADDING_BYTES >> 20} MB got {status}")
    return str(status)


@promise("errors.survives", "after bad requests the server is healthy and answers", _SOURCE, must=True, anywhere=True)
def survives(ctx: Context) -> str:
    # An empty list is here and not above: Gemma 4's template fails on it, a 500 on every build seen (b8672...b11434).
    bodies: tuple[object, ...] = ({}, [], {"messages": [], "max_tokens": 1})
    bad = [ctx.client.request("POST", _ROUTE, content=_MALFORMED), *(ctx.client.post(_ROUTE, body) for body in bodies)]
    health, chat = ctx.client.get("/health").status, ctx.client.chat("Hi", max_tokens=1).status
    expect(health == 200, f"/health answered {health} after bad requests")
    expect(chat == 200, f"a good request got {chat} after bad ones")
    return f"bad requests got {[answer.status for answer in bad]}, then all is well"
