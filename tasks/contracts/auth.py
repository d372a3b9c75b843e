"""The API key: who may ask."""

from __future__ import annotations

from tasks.contracts.promises import Context, expect, promise
from tasks.endpoint import chat_body

WRONG_KEY = "not-the-key"
_SOURCE = "llama.cpp tools/server/README.md `--api-key`; guide 04: 401 is a missing or invalid API key"
_POSTED = """
props completion completions v1/completions chat/completions v1/chat/completions v1/chat/completions/control api/chat
api/show responses v1/responses v1/messages v1/messages/count_tokens chat/completions/input_tokens
v1/chat/completions/input_tokens responses/input_tokens v1/responses/input_tokens audio/transcriptions
v1/audio/transcriptions infill embedding embeddings v1/embeddings rerank reranking v1/rerank v1/reranking v1/systemone
tokenize detokenize apply-template lora-adapters slots/0 models/load models/unload v1/streams/lookup cors-proxy tools
"""
_GOT = "props metrics slots lora-adapters models/sse v1/stream cors-proxy tools"
_DELETED = "v1/stream"
_ASK = chat_body("Hi", max_tokens=1)


def private_routes() -> list[tuple[str, str]]:
    """Every (method, path) that llama-server has had from b8672 to b11434, but for those that need no key.

    None has to be there: a route that a build does not have wants the key too.
    """
    named = (("POST", _POSTED), ("GET", _GOT), ("DELETE", _DELETED))
    return [(method, f"/{name}") for method, names in named for name in names.split()]


@promise("auth.right_key", "a chat with the right key is answered", _SOURCE, must=True)
def right_key(ctx: Context) -> str:
    expect(ctx.client.endpoint.api_key, "the server was started without a key")
    status = ctx.client.post("/v1/chat/completions", _ASK).status
    expect(status == 200, f"the right key got {status}")
    return "200"


def _are_closed(ctx: Context, key: str | None) -> str:
    statuses = {
        f"{method} {path}": ctx.client.request(method, path, _ASK if method == "POST" else None, key=key).status
        for method, path in private_routes()
    }
    open_to_all = {route: status for route, status in statuses.items() if status != 401}
    expect(not open_to_all, f"not refused: {open_to_all}")
    return f"401 from {len(statuses)} routes"


@promise("auth.no_key", "every route but /health and the list of models wants the key", _SOURCE, must=True)
def no_key(ctx: Context) -> str:
    status = ctx.client.post("/v1/chat/completions", _ASK, key=None).status
    expect(status == 401, f"a chat without a key got {status}")
    return _are_closed(ctx, None)


@promise("auth.wrong_key", "no route but /health and the list of models takes a wrong key", _SOURCE, must=True)
def wrong_key(ctx: Context) -> str:
    status = ctx.client.post("/v1/chat/completions", _ASK, key=WRONG_KEY).status
    expect(status == 401, f"a chat with a wrong key got {status}")
    return _are_closed(ctx, WRONG_KEY)


@promise(
    "auth.models",
    "the list of models wants the key too",
    f"{_SOURCE}; llama.cpp PR 26347",
    known="llama.cpp PR 26347: public until b9105, closed on b10605; it tells the model's name and path to anybody",
)
def models(ctx: Context) -> str:
    for path in ("/v1/models", "/models"):
        for answer in (ctx.client.get(path, key=None), ctx.client.get(path, key=WRONG_KEY)):
            expect(answer.status == 401, f"{path} answered {answer.status} without the right key")
    status = ctx.client.request("DELETE", "/models", key=WRONG_KEY).status  # it was the path alone that counted
    expect(status == 401, f"DELETE /models answered {status} to a wrong key")
    return "401"
