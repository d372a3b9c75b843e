"""Chance: what each sampler leaves of what may come next, to the number.

A bias lifts six words beside the two that the counting model says anyhow. What the server then tells of the next token
(`post_sampling_probs`) is worked out anew here from what it tells without the sampler.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from tasks.contracts.promises import Context, at, expect, promise
from tasks.contracts.sampling import NEUTRAL, token_of

Chances = dict[int, float]
"""Token id -> how likely it is next."""
_SOURCE = "llama.cpp tools/server/README.md `POST /completion`, sampling parameters; src/llama-sampler.cpp"
_LIFTED = {3: 25.2, 5: 24.8, 7: 24.2, 9: 23.5, 11: 22.8, 13: 22.0}  # word -> bias: each less likely than the one before
_OPEN: dict[str, Any] = {**NEUTRAL, "n_probs": 12, "seed": 1}
_NEAR = 0.003
_SMALL = 1e-6  # less is nothing that was lifted
_DRAWS = 120


def _bias(ctx: Context) -> list[list[float]]:
    return [[token_of(ctx, f"w{word} "), bias] for word, bias in _LIFTED.items()]


def _next(ctx: Context, prompt: str = "model\n", **params: Any) -> Chances:
    asked = {"prompt": prompt, "n_predict": 1, "cache_prompt": False, "post_sampling_probs": True, **_OPEN, **params}
    answer = ctx.client.post("/completion", {"logit_bias": _bias(ctx), **asked})
    expect(answer.status == 200, f"/completion answered {answer.status}: {str(answer.body)[:120]}")
    told = at(answer.body, "completion_probabilities", 0, "top_probs")
    return {at(t, "id"): at(t, "prob") for t in told if at(t, "prob") > _SMALL}


def _of_one(found: Chances) -> Chances:
    whole = sum(found.values())
    return {token: chance / whole for token, chance in found.items()}


def _first(count: int) -> Callable[[Chances], Chances]:
    return lambda free: dict(sorted(free.items(), key=lambda each: -each[1])[:count])


def _until(share: float) -> Callable[[Chances], Chances]:
    def keep(free: Chances) -> Chances:
        kept: Chances = {}
        for token, chance in sorted(free.items(), key=lambda each: -each[1]):
            kept[token] = chance
            if sum(kept.values()) >= share:
                break
        return kept

    return keep


def _above(share: float) -> Callable[[Chances], Chances]:
    return lambda free: {token: chance for token, chance in free.items() if chance >= share * max(free.values())}


def _warm(temperature: float) -> Callable[[Chances], Chances]:
    return lambda free: {token: chance ** (1 / temperature) for token, chance in free.items()}


def _typical(share: float) -> Callable[[Chances], Chances]:
    def keep(free: Chances) -> Chances:
        entropy = -sum(chance * math.log(chance) for chance in free.values())
        kept: Chances = {}
        for token, chance in sorted(free.items(), key=lambda each: abs(-math.log(each[1]) - entropy)):
            kept[token] = chance
            if sum(kept.values()) > share:
                break
        return kept

    return keep


def _all_but_the_top(threshold: float) -> Callable[[Chances], Chances]:
    def keep(free: Chances) -> Chances:
        over = [token for token, chance in free.items() if chance >= threshold]
        return {token: chance for token, chance in free.items() if token not in over[:-1]}

    return keep


SAMPLERS: dict[str, tuple[dict[str, Any], Callable[[Chances], Chances]]] = {
    "top_k": ({"top_k": 3}, _first(3)),
    "top_k_1": ({"top_k": 1}, _first(1)),
    "top_p": ({"top_p": 0.7}, _until(0.7)),
    "top_p_small": ({"top_p": 0.4}, _until(0.4)),
    "min_p": ({"min_p": 0.3}, _above(0.3)),
    "min_p_small": ({"min_p": 0.05}, _above(0.05)),
    "temperature_high": ({"temperature": 2}, _warm(2)),
    "temperature_low": ({"temperature": 0.5}, _warm(0.5)),
    "temperature_0": ({"temperature": 0}, _first(1)),
    "typical_p": ({"typical_p": 0.5}, _typical(0.5)),
    "xtc": ({"xtc_probability": 1, "xtc_threshold": 0.1}, _all_but_the_top(0.1)),
    "min_keep": ({"top_p": 0.01, "min_keep": 3}, _first(3)),
    "samplers": ({"samplers": ["top_k"], "top_k": 2, "top_p": 0.01, "temperature": 3}, _first(2)),
    "several": (
        {"top_k": 5, "top_p": 0.9, "temperature": 2},
        lambda free: _warm(2)(_until(0.9)(_of_one(_first(5)(free)))),
    ),
}


def _differs(found: Chances, wanted: Chances) -> str:
    names = found.keys() | wanted.keys()
    worst = max(names, key=lambda token: abs(found.get(token, 0) - wanted.get(token, 0)))
    apart = abs(found.get(worst, 0) - wanted.get(worst, 0))
    return f"token {worst} is {found.get(worst, 0):.3f} likely, not {wanted.get(worst, 0):.3f}" if apart > _NEAR else ""


def _leaves(ctx: Context, params: dict[str, Any], keep: Callable[[Chances], Chances]) -> str:
    free = _next(ctx)
    expect(len(free) >= len(_LIFTED) + 1, f"logit_bias lifts {len(free)} words, not {len(_LIFTED) + 1} or more")
    found, wanted = _of_one(_next(ctx, **params)), _of_one(keep(free))
    wrong = _differs(found, {token: chance for token, chance in wanted.items() if chance > _SMALL})
    expect(not wrong, f"with {params} {wrong}")
    return f"{len(free)} words without it, {len(found)} with it, as likely as they should be"


def _check(params: dict[str, Any], keep: Callable[[Chances], Chances]) -> Callable[[Context], str]:
    return lambda ctx: _leaves(ctx, params, keep)


for _name, (_params, _keep) in SAMPLERS.items():
    promise(
        f"chance.{_name}",
        f"{_name.replace('_', ' ')} leaves what it should of what may come next, to the number",
        _SOURCE,
        server="counting",
    )(_check(_params, _keep))


def _shifts(free: Chances, found: Chances) -> dict[int, float]:
    """By how much each token's log-probability moved against the one that nothing was to move."""
    still = max(free, key=lambda token: free[token] * (token in found))
    base = math.log(found[still] / free[still])
    return {t: math.log(found[t] / free[t]) - base for t in free if t in found and found[t] > 10 * _SMALL}


@promise("chance.bias", "a logit_bias moves a token's log-probability by just that much", _SOURCE, server="counting")
def bias(ctx: Context) -> str:
    free, word = _next(ctx), token_of(ctx, "w9 ")
    for by in (1.0, -0.5):
        lifted = [[token, value + by * (token == word)] for token, value in _bias(ctx)]
        moved = _shifts(free, _next(ctx, logit_bias=lifted))
        expect(abs(moved.get(word, 0) - by) < 0.02, f"a bias of {by} more moves it by {moved.get(word, 0):.2f}")
        others = max(abs(value) for token, value in moved.items() if token != word)
        expect(others < 0.02, f"a bias of one token moves another by {others:.2f}")
    return "by 1.0 and by -0.5"


@promise(
    "chance.penalties",
    "each penalty lowers what was said before, by as much as it says, and nothing else",
    _SOURCE,
    server="counting",
)
def penalties(ctx: Context) -> str:
    prompt, words = "w5 w3 w3 w11 model\n", {word: token_of(ctx, f"w{word} ") for word in _LIFTED}
    free = _next(ctx, prompt)
    rows: tuple[tuple[dict[str, Any], dict[int, float | None]], ...] = (
        ({"presence_penalty": 1.0}, {3: -1.0, 5: -1.0, 11: -1.0}),
        ({"frequency_penalty": 0.5}, {3: -1.0, 5: -0.5, 11: -0.5}),
        ({"presence_penalty": -1.0}, {3: 1.0, 5: 1.0, 11: 1.0}),
        ({"repeat_penalty": 1.01}, {3: None, 5: None, 11: None}),
        ({"presence_penalty": 1.0, "repeat_last_n": 3}, {3: -1.0, 11: -1.0}),
        ({"presence_penalty": 1.0, "repeat_last_n": 0}, {}),
        ({"dry_multiplier": 0.0}, {}),
    )
    for params, wanted in rows:
        moved = _shifts(free, _next(ctx, prompt, **params))
        for word, token in words.items():
            by, saw = wanted.get(word, 0.0), moved.get(token, -99.0)
            right = saw < -0.01 if by is None else abs(saw - by) < 0.03
            expect(right, f"{params} moves w{word} by {saw:.2f}, not by {'less than 0' if by is None else by}")
    return f"{len(rows)} penalties"


@promise(
    "chance.dry", "the DRY penalty lowers what would go on repeating, by as much as it says", _SOURCE, server="counting"
)
def dry(ctx: Context) -> str:
    prompt, word = "w9 w7 model\nw5 w11 w9 w7 model\n", token_of(ctx, "w5 ")
    free = _next(ctx, prompt)
    params = {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_sequence_breakers": ["#"]}
    moved = _shifts(free, _next(ctx, prompt, **params))
    expect(
        abs(moved.get(word, 0) + 0.8 * 1.75) < 0.03, f"{params} moves the word by {moved.get(word, 0):.2f}, not -1.40"
    )
    others = max(abs(value) for token, value in moved.items() if token != word)
    expect(others < 0.03, f"{params} moves another word by {others:.2f}")
    return "by -1.40"


@promise("chance.draws", "over many seeds each word comes as often as it is likely", _SOURCE, server="counting")
def draws(ctx: Context) -> str:
    free = _of_one(_next(ctx))
    came: Counter[int] = Counter()
    asked = {"prompt": "model\n", "n_predict": 1, **_OPEN, "logit_bias": _bias(ctx), "return_tokens": True}
    for seed in range(_DRAWS):
        body = ctx.client.post("/completion", asked | {"seed": seed, "n_probs": 0}).body
        came[at(body, "tokens", 0)] += 1
    stray = [token for token in came if token not in free]
    expect(not stray, f"{sum(came[t] for t in stray)} of {_DRAWS} times a word came that is not likely at all")
    for token, chance in free.items():
        wide = 5 * math.sqrt(_DRAWS * chance * (1 - chance)) + 1  # five sigma: the seeds are always the same
        expect(
            abs(came[token] - _DRAWS * chance) <= wide,
            f"a word that is {chance:.0%} likely came {came[token]} of {_DRAWS} times",
        )
    return f"{_DRAWS} seeds, {len(came)} words"


HEARD: dict[str, Any] = {
    "seed": 7,
    "temperature": 0.75,
    "dynatemp_range": 0.25,
    "dynatemp_exponent": 1.5,
    "top_k": 17,
    "top_p": 0.875,
    "min_p": 0.125,
    "top_n_sigma": 1.5,
    "xtc_probability": 0.25,
    "xtc_threshold": 0.375,
    "typical_p": 0.625,
    "repeat_last_n": 33,
    "repeat_penalty": 1.25,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.25,
    "dry_multiplier": 0.5,
    "dry_base": 2.5,
    "dry_allowed_length": 3,
    "dry_penalty_last_n": 44,
    "mirostat": 0,
    "mirostat_tau": 4.5,
    "mirostat_eta": 0.25,
    "n_predict": 2,
    "n_keep": 5,
    "n_discard": 6,
    "n_probs": 4,
    "min_keep": 2,
    "ignore_eos": True,
    "stop": ["never", "ever"],
    "samplers": ["top_k", "temperature"],
    "timings_per_token": True,
}


@promise(
    "chance.heard",
    "each parameter of a request is told back as it was sent, and only for that request",
    _SOURCE,
    server="counting",
)
def heard(ctx: Context) -> str:
    def told(params: dict[str, Any]) -> Any:
        answer = ctx.client.post("/completion", {"prompt": "model\n", "n_predict": 2, **params})
        expect(answer.status == 200, f"/completion answered {answer.status}: {str(answer.body)[:120]}")
        return at(answer.body, "generation_settings")

    whole, plain = told(HEARD), told({})
    wrong = [
        f"{name} {at(whole, name)}, not {value}" for name, value in HEARD.items() if not _same(at(whole, name), value)
    ]
    expect(not wrong, f"sent together, the server hears {', '.join(wrong[:3])}")
    props = at(ctx.client.get("/props").body, "default_generation_settings", "params")
    same = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repeat_penalty",
        "typical_p",
        "dry_multiplier",
        "samplers",
        "n_probs",
    )
    wrong = [f"{name} {plain[name]}, not {at(props, name)}" for name in same if at(plain, name) != at(props, name)]
    expect(not wrong, f"a request that says nothing is answered with {', '.join(wrong[:3])} of /props")
    return f"{len(HEARD)} parameters"


def _same(one: Any, other: Any) -> bool:
    return abs(one - other) < 1e-6 if isinstance(other, float) else bool(one == other)
