"""What a stream must be to be put together, and what two sayings differ in. No server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.contracts.promises import Unmet
from tasks.contracts.sayings import (
    Saying,
    differences,
    events_of,
    streamed_chat,
    streamed_message,
    streamed_response,
)
from tasks.contracts.stops import ends


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"object": "chat.completion.chunk", "id": "c", "created": 1, "model": "m", "choices": [choice], **more}


def stream(*events: dict[str, Any], end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end


ROLE = chunk({"role": "assistant", "content": None})
CALL = {"index": 0, "id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def test_a_stream_is_put_together_of_its_deltas() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    (said,) = streamed_chat(
        stream(ROLE, chunk({"content": "a"}), chunk({"content": "b"}), chunk({"tool_calls": [CALL]}),
               chunk({}, "stop", usage=usage))
    )  # fmt: skip
    assert (said.content, said.calls, said.reason, said.read, said.wrote) == ("ab", (("f", "{}"),), "stop", 3, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (stream(ROLE, chunk({}, "stop"), end=""), "[DONE] came 0 times"),
        (stream(ROLE, chunk({}, "stop"), end="data: [DONE]\n\ndata: [DONE]\n\n"), "[DONE] came 2 times"),
        (stream(ROLE, chunk({}, "stop"), chunk({"content": "a"})), "a delta came after"),
        (stream(ROLE, chunk({"content": "a"})), "finish_reason came 0 times"),
        (stream(chunk({"content": "a"}), chunk({}, "stop")), "the role came with the deltas []"),
        (stream(ROLE, chunk({"role": "assistant"}), chunk({}, "stop")), "the role came with the deltas [0, 1]"),
        (stream(ROLE, chunk({}, "stop", id="d")), "the stream's id changes"),
        (stream(ROLE, chunk({"tool_calls": [{**CALL, "index": None}]}), chunk({}, "stop")), "has no index"),
        (stream(ROLE, chunk({"tool_calls": [{**CALL, "type": None}]}), chunk({}, "stop")), "type is None"),
        (stream(ROLE, chunk({"tool_calls": [{**CALL, "id": ""}]}), chunk({}, "stop")), "id is ''"),
        (stream(ROLE, chunk({"tool_calls": [CALL, {**CALL, "index": 2}]}), chunk({}, "stop")), "indexes [0, 2]"),
        (stream(ROLE, chunk({"tool_calls": [CALL, {**CALL, "index": 1}]}), chunk({}, "stop")), "have one id"),
        ("data: {}\ndata: {}\n\n", "two events in one"),
        ("nothing", "no event"),
        ("", "holds no event"),
    ],
)
def test_a_stream_that_no_client_could_put_together_is_unmet(text: str, says: str) -> None:
    with pytest.raises(Unmet) as unmet:
        streamed_chat(text)
    assert says in str(unmet.value)


def test_a_message_whose_block_is_never_closed_is_unmet() -> None:
    usage = {"input_tokens": 1, "output_tokens": 1}
    events: tuple[dict[str, Any], ...] = (
        {"type": "message_start", "message": {"model": "m", "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    )

    def sent(some: tuple[dict[str, Any], ...]) -> str:
        return "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in some)

    assert streamed_message(sent(events))[0].content == "a"
    with pytest.raises(Unmet, match="never closed"):
        streamed_message(sent(events[:3] + events[4:]))


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_response_that_the_limit_cut_may_end_as_incomplete(status: str) -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    response = {"id": "r", "object": "response", "model": "m", "output": [], "usage": usage, "status": status}
    events = [{"type": f"response.{kind}", "response": response} for kind in ("created", status)]
    (said,) = streamed_response("".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events))
    assert said.reason == status


def test_sayings_differ_in_what_both_tell_and_in_nothing_else() -> None:
    one = Saying(content="a", reason="stop", read=3)
    assert differences(one, Saying(content="a", reason=None, read=3, wrote=1)) == {}
    assert differences(one, Saying(content="b", reason="length", read=3)) == {
        "content": "'a', 'b'", "reason": "'stop', 'length'",
    }  # fmt: skip


def test_comments_and_names_of_events_are_told_from_their_data() -> None:
    assert events_of(': ping\n\nevent: x\ndata: {"a": 1}\n\n') == [("x", {"a": 1})]


@pytest.mark.parametrize(
    ("stops", "text", "word", "tokens"),
    [
        (["b c"], "a ", "b c", 3),
        (["b ", "a b"], "", "a b", 2),
        (["b c", "c"], "a ", "b c", 3),
        (["x"], "a b c d ", "", 4),
        (["a"], "", "a", 1),
    ],
)
def test_a_text_ends_where_the_first_stop_that_has_come_begins(
    stops: list[str], text: str, word: str, tokens: int
) -> None:
    assert ends(["a ", "b ", "c ", "d "], stops) == (text, word, tokens)
