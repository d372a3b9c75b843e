"""The API key: who may ask."""

from __future__ import annotations

from tasks.contracts.promises import Context, expect, promise
from tasks.endpoint import chat_body

WRONG_KEY = "not-the-key"
_SOURCE = "llama.cpp tools/server/README.md `--api-key`; guide 04: 401 is a missing or invalid API key"
_PRIVATE = ("/metrics", "/props", "/slots")  # /v1/models is left out: public until b9105, private from b10605 on
_ASK = chat_body("Hi", max_tokens=1)


@promise("auth.right_key", "a chat with the right key is answered", _SOURCE)
def right_key(ctx: Context) -> str:
    expect(ctx.client.endpoint.api_key, "the server was started without a key")
    status = ctx.client.post("/v1/chat/completions", _ASK).status
    expect(status == 200, f"the right key got {status}")
    return "200"


@promise("auth.no_key", "a chat without a key gets 401", _SOURCE)
def no_key(ctx: Context) -> str:
    status = ctx.client.post("/v1/chat/completions", _ASK, key=None).status
    expect(status == 401, f"no key got {status}")
    return "401"


@promise("auth.wrong_key", "a chat with a wrong key gets 401", _SOURCE)
def wrong_key(ctx: Context) -> str:
    status = ctx.client.post("/v1/chat/completions", _ASK, key=WRONG_KEY).status
    expect(status == 401, f"a wrong key got {status}")
    return "401"


@promise("auth.private_routes", f"{', '.join(_PRIVATE)} want the key", _SOURCE)
def private_routes(ctx: Context) -> str:
    statuses = {path: ctx.client.get(path, key=None).status for path in _PRIVATE}
    open_to_all = {path: status for path, status in statuses.items() if status != 401}
    expect(not open_to_all, f"without a key: {open_to_all}")
    return f"401 from {len(statuses)} routes"
