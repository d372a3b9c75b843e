from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.endpoint import Answer, chat_body
from tasks.endpoint.guards import RAW_TOOL_TOKENS, guard
from tasks.release import BadInput
from tests.endpoint.script import TIME, WEATHER, Reply, calls, says

TOOLS = [TIME, WEATHER]
NAMED = {"type": "function", "function": {"name": "get_time"}}


def asked(choice: Any = "auto", **params: Any) -> dict[str, Any]:
    return chat_body("What now?", **{"tools": TOOLS, "tool_choice": choice} | params)


def answer(reply: Reply) -> Answer:
    return Answer("POST", "/v1/chat/completions", None, reply.status, reply.body, 0.1)


GOOD = calls("get_time", '{"hours": 24}')


@pytest.mark.parametrize(
    ("choice", "reply"),
    [
        ("auto", says("Noon.")),
        ("auto", GOOD),
        ("auto", says("A call begins with <|tool_call>.")),
        ("required", GOOD),
        ("required", calls("get_weather", "{}")),
        (NAMED, GOOD),
        ("none", says("Noon.")),
    ],
)
def test_an_answer_that_is_what_was_asked_for_has_no_fault(choice: Any, reply: Reply) -> None:
    assert guard(asked(choice)).fault(answer(reply)) is None


@pytest.mark.parametrize(
    ("choice", "reply", "fault"),
    [
        ("required", says("Noon."), "it calls no tool"),
        ("required", calls("get_time", "{}"), "'hours' is a required property"),
        ("auto", calls("get_time", '{"hours": "24"}'), r"not of type 'integer' \(at \$.hours\)"),
        ("auto", calls("get_time", '{"hours": 2'), "not JSON"),
        ("auto", calls("get_time", "[24]"), "not a JSON object"),
        ("auto", calls("rm", "{}"), r"'rm', which is none of the tools offered \(get_time, get_weather\)"),
        ("auto", says(None, tool_calls=["get_time"]), "without a function's name"),
        (NAMED, calls("get_weather", "{}"), "none of the tools offered"),
        ("none", GOOD, "none may be called"),
    ],
)
def test_a_fault_is_named(choice: Any, reply: Reply, fault: str) -> None:
    found = guard(asked(choice)).fault(answer(reply))
    assert found is not None
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(found)


@pytest.mark.parametrize("token", RAW_TOOL_TOKENS)
def test_no_familys_raw_call_passes_for_words_under_none(token: str) -> None:
    assert token in str(guard(asked("none")).fault(answer(says(f"Well: {token}get_time"))))


def test_every_choice_of_an_answer_is_looked_at() -> None:
    two = says("Noon.").body
    two["choices"] += GOOD.body["choices"]
    assert guard(asked("none", n=2)).fault(answer(Reply(200, two)))


def test_a_named_function_is_the_only_tool_that_is_sent() -> None:
    body = guard(asked(NAMED)).body
    assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == ([TIME], "required", False)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (asked(stream=True), "stream"),
        (asked({"type": "function", "function": {"name": "nobody"}}), "no tool is called 'nobody'"),
        (asked({"type": "function"}), "no function name"),
        (asked("sometimes"), "'sometimes' is unknown"),
        (asked("required", tools=[]), "there is no tool"),
        (asked(tools=[{"type": "function"}]), "no function name"),
        (asked(tools=[{"function": {"name": "f", "parameters": {"type": "thing"}}}]), "no JSON schema"),
    ],
)
def test_a_request_that_cannot_be_guarded_is_refused(body: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        guard(body)


def test_a_schemas_reference_is_never_fetched(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text("{}")
    remote = {"function": {"name": "f", "parameters": {"$ref": schema.as_uri()}}}
    with pytest.raises(BadInput, match="refers to what is not in it"):
        guard(asked(tools=[remote])).fault(answer(calls("f", "{}")))


@pytest.mark.parametrize(
    ("messages", "system"),
    [
        ([], "Your last"),
        ([{"role": "system", "content": "Be kind."}], "Be kind.\n\nYour last"),
    ],
)
def test_the_stricter_request_has_one_system_message_at_the_beginning(messages: list[Any], system: str) -> None:
    user = {"role": "user", "content": "What now?"}
    found = guard({**asked("required"), "messages": [*messages, user]}).stricter("it calls no tool")["messages"]
    assert [m["role"] for m in found] == ["system", "user"]
    assert found[0]["content"].startswith(system)
    assert "it calls no tool" in found[0]["content"] and "get_time or get_weather" in found[0]["content"]


def test_parts_of_a_system_message_are_kept() -> None:
    part = {"type": "text", "text": "Be kind."}
    strict = guard({**asked("required"), "messages": [{"role": "system", "content": [part]}]}).stricter("x")
    assert strict["messages"][0]["content"][0] == part and len(strict["messages"][0]["content"]) == 2
