"""JSON schemas: each keyword is enforced on a model that would rather break it.

The model that counts says anything but JSON, and a bias makes it want just what the keyword forbids: so an answer that
fits is the server's doing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

from tasks.contracts.promises import Context, at, expect, promise
from tasks.contracts.sampling import NEUTRAL, PROMPT, token_of
from tasks.contracts.scripted import JSON
from tasks.endpoint import Answer

_SOURCE = "OpenAI API, structured outputs; llama.cpp grammars/README.md, JSON schemas"
_LIKELIEST: dict[str, Any] = {**NEUTRAL, "temperature": 0, "cache_prompt": False}
_MOST = 120  # tokens: more than any answer that fits needs
_ENDS = {"1": 40.0, "}": 60.0, "]": 60.0, '"': 60.0, ",": 50.0, "\n": -100.0, JSON: -100.0}
"""What ends a value, sooner than it goes on; and nothing that the model has ready."""


@dataclass(frozen=True)
class Keyword:
    """A keyword of JSON schema: a schema that has it, and what the model is made to want instead (text -> bias)."""

    name: str
    schema: dict[str, Any]
    wants: Mapping[str, float]


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_NUMBER, _YES = {"type": "integer"}, {"type": "boolean"}
KEYWORDS = (
    Keyword("type", {"type": "boolean"}, {"9": 100, "t": 50}),
    Keyword("type_null", {"type": "null"}, {"9": 100}),
    Keyword("type_number", {"type": "number"}, {"t": 100, "1": 50}),
    Keyword("type_object", {"type": "object"}, {"[": 100, "}": 110}),
    Keyword("type_array", {"type": "array"}, {"9": 100, "]": 50}),
    Keyword("nullable", {"type": ["integer", "null"]}, {"t": 100, '"': 90, "n": 50}),
    Keyword("enum", {"enum": ["abc", "abd", 7]}, {"9": 100, '"': 60, "d": 50}),
    Keyword("const", {"const": "abc"}, {"9": 100}),
    Keyword("minimum", {"type": "integer", "minimum": 300, "maximum": 999}, {"1": 100, "3": 90}),
    Keyword("minimum_negative", {"type": "integer", "minimum": -5}, {"-": 100, "9": 90}),
    Keyword("maximum", {"type": "integer", "maximum": 55}, {"9": 100}),
    Keyword("maximum_large", {"type": "integer", "minimum": 0, "maximum": 1234}, {"9": 100}),
    Keyword("exclusive_minimum", {"type": "integer", "exclusiveMinimum": 99, "maximum": 150}, {"9": 100, "1": 50}),
    Keyword("exclusive_maximum", {"type": "integer", "exclusiveMaximum": 5}, {"5": 100, "9": 50}),
    Keyword("between", {"type": "integer", "minimum": 20, "maximum": 30}, {"9": 100, "3": 110}),
    Keyword("min_length", {"type": "string", "minLength": 5}, {'"': 100, "9": 50}),
    Keyword("max_length", {"type": "string", "maxLength": 5}, {"9": 100}),
    Keyword("pattern", {"type": "string", "pattern": "^ab{2,4}c$"}, {"9": 100, '"': 90, "b": 50}),
    Keyword("pattern_of_classes", {"type": "string", "pattern": "^[a-c]+[0-9]$"}, {"x": 100, '"': 90, "9": 50}),
    Keyword("format_date", {"type": "string", "format": "date"}, {"9": 100, '"': 90}),
    Keyword("format_time", {"type": "string", "format": "time"}, {"9": 100, '"': 90}),
    Keyword("format_date_time", {"type": "string", "format": "date-time"}, {"9": 100, '"': 90}),
    Keyword("format_uuid", {"type": "string", "format": "uuid"}, {"x": 100, '"': 90}),
    Keyword("properties", _object(a=_NUMBER, b=_YES), {"9": 100, '"': 70}),
    Keyword("required", _object(a=_NUMBER, b=_YES), {"}": 100}),
    Keyword("additional_properties", _object(a=_NUMBER), {",": 100}),
    Keyword("additional_of_type", {"type": "object", "additionalProperties": {"type": "boolean"}},
            {'"': 120, "x": 110, "9": 100, "}": 50}),
    Keyword("items", {"type": "array", "items": _YES, "minItems": 1, "maxItems": 2}, {"9": 100, "t": 50}),
    Keyword("min_items", {"type": "array", "items": _NUMBER, "minItems": 3, "maxItems": 4}, {"]": 100}),
    Keyword("max_items", {"type": "array", "items": _NUMBER, "maxItems": 3}, {"1": 100, ",": 120}),
    Keyword("prefix_items", {"type": "array", "prefixItems": [_NUMBER, _YES]}, {"t": 100, "1": 90}),
    Keyword("any_of", {"anyOf": [_NUMBER, _YES]}, {'"': 100, "[": 90, "1": 50}),
    Keyword("one_of", {"oneOf": [{"const": "a"}, _YES]}, {"9": 100, "t": 50}),
    Keyword("all_of", {"allOf": [_object(a=_NUMBER) | {"additionalProperties": True}, {"properties": {"b": _YES},
            "required": ["b"]}]}, {"9": 90, "}": 100}),
    Keyword("ref", {"type": "object", "properties": {"a": {"$ref": "#/$defs/yes"}}, "required": ["a"],
            "additionalProperties": False, "$defs": {"yes": _YES}}, {"9": 100, "t": 50}),
    Keyword("ref_to_itself", {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array", "maxItems": 1, "items":
            {"$ref": "#/$defs/list"}}}}, {"9": 100, "]": 50}),
    Keyword("nested", _object(a=_object(b={"type": "array", "items": _object(c={"enum": [1, 2]}), "minItems": 1,
            "maxItems": 1})), {"9": 100, "2": 70}),
)  # fmt: skip
UNENFORCED = (
    Keyword(
        "unique_items",
        {"type": "array", "items": _NUMBER, "uniqueItems": True, "minItems": 2, "maxItems": 3},
        {"1": 100, ",": 110},
    ),
    Keyword("multiple_of", {"type": "integer", "multipleOf": 5}, {"9": 100}),
    Keyword("not", {"type": "integer", "not": {"const": 9}}, {"9": 100, "1": -50}),
    Keyword("min_properties", {"type": "object", "additionalProperties": _YES, "minProperties": 1}, {"}": 100}),
)


def bias_of(ctx: Context, keyword: Keyword) -> list[list[float]]:
    """The model's wishes as a logit_bias."""
    return [[token_of(ctx, text), bias] for text, bias in {**_ENDS, **keyword.wants}.items()]


def answer_to(ctx: Context, schema: dict[str, Any], bias: list[list[float]], way: str) -> tuple[Answer, str]:
    """The answer to a request for this schema, in one of WAYS, and the text that is to fit it."""
    asked: dict[str, Any] = {**_LIKELIEST, "logit_bias": bias, "max_tokens": _MOST}
    if way == "json_schema":
        answer = ctx.client.post("/completion", {**asked, "prompt": "model\n", "json_schema": schema})
        return answer, str(answer.body.get("content")) if answer.status == 200 else ""
    named = {"name": "wanted", "schema": schema, "strict": True}
    answer = ctx.client.chat(PROMPT, response_format={"type": "json_schema", "json_schema": named}, **asked)
    return answer, str(at(answer.body, "choices", 0, "message", "content")) if answer.status == 200 else ""


WAYS = ("response_format", "json_schema")


def misfit(text: str, schema: dict[str, Any]) -> str:
    """Why a text does not fit a schema; '' when it does."""
    try:
        value = json.loads(text)
    except ValueError:
        return f"{text[:60]!r} is not JSON"
    checker = Draft202012Validator.FORMAT_CHECKER
    error = next(Draft202012Validator(schema, format_checker=checker).iter_errors(value), None)
    return f"{text[:60]} does not fit: {error.message[:80]}" if error else ""


def _is_enforced(ctx: Context, keyword: Keyword) -> str:
    bias, said = bias_of(ctx, keyword), ""
    for way in WAYS:
        answer, said = answer_to(ctx, keyword.schema, bias, way)
        expect(answer.status == 200, f"as {way} it got {answer.status}: {str(answer.body)[:120]}")
        wrong = misfit(said, keyword.schema)
        expect(not wrong, f"as {way}: {wrong}")
    return f"{said[:60]}, though it wants {max(keyword.wants, key=lambda t: keyword.wants[t])!r}"


def _check(keyword: Keyword) -> Callable[[Context], str]:
    return lambda ctx: _is_enforced(ctx, keyword)


for _keyword in KEYWORDS:
    promise(
        f"schemas.{_keyword.name}", f"a schema's {_keyword.name.replace('_', ' ')} is enforced", _SOURCE,
        server="counting",
    )(_check(_keyword))  # fmt: skip


@promise(
    "schemas.refused",
    "a keyword that cannot be enforced is refused, or stated",
    _SOURCE,
    server="counting",
    known="llama.cpp grammars/README.md lists what is left out: uniqueItems, multipleOf, not and minProperties are "
    "taken, and nothing is enforced",
)
def refused(ctx: Context) -> str:
    for keyword in UNENFORCED:
        answer, said = answer_to(ctx, keyword.schema, bias_of(ctx, keyword), WAYS[0])
        if answer.status == 200:
            wrong = misfit(said, keyword.schema)
            expect(not wrong, f"{keyword.name.replace('_', ' ')} is taken, and {wrong}")
    return f"{len(UNENFORCED)} keywords refused or enforced"


def _tool(schema: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"p": schema}, "required": ["p"]}
    return {"type": "function", "function": {"name": "f", "description": "F.", "parameters": parameters}}


@promise(
    "schemas.of_tools",
    "a tool's parameters are enforced in a call that is required",
    f"{_SOURCE}; OpenAI API, function calling",
    server="counting",
    known="common/parsers/gemma4.cpp: a call of Gemma 4's is held to its tool's name, and not to its schema",
)
def of_tools(ctx: Context) -> str:
    some = [k for k in KEYWORDS if k.name in ("type", "maximum", "minimum", "max_items", "items")]
    for keyword in some:
        answer = ctx.client.chat(
            PROMPT, tools=[_tool(keyword.schema)], tool_choice="required", logit_bias=bias_of(ctx, keyword),
            max_tokens=_MOST, parallel_tool_calls=False, **_LIKELIEST,
        )  # fmt: skip
        expect(answer.status == 200, f"a chat with a tool answered {answer.status}: {str(answer.body)[:120]}")
        text = str(at(answer.body, "choices", 0, "message", "tool_calls", 0, "function", "arguments"))
        wrong = misfit(text, _tool(keyword.schema)["function"]["parameters"])
        expect(not wrong, f"a tool whose parameter has the {keyword.name.replace('_', ' ')}: {wrong}")
    return f"{len(some)} keywords"


@promise(
    "schemas.bad",
    "a schema that is none gets a 4xx",
    f"{_SOURCE}; OpenAI API errors",
    server="counting",
    known="a 500 on b11434 and before: the right words, the wrong side blamed",
)
def bad(ctx: Context) -> str:
    schemas: tuple[Any, ...] = ({"type": "nothing"}, {"$ref": "#/$defs/nowhere"}, {"enum": []})
    for schema in schemas:
        answer, _ = answer_to(ctx, schema, [], WAYS[0])
        expect(400 <= answer.status < 500, f"the schema {json.dumps(schema)} got {answer.status}")
    return f"{len(schemas)} schemas refused"


@promise(
    "schemas.bad_grammar",
    "a grammar that is none gets a 4xx",
    "llama.cpp grammars/README.md; OpenAI API errors",
    server="counting",
    known="b9105: it is taken, and nothing is enforced",
)
def bad_grammar(ctx: Context) -> str:
    for grammar in ("root ::= nowhere", "root ::= (", "nothing"):
        status = ctx.client.post("/completion", {"prompt": "model\n", "n_predict": 4, "grammar": grammar}).status
        expect(400 <= status < 500, f"the grammar {grammar!r} got {status}")
    return "3 grammars refused"


@promise(
    "schemas.grammar",
    "a grammar's alternatives, repetitions, classes and rules are all enforced",
    "llama.cpp grammars/README.md",
    server="counting",
)
def grammar(ctx: Context) -> str:
    rows: dict[str, tuple[str, dict[str, float], str]] = {
        "repetition": ('root ::= "a"{2,4} "b"', {"a": 100, "9": 90}, "aaaab"),
        "at least": ('root ::= "a"{3,} "b"', {"b": 100, "a": 50}, "aaab"),
        "at most": ('root ::= "a"{0,2} "b"', {"a": 100}, "aab"),
        "class": ("root ::= [x-z] [^0-9] [0-4]", {"9": 100, "y": 60, "3": 80}, "yy3"),
        "alternatives": ('root ::= ("ab" | "cd") "!"', {"9": 100, "c": 50, "a": 40}, "cd!"),
        "optional": ('root ::= "a"? "b" "c"?', {"9": 100, "b": 60, "c": 40}, "bc"),
        "rules": ('root ::= pair pair\npair ::= "a" one\none ::= "1" | "2"', {"9": 100, "2": 50}, "a2a2"),
    }
    for what, (text, wants, fits) in rows.items():
        bias = [[token_of(ctx, one), value] for one, value in wants.items()]
        asked = {**_LIKELIEST, "prompt": "model\n", "n_predict": 20, "grammar": text, "logit_bias": bias}
        answer = ctx.client.post("/completion", asked)
        expect(answer.status == 200, f"{what}: {text!r} got {answer.status}")
        said = at(answer.body, "content")
        expect(said == fits, f"{what}: {text!r} lets {said!r} through, {fits!r} is what it leaves")
    return f"{len(rows)} grammars"
