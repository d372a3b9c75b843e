"""The API key: who may ask."""

from __future__ import annotations

from tasks.contracts.promises import Context, expect, promise
from tasks.endpoint import chat_body

WRONG_KEY = "not-the-key"
_SOURCE = "llama.cpp tools/server/README.md `--api-key`; guide 04: 401 is a missing or invalid API key"
_POSTED = (
    "/props", "/completion", "/completions", "/v1/completions", "/chat/completions", "/v1/chat/completions",
    "/api/chat", "/api/show", "/v1/chat/completions/control", "/responses", "/v1/responses", "/v1/messages",
    "/v1/messages/count_tokens", "/chat/completions/input_tokens", "/v1/chat/completions/input_tokens",
    "/responses/input_tokens", "/v1/responses/input_tokens", "/audio/transcriptions", "/v1/audio/transcriptions",
    "/infill", "/embedding", "/embeddings", "/v1/embeddings", "/rerank", "/reranking", "/v1/rerank", "/v1/reranking",
    "/v1/systemone", "/tokenize", "/detokenize", "/apply-template", "/lora-adapters", "/slots/0",
    "/models/load", "/models/unload", "/v1/streams/lookup", "/cors-proxy", "/tools",
)  # fmt: skip
_GOT = ("/props", "/metrics", "/slots", "/lora-adapters", "/models/sse", "/v1/stream", "/cors-proxy", "/tools")
_DELETED = ("/v1/stream",)
PRIVATE = tuple(
    (method, path) for method, paths in (("POST", _POSTED), ("GET", _GOT), ("DELETE", _DELETED)) for path in paths
)
"""Every (method, path) that llama-server has had from b8672 to b11434, but for those that need no key: a route that a
build does not have wants the key too."""
MODELS = (("GET", "/models"), ("GET", "/v1/models"), ("POST", "/models"), ("DELETE", "/models"))
"""Routes that needed no key at first: llama-server looks at the path alone, whatever the method."""
_ASK = chat_body("Hi", max_tokens=1)


@promise("auth.right_key", "a chat with the right key is answered", _SOURCE, must=True)
def right_key(ctx: Context) -> str:
    expect(ctx.client.endpoint.api_key, "the server was started without a key")
    status = ctx.client.post("/v1/chat/completions", _ASK).status
    expect(status == 200, f"the right key got {status}")
    return "200"


def _is_closed(ctx: Context, routes: tuple[tuple[str, str], ...], key: str | None, how: str) -> str:
    body = {"POST": _ASK}
    statuses = {
        f"{method} {path}": ctx.client.request(method, path, body.get(method), key=key).status
        for method, path in routes
    }
    open_to_all = {route: status for route, status in statuses.items() if status != 401}
    expect(not open_to_all, f"{how}: {open_to_all}")
    return f"401 from {len(statuses)} routes"


@promise("auth.no_key", "every route but /health and the list of models wants the key", _SOURCE, must=True)
def no_key(ctx: Context) -> str:
    return _is_closed(ctx, PRIVATE, None, "without a key")


@promise("auth.wrong_key", "no route but /health and the list of models takes a wrong key", _SOURCE, must=True)
def wrong_key(ctx: Context) -> str:
    return _is_closed(ctx, PRIVATE, WRONG_KEY, "with a wrong key")


@promise(
    "auth.models",
    "the list of models wants the key too",
    f"{_SOURCE}; llama.cpp PR 26347",
    known="llama.cpp PR 26347: public until b9105, closed on b10605; it tells the model's name and path to anybody",
)
def models(ctx: Context) -> str:
    _is_closed(ctx, MODELS, None, "without a key")
    return _is_closed(ctx, MODELS, WRONG_KEY, "with a wrong key")
