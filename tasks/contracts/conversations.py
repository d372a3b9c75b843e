"""One conversation, written as a chat, and as each of the other APIs wants it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

Turns = Sequence[dict[str, Any]]
"""Messages as /v1/chat/completions takes them."""


def text_of(content: Any) -> str:
    """The text of a chat message's content."""
    return content or "" if isinstance(content, str | None) else "".join(p.get("text") or "" for p in content)


def as_response(turns: Turns) -> dict[str, Any]:
    """`instructions` and `input` of a response to this conversation."""
    system = [text_of(turn["content"]) for turn in turns if turn["role"] == "system"]
    items = [item for turn in turns if turn["role"] != "system" for item in _items(turn)]
    return {"instructions": system[0], "input": items} if system else {"input": items}


def _items(turn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if turn["role"] == "tool":
        yield {"type": "function_call_output", "call_id": turn["tool_call_id"], "output": turn["content"]}
    elif turn["role"] == "user":
        yield {"role": "user", "content": [_input(part) for part in _parts(turn["content"])]}
    else:
        if turn.get("content"):
            said = [{"type": "output_text", "text": text_of(turn["content"])}]
            yield {"type": "message", "role": "assistant", "content": said}
        for call in turn.get("tool_calls") or []:
            yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _input(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    return {"type": "input_image", "image_url": part["image_url"]["url"]}


def as_message(turns: Turns) -> dict[str, Any]:
    """`system` and `messages` of a message to this conversation."""
    system = [text_of(turn["content"]) for turn in turns if turn["role"] == "system"]
    found: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "tool":
            result = {"type": "tool_result", "tool_use_id": turn["tool_call_id"], "content": turn["content"]}
            found.append({"role": "user", "content": [result]})
        elif turn["role"] != "system":
            found.append({"role": turn["role"], "content": list(_blocks(turn))})
    return {"system": system[0], "messages": found} if system else {"messages": found}


def _blocks(turn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in _parts(turn.get("content") or []):
        if part["type"] == "text":
            yield {"type": "text", "text": part["text"]}
        else:
            data = part["image_url"]["url"].partition("base64,")[2]
            yield {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    for call in turn.get("tool_calls") or []:
        function = call["function"]
        arguments = json.loads(function["arguments"])
        yield {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def tools_as_response(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat's tools as a response takes them."""
    return [{"type": "function", **tool["function"]} for tool in tools]


def tools_as_message(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat's tools as a message takes them."""
    functions = [tool["function"] for tool in tools]
    return [
        {"name": f["name"], "description": f.get("description", ""), "input_schema": f["parameters"]} for f in functions
    ]


def bodies(turns: Turns, limit: int, tools: Sequence[dict[str, Any]] = (), **params: Any) -> dict[str, dict[str, Any]]:
    """Route -> body of the same request to chat completions, responses and messages."""
    return {
        "/v1/chat/completions": {
            "messages": list(turns), "max_tokens": limit, **({"tools": list(tools)} if tools else {}), **params,
        },
        "/v1/responses": {
            **as_response(turns), "max_output_tokens": limit,
            **({"tools": tools_as_response(tools)} if tools else {}), **params,
        },
        "/v1/messages": {
            **as_message(turns), "max_tokens": limit, **({"tools": tools_as_message(tools)} if tools else {}), **params,
        },
    }  # fmt: skip


def one_turn(prompt: str, rendered: str, limit: int, **params: Any) -> dict[str, dict[str, Any]]:
    """Route -> body of one turn of a user to each API; completions get it as `rendered`."""
    user = [{"role": "user", "content": prompt}]
    return {
        "/v1/chat/completions": {"messages": user, "max_tokens": limit, **params},
        "/v1/completions": {"prompt": rendered, "max_tokens": limit, **params},
        "/v1/responses": {"input": prompt, "max_output_tokens": limit, **params},
        "/v1/messages": {"messages": user, "max_tokens": limit, **params},
    }
