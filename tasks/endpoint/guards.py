"""The defensive patterns for tool calls (guide 03), one for each `tool_choice`.

    auto      preferred, and the default: the model decides
    required  an answer without a call that fits a tool's schema is rejected, and asked for again more strictly
    a name    as `required`, and only that tool is sent: some servers take the name for `auto`, without a word
    none      an answer with a call, parsed or as raw tokens, is rejected, and asked for again without the tools

Whatever the mode, a call is only ever handed out when it names a tool that was offered and fits its JSON schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from tasks.endpoint.answer import Answer, choices
from tasks.release import BadInput

RAW_TOOL_TOKENS = {
    "<|tool_call>": "common/parsers/gemma4.cpp",
    "<|START_ACTION|>": "common/parsers/cohere2moe.cpp",
    "<｜tool▁calls▁begin｜>": "models/templates/deepseek-ai-DeepSeek-V3.1.jinja",
    "｜DSML｜": "common/parsers/deepseek.cpp",
    "function call<|role_sep|>": "common/parsers/gigachat-v3.cpp",
    "to=functions.": "common/parsers/gpt-oss.cpp",
    "<|tool_calls_section_begin|>": "common/parsers/kimi-k2.cpp",
    "<|open|>call tool=": "common/parsers/kimi-k3.cpp",
    "<|tool_call_start|>": "common/parsers/lfm2.cpp",
    "<function name=": "common/parsers/minicpm5.cpp",
    "[TOOL_CALLS]": "common/parsers/ministral3.cpp",
    "<atem:function_calls>": "common/parsers/muse-glimmer.cpp",
    "<tool_call>": "common/parsers/qwen3-coder.cpp",
    "<function=": "common/parsers/qwen3-coder.cpp",
    "<seed:tool_call>": "models/templates/ByteDance-Seed-OSS.jinja",
    "<minimax:tool_call>": "models/templates/MiniMax-M2.jinja",
    "<TOOLCALL>": "models/templates/NVIDIA-Nemotron-Nano-v2.jinja",
    "<|tools_prefix|>": "models/templates/Apertus-8B-Instruct.jinja",
    "<|tool_call|>": "models/templates/ibm-granite-granite-3.3-2B-Instruct.jinja",
    "<|python_tag|>": "models/templates/meta-llama-Llama-3.1-8B-Instruct.jinja",
}
"""How a model family begins a call -> the file of llama.cpp b11434 that says so: its parser, or a template where the
general parser reads the family. One token may serve several: `<tool_call>` is also that of Hermes, GLM and others.
Families whose calls look like plain JSON or text (Functionary 3.2) have no such token."""

_OF_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
_WHAT_IS_SAID = 300  # characters of a fault: it goes into a log and into the next prompt


@dataclass(frozen=True)
class Guard:
    """A chat request as it is to be sent, and what an answer to it must be."""

    body: dict[str, Any]
    mode: str
    tools: dict[str, Validator]
    """The functions that may be called, and what their arguments must fit."""

    @property
    def may_run_a_tool(self) -> bool:
        return bool(self.tools) and self.mode != "none"

    def fault(self, answer: Answer) -> str | None:
        """Why this answer is not what was asked for; None when it is."""
        for choice in choices(answer):
            message = choice["message"]
            calls, text = message.get("tool_calls") or [], str(message.get("content") or "")
            if self.mode == "none" and calls:
                return "it calls a tool, and none may be called"
            if self.mode == "none" and (leaked := [token for token in RAW_TOOL_TOKENS if token in text]):
                return f"the raw tool token {leaked[0]} stands in the content, and no tool may be called"
            if self.mode == "required" and not calls:
                return "it calls no tool, and one must be called"
            for call in calls:
                if misfit := self._misfit(call):
                    return misfit[:_WHAT_IS_SAID]
        return None

    def _misfit(self, call: Any) -> str | None:
        try:
            name, text = str(call["function"]["name"]), call["function"]["arguments"]
        except (KeyError, TypeError):
            return "it has a call without a function's name and arguments"
        if name not in self.tools:
            return f"it calls {name!r}, which is none of the tools offered ({', '.join(self.tools) or 'none'})"
        try:
            arguments = json.loads(text)
        except (TypeError, ValueError):
            return f"the arguments of {name} are not JSON"
        if not isinstance(arguments, dict):
            return f"the arguments of {name} are not a JSON object"
        try:
            error = best_match(self.tools[name].iter_errors(arguments))
        except Unresolvable as unresolvable:
            raise _bad(f"the schema of {name} refers to what is not in it", str(unresolvable)) from unresolvable
        return (
            f"the arguments of {name} do not fit its schema: {error.message} (at {error.json_path})" if error else None
        )

    def stricter(self, fault: str) -> dict[str, Any]:
        """The body with which to ask again: the system message names the fault, and what is wanted instead."""
        if self.mode == "none" or not self.tools:
            wanted = "Answer in words. There are no tools: write no call and no tool token."
            body = {name: value for name, value in self.body.items() if name not in _OF_TOOLS}
        else:
            names = " or ".join(self.tools)
            must = "Answer with a call of" if self.mode == "required" else "If you call a tool, call"
            wanted = f"{must} {names}. The arguments must be one JSON object that fits the tool's schema exactly."
            body = self.body
        said = f"Your last answer was rejected: {fault}. {wanted}"
        return {**body, "messages": _with_system(body["messages"], said)}


def guard(body: dict[str, Any]) -> Guard:
    """The guard of a chat request, by its `tools` and `tool_choice`.

    Raises BadInput for a stream, a tool without a name or with a schema that is none, and a `tool_choice` that cannot
    be: an unknown word, a name that no tool has, a call required of no tool.
    """
    if body.get("stream"):
        raise _bad("a stream is handed out before it can be checked", "stream: true", "use `stream`, or leave it out")
    tools = {_name(tool): tool for tool in body.get("tools") or []}
    choice = body.get("tool_choice") or "auto"
    if isinstance(choice, dict):
        name = _name(choice)
        if name not in tools:
            raise _bad(f"no tool is called {name!r}", f"tools: {', '.join(tools) or 'none'}", "name one of the tools")
        tools, choice = {name: tools[name]}, "required"
        body = {**body, "tools": [*tools.values()], "tool_choice": choice, "parallel_tool_calls": False}
    if choice not in ("auto", "required", "none"):
        raise _bad(f"tool_choice {choice!r} is unknown", "", "say auto, required, none, or name a function")
    if choice == "required" and not tools:
        raise _bad("a call is required, and there is no tool", "tools: none", "give the tools")
    return Guard(body, choice, {name: _validator(name, tool) for name, tool in tools.items()})


def _name(tool: Any) -> str:
    try:
        return str(tool["function"]["name"])
    except (KeyError, TypeError):
        raise _bad("a tool has no function name", json.dumps(tool, default=str)[:_WHAT_IS_SAID]) from None


def _validator(name: str, tool: dict[str, Any]) -> Validator:
    schema = tool["function"].get("parameters") or {}
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise _bad(f"the parameters of {name} are no JSON schema", error.message) from error
    return kind(schema, registry=Registry())  # an empty registry: a reference is never fetched from the network


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The messages with this text in the system message: templates take one, at the beginning."""
    first = messages[0] if messages else {}
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    said = first.get("content") or ""
    more = f"{said}\n\n{text}" if isinstance(said, str) else [*said, {"type": "text", "text": text}]
    return [{**first, "content": more}, *messages[1:]]


def _bad(what: str, evidence: str, todo: str = "correct the request") -> BadInput:
    return BadInput(f"the request cannot be guarded: {what}", evidence=evidence, todo=todo)
