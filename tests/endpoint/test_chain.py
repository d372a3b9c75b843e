from __future__ import annotations

import httpx
import pytest

from tasks.endpoint import Answer, Patience, chat_body
from tasks.endpoint.chain import Chain
from tasks.release import ToolingError
from tests.endpoint.script import STARTING, Reply, says


class Clock:
    """A clock that stands still until it is told otherwise."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def answer(reply: Reply) -> Answer:
    return Answer("POST", "/v1/chat/completions", None, reply.status, reply.body, 0.1)


def broken(cause: Exception) -> ToolingError:
    """What the strict client raises for httpx's error."""
    error = ToolingError("no answer", evidence=repr(cause))
    error.__cause__ = cause
    return error


def chain(clock: Clock, *, timeout_s: float = 120.0, cold: bool = True, key: str | None = None) -> Chain:
    return Chain(chat_body("Hi"), Patience(), timeout_s=timeout_s, cold=cold, key=key, clock=clock)


def wait(chain: Chain, clock: Clock) -> float:
    clock.now += chain.pause_s
    return chain.pause_s


@pytest.mark.parametrize("said", [answer(STARTING), broken(httpx.ConnectError(""))], ids=["503", "refused"])
def test_a_starting_server_is_asked_5_to_15_s_apart_until_the_deadline(said: Answer | ToolingError) -> None:
    clock = Clock()
    made = chain(clock)
    assert made.pause_s == 0
    pauses = []
    with pytest.raises(ToolingError, match="did not come up in 300 s"):
        while made.take(said) is None:
            pauses.append(wait(made, clock))
    assert all(5 <= pause <= 15 for pause in pauses) and len(set(pauses)) > 1
    assert 285 <= clock.now - 1000 <= 300


def test_the_first_request_may_take_as_long_as_a_cold_start_and_a_later_one_may_not() -> None:
    clock = Clock()
    assert chain(clock).request["timeout_s"] == 300
    assert chain(clock, timeout_s=600).request["timeout_s"] == 600
    warm = chain(clock, cold=False)
    assert warm.request["timeout_s"] == 120
    warm.take(answer(STARTING))
    assert warm.request["timeout_s"] == 300
    clock.now += 100
    assert warm.request["timeout_s"] == 200


def calling() -> Chain:
    body = chat_body("Hi", tools=[{"function": {"name": "f"}}], tool_choice="required")
    return Chain(body, Patience(), timeout_s=1, cold=False)


def test_a_rejected_answer_is_followed_up_at_once_under_the_chains_id() -> None:
    made = calling()
    ids = [made.request["headers"]["x-request-id"]]
    for said in (answer(STARTING), answer(says("No."))):
        assert made.take(said) is None
        ids.append(made.request["headers"]["x-request-id"])
    assert ids == [f"{made.id}-{n}" for n in (1, 2, 3)]
    assert made.pause_s == 0


@pytest.mark.parametrize("cause", [httpx.ConnectError(""), httpx.ConnectTimeout("")], ids=repr)
def test_a_request_that_never_reached_the_server_is_repeated_whatever_it_may_run(cause: Exception) -> None:
    assert calling().take(broken(cause)) is None


@pytest.mark.parametrize(
    ("cause", "what"),
    [
        (httpx.ReadError(""), "may have run a tool"),
        (httpx.RemoteProtocolError(""), "may have run a tool"),
        (httpx.ReadTimeout(""), "took too long"),
        (httpx.UnsupportedProtocol("ftp"), "no answer"),
    ],
    ids=repr,
)
def test_a_request_that_may_have_reached_it_is_not(cause: Exception, what: str) -> None:
    with pytest.raises(ToolingError, match=what):
        calling().take(broken(cause))


@pytest.mark.parametrize("before", range(280, 300, 6))
def test_a_key_in_the_servers_words_is_hidden_before_they_are_cut(before: int) -> None:
    key = "a-key-that-no-log-may-have"
    said = Answer("POST", "/v1/chat/completions", None, 500, "x" * before + key, 0.1)
    with pytest.raises(ToolingError) as caught:
        chain(Clock(), key=key).take(said)
    assert key[:4] not in caught.value.evidence
