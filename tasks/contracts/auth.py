"""The API key: who may ask."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

from modal_app.redaction import SHORTEST
from tasks.contracts.promises import LAST, Context, Routes, expect, promise
from tasks.contracts.wire import Headers, Heard
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
_OPEN = "GET/health GET/v1/health GET/api/tags GET/v1/models GET/models POST/models DELETE/models"
"""What needs no key, or is a list of models: that is a promise of its own."""
_TOLD = "/props /slots /metrics /lora-adapters"
# all of these are words in one string: what has to be closed need not be there, and preflight takes a path by itself
# for a route that a promise cannot do without
_ASK = chat_body("Hi", max_tokens=1)


def private_routes() -> list[tuple[str, str]]:
    """Every (method, path) that llama-server has had from b8672 to b11434, but for those that need no key.

    None has to be there: a route that a build does not have wants the key too.
    """
    named = (("POST", _POSTED), ("GET", _GOT), ("DELETE", _DELETED))
    return [(method, f"/{name}") for method, names in named for name in names.split()]


def routes_to_close(registered: Routes) -> list[tuple[str, str]]:
    """private_routes, and what a build's source registers besides: a route that came with it is to want the key too."""
    found = ((method, re.sub(r":\w+", "0", path)) for method, path in registered)
    return list(dict.fromkeys([*private_routes(), *(route for route in found if "".join(route) not in _OPEN.split())]))


@promise("auth.right_key", "a chat with the right key is answered", _SOURCE, must=True, anywhere=True)
def right_key(ctx: Context) -> str:
    expect(ctx.client.endpoint.api_key, "the server was started without a key")
    status = ctx.client.post("/v1/chat/completions", _ASK).status
    expect(status == 200, f"the right key got {status}")
    return "200"


def _are_closed(ctx: Context, key: str | None) -> str:
    routes, shown = routes_to_close(ctx.client.routes), LAST
    open_to_all: dict[str, int] = {}
    for method, path in routes:
        status = ctx.client.request(method, path, _ASK if method == "POST" else None, key=key).status
        if status != 401:
            shown = shown or ctx.client.exchanges[-1]
            open_to_all[f"{method} {path}"] = status
    expect(not open_to_all, f"not refused: {open_to_all}", shown=shown)
    return f"401 from {len(routes)} routes"


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
        status = ctx.client.get(path, key=None).status
        expect(status == 401, f"{path} answered {status} without a key")
        status = ctx.client.get(path, key=WRONG_KEY).status
        expect(status == 401, f"{path} answered {status} to a wrong key")
    status = ctx.client.request("DELETE", "/models", key=WRONG_KEY).status  # it was the path alone that counted
    expect(status == 401, f"DELETE /models answered {status} to a wrong key")
    return "401"


def wrong_spellings(key: str) -> dict[str, list[tuple[str, str]]]:
    """What is wrong -> headers with something that is not quite the key, for every way a comparison may be careless."""
    near = {
        "no key": None,
        "a wrong key": WRONG_KEY,
        "an empty key": "",
        "the key's first half": key[: len(key) // 2],
        "all of the key but its last character": key[:-1],
        "all of the key but its first character": key[1:],
        "the key's first character": key[:1],
        "the key and more": f"{key}x",
        "more and the key": f"x{key}",
        "the key twice": key + key,
        "the key in other case": key.swapcase(),
        "the key with its last character changed": key[:-1] + _another(key[-1]),
        "the key with its first character changed": _another(key[0]) + key[1:],
        "a key of the same length": _another(key[0]) * len(key),
        "the key behind another space": f" {key}",
        "the key in quotes": f'"{key}"',
        "two keys in one, the right one last": f"{WRONG_KEY},{key}",
        "two keys in one, the right one first": f"{key},{WRONG_KEY}",
        "a star": "*",
        "null": "null",
    }
    return (
        {
            what: [] if sent is None else [("Authorization", f"Bearer {sent}")]
            for what, sent in near.items()
            if sent != key  # one without letters is itself in other case
        }
        | {
            "Bearer alone": [("Authorization", "Bearer")],
            "the key as Basic": [("Authorization", f"Basic {base64.b64encode(f':{key}'.encode()).decode()}")],
            "the key under another scheme": [("Authorization", f"Token {key}")],
            "Bearer twice": [("Authorization", f"Bearer Bearer {key}")],
            "a wrong X-Api-Key": [("X-Api-Key", WRONG_KEY)],
            "an empty X-Api-Key": [("X-Api-Key", "")],
            "a prefix as X-Api-Key": [("X-Api-Key", key[:-1])],
            "a wrong key twice": [("Authorization", f"Bearer {WRONG_KEY}")] * 2,
            "the key as a cookie": [("Cookie", f"api_key={key}; Authorization=Bearer {key}")],
            "no key, from this machine": [("X-Forwarded-For", "127.0.0.1"), ("X-Real-Ip", "127.0.0.1")],
            "no key, from a page of its own": [("Origin", "http://localhost"), ("Referer", "http://localhost/")],
        }
    )


def _another(character: str) -> str:
    return "A" if character != "A" else "B"


@promise(
    "auth.spellings",
    "nothing that is not quite the key is taken for it, whatever its spelling and header",
    f"{_SOURCE}; RFC 9110 11.6.2: credentials are compared whole",
    must=True,
    anywhere=True,
)
def spellings(ctx: Context) -> str:
    key, ask = str(ctx.client.endpoint.api_key), json.dumps(_ASK).encode()
    wrong = wrong_spellings(key)
    with ctx.client.wire() as wire:
        for what, headers in wrong.items():
            for method, path, body in (("POST", "/v1/chat/completions", ask), ("GET", "/props", b"")):
                status = wire.ask(method, path, headers, body).status
                expect(status == 401, f"{method} {path} answered {status} to {what}")
    return f"401 to {len(wrong)} spellings"


@promise(
    "auth.every_way",
    "what is not the key is refused by every route under every method, however its path is written",
    f"{_SOURCE}; a path that the router and the guard read differently is open",
    must=True,
)
def every_way(ctx: Context) -> str:
    key = str(ctx.client.endpoint.api_key)
    wrong = wrong_spellings(key)
    some = [wrong[what] for what in ("an empty key", "all of the key but its last character", "a wrong X-Api-Key")]
    asked = 0
    with ctx.client.wire() as wire:
        pages = {method: wire.ask(method, "/") for method in ("GET", "HEAD", "PUT", "DELETE", "POST")}
        for method, path, headers in _ways(key, some):
            heard = wire.ask(method, path, headers)
            if (method, path) in private_routes():
                refused = heard.status == 401
            else:  # a web page that stands for every unknown path tells nothing
                refused = heard.status >= 400 or _is_page(heard, pages[method])
            expect(refused, f"{method} {_masked(path, key)} answered {heard.status} without the key")
            asked += 1
        heard = wire.ask("OPTIONS", "/v1/chat/completions", [("Origin", "http://localhost")])
        expect(not heard.body or heard.status >= 400, "OPTIONS says something without the key")
    return f"{asked} ways refused"


def _is_page(heard: Heard, page: Heard) -> bool:
    """Whether this is the page that anybody gets; of a HEAD its size alone is told."""
    sizes = [dict(each.headers).get("Content-Length") for each in (heard, page)]
    return heard.status == page.status == 200 and heard.body == page.body and sizes[0] == sizes[1]


def _masked(path: str, key: str) -> str:
    return path.replace(key, "KEY")


def _ways(key: str, wrong: list[list[tuple[str, str]]]) -> Iterator[tuple[str, str, Headers]]:
    for method, path in private_routes():
        for headers in wrong:
            yield method, path, headers
    for path in _TOLD.split():
        for written in (
            f"{path}/", f"/{path}", f"{path}?x=1", f"{path}?api_key={key}&key={key}", f"/health/..{path}",
            f"/.{path}", f"/%2e{path}", f"/health{path}", f"{path}?/health", f"{path}#/health", path.upper(),
            f"/{path[1:2].encode().hex().join(('%', ''))}{path[2:]}",
        ):  # fmt: skip
            yield "GET", written, []
        yield "HEAD", path, []
        yield "PUT", path, []
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        yield method, "/v1/chat/completions", []


@promise(
    "auth.accepted",
    "the key is taken as Bearer and as X-Api-Key, by every API",
    f"{_SOURCE}; Anthropic API: x-api-key; OpenAI API: Authorization: Bearer",
    anywhere=True,
)
def accepted(ctx: Context) -> str:
    key, body = str(ctx.client.endpoint.api_key), json.dumps({"content": "Hi"}).encode()
    with ctx.client.wire() as wire:
        for name, value in (
            ("Authorization", f"Bearer {key}"), ("authorization", f"Bearer {key}"), ("X-Api-Key", key),
            ("x-api-key", key),
        ):  # fmt: skip
            status = wire.ask("POST", "/tokenize", [(name, value)], body).status
            expect(status == 200, f"the right key as {name} got {status}")
    return "Bearer and X-Api-Key"


@promise(
    "auth.untold",
    "the key is in no answer",
    f"{_SOURCE}; what a server tells, its log and its users keep",
    anywhere=True,
)
def untold(ctx: Context) -> str:
    key = str(ctx.client.endpoint.api_key)
    if len(key) < SHORTEST:
        return "a key as short as this one may stand anywhere"
    right, wrong = [ctx.client.bearer], [("Authorization", f"Bearer {WRONG_KEY}")]
    paths = f"{_TOLD} /v1/models /health /nothing".split()
    with ctx.client.wire() as wire:
        for path in paths:
            for headers in (right, wrong, []):
                heard = wire.ask("GET", path, headers)
                told = key.encode() in heard.body or any(key in value for _, value in heard.headers)
                expect(not told, f"{path} tells the key ({heard.status})")
    return f"{len(paths)} routes, with the key and without"
