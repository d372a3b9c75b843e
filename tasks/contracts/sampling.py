"""Sampling parameters: each one must have an effect, and the right one.

Checked on the model that counts by chance (`scripted.counts_or_skips`): what is likeliest is known, and what else may
come too. A parameter that bounds chance leaves the likeliest alone.
"""

from __future__ import annotations

import json
from typing import Any

from tasks.contracts.chat import EFFECT, OPENAI, said
from tasks.contracts.promises import Context, Unmet, at, expect, promise
from tasks.contracts.scripted import counts_or_skips

PROMPT = "Count."
LIKELIEST = counts_or_skips().says(99).strip()
_SEEDS = range(1, 9)
NEUTRAL: dict[str, Any] = {
    "temperature": 1,
    "dynatemp_range": 0,
    "top_k": 40,  # upstream's default: with 0 candidates stay unsorted, and of equals another one comes first
    "top_p": 1,
    "min_p": 0,
    "min_keep": 0,
    "typical_p": 1,
    "top_n_sigma": -1,
    "xtc_probability": 0,
    "mirostat": 0,
    "repeat_penalty": 1,
    "repeat_last_n": 64,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "dry_multiplier": 0,
    "dry_penalty_last_n": 64,
    "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
}
"""Every sampler in its place, and without effect: what a request leaves out is up to the server's own flags."""
FREE: dict[str, Any] = {**NEUTRAL, "cache_prompt": False, "temperature": 1.5, "max_tokens": 60}
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "boolean"}},
    "required": ["answer"],
    "additionalProperties": False,
}
_LLAMA = "llama.cpp tools/server/README.md `POST /completion`; guide 07: verify that parameters have effects"


def token_of(ctx: Context, text: str) -> int:
    """The id of a text that is one token, asked once of a server. Raises Unmet when it is not."""
    known = ctx.client.tokens
    if text not in known:
        tokens = at(ctx.client.post("/tokenize", {"content": text}).body, "tokens")
        expect(len(tokens) == 1, f"{text!r} is {len(tokens)} tokens")
        known[text] = int(tokens[0])
    return known[text]


def _texts(ctx: Context, **params: Any) -> list[str]:
    """What is said with each seed."""
    return [said(ctx.client.chat(PROMPT, seed=seed, **{**FREE, **params})).strip() for seed in _SEEDS]


def _leaves_the_likeliest(ctx: Context, **params: Any) -> str:
    (name, value) = next(iter(params.items()))
    free, bounded = _texts(ctx), _texts(ctx, **params)
    expect(free != bounded, f"{name} changes nothing: the same texts with and without it")
    other = next((text for text in bounded if text != LIKELIEST), LIKELIEST)
    expect(other == LIKELIEST, f"with {name} {value} it says {other[:60]!r}, not the likeliest")
    return f"{len(set(free))} texts without it, the likeliest alone with {value}"


@promise("sampling.seed", "a seed gives the same answer again, and another seed another one", EFFECT, server="counting")
def seed(ctx: Context) -> str:
    first, again = _texts(ctx), _texts(ctx)
    expect(first == again, "the same seed gives another answer")
    expect(len(set(first)) > 2, f"seed changes nothing: {len(_SEEDS)} of them give {len(set(first))} answers")
    return f"{len(_SEEDS)} seeds, {len(set(first))} answers, the same again"


@promise("sampling.temperature", "temperature 0 says the likeliest, a high one does not", EFFECT, server="counting")
def temperature(ctx: Context) -> str:
    return _leaves_the_likeliest(ctx, temperature=0)


@promise("sampling.top_k", "top_k 1 leaves the likeliest", _LLAMA, server="counting")
def top_k(ctx: Context) -> str:
    return _leaves_the_likeliest(ctx, top_k=1)


@promise("sampling.top_p", "a small top_p leaves the likeliest", EFFECT, server="counting")
def top_p(ctx: Context) -> str:
    return _leaves_the_likeliest(ctx, top_p=0.1)


@promise("sampling.min_p", "a high min_p leaves the likeliest", _LLAMA, server="counting")
def min_p(ctx: Context) -> str:
    return _leaves_the_likeliest(ctx, min_p=0.95)


def _once(ctx: Context, **params: Any) -> str:
    return said(ctx.client.chat(PROMPT, **{**FREE, "temperature": 0, **params})).strip()


@promise("sampling.logit_bias", "logit_bias -100 keeps a token away, +100 calls it", EFFECT, server="counting")
def logit_bias(ctx: Context) -> str:
    first, called = token_of(ctx, "w1 "), token_of(ctx, "w7 ")
    free, without = _once(ctx), _once(ctx, logit_bias={str(first): -100})
    calling = _once(ctx, logit_bias={str(called): 100}, max_tokens=3)
    expect(without != free, f"logit_bias changes nothing: {free[:40]!r} with and without it")
    expect("w1 " not in without, f"the forbidden word is said: {without[:40]!r}")
    expect(calling.split() == ["w7"] * 3, f"the called word is not: {calling!r}")
    return f"{without[:20]!r} instead of {free[:20]!r}"


@promise("sampling.repeats", "presence_penalty and frequency_penalty end a repetition", EFFECT, server="counting")
def repeats(ctx: Context) -> str:
    sticks = {"logit_bias": {str(token_of(ctx, "w7 ")): 24}, "max_tokens": 20}  # just enough to say it over and over
    free = _once(ctx, **sticks)
    expect(free.endswith("w7 w7"), f"it does not repeat itself: {free!r}")
    for name in ("presence_penalty", "frequency_penalty"):
        ended = _once(ctx, **{name: 2.0}, **sticks)
        expect(ended != free, f"{name} changes nothing: {free[-20:]!r} with and without it")
    return f"{free[-11:]!r} without, no more with each of them"


@promise("sampling.logprobs", "logprobs and top_logprobs tell each token's log-probability", OPENAI, server="counting")
def logprobs(ctx: Context) -> str:
    asked = {**FREE, "max_tokens": 3, "temperature": 0}
    plain = ctx.client.chat(PROMPT, **asked)
    answer = ctx.client.chat(PROMPT, logprobs=True, top_logprobs=2, **asked)
    told = at(answer.body, "choices", 0, "logprobs", "content")
    expect(not at(plain.body, "choices", 0).get("logprobs"), "an answer that was not asked for logprobs has them too")
    words = "".join(at(token, "token") for token in told)
    expect(words.strip() == said(answer).strip(), f"the logprobs are of {words!r}, the answer is {said(answer)!r}")
    for token in told:
        first, second = (at(token, "top_logprobs", n, "logprob") for n in (0, 1))
        expect(first > second, f"the top_logprobs of {at(token, 'token')!r} are {first} and {second}")
        expect(at(token, "logprob") <= 0, f"the logprob of {at(token, 'token')!r} is {at(token, 'logprob')}")
    return f"{len(told)} tokens, each with two"


def _json(text: str, how: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise Unmet(f"{how} the answer is no JSON: {text[:60]!r}") from None
    expect(isinstance(value, dict), f"{how} the answer is {value}")
    return dict(value)


@promise("sampling.grammar", "a GBNF grammar bounds the answer", _LLAMA, server="counting")
def grammar(ctx: Context) -> str:
    free, bounded = _once(ctx), _once(ctx, grammar='root ::= "{" [^}]+ "}" " "?')
    expect(bounded != free, "grammar changes nothing")
    return str(_json(bounded, "with a grammar"))


@promise(
    "sampling.json_schema",
    "response_format json_schema makes the answer fit the schema",
    f"{OPENAI}, structured outputs",
    server="counting",
)
def json_schema(ctx: Context) -> str:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": _SCHEMA}}
    free, bounded = _once(ctx), _once(ctx, response_format=wanted, max_tokens=200)
    expect(bounded != free, "response_format changes nothing")
    value = _json(bounded, "with a schema")
    expect(list(value) == ["answer"] and isinstance(value["answer"], bool), f"with a schema the answer is {value}")
    return str(value)


@promise(
    "sampling.json_object",
    "response_format json_object makes the answer JSON",
    f"{OPENAI}, JSON mode",
    server="counting",
)
def json_object(ctx: Context) -> str:
    bounded = _once(ctx, response_format={"type": "json_object"}, max_tokens=200)
    expect(bounded != LIKELIEST, "response_format changes nothing")
    return str(_json(bounded, "in JSON mode"))


@promise("sampling.stop", "each of several stop sequences ends the answer before it", EFFECT, server="counting")
def stop(ctx: Context) -> str:
    free, cut = _once(ctx), _once(ctx, stop=["nothing", "w5"])
    expect(cut != free, f"stop changes nothing: {free[:40]!r} with and without it")
    expect(cut == free.split("w5", 1)[0].strip(), f"stop at 'w5' gives {cut!r}")
    return repr(cut)
