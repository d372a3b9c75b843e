"""The chat template: what of a conversation the model gets to read."""

from __future__ import annotations

import json

from tasks.contracts.promises import Context, at, expect, promise

_THOUGHT = "First I look at the sky."
_SOURCE = "guide 07: use the interleaved template for agentic tasks, it preserves reasoning between tool calls"
_TOOLS = (
    '[{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]'
)
_CONVERSATION = """[
  {"role": "user", "content": "How is the weather?"},
  {"role": "assistant", "content": "", "reasoning_content": "",
   "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
  {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
]"""


def _keeps(ctx: Context) -> str:
    prompts = []
    for thought in ("", _THOUGHT):
        messages = json.loads(_CONVERSATION)
        messages[1] |= {"reasoning_content": thought}
        answer = ctx.client.post("/apply-template", {"messages": messages, "tools": json.loads(_TOOLS)})
        expect(answer.status == 200, f"/apply-template answered {answer.status}")
        prompts.append(str(at(answer.body, "prompt")))
    without, kept = prompts
    expect(_THOUGHT in kept, "the reasoning before a tool call is not in the prompt of the next turn")
    expect(_THOUGHT not in without, "the reasoning is there even when nobody sent it")
    return f"{len(kept) - len(without)} characters of reasoning kept"


@promise(
    "template.keeps_reasoning",
    "reasoning before a tool call is in the prompt of the next turn (Gemma 4's template)",
    _SOURCE,
    server="scripted",
)
def keeps_reasoning(ctx: Context) -> str:
    return _keeps(ctx)


@promise(
    "template.of_release",
    "so it is with the template that the release serves, if it knows of reasoning",
    _SOURCE,
    anywhere=True,
)
def of_release(ctx: Context) -> str:
    template = str(at(ctx.client.get("/props").body, "chat_template"))
    if "reasoning" not in template:
        return "the release's template knows nothing of reasoning"
    return _keeps(ctx)
