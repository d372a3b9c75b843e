"""Bad requests: refused as the client's fault, and without harm."""

from __future__ import annotations

from tasks.contracts.promises import Context, expect, promise

_ROUTE = "/v1/chat/completions"
_MALFORMED = b'{"messages": [{"role": "user", "content": '
_SOURCE = "OpenAI API errors: a request that is wrong is a 4xx; guide 05: alert on 5xx"


@promise("errors.malformed_json", "a body that is not JSON gets a 4xx", f"{_SOURCE} (500 on old builds, b8672)")
def malformed_json(ctx: Context) -> str:
    status = ctx.client.request("POST", _ROUTE, content=_MALFORMED).status
    expect(400 <= status < 500, f"malformed JSON got {status}")
    return str(status)


@promise("errors.missing_messages", "a chat without `messages` gets a 4xx", _SOURCE)
def missing_messages(ctx: Context) -> str:
    status = ctx.client.post(_ROUTE, {"max_tokens": 1}).status
    expect(400 <= status < 500, f"a chat without messages got {status}")
    return str(status)


@promise("errors.wrong_type", "a chat whose `messages` is no list gets a 4xx", _SOURCE)
def wrong_type(ctx: Context) -> str:
    status = ctx.client.post(_ROUTE, {"messages": "Hi", "max_tokens": 1}).status
    expect(400 <= status < 500, f"messages as a string got {status}")
    return str(status)


@promise("errors.survives", "after bad requests the server is healthy and answers", _SOURCE)
def survives(ctx: Context) -> str:
    # An empty list is here and not above: Gemma 4's template fails on it, a 500 on every build seen (b8672...b11434).
    bodies: tuple[object, ...] = ({}, [], {"messages": [], "max_tokens": 1})
    bad = [ctx.client.request("POST", _ROUTE, content=_MALFORMED), *(ctx.client.post(_ROUTE, body) for body in bodies)]
    health, chat = ctx.client.get("/health").status, ctx.client.chat("Hi", max_tokens=1).status
    expect(health == 200, f"/health answered {health} after bad requests")
    expect(chat == 200, f"a good request got {chat} after bad ones")
    return f"bad requests got {[answer.status for answer in bad]}, then all is well"
