"""Tool calls: made, parsed, answered, and steered by tool_choice.

Checked on the scripted model `calls_a_tool`, which on its own calls FIRST, and SECOND only where the server forces it:
so a SECOND is the server's doing. The promises `tools.named...` need patch 0002 (patches/README.md).
"""

from __future__ import annotations

import json
from typing import Any

from tasks.contracts.messages import text as message_text
from tasks.contracts.promises import Context, at, expect, promise
from tasks.contracts.responses import output_text
from tasks.contracts.sampling import token_of
from tasks.contracts.scripted import FIRST, FIRST_ARGUMENTS, SECOND, TURN_END
from tasks.contracts.toolbox import (
    ANSWER,
    LIMIT,
    PROMPT,
    TOOLS,
    after_result,
    arguments_of,
    ask_message,
    calls,
    chat,
    chat_calls,
    is_refused,
    message_after_result,
    respond,
    respond_after_result,
    response_calls,
)

NOBODY = "get_nothing"
_OPENAI = "OpenAI API `POST /v1/chat/completions`, function calling"
_RESPONSES = "OpenAI API `POST /v1/responses`, function calling; guide 07: Cursor and Codex CLI use it"
_MESSAGES = "Anthropic API `POST /v1/messages`, tool use; llama.cpp tools/server/README.md"
_NAMED = "llama.cpp issue 26535: a tool_choice that names a function is silently `auto`; patch 0002 mends it"
_MALFORMED: tuple[dict[str, Any], ...] = (
    {},
    {"type": "function"},
    {"type": "function", "function": {}},
    {"type": "function", "function": {"name": ""}},
    {"type": "nonsense", "function": {"name": SECOND}},
)


@promise(
    "tools.called",
    "a model's call is in tool_calls with its arguments as JSON, and none of it is in content",
    _OPENAI,
    server="calling",
    must=True,
)
def called(ctx: Context) -> str:
    answer = chat(ctx)
    name = calls(answer, FIRST, "on the model's own account")
    content = at(answer.body, "choices", 0, "message").get("content") or ""
    reason = at(answer.body, "choices", 0, "finish_reason")
    expect(not content, f"the content is {content!r}")
    expect(reason == "tool_calls", f"finish_reason is {reason!r}")
    return f"{name} {FIRST_ARGUMENTS}"


@promise("tools.streamed", "the deltas of a stream make up the same call", _OPENAI, server="calling", must=True)
def streamed(ctx: Context) -> str:
    stream = ctx.client.stream(PROMPT, tools=TOOLS, max_tokens=LIMIT)
    expect(stream.status == 200, f"the stream answered {stream.status}")
    deltas = [choice.get("delta") or {} for event in stream.events for choice in event.get("choices") or []]
    functions = [at(call, "function") for delta in deltas for call in delta.get("tool_calls") or []]
    name = "".join(function.get("name") or "" for function in functions)
    arguments = arguments_of("".join(function.get("arguments") or "" for function in functions))
    expect((name, arguments) == (FIRST, FIRST_ARGUMENTS), f"the deltas call {name!r} with {arguments}")
    expect(stream.finish_reason == "tool_calls", f"finish_reason is {stream.finish_reason!r}")
    return f"{name} {arguments}"


@promise(
    "tools.answered", "a chat that ends with a tool's result is answered in words", _OPENAI, server="calling", must=True
)
def answered(ctx: Context) -> str:
    answer = after_result(ctx)
    expect(answer.status == 200, f"the chat answered {answer.status}")
    content = at(answer.body, "choices", 0, "message").get("content") or ""
    expect(not chat_calls(answer), "a tool was called again")
    expect(content == ANSWER, f"the content is {content!r}, not {ANSWER!r}")
    return repr(content)


@promise("tools.none", "tool_choice `none` yields no tool_calls", f"{_OPENAI}, tool_choice", server="calling")
def none(ctx: Context) -> str:
    free, answer = chat(ctx), chat(ctx, tool_choice="none")
    expect(answer.status == 200, f"the chat answered {answer.status}")
    expect(chat_calls(free), "nothing is called without it either")
    expect(not chat_calls(answer), f"tool_choice changes nothing: {chat_calls(answer)} with none")
    return "no tool_calls"


@promise(
    "tools.none_clean",
    "tool_choice `none` yields no raw call in the content",
    f"{_OPENAI}, tool_choice; guide 03: none may leak raw tokens",
    server="calling",
    known="no upstream issue found: with `none` a call that the model makes anyway is left unparsed in the content",
)
def none_clean(ctx: Context) -> str:
    answer = chat(ctx, tool_choice="none")
    content = at(answer.body, "choices", 0, "message").get("content") or ""
    expect("tool_call" not in content, f"the content is {content!r}")
    return f"the content is {content!r}"


@promise(
    "tools.parallel",
    "parallel_tool_calls lets a model make two calls with an id each, and false holds it to one",
    f"{_OPENAI}, parallel_tool_calls",
    server="calling",
)
def parallel(ctx: Context) -> str:
    goes_on = {"logit_bias": [[token_of(ctx, TURN_END), -100]], "max_tokens": 6}  # as long as two calls are
    both, one = (chat(ctx, parallel_tool_calls=many, **goes_on) for many in (True, False))
    called = [name for name, _ in chat_calls(both)]
    expect(called == [FIRST, FIRST], f"{called} were called in parallel")
    expect(len(chat_calls(one)) == 1, f"without parallel_tool_calls {len(chat_calls(one))} calls")
    ids = {at(call, "id") for call in at(both.body, "choices", 0, "message", "tool_calls")}
    expect(len(ids) == 2 and all(ids), f"the ids of two calls are {sorted(ids)}")
    return "two calls, or one"


@promise(
    "tools.required",
    "tool_choice `required` makes the model call a tool where it would answer",
    f"{_OPENAI}, tool_choice",
    server="calling",
    known="b8672 and b9105 take `required` for `auto`, b10605 and later force a call",
)
def required(ctx: Context) -> str:
    return calls(after_result(ctx, tool_choice="required"), FIRST, "with tool_choice required")


@promise(
    "tools.responses_required",
    "tool_choice `required` makes a response call a tool where it would answer",
    f"{_RESPONSES}; guide 03: required can emit an empty payload",
    server="calling",
    known="b8672 and b9105 take `required` for `auto`, b10605 and later force a call",
)
def responses_required(ctx: Context) -> str:
    return calls(respond_after_result(ctx, tool_choice="required"), FIRST, "with tool_choice required")


@promise("tools.responses_none", "tool_choice `none` yields no function_call item", _RESPONSES, server="calling")
def responses_none(ctx: Context) -> str:
    answer = respond(ctx, tool_choice="none")
    expect(answer.status == 200, f"/v1/responses answered {answer.status}")
    expect(not response_calls(answer), f"tool_choice changes nothing: {response_calls(answer)} with none")
    return "no function_call"


@promise(
    "tools.responses_answered",
    "a response to a conversation that ends with a tool's result is in words",
    f"{_RESPONSES}; guide 01 row 9: b8678 had incomplete round trips",
    server="calling",
)
def responses_answered(ctx: Context) -> str:
    answer = respond_after_result(ctx)
    expect(answer.status == 200, f"/v1/responses answered {answer.status}")
    expect(not response_calls(answer), "a tool was called again")
    expect(output_text(answer.body) == ANSWER, f"the text is {output_text(answer.body)!r}, not {ANSWER!r}")
    return repr(ANSWER)


@promise("tools.messages_answered", "so is a message to one that ends with a tool_result", _MESSAGES, server="calling")
def messages_answered(ctx: Context) -> str:
    answer = message_after_result(ctx)
    expect(answer.status == 200, f"/v1/messages answered {answer.status}")
    expect(message_text(answer.body) == ANSWER, f"the text is {message_text(answer.body)!r}, not {ANSWER!r}")
    return repr(ANSWER)


@promise("tools.responses", "a model's call is a function_call item of a response", _RESPONSES, server="calling")
def responses(ctx: Context) -> str:
    return calls(respond(ctx), FIRST, "on the model's own account")


@promise("tools.messages", "a model's call is a tool_use block of a message", _MESSAGES, server="calling")
def messages(ctx: Context) -> str:
    return calls(ask_message(ctx), FIRST, "on the model's own account")


@promise(
    "tools.named",
    "tool_choice with a function's name makes the model call exactly that function",
    f"{_OPENAI}, tool_choice; patch 0002",
    server="calling",
    known=_NAMED,
)
def named(ctx: Context) -> str:
    for name in (SECOND, FIRST):
        choice = {"type": "function", "function": {"name": name}}
        calls(chat(ctx, tool_choice=choice), name, f"with tool_choice {name}")
    return f"{SECOND} when it is named, though the model would call {FIRST}"


@promise(
    "tools.named_responses",
    "tool_choice with a function's name works for a response too",
    f"{_RESPONSES}; patch 0002",
    server="calling",
    known=_NAMED,
)
def named_responses(ctx: Context) -> str:
    answer = respond(ctx, tool_choice={"type": "function", "name": SECOND})
    return calls(answer, SECOND, f"with tool_choice {SECOND}")


@promise(
    "tools.named_messages",
    "tool_choice with a tool's name works for a message too",
    f"{_MESSAGES}; patch 0002",
    server="calling",
    known=_NAMED,
)
def named_messages(ctx: Context) -> str:
    return calls(ask_message(ctx, tool_choice={"type": "tool", "name": SECOND}), SECOND, f"with tool_choice {SECOND}")


@promise(
    "tools.named_unknown",
    "tool_choice with a name that no tool has gets a 4xx, on all three endpoints",
    f"{_OPENAI}, errors; patch 0002",
    server="calling",
    known=_NAMED,
)
def named_unknown(ctx: Context) -> str:
    what = f"a tool_choice of {NOBODY}"
    is_refused(chat(ctx, tool_choice={"type": "function", "function": {"name": NOBODY}}), what)
    is_refused(respond(ctx, tool_choice={"type": "function", "name": NOBODY}), what)
    return is_refused(ask_message(ctx, tool_choice={"type": "tool", "name": NOBODY}), what)


@promise(
    "tools.named_malformed",
    "a tool_choice object that names no function gets a 4xx",
    f"{_OPENAI}, errors; patch 0002",
    server="calling",
    known=_NAMED,
)
def named_malformed(ctx: Context) -> str:
    for choice in _MALFORMED:
        is_refused(chat(ctx, tool_choice=choice), f"tool_choice {json.dumps(choice)}")
    return f"{len(_MALFORMED)} malformed objects refused"
