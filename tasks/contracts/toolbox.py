"""What the promises about tools ask with, and how the calls in an answer are read, on all three endpoints."""

from __future__ import annotations

import json
from typing import Any

from tasks.contracts.promises import Context, Unmet, at, expect
from tasks.contracts.scripted import FIRST, FIRST_ARGUMENTS, SECOND, SECOND_ARGUMENTS
from tasks.endpoint import Answer

PROMPT = "What now?"
ANSWER = "The answer is forty-two."
LIMIT = 60  # tokens: more than the script has
_PARAMETERS: dict[str, Any] = {
    FIRST: {"type": "object", "properties": {"days": {"type": "integer"}, "metric": {"type": "boolean"}}},
    SECOND: {"type": "object", "properties": {"hours": {"type": "integer"}}},
}
_FUNCTIONS = [{"name": n, "description": f"Calls {n}.", "parameters": p} for n, p in _PARAMETERS.items()]
TOOLS = [{"type": "function", "function": function} for function in _FUNCTIONS]
_WANTED = {FIRST: FIRST_ARGUMENTS, SECOND: SECOND_ARGUMENTS}


def chat(ctx: Context, **params: Any) -> Answer:
    return ctx.client.chat(PROMPT, tools=TOOLS, **{"max_tokens": LIMIT, **params})


def after_result(ctx: Context, **params: Any) -> Answer:
    call = {"id": "call_1", "type": "function", "function": {"name": FIRST, "arguments": json.dumps(FIRST_ARGUMENTS)}}
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    return ctx.client.chat(chat, tools=TOOLS, max_tokens=LIMIT, **params)


def respond(ctx: Context, **params: Any) -> Answer:
    tools = [{"type": "function", **function} for function in _FUNCTIONS]
    body = {"model": ctx.release.alias, "input": PROMPT, "tools": tools, "max_output_tokens": LIMIT, **params}
    return ctx.client.post("/v1/responses", body)


def respond_after_result(ctx: Context, **params: Any) -> Answer:
    conversation = [
        {"role": "user", "content": PROMPT},
        {"type": "function_call", "call_id": "call_1", "name": FIRST, "arguments": json.dumps(FIRST_ARGUMENTS)},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
    ]
    return respond(ctx, input=conversation, **params)


def ask_message(ctx: Context, **params: Any) -> Answer:
    tools = [{"name": f["name"], "description": f["description"], "input_schema": f["parameters"]} for f in _FUNCTIONS]
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": ctx.release.alias, "messages": messages, "tools": tools, "max_tokens": LIMIT, **params}
    return ctx.client.post("/v1/messages", body)


def message_after_result(ctx: Context) -> Answer:
    conversation = [
        {"role": "user", "content": PROMPT},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "call_1", "name": FIRST, "input": FIRST_ARGUMENTS}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}]},
    ]
    return ask_message(ctx, messages=conversation)


def arguments_of(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        raise Unmet(f"the arguments are not JSON: {text!r}") from None


def chat_calls(answer: Answer) -> list[tuple[str, Any]]:
    found = at(answer.body, "choices", 0, "message").get("tool_calls") or []
    return [(at(call, "function", "name"), arguments_of(at(call, "function", "arguments"))) for call in found]


def response_calls(answer: Answer) -> list[tuple[str, Any]]:
    items = [item for item in at(answer.body, "output") if item.get("type") == "function_call"]
    return [(at(item, "name"), arguments_of(at(item, "arguments"))) for item in items]


def message_calls(answer: Answer) -> list[tuple[str, Any]]:
    blocks = [block for block in at(answer.body, "content") if block.get("type") == "tool_use"]
    return [(at(block, "name"), at(block, "input")) for block in blocks]


_CALLS = {
    "/v1/chat/completions": chat_calls,
    "/v1/responses": response_calls,
    "/v1/messages": message_calls,
}


def calls(answer: Answer, name: str, why: str) -> str:
    """The name again, when the answer holds one call: of this function, with its arguments."""
    expect(answer.status == 200, f"{answer.path} answered {answer.status} {why}")
    found = _CALLS[answer.path](answer)
    called = [called for called, _ in found]
    expect(called == [name], f"{called or 'nothing'} was called, not {name!r}, {why}")
    expect(found[0][1] == _WANTED[name], f"the arguments of {name} are {found[0][1]}, not {_WANTED[name]}")
    return name


def is_refused(answer: Answer, what: str) -> str:
    expect(400 <= answer.status < 500, f"{answer.path} answered {answer.status} to {what}")
    return f"{answer.status}"
