"""Slots: requests at the same time, and what becomes of a request whose client has gone.

Checked on the model that counts by chance, so that each seed has an answer of its own.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from tasks.contracts.chat import said, streamed
from tasks.contracts.promises import Context, at, expect, promise
from tasks.contracts.sampling import PROMPT, token_of
from tasks.contracts.scripted import COUNTED

_SEEDS = range(1, 7)
_MEET_S = 30.0
_ENDLESS = 3000  # tokens: some seconds, unless somebody ends it
_ROUNDS = 3  # on a busy machine one may show nothing: short streams may come one after the other, with nothing to mix
_SETTLE_S = 10.0
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
    alone = [said(ctx.client.chat(PROMPT, seed=seed, cache_prompt=False)) for seed in _SEEDS]
    expect(len(set(alone)) > 2, f"{len(_SEEDS)} seeds have {len(set(alone))} answers between them")
    seeds, at_once = [*_SEEDS] * 2, Barrier(2 * len(_SEEDS))

    def one_of_many(seed: int) -> str:
        at_once.wait(_MEET_S)
        return streamed(ctx.client.stream(PROMPT, seed=seed, cache_prompt=False), "content")

    with ThreadPoolExecutor(len(seeds)) as pool:
        for _ in range(_ROUNDS):
            together = list(pool.map(one_of_many, seeds))
            mixed = [seed for seed, one, other in zip(seeds, alone * 2, together, strict=True) if one != other]
            expect(not mixed, f"the streams of seeds {mixed} hold something else when {len(seeds)} run at once")
    return f"{_ROUNDS} times {len(seeds)} streams, {len(set(alone))} different answers"


@promise(
    "slots.cancelled",
    "a slot is free soon after its client has gone",
    f"{_SOURCE}; llama.cpp ends a task whose connection is closed",
    server="counting",
)
def cancelled(ctx: Context) -> str:
    fits = min(_ENDLESS, at(ctx.client.get("/props").body, "default_generation_settings", "n_ctx") - 100)
    if fits < _ENDLESS // 2:
        return "a slot is too small to tell"
    longest = 0
    for _ in range(_ROUNDS):  # on a busy machine the first look may come when the slot has nearly gone on to the end
        with ctx.client.open_stream(PROMPT, **endless(ctx)) as lines:
            next(lines)
        longest = max(longest, until_idle(ctx))
        expect(longest < fits // 2, f"the slot was seen to go on for {longest} of {fits} tokens for nobody")
    return f"{_ROUNDS} times seen to go on for at most {longest} of {fits} tokens, then the slot was free"
