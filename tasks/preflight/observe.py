"""What a running server answers: status and keys of one small request of each kind, on a scripted model."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.contracts.scripted import build as build_model
from tasks.contracts.scripted import thinks_then_answers
from tasks.endpoint import Answer, Client
from tasks.platforms import Platform
from tasks.preflight.argv import bundle
from tasks.preflight.surface import Exchange, Route
from tasks.release import BadInput, Build, ReleaseFailed, ToolingError
from tasks.settings import ServerSettings

NO_KEY, WRONG_KEY, MALFORMED = "no key", "wrong key", "malformed JSON"
_TIMEOUT_S = 10.0
_CTX = 512
_CHAT = "POST /v1/chat/completions"
_HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 32}

ASKED: tuple[tuple[str, str, Any], ...] = (
    (_CHAT, "", _HI),
    (_CHAT, "streamed", _HI | {"stream": True, "stream_options": {"include_usage": True}}),
    (_CHAT, "logprobs", _HI | {"logprobs": True, "top_logprobs": 2}),
    (_CHAT, MALFORMED, b'{"messages": ['),
    (_CHAT, "no messages", {"max_tokens": 1}),
    (_CHAT, "messages empty", {"messages": [], "max_tokens": 1}),
    (_CHAT, "messages no list", {"messages": "Hi"}),
    (_CHAT, "prompt too long", {"messages": [{"role": "user", "content": "Hi " * _CTX}]}),
    ("POST /v1/completions", "", {"prompt": "Hi", "max_tokens": 4}),
    ("POST /v1/completions", "streamed", {"prompt": "Hi", "max_tokens": 4, "stream": True}),
    ("POST /v1/completions", "no prompt", {"max_tokens": 1}),
    ("POST /completion", "", {"prompt": "Hi", "n_predict": 4}),
    ("POST /v1/responses", "", {"input": "Hi", "max_output_tokens": 32}),
    ("POST /v1/responses", "streamed", {"input": "Hi", "max_output_tokens": 32, "stream": True}),
    ("POST /v1/responses", "previous_response_id", {"input": "Hi", "previous_response_id": "resp_1"}),
    ("POST /v1/messages", "", _HI),
    ("POST /v1/messages", "streamed", _HI | {"stream": True}),
    ("POST /v1/messages/count_tokens", "", _HI),
    ("POST /v1/embeddings", "", {"input": "Hi"}),
    ("POST /v1/rerank", "", {"query": "Hi", "documents": ["Hi"]}),
    ("POST /tokenize", "", {"content": "Hi", "with_pieces": True}),
    ("POST /detokenize", "", {"tokens": [5]}),
    ("POST /apply-template", "", _HI),
    ("GET /health", "", None),
    ("GET /v1/models", "", None),
    ("GET /props", "", None),
    ("GET /slots", "", None),
    ("GET /metrics", "", None),
    ("GET /lora-adapters", "", None),
    ("GET /no-such-route", "", None),
)
"""(route, case, body): the requests that are sent with the right key, in this order."""


def name_of(route: str, case: str) -> str:
    """What an exchange is called."""
    return f"{route}, {case}" if case else route


def observe(platform: Platform, build: Build, routes: tuple[Route, ...]) -> dict[str, Exchange]:
    """Request -> what a trial server of this build answered, for ASKED and for each route without a key.

    It serves a scripted model with settings that are always the same, so that only the build makes a difference.
    Raises ReleaseFailed when it does not come up, ToolingError when it is gone before the end.
    """
    with tempfile.TemporaryDirectory(prefix="llama-release-") as folder:
        model = build_model(thinks_then_answers(words=3), Path(folder) / "surface.gguf")
        settings = ServerSettings(model=model, alias="surface", slots=1, ctx_per_slot=_CTX, threads=1)
        release, _ = bundle(platform.store, build, settings)
        with _ours(), platform.trial(release) as endpoint, Client(endpoint, timeout_s=_TIMEOUT_S) as client:
            found = {name_of(route, case): _exchange(client, route, body) for route, case, body in ASKED}
            found[name_of(_CHAT, WRONG_KEY)] = _exchange(client, _CHAT, _HI, key="wrong")
            for route in routes:
                body: Any = None if route.method == "GET" else {}
                found[name_of(str(route), NO_KEY)] = _exchange(client, str(route), body, key=None)
            if client.health() != 200:
                raise ToolingError(f"the trial server of {build.tag} ended while it was observed")
    return found


@contextmanager
def _ours() -> Iterator[None]:
    """The model and the settings are ours: a server that doesn't come up with them is the build's fault."""
    try:
        yield
    except BadInput as error:
        raise ReleaseFailed(error.what, evidence=error.evidence, todo=error.todo) from error


def _exchange(client: Client, route: str, body: Any, key: str | None = "") -> Exchange:
    method, path = route.split()
    path = re.sub(r":\w+", "0", path)
    sent = {"content": body} if isinstance(body, bytes) else {"body": body}
    try:
        answer = client.request(method, path, **sent, key=key)
    except ToolingError:  # a stream without an end, or a connection cut: that is what it does
        return Exchange(status=0)
    return Exchange(status=answer.status, keys=dict(sorted(_keys(answer))))


def _keys(answer: Answer) -> Iterator[tuple[str, str]]:
    if not isinstance(answer.body, str):
        yield from key_paths(answer.body)
    elif answer.path == "/metrics":
        yield from re.findall(r"^# TYPE (\S+) (\S+)$", answer.body, re.MULTILINE)
    else:
        for line in answer.body.splitlines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                kind = event.get("type") or event.get("object") or "event"
                yield from ((f"{kind}: {path}", of) for path, of in key_paths(event))


_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


def key_paths(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every key in a JSON value as (`choices[].message.content`, its JSON type), lists taken as one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            path = f"{at}.{key}" if at else str(key)
            yield path, _TYPES.get(type(inner), "null")
            yield from key_paths(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from key_paths(inner, f"{at}[]")
