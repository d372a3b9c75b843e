from __future__ import annotations

from typing import Any

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


def unreached() -> ToolingError:
    try:
        raise ToolingError("no answer") from httpx.ConnectError("refused")
    except ToolingError as error:
        return error


def chain(clock: Clock, **options: Any) -> Chain:
    return Chain(chat_body("Hi"), Patience(), **{"timeout_s": 120.0, "cold": True, "clock": clock} | options)


def wait(chain: Chain, clock: Clock) -> float:
    clock.now += chain.pause_s
    return chain.pause_s


@pytest.mark.parametrize("said", [answer(STARTING), unreached()], ids=["503", "no connection"])
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


def test_answers_are_not_paused_for_and_a_chain_keeps_its_id() -> None:
    made = Chain(
        chat_body("Hi", tools=[{"function": {"name": "f"}}], tool_choice="required"),
        Patience(), timeout_s=1, cold=False,
    )  # fmt: skip
    first = made.request["headers"]["x-request-id"]
    assert made.take(answer(says("No."))) is None
    assert made.pause_s == 0
    assert first == f"{made.id}-1" and made.request["headers"]["x-request-id"] == f"{made.id}-2"
