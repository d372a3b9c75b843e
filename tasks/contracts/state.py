"""State: what a server keeps between requests and shares among them must not be heard in an answer.

Checked where all that is read counts (the model that attends) and where each word is known (the one that counts).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from typing import Any

from tasks.contracts.chat import said
from tasks.contracts.promises import Context, at, expect, promise, slot_count
from tasks.contracts.reading import ROOM, TOOLS, apart, conversation, next_token, prompt_tokens, shared_start
from tasks.contracts.sampling import FREE, LIKELIEST, token_of
from tasks.contracts.sampling import PROMPT as COUNT
from tasks.contracts.slots import left_early
from tasks.contracts.thinking import LIMIT
from tasks.contracts.thinking import PROMPT as THINK
from tasks.contracts.toolbox import TOOLS as CALLABLE
from tasks.contracts.twins import CHAT, NATIVE
from tasks.endpoint import chat_body

_SOURCE = "llama.cpp tools/server/README.md `cache_prompt`, `id_slot`: a cached prefix is not evaluated again"
_BY_CHANCE = 8  # tokens of a new prompt that may be those of an earlier one behind the template's, too
_TIMES = 16
_TRIES = 4


def _conversations() -> dict[str, Any]:
    """What follows the conversation on the same slot, from all of it being cached to nothing."""
    whole = conversation()
    tail = {"role": "user", "content": "And tomorrow, what will it be like at the rivers and at the lakes?"}
    other = [{"role": "user", "content": "Something else altogether, about mountains."}]
    return {
        "the same again": whole,
        "one more turn": [*whole, {"role": "assistant", "content": "Forty-two."}, tail],
        "its last turn another": [*whole[:-1], tail],
        "its beginning alone": whole[:2],
        "another first word": [{"role": "system", "content": "Do be brief and kind."}, *whole[1:]],
        "another one": other,
        "another one, longer": [*other, {"role": "assistant", "content": "Yes."}, tail],
    }


def _alone(ctx: Context) -> tuple[dict[str, dict[int, float]], float]:
    """(what each conversation is answered alone, how far from it the same may be in other company): a quarter of what
    two of them are apart at least. Batches of another size sum in another order, and on a GPU that shows."""
    alone = {what: next_token(ctx, turns, TOOLS) for what, turns in _conversations().items()}
    near = min(apart(one, other) for one, other in combinations(alone.values(), 2)) / 4
    expect(near > 0, "two conversations are answered alike")
    return alone, near


@promise(
    "state.cache",
    "a cached prefix changes no answer, and what is shared comes from the cache",
    _SOURCE,
    server="seeing",
    room=ROOM,
)
def cache(ctx: Context) -> str:
    first, worst = conversation(), 0.0
    alone, near = _alone(ctx)
    before = prompt_tokens(ctx, first, TOOLS)
    for what, turns in _conversations().items():
        next_token(ctx, first, TOOLS)
        moved = apart(alone[what], next_token(ctx, turns, TOOLS, cache_prompt=True))
        worst = max(worst, moved)
        expect(moved < near, f"{what}: the answer moves by {moved:.3f} when a prefix is cached")
        usage = at(ctx.client.exchanges[-1]["response"], "usage")
        told, read = at(usage, "prompt_tokens_details", "cached_tokens"), at(usage, "prompt_tokens")
        shared = shared_start(before, prompt_tokens(ctx, turns, TOOLS))
        expect(told < read, f"{what}: all of {read} tokens are said to be cached, and the last must be read")
        if what in ("the same again", "one more turn"):
            expect(told > shared // 2, f"{what}: {told} of {shared} shared tokens came from the cache")
    return f"{len(_conversations())} conversations behind another, {worst:.4f} apart at most"


@promise("state.cache_off", "cache_prompt false reads all of the prompt anew", _SOURCE, server="seeing", room=ROOM)
def cache_off(ctx: Context) -> str:
    for n, wanted in enumerate((False, True, False)):
        next_token(ctx, conversation(), TOOLS, cache_prompt=wanted)
        usage = at(ctx.client.exchanges[-1]["response"], "usage", "prompt_tokens_details")
        told = at(usage, "cached_tokens")
        expect(bool(told) == wanted, f"request {n + 1} with cache_prompt {wanted} says {told} cached tokens")
    fresh = [{"role": "user", "content": f"{secrets.token_hex(8)} is new."}]
    next_token(ctx, fresh, cache_prompt=True)
    told = at(ctx.client.exchanges[-1]["response"], "usage", "prompt_tokens_details", "cached_tokens")
    most = (
        shared_start(prompt_tokens(ctx, fresh), prompt_tokens(ctx, [{"role": "user", "content": "What?"}])) + _BY_CHANCE
    )
    expect(told <= most, f"{told} tokens of a prompt that nobody has asked before are said to be cached")
    return "0 cached tokens without the cache, and of a new prompt none but the template's"


@promise(
    "state.at_once", "conversations at the same time are each answered as alone", _SOURCE, server="seeing", room=ROOM
)
def at_once(ctx: Context) -> str:
    some = list(_conversations().values())
    alone, near = _alone(ctx)
    with ThreadPoolExecutor(len(some)) as pool:
        together = list(pool.map(lambda turns: next_token(ctx, turns, TOOLS, id_slot=-1), some))
    moved = [apart(one, other) for one, other in zip(alone.values(), together, strict=True)]
    expect(max(moved) < near, f"at the same time an answer moves by {max(moved):.3f}")
    return f"{len(some)} conversations at once, {max(moved):.4f} apart at most"


@promise(
    "state.whole_at_once",
    "unstreamed answers at the same time are each the one that it is alone",
    _SOURCE,
    server="counting",
    must=True,
)
def whole_at_once(ctx: Context) -> str:
    def answer(seed: int) -> str:
        return said(ctx.client.chat(COUNT, seed=seed, **FREE))

    seeds = range(1, 7)
    alone = [answer(seed) for seed in seeds]
    expect(len(set(alone)) > 2, f"{len(seeds)} seeds have {len(set(alone))} answers between them")
    for _ in range(2):
        with ThreadPoolExecutor(len(seeds)) as pool:
            together = list(pool.map(answer, seeds))
        mixed = [seed for seed, one, other in zip(seeds, alone, together, strict=True) if one != other]
        expect(not mixed, f"the answers to the seeds {mixed} are others when {len(seeds)} are asked at once")
    return f"twice {len(seeds)} at once, {len(set(alone))} different answers"


def _plain(ctx: Context) -> dict[str, Callable[[], str]]:
    """What is said to requests that say nothing of what others asked for."""

    def chat(**params: Any) -> str:
        answer = ctx.client.chat(COUNT, **params)
        text, choice = said(answer), at(answer.body, "choices", 0)
        return f"{text} {at(choice, 'finish_reason')} {choice.get('logprobs')}"

    def completion() -> str:
        answer = ctx.client.post(NATIVE, {"prompt": "model\n", "temperature": 0})
        expect(answer.status == 200, f"{NATIVE} answered {answer.status}")
        return f"{at(answer.body, 'content')} {at(answer.body, 'stop_type')}"

    return {
        "a chat": partial(chat, temperature=0),
        "a chat with a seed": partial(chat, seed=5),
        "a completion": completion,
    }


def _chat_with(ctx: Context, more: dict[str, Any]) -> Callable[[], Any]:
    return lambda: ctx.client.post(CHAT, {**chat_body(COUNT), "max_tokens": 60, **more})


def _odd(ctx: Context) -> dict[str, Callable[[], Any]]:
    seven = token_of(ctx, "w7 ")
    schema = {"type": "object", "properties": {"answer": {"type": "boolean"}}, "required": ["answer"]}
    params: dict[str, dict[str, Any]] = {
        "a grammar": {"grammar": 'root ::= "w9 "'},
        "a schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
        "JSON mode": {"response_format": {"type": "json_object"}},
        "a bias": {"logit_bias": [[seven, 100]], "max_tokens": 4},
        "stop sequences": {"stop": ["w5"]},
        "a limit": {"max_tokens": 2},
        "a temperature and a seed": {"temperature": 1.9, "seed": 3},
        "log-probabilities": {"logprobs": True, "top_logprobs": 2},
        "penalties": {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repeat_penalty": 3.0},
        "top_k and top_p": {"top_k": 2, "top_p": 0.3, "min_p": 0.9},
        "other samplers": {"samplers": ["temperature"], "temperature": 3.0},
        "ignore_eos": {"ignore_eos": True, "max_tokens": 50},
        "tools": {"tools": CALLABLE, "tool_choice": "required", "max_tokens": 8},
        "a system message": {"messages": [{"role": "system", "content": "Shout."}, {"role": "user", "content": "Hi"}]},
    }
    asked = {what: _chat_with(ctx, more) for what, more in params.items()}
    return asked | {
        "a completion's parameters": lambda: ctx.client.post(
            NATIVE, {"prompt": "model\n", "n_predict": 3, "stop": ["w2"], "grammar": 'root ::= "w9 "'}
        ),
        "a bad request": lambda: ctx.client.chat("Hi", temperature="hot"),
        "a broken body": lambda: ctx.client.request("POST", CHAT, content=b'{"messages": ['),
        "a stream left early": lambda: _leave_early(ctx),
    }


def _leave_early(ctx: Context) -> None:
    body = {**chat_body(COUNT), "temperature": 0, "cache_prompt": False, "stream": True}
    with left_early(ctx, CHAT, body):
        pass


@promise(
    "state.nothing_sticks", "no parameter of a request is heard in the next one", _SOURCE, server="counting", must=True
)
def nothing_sticks(ctx: Context) -> str:
    plain, odd = _plain(ctx), _odd(ctx)
    before = {name: ask() for name, ask in plain.items()}
    begins = LIKELIEST[:9]  # no more: the server may be set to say so many tokens, and that must be heard here
    expect(before["a chat"].startswith(begins), f"a chat at temperature 0 says {before['a chat'][:60]!r}")
    for what, do in odd.items():
        for name, ask in plain.items():
            do()
            after = ask()
            expect(after == before[name], f"after {what} {name} is {after[-40:]!r}, before {before[name][-40:]!r}")
    _seeds_do_not_stick(ctx)
    return f"the same after each of {len(odd)} kinds of requests"


def _seeds_do_not_stick(ctx: Context) -> None:
    for seed in range(_TRIES):  # another one each time: one of them may be the server's own (--seed)
        with_seed = said(ctx.client.chat(COUNT, seed=seed, **FREE))
        if said(ctx.client.chat(COUNT, **FREE)) != with_seed:
            return
    expect(False, f"{_TRIES} times a request without a seed was answered as the one with a seed before it")


@promise(
    "state.thinking_does_not_stick",
    "no request for thinking, or for none, is heard in the next one",
    _SOURCE,
    server="scripted",
)
def thinking_does_not_stick(ctx: Context) -> str:
    def plain() -> str:
        answer = ctx.client.chat(THINK, temperature=0, max_tokens=LIMIT)
        return json.dumps([said(answer), at(answer.body, "choices", 0, "finish_reason")])

    before = plain()
    odd: Iterable[dict[str, Any]] = (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"thinking_budget_tokens": 2},
        {"reasoning_effort": "none"},
        {"reasoning_format": "none"},
        {"max_tokens": 3},
        {"tools": CALLABLE},
        {"stop": ["t4"]},
    )
    for more in odd:
        ctx.client.chat(THINK, **{"temperature": 0, "max_tokens": LIMIT, **more})
        after = plain()
        expect(after == before, f"after {more} a plain chat says {after[:80]}")
    return "the same after each"


@promise("state.again", "the same request is answered the same, time after time", _SOURCE, server="counting")
def again(ctx: Context) -> str:
    for params in ({"temperature": 0}, {"temperature": 1.5, "seed": 7}):
        asked = {**FREE, **params}
        answers = [said(ctx.client.chat(COUNT, **{**asked, "cache_prompt": n % 2 == 0})) for n in range(_TIMES)]
        different = sorted({answer for answer in answers if answer != answers[0]})
        expect(not different, f"{_TIMES} times {params} gives {answers[0][-30:]!r} and also {different[:1]}")
    return f"{_TIMES} times the same"


@promise("state.slot", "id_slot is the slot that answers, and each slot has its own cache", _SOURCE, server="seeing")
def slot(ctx: Context) -> str:
    slots = slot_count(ctx)
    for number in range(slots):
        body = {"prompt": f"Slot {number} reads this.", "n_predict": 1, "id_slot": number, "cache_prompt": True}
        for _ in range(2):
            answer = ctx.client.post("/completion", body)
            used = at(answer.body, "id_slot")
            expect(used == number, f"slot {used} answered a request for slot {number}")
    for number in range(slots):
        body = {"prompt": f"Slot {number} reads this.", "n_predict": 1, "id_slot": number, "cache_prompt": True}
        cached = at(ctx.client.post("/completion", body).body, "timings", "cache_n")
        expect(cached > 1, f"slot {number} has {cached} tokens cached of the prompt that it has just read")
    return f"{slots} slots"
