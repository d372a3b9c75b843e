"""Why it stopped: the limit, the end of the turn or a stop sequence, and the text up to there and no further.

Checked on the model that counts `w1 w2 w3 ...`: what it says is known token by token, so where each stop sequence must
end it can be worked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.contracts.conversations import one_turn
from tasks.contracts.promises import Context, expect, promise
from tasks.contracts.sampling import LIKELIEST
from tasks.contracts.sampling import PROMPT as COUNT
from tasks.contracts.scripted import COUNTED
from tasks.contracts.thinking import ANSWER, LIMIT
from tasks.contracts.thinking import PROMPT as THINK
from tasks.contracts.twins import CHAT, COMPLETIONS, MESSAGES, NATIVE, RESPONSES, ask, ask_streamed
from tasks.endpoint import chat_body

_PIECES = [f"{word} " for word in LIKELIEST.split()]
_SOURCE = "OpenAI API, stop; llama.cpp tools/server/README.md `stop`, `stop_type`, `stopping_word`"
_PROMPT = "model\n"
_SAME = {"temperature": 0, "cache_prompt": False}
_STOPS: tuple[tuple[str, ...], ...] = (
    ("w3",),
    ("w1",),
    ("w3 w4",),
    ("3 w",),
    (" ",),
    ("w",),
    ("4",),
    ("w40",),
    ("w40 ",),
    ("w2 w3", "w3"),
    ("w3", "w2 w3"),
    ("w3 w4", "w3"),
    ("w3", "w3 w4"),
    ("nothing", "w7"),
    ("w7", "nothing"),
    ("w9 w1", "w9 w10"),
    ("W3", "w6"),
    (" w3 ",),
    ("w5 w6", "w4 w5", "w6"),
    ("".join(_PIECES[1:14]),),
    ("".join(_PIECES),),
    ("w12 w13 w14",),
    ("w4 w6", "w8"),
)
_AT_LIMIT = {MESSAGES: ("max_tokens",), RESPONSES: ("completed", "incomplete")}  # which, limit_of_response says
_AT_END = {MESSAGES: "end_turn", RESPONSES: "completed"}
_NEVER: tuple[tuple[str, ...], ...] = (
    ("W3",),
    ("w3  w4",),
    ("w41",),
    ("w40 w",),
    ("w3\\n",),
    ("\u00e9",),
    ("w3 w4X" * 9,),
)


def ends(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, str, int]:
    """(text, the stop that ended it or '', tokens) of this text, piece by piece: a stop ends it when its last character
    has come, and of those that have then come the one that begins first."""
    text = ""
    for count, piece in enumerate(pieces, 1):
        text += piece
        found = [(text.find(stop), n, stop) for n, stop in enumerate(stops) if stop in text]
        if found:
            place, _, stop = min(found)
            return text[:place], stop, count
    return text, "", len(pieces)


def _stopped(ctx: Context, stops: Sequence[str]) -> tuple[Any, ...]:
    """(text, the stop that ended it, why it ended, tokens) of a completion with these stops."""
    (said,) = ask(ctx, NATIVE, {"prompt": _PROMPT, "n_predict": 60, "stop": stops, **_SAME})
    return said.content, said.stopped_by, said.reason, said.wrote


@promise(
    "stops.each",
    "a stop sequence ends the text before it, wherever it begins and ends, and is named",
    _SOURCE,
    server="counting",
)
def each(ctx: Context) -> str:
    for stops in _STOPS:
        text, word, count = ends(_PIECES, stops)
        saw = _stopped(ctx, stops)
        expect(saw == (text, word, "word", count), f"with the stops {stops} it is {saw}, not {(text, word, count)}")
    return f"{len(_STOPS)} sets of stop sequences"


@promise("stops.never", "a stop sequence that is not said changes nothing", _SOURCE, server="counting")
def never(ctx: Context) -> str:
    whole = ("".join(_PIECES), "", "eos", len(_PIECES) + 1)
    for stops in _NEVER:
        saw = _stopped(ctx, stops)
        expect(saw == whole, f"with the stops {stops}, which are not said, it is {saw}")
    return f"{len(_NEVER)} sets of stop sequences"


@promise(
    "stops.every_api",
    "each API ends at a stop sequence, be it one or several, and says so",
    f"{_SOURCE}; Anthropic API, stop_sequence",
    server="counting",
)
def every_api(ctx: Context) -> str:
    for stops in (("w3 w4",), ("nothing", "w5"), ("w5", "nothing"), ("w1",), (" w3",), ("".join(_PIECES[2:13]),)):
        text, word, count = ends(_PIECES, stops)
        for route, body in _everywhere(COUNT).items():
            (said,) = ask(ctx, route, body | _until(route, stops))
            saw = said.content, said.wrote
            expect(saw == (text, count), f"{route} with the stops {stops}: {saw}, not {(text, count)}")
            reason = {MESSAGES: said.reason, RESPONSES: "completed"}.get(route, "stop")
            expect(said.reason == reason, f"{route} ended for {said.reason!r} at a stop sequence")
            expect(said.stopped_by in (None, word), f"{route} names {said.stopped_by!r} as its stop sequence")
    return "chat completions, completions, responses and messages"


def _everywhere(prompt: str) -> dict[str, dict[str, Any]]:
    return one_turn(prompt, _PROMPT, 60, **_SAME)


def _until(route: str, stops: Sequence[str]) -> dict[str, Any]:
    return {"stop_sequences" if route == MESSAGES else "stop": list(stops)}


@promise(
    "stops.reason_of_message",
    "a message that a stop sequence ended has the stop_reason `stop_sequence`",
    "Anthropic API `POST /v1/messages`, stop_reason",
    server="counting",
    known="no upstream issue found: stop_reason is `end_turn`, and stop_sequence names the sequence",
)
def reason_of_message(ctx: Context) -> str:
    (said,) = ask(ctx, MESSAGES, _everywhere(COUNT)[MESSAGES] | {"stop_sequences": ["w3"]})
    expect(said.reason == "stop_sequence", f"stop_reason is {said.reason!r} at the stop sequence {said.stopped_by!r}")
    return "stop_sequence"


@promise(
    "stops.limit",
    "the limit is exact on each API: that many tokens, `length`, and no reason when there are more",
    f"{_SOURCE}; OpenAI API, finish_reason",
    server="counting",
)
def limit(ctx: Context) -> str:
    for tokens in (1, 2, 3, 5, COUNTED - 1, COUNTED, COUNTED + 1, COUNTED + 20):
        cut = tokens <= COUNTED
        for route, body in _everywhere(COUNT).items():
            name = next(n for n in ("max_tokens", "max_output_tokens") if n in body)
            (said,) = ask(ctx, route, body | {name: tokens})
            saw, wanted = (said.content, said.wrote), ("".join(_PIECES[:tokens]), min(tokens, COUNTED + 1))
            expect(saw == wanted, f"{route} with {name} {tokens} says {said.wrote} tokens, {said.content[-20:]!r}")
            right = _AT_LIMIT.get(route, ("length",)) if cut else (_AT_END.get(route, "stop"),)
            expect(said.reason in right, f"{route} with {name} {tokens} ended for {said.reason!r}, not {right[-1]!r}")
    return "to the token on each API"


@promise(
    "stops.limit_of_response",
    "a response that the limit ended is `incomplete`, for max_output_tokens",
    "OpenAI API `POST /v1/responses`, incomplete_details",
    server="counting",
    known="no upstream issue found: the status is `completed` at the limit too",
)
def limit_of_response(ctx: Context) -> str:
    (said,) = ask(ctx, RESPONSES, _everywhere(COUNT)[RESPONSES] | {"max_output_tokens": 3})
    expect(said.reason == "incomplete", f"the status is {said.reason!r} after 3 of 3 tokens")
    return "incomplete"


@promise(
    "stops.nothing_asked",
    "max_tokens 0 says nothing",
    "llama.cpp tools/server/README.md `n_predict`: when 0, no tokens will be generated",
    server="counting",
    known="no upstream issue found: one token is said with n_predict 0",
)
def nothing_asked(ctx: Context) -> str:
    (said,) = ask(ctx, NATIVE, {"prompt": _PROMPT, "n_predict": 0, **_SAME})
    expect(not said.content and not said.wrote, f"n_predict 0 says {said.content!r}")
    return "nothing"


@promise(
    "stops.ignore_eos",
    "ignore_eos goes on behind the end of the turn, to the limit",
    "llama.cpp tools/server/README.md `ignore_eos`",
    server="counting",
)
def ignore_eos(ctx: Context) -> str:
    (said,) = ask(ctx, NATIVE, {"prompt": _PROMPT, "n_predict": COUNTED + 8, "ignore_eos": True, **_SAME})
    expect(
        (said.wrote, said.reason) == (COUNTED + 8, "limit"), f"it ended for {said.reason!r} after {said.wrote} tokens"
    )
    return f"{COUNTED + 8} tokens"


@promise(
    "stops.in_thought", "a stop sequence ends a thought too, and nothing comes after it", _SOURCE, server="scripted"
)
def in_thought(ctx: Context) -> str:
    for stop, reasoning in (("t5", "t1 t2 t3 t4 "), ("t5 t6", "t1 t2 t3 t4 "), ("t4 t5 ", "t1 t2 t3 ")):
        for route, body in _everywhere(THINK).items():
            if route == COMPLETIONS:
                continue
            (said,) = ask(ctx, route, body | _until(route, [stop]))
            expect(not said.content, f"{route} says {said.content!r} after the stop {stop!r} in its thought")
            expect(said.reasoning == reasoning, f"{route} thinks {said.reasoning!r} with the stop {stop!r}")
    (said,) = ask(ctx, CHAT, {**chat_body(THINK), "max_tokens": LIMIT, "stop": ["answer is"], **_SAME})
    expect(said.content == ANSWER.partition("answer is")[0], f"the content is {said.content!r}")
    return "in thought and behind it"


@promise(
    "stops.held_back",
    "what a stream holds back for a stop sequence that does not come is sent at the end",
    _SOURCE,
    server="counting",
    known="no upstream issue found: at the limit a stream loses what could have begun a stop sequence",
)
def held_back(ctx: Context) -> str:
    asked = {"prompt": _PROMPT, "n_predict": 5, "stop": ["w5 w7"], **_SAME}
    (whole,) = ask(ctx, NATIVE, asked)
    (streamed,) = ask_streamed(ctx, NATIVE, asked)
    expect(whole.content == "".join(_PIECES[:5]), f"unstreamed it says {whole.content!r}")
    expect(streamed.content == whole.content, f"streamed it says {streamed.content!r}, unstreamed {whole.content!r}")
    return "nothing lost"
