"""Slots: requests at the same time, and what becomes of a request whose client has gone.

Checked on the model that counts by chance, so that each seed has an answer of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import combinations
from threading import Barrier, Event, Thread
from typing import Any

from tasks.contracts.chat import said, streamed
from tasks.contracts.conversations import one_turn
from tasks.contracts.promises import Context, at, expect, promise, slot_count, slot_tokens
from tasks.contracts.sampling import NEUTRAL, PROMPT, token_of
from tasks.contracts.scripted import COUNTED
from tasks.contracts.twins import MESSAGES
from tasks.endpoint import Client
from tasks.release import ToolingError

_SEEDS = range(1, 7)
_MEET_S = 30.0
_ENDLESS = 3000  # tokens: some seconds, unless somebody ends it
_ROUNDS = 3  # on a busy machine one may show nothing
_LONG = 160  # tokens of a stream that is to run beside another: a short one is over before the next has begun
_ENOUGH, _MEETINGS = 6, 8
"""So many pairs of streams must have been seen side by side, in at most so many rounds: without, there was nothing to
mix, and a server that mixes was passed (once in twelve times at a load of seven a core)."""
_LOOK_S = 0.02
_SETTLE_S = 10.0
_LOOKS = 100  # a second at least; and the server's own loop has turned so many times
_SOURCE = "llama.cpp tools/server/README.md `--parallel`, GET /slots"


def endless(ctx: Context) -> dict[str, Any]:
    """Parameters of a chat that goes on for as long as the server lets it."""
    last = token_of(ctx, f"w{COUNTED} ")
    return {"max_tokens": _ENDLESS, "logit_bias": [[last, -100]], "temperature": 0, "cache_prompt": False}


def until_idle(ctx: Context) -> int:
    """How many tokens a slot was seen to go on for before all were idle. Raises Unmet when one works for too long."""
    deadline = time.monotonic() + _SETTLE_S
    seen: list[int] = []
    while working := [slot for slot in ctx.client.get("/slots").body if at(slot, "is_processing")]:
        seen.append(max(at(slot, "next_token", 0, "n_decoded") for slot in working))
        expect(time.monotonic() < deadline, f"a slot still works {_SETTLE_S:.0f} s after its client has gone")
        idle = len(seen) > _LOOKS and len(set(seen[-_LOOKS:])) == 1
        expect(not idle, f"a slot is held by nobody: {_LOOKS} looks at it, and it is said to work and does not")
        time.sleep(0.01)
    return max(seen) - seen[0] if seen else 0


@promise(
    "slots.streams_do_not_mix",
    "streams at the same time hold what each of them holds alone",
    f"{_SOURCE}; OpenAI API: an answer is that of its own request",
    server="counting",
    must=True,
)
def streams_do_not_mix(ctx: Context) -> str:
    asked = {**NEUTRAL, "cache_prompt": False, "max_tokens": _LONG, "logit_bias": endless(ctx)["logit_bias"]}
    alone = [said(ctx.client.chat(PROMPT, seed=seed, **asked)) for seed in _SEEDS]
    expect(len(set(alone)) > 2, f"{len(_SEEDS)} seeds have {len(set(alone))} answers between them")
    seeds, at_once = [*_SEEDS] * 2, Barrier(2 * len(_SEEDS))

    def one_of_many(seed: int) -> tuple[str, float, float]:
        at_once.wait(_MEET_S)
        start = time.monotonic()
        stream = ctx.client.stream(PROMPT, seed=seed, **asked)
        expect(stream.status == 200 and stream.arrived_s, f"a stream answered {stream.status}", shown=None)
        return streamed(stream, "content"), start + stream.arrived_s[0], start + stream.arrived_s[-1]

    met = 0
    with ThreadPoolExecutor(len(seeds)) as pool:
        for _ in range(_MEETINGS):
            with _meetings(ctx) as seen:
                together = list(pool.map(one_of_many, seeds))
            mixed = [seed for seed, one, (other, *_) in zip(seeds, alone * 2, together, strict=True) if one != other]
            expect(not mixed, f"the streams of seeds {mixed} hold something else when {len(seeds)} run at once")
            met += _overlaps([(first, last) for _, first, last in together]) + sum(seen)
            if met >= _ENOUGH:
                break
    # a server of one slot serves one after the other; nothing can mix there, and nothing did
    if not met and slot_count(ctx) > 1:
        raise ToolingError(
            f"{_MEETINGS} times no two of {len(seeds)} streams were seen side by side",
            todo="run it again when the machine has less to do",
        )
    return f"{len(seeds)} streams at once, {met} times side by side, {len(set(alone))} different answers"


@contextmanager
def _meetings(ctx: Context) -> Iterator[list[bool]]:
    """Looks at /slots while the block runs, for two at work: on a busy machine a client may find all of a stream in its
    socket at once, and what ran side by side then looks as if it came one after the other."""
    over, seen = Event(), list[bool]()

    def look() -> None:
        with Client(ctx.client.endpoint) as client, suppress(ToolingError):
            while not over.wait(_LOOK_S):
                slots = client.get("/slots").body
                seen.append(isinstance(slots, list) and sum(bool(slot.get("is_processing")) for slot in slots) > 1)

    looks = Thread(target=look)
    looks.start()
    try:
        yield seen
    finally:
        over.set()
        looks.join()


def _overlaps(spans: list[tuple[float, float]]) -> int:
    return sum(a[0] < b[1] and b[0] < a[1] for a, b in combinations(spans, 2))


def _streams(ctx: Context) -> dict[str, dict[str, Any]]:
    """Route -> a request for a stream that goes on for as long as the server lets it."""
    more = {**endless(ctx), "stream": True}
    limit = more.pop("max_tokens")
    native = {"prompt": "model\n", "n_predict": limit, **more}
    # it hears no logit_bias (b11434: 41 tokens, and the answer is over), so none of its streams goes on
    turns = {route: body for route, body in one_turn(PROMPT, "model\n", limit, **more).items() if route != MESSAGES}
    return {"/completion": native, **turns}


@contextmanager
def left_early(ctx: Context, route: str, body: dict[str, Any]) -> Iterator[None]:
    """The block runs while this request is under way; then its client is gone."""
    with ctx.client.wire() as wire:
        status = wire.begin("POST", route, [ctx.client.bearer], json.dumps(body).encode())
        expect(status == 200, f"{route} answered {status}", shown=None)
        yield


@promise(
    "slots.cancelled_anywhere",
    "a stream whose client has gone frees its slot, on each route whose streams can be made long",
    f"{_SOURCE}; llama.cpp ends a task whose connection is closed",
    server="counting",
)
def cancelled_anywhere(ctx: Context) -> str:
    fits = min(_ENDLESS, slot_tokens(ctx) - 100)
    if fits < _ENDLESS // 2:
        return "a slot is too small to tell"
    longest = 0
    streams = _streams(ctx)
    for route, body in streams.items():
        for _ in range(_ROUNDS):
            with left_early(ctx, route, body):
                pass
            longest = max(longest, until_idle(ctx))
            expect(
                longest < fits // 2,
                f"{route}: the slot was seen to go on for {longest} of {fits} tokens for nobody",
                shown=None,
            )
    return f"{len(streams)} routes, seen to go on for at most {longest} of {fits} tokens"
