"""The clients against a server that misbehaves; each test is of the sync and of the async one."""

from __future__ import annotations

import json
import logging
import socket
from typing import Any

import pytest

from tasks.endpoint import Client, Patience, Rejected, content, message
from tasks.release import BadInput, Endpoint, ToolingError
from tests.endpoint.conftest import Ask, Use
from tests.endpoint.script import HANGUP, KEY, STARTING, TIME, WEATHER, Reply, calls, says, server
from tests.fakes.listening import Answering, listening
from tests.platforms.stand import until

pytestmark = pytest.mark.wire
HELLO = says("Hello.")
GOOD = calls("get_time", '{"hours": 24}')
NAMED = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="tasks.endpoint")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in log.records if r.name.startswith("tasks.endpoint")]


def test_a_cold_start_is_waited_out_and_every_attempt_is_logged(ask: Ask, log: pytest.LogCaptureFixture) -> None:
    with server(STARTING, STARTING, HELLO) as seen:
        assert content(ask(seen.endpoint)) == "Hello."
    chain = str(seen.request_ids[0]).removesuffix("-1")
    assert seen.request_ids == [f"{chain}-{n}" for n in (1, 2, 3)]
    assert [line.split(" in ")[0] for line in lines(log)] == [
        f"request {chain}-1: 503", f"request {chain}-2: 503", f"request {chain}-3: 200",
    ]  # fmt: skip
    assert lines(log)[2].endswith("as chatcmpl-of-the-server, taken")


def test_a_proxys_request_id_is_the_servers_own(ask: Ask, log: pytest.LogCaptureFixture) -> None:
    with server(Reply(200, HELLO.body, headers={"X-Request-Id": "of-the-proxy"})) as seen:
        assert ask(seen.endpoint).server_id == "of-the-proxy"
    assert "as of-the-proxy" in lines(log)[0]


def test_a_server_that_never_listens_is_given_up(use: Use) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        endpoint = Endpoint(base_url=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(ToolingError, match="did not come up") as raised:
            use(endpoint, lambda client: client.ask("Hi"), patience=Patience(cold_start_s=0))
    assert "ConnectError" in raised.value.evidence


@pytest.mark.parametrize("lost", [HANGUP, Reply(502, {})], ids=["hangup", "502"])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"tools": [TIME], "tool_choice": "none"},
        {"tools": [TIME], "idempotent": True},
    ],
    ids=["no tools", "none may be called", "idempotent"],
)
def test_a_broken_off_request_that_can_have_run_no_tool_or_may_twice_is_repeated(
    ask: Ask, lost: Reply, params: dict[str, Any]
) -> None:
    with server(lost, HELLO) as seen:
        assert content(ask(seen.endpoint, **params)) == "Hello."
    assert len(seen.bodies) == 2 and "idempotent" not in seen.bodies[0]


@pytest.mark.parametrize("lost", [HANGUP, Reply(502, {})], ids=["hangup", "502"])
@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
def test_a_broken_off_request_that_may_have_run_a_tool_is_never_repeated(ask: Ask, lost: Reply, choice: Any) -> None:
    with server(STARTING, lost, GOOD) as seen, pytest.raises(ToolingError, match="may have run a tool") as raised:
        ask(seen.endpoint, tools=[TIME, WEATHER], tool_choice=choice)
    assert len(seen.bodies) == 2
    assert f"request {seen.request_ids[1]}: " in raised.value.evidence


def test_a_slow_answer_is_not_asked_for_twice(ask: Ask) -> None:
    with server(Reply(408, {"error": "timeout"})) as seen, pytest.raises(ToolingError, match="took too long") as raised:
        ask(seen.endpoint)
    assert "timeout_s" in raised.value.todo and "max_tokens" in raised.value.todo
    assert len(seen.bodies) == 1


def test_the_first_request_waits_longer_than_the_next(use: Use) -> None:
    def hello(client: Any) -> Any:
        return client.ask("Hi")

    with server(Reply(200, HELLO.body, delay_s=0.4)) as seen:
        with pytest.raises(ToolingError, match="took too long"):
            use(seen.endpoint, hello, hello, timeout_s=0.1)
        assert until(lambda: len(seen.bodies) == 2)  # also of a client that has gone


@pytest.mark.parametrize(
    ("held", "sent", "state"),
    [
        (None, None, "MY_KEY is not set"),
        (KEY, KEY, "MY_KEY is set, and is the key that was sent"),
        ("another", KEY, "MY_KEY is set, and is not what was sent"),
    ],
)
def test_a_refused_key_names_the_variable_and_never_the_key(
    ask: Ask, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    held: str | None, sent: str | None, state: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("LLAMA_RELEASE_SERVER__API_KEY_ENV", "MY_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    if held:
        monkeypatch.setenv("MY_KEY", held)
    refused = Reply(401, {"error": {"message": f"Invalid API Key {'x' * 250}{KEY}"}})
    with server(refused) as seen, pytest.raises(BadInput) as raised:
        ask(Endpoint(base_url=seen.endpoint.base_url, api_key=sent))
    assert state in raised.value.evidence and "set MY_KEY" in raised.value.todo
    assert len(seen.bodies) == 1
    if sent:
        assert KEY[:8] not in str(raised.value) and "another" not in str(raised.value)
        assert KEY[:8] not in log.text and "[key]" in raised.value.evidence


@pytest.mark.parametrize(("status", "kind"), [(400, BadInput), (500, ToolingError)])
def test_any_other_status_is_raised_at_once_with_the_servers_words(
    ask: Ask, status: int, kind: type[Exception]
) -> None:
    with server(Reply(status, {"error": {"message": "no such thing"}})) as seen, pytest.raises(kind) as raised:
        ask(seen.endpoint)
    assert "no such thing" in str(raised.value) and len(seen.bodies) == 1


@pytest.mark.parametrize("body", ["<html>", {}, {"choices": []}, {"choices": [{"text": "completion"}]}])
def test_what_is_no_chat_completion_is_never_handed_out(ask: Ask, body: Any) -> None:
    with server(Reply(200, body)) as seen, pytest.raises(ToolingError, match="no chat completion"):
        ask(seen.endpoint)


def test_tokens_used_up_by_thinking_are_said_with_what_to_do(ask: Ask) -> None:
    empty = says("", finish="length", reasoning_content="Let me think about")
    with server(empty) as seen, pytest.raises(BadInput, match="thinking used up the tokens") as raised:
        ask(seen.endpoint, max_tokens=16)
    assert "max_tokens" in raised.value.todo and "enable_thinking" in raised.value.todo
    assert "16" in raised.value.evidence and len(seen.bodies) == 1


@pytest.mark.parametrize(("text", "finish"), [("Hel", "length"), ("", "stop")])
def test_an_answer_that_is_short_or_meant_to_be_empty_is_handed_out(ask: Ask, text: str, finish: str) -> None:
    with server(says(text, finish=finish)) as seen:
        assert content(ask(seen.endpoint)) == text


def test_a_required_call_that_does_not_fit_is_asked_for_more_strictly(ask: Ask, log: pytest.LogCaptureFixture) -> None:
    with server(says("Noon."), calls("get_time", "{}"), GOOD) as seen:
        answer = ask(seen.endpoint, tools=[TIME, WEATHER], tool_choice="required")
    (call,) = message(answer)["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"hours": 24}
    systems = [[m["content"] for m in body["messages"] if m["role"] == "system"] for body in seen.bodies]
    assert [len(s) for s in systems] == [0, 1, 1]
    assert "it calls no tool" in systems[1][0] and "'hours' is a required property" in systems[2][0]
    assert len(lines(log)) == 3 and len({i.split("-")[0] for i in map(str, seen.request_ids)}) == 1


def test_answers_that_never_fit_are_rejected_in_the_end(ask: Ask) -> None:
    with server(says("Noon.")) as seen, pytest.raises(Rejected, match="3 answers were rejected") as raised:
        ask(seen.endpoint, tools=[TIME], tool_choice="required")
    assert [i in raised.value.evidence for i in map(str, seen.request_ids)] == [True] * 3


def test_a_named_function_is_asked_for_alone_and_called(ask: Ask) -> None:
    with server(calls("get_weather", "{}"), GOOD) as seen:
        answer = ask(seen.endpoint, tools=[WEATHER, TIME], tool_choice=NAMED)
    assert [body["tools"] for body in seen.bodies] == [[TIME], [TIME]]
    assert message(answer)["tool_calls"][0]["function"]["name"] == "get_time"


@pytest.mark.parametrize("bad", [GOOD, says("<|tool_call>call:get_time{hours:24}<tool_call|>")], ids=["call", "raw"])
def test_a_call_under_none_is_rejected_and_asked_again_without_tools(ask: Ask, bad: Reply) -> None:
    with server(bad, HELLO) as seen:
        assert content(ask(seen.endpoint, tools=[TIME], tool_choice="none")) == "Hello."
    assert [("tools" in body, "tool_choice" in body) for body in seen.bodies] == [(True, True), (False, False)]
    assert seen.bodies[1]["messages"][0]["role"] == "system"


def test_the_strict_methods_are_never_helped(use: Use) -> None:
    with server(STARTING) as seen:
        assert use(seen.endpoint, lambda client: client.chat("Hi")).status == 503
    assert len(seen.bodies) == 1
    with server(HANGUP) as seen, pytest.raises(ToolingError, match="no answer from"):
        use(seen.endpoint, lambda client: client.chat("Hi", tools=[TIME], tool_choice="required"))
    assert len(seen.bodies) == 1


def test_a_stream_is_read_to_its_end(use: Use) -> None:
    event = json.dumps({"choices": [{"delta": {"content": "Hello."}, "finish_reason": "stop"}]})
    with server(Reply(200, f"data: {event}\n\ndata: [DONE]\n\n")) as seen:
        stream = use(seen.endpoint, lambda client: client.stream("Hi"))
    assert (stream.status, stream.text, stream.done, stream.finish_reason) == (200, "Hello.", True, "stop")
    with server(HANGUP) as seen, pytest.raises(ToolingError, match="broke off"):
        use(seen.endpoint, lambda client: client.stream("Hi"))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_wait_mends_is_told_at_once(status: int) -> None:
    """A proxy that refuses would do so for the whole time that a server may take to come up."""

    class Refusing(Answering):
        def do_GET(self) -> None:
            self.say(b"no", status)

    told = f"does not let /health through: {status}"
    with (
        listening(Refusing) as address,
        Client(Endpoint(base_url=address)) as client,
        pytest.raises(ToolingError, match=told),
    ):
        client.wait_healthy(600.0)
