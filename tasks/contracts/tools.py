"""Tool calls: made, parsed, answered, and steered by tool_choice.

Checked on the scripted model `calls_a_tool`, which on its own calls FIRST, and SECOND only where the server forces it:
so a SECOND is the server's doing. The promises `tools.named...` need patch 0002 (patches/README.md).
"""

from __future__ import annotations

import json
from typing import Any

from tasks.contracts.promises import Context, Unmet, at, expect, promise
from tasks.contracts.scripted import FIRST, FIRST_ARGUMENTS, SECOND, SECOND_ARGUMENTS
from tasks.endpoint import Answer

PROMPT = "What now?"
ANSWER = "The answer is forty-two."
NOBODY = "get_nothing"
_LIMIT = 60  # tokens: more than the script has
_PARAMETERS: dict[str, Any] = {
    FIRST: {"type": "object", "properties": {"days": {"type": "integer"}, "metric": {"type": "boolean"}}},
    SECOND: {"type": "object", "properties": {"hours": {"type": "integer"}}},
}
_FUNCTIONS = [{"name": n, "description": f"Calls {n}.", "parameters": p} for n, p in _PARAMETERS.items()]
_TOOLS = [{"type": "function", "function": function} for function in _FUNCTIONS]
_WANTED = {FIRST: FIRST_ARGUMENTS, SECOND: SECOND_ARGUMENTS}
_OPENAI = "OpenAI API `POST /v1/chat/completions`, function calling"
_RESPONSES = "OpenAI API `POST /v1/responses`, function calling; guide 07: Cursor and Codex CLI use it"
_MESSAGES = "Anthropic API `POST /v1/messages`, tool use; llama.cpp tools/server/README.md"
_NAMED = "patch 0002; llama.cpp issue 26535: a tool_choice that names a function was silently `auto`"
_MALFORMED: tuple[dict[str, Any], ...] = (
    {},
    {"type": "function"},
    {"type": "function", "function": {}},
    {"type": "function", "function": {"name": ""}},
    {"type": "nonsense", "function": {"name": SECOND}},
)


def _chat(ctx: Context, **params: Any) -> Answer:
    return ctx.client.chat(PROMPT, tools=_TOOLS, max_tokens=_LIMIT, **params)


def _after_result(ctx: Context, **params: Any) -> Answer:
    call = {"id": "call_1", "type": "function", "function": {"name": FIRST, "arguments": json.dumps(FIRST_ARGUMENTS)}}
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    return ctx.client.chat(chat, tools=_TOOLS, max_tokens=_LIMIT, **params)


def _respond(ctx: Context, **params: Any) -> Answer:
    tools = [{"type": "function", **function} for function in _FUNCTIONS]
    body = {"model": ctx.release.alias, "input": PROMPT, "tools": tools, "max_output_tokens": _LIMIT, **params}
    return ctx.client.post("/v1/responses", body)


def _message(ctx: Context, **params: Any) -> Answer:
    tools = [{"name": f["name"], "description": f["description"], "input_schema": f["parameters"]} for f in _FUNCTIONS]
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": ctx.release.alias, "messages": messages, "tools": tools, "max_tokens": _LIMIT, **params}
    return ctx.client.post("/v1/messages", body)


def _arguments(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        raise Unmet(f"the arguments are not JSON: {text!r}") from None


def _chat_calls(answer: Answer) -> list[tuple[str, Any]]:
    found = at(answer.body, "choices", 0, "message").get("tool_calls") or []
    return [(at(call, "function", "name"), _arguments(at(call, "function", "arguments"))) for call in found]


def _response_calls(answer: Answer) -> list[tuple[str, Any]]:
    items = [item for item in at(answer.body, "output") if item.get("type") == "function_call"]
    return [(at(item, "name"), _arguments(at(item, "arguments"))) for item in items]


def _message_calls(answer: Answer) -> list[tuple[str, Any]]:
    blocks = [block for block in at(answer.body, "content") if block.get("type") == "tool_use"]
    return [(at(block, "name"), at(block, "input")) for block in blocks]


_CALLS = {
    "/v1/chat/completions": _chat_calls,
    "/v1/responses": _response_calls,
    "/v1/messages": _message_calls,
}


def _calls(answer: Answer, name: str, why: str) -> str:
    """The name again, when the answer holds one call: of this function, with its arguments."""
    expect(answer.status == 200, f"{answer.path} answered {answer.status} {why}")
    found = _CALLS[answer.path](answer)
    called = [called for called, _ in found]
    expect(called == [name], f"{called or 'nothing'} was called, not {name!r}, {why}")
    expect(found[0][1] == _WANTED[name], f"the arguments of {name} are {found[0][1]}, not {_WANTED[name]}")
    return name


def _is_refused(answer: Answer, what: str) -> str:
    expect(400 <= answer.status < 500, f"{answer.path} answered {answer.status} to {what}")
    return f"{answer.status}"


@promise(
    "tools.called",
    "a model's call is in tool_calls with its arguments as JSON, and none of it is in content",
    _OPENAI,
    server="calling",
)
def called(ctx: Context) -> str:
    answer = _chat(ctx)
    name = _calls(answer, FIRST, "on the model's own account")
    content = at(answer.body, "choices", 0, "message").get("content") or ""
    reason = at(answer.body, "choices", 0, "finish_reason")
    expect(not content, f"the content is {content!r}")
    expect(reason == "tool_calls", f"finish_reason is {reason!r}")
    return f"{name} {FIRST_ARGUMENTS}"


@promise("tools.streamed", "the deltas of a stream make up the same call", _OPENAI, server="calling")
def streamed(ctx: Context) -> str:
    stream = ctx.client.stream(PROMPT, tools=_TOOLS, max_tokens=_LIMIT)
    expect(stream.status == 200, f"the stream answered {stream.status}")
    deltas = [choice.get("delta") or {} for event in stream.events for choice in event.get("choices") or []]
    functions = [at(call, "function") for delta in deltas for call in delta.get("tool_calls") or []]
    name = "".join(function.get("name") or "" for function in functions)
    arguments = _arguments("".join(function.get("arguments") or "" for function in functions))
    expect((name, arguments) == (FIRST, FIRST_ARGUMENTS), f"the deltas call {name!r} with {arguments}")
    expect(stream.finish_reason == "tool_calls", f"finish_reason is {stream.finish_reason!r}")
    return f"{name} {arguments}"


@promise("tools.answered", "a chat that ends with a tool's result is answered in words", _OPENAI, server="calling")
def answered(ctx: Context) -> str:
    answer = _after_result(ctx)
    expect(answer.status == 200, f"the chat answered {answer.status}")
    content = at(answer.body, "choices", 0, "message").get("content") or ""
    expect(not _chat_calls(answer), "a tool was called again")
    expect(content == ANSWER, f"the content is {content!r}, not {ANSWER!r}")
    return repr(content)


@promise(
    "tools.none",
    "tool_choice `none` yields no tool_calls (llama.cpp gives Gemma 4's raw call as content instead)",
    f"{_OPENAI}, tool_choice",
    server="calling",
)
def none(ctx: Context) -> str:
    answer = _chat(ctx, tool_choice="none")
    expect(answer.status == 200, f"the chat answered {answer.status}")
    expect(not _chat_calls(answer), f"{_chat_calls(answer)} with tool_choice none")
    return "no tool_calls"


@promise(
    "tools.required",
    "tool_choice `required` makes the model call a tool where it would answer",
    f"{_OPENAI}, tool_choice",
    server="calling",
)
def required(ctx: Context) -> str:
    return _calls(_after_result(ctx, tool_choice="required"), FIRST, "with tool_choice required")


@promise("tools.responses", "a model's call is a function_call item of a response", _RESPONSES, server="calling")
def responses(ctx: Context) -> str:
    return _calls(_respond(ctx), FIRST, "on the model's own account")


@promise("tools.messages", "a model's call is a tool_use block of a message", _MESSAGES, server="calling")
def messages(ctx: Context) -> str:
    return _calls(_message(ctx), FIRST, "on the model's own account")


@promise(
    "tools.named",
    "tool_choice with a function's name makes the model call exactly that function",
    f"{_OPENAI}, tool_choice; {_NAMED}",
    server="calling",
)
def named(ctx: Context) -> str:
    for name in (SECOND, FIRST):
        choice = {"type": "function", "function": {"name": name}}
        _calls(_chat(ctx, tool_choice=choice), name, f"with tool_choice {name}")
    return f"{SECOND} when it is named, though the model would call {FIRST}"


@promise(
    "tools.named_responses",
    "tool_choice with a function's name works for a response too",
    f"{_RESPONSES}; {_NAMED}",
    server="calling",
)
def named_responses(ctx: Context) -> str:
    answer = _respond(ctx, tool_choice={"type": "function", "name": SECOND})
    return _calls(answer, SECOND, f"with tool_choice {SECOND}")


@promise(
    "tools.named_messages",
    "tool_choice with a tool's name works for a message too",
    f"{_MESSAGES}; patch 0002",
    server="calling",
)
def named_messages(ctx: Context) -> str:
    return _calls(_message(ctx, tool_choice={"type": "tool", "name": SECOND}), SECOND, f"with tool_choice {SECOND}")


@promise(
    "tools.named_unknown",
    "tool_choice with a name that no tool has gets a 4xx, on all three endpoints",
    f"{_OPENAI}, errors; {_NAMED}",
    server="calling",
)
def named_unknown(ctx: Context) -> str:
    what = f"a tool_choice of {NOBODY}"
    _is_refused(_chat(ctx, tool_choice={"type": "function", "function": {"name": NOBODY}}), what)
    _is_refused(_respond(ctx, tool_choice={"type": "function", "name": NOBODY}), what)
    return _is_refused(_message(ctx, tool_choice={"type": "tool", "name": NOBODY}), what)


@promise(
    "tools.named_malformed",
    "a tool_choice object that names no function gets a 4xx",
    f"{_OPENAI}, errors; {_NAMED}",
    server="calling",
)
def named_malformed(ctx: Context) -> str:
    for choice in _MALFORMED:
        _is_refused(_chat(ctx, tool_choice=choice), f"tool_choice {json.dumps(choice)}")
    return f"{len(_MALFORMED)} malformed objects refused"
