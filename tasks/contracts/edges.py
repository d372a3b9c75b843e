"""At the edges: a prompt that just fits, one token more, nothing at all, and very many of a thing.

Sized in tokens on the scripted models, to the token.
"""

from __future__ import annotations

from typing import Any

from tasks.contracts.promises import Context, at, expect, promise, slot_tokens
from tasks.contracts.sampling import NEUTRAL, token_of
from tasks.contracts.scripted import COUNTED
from tasks.contracts.twins import CHAT, NATIVE, ask
from tasks.endpoint import Answer, chat_body

_SOURCE = "llama.cpp tools/server/README.md `--ctx-size`, `n_predict`, `truncated`; exceed_context_size_error"
_MOST = 8192
"""Tokens: what an edge may cost. In a larger slot the prompt that just fits is not tried."""


def _complete(ctx: Context, tokens: int, **params: Any) -> Answer:
    prompt = [token_of(ctx, "w7 ")] * (tokens - 1) + [token_of(ctx, "model\n")]
    return ctx.client.post(NATIVE, {**NEUTRAL, "prompt": prompt, "temperature": 0, "cache_prompt": True, **params})


@promise(
    "edges.prompt_fits",
    "a prompt that just fits a slot is read whole, and one that fills it is refused",
    _SOURCE,
    server="counting",
)
def prompt_fits(ctx: Context) -> str:
    fits = slot_tokens(ctx)
    if fits > _MOST:
        return f"a slot of {fits} tokens is too large to fill here"
    for tokens in (fits - 8, fits - 1):
        answer = _complete(ctx, tokens, n_predict=1)
        expect(answer.status == 200, f"a prompt of {tokens} of {fits} tokens got {answer.status}")
        read = at(answer.body, "timings", "prompt_n") + at(answer.body, "timings", "cache_n")
        expect(read == tokens == at(answer.body, "tokens_evaluated"), f"of {tokens} tokens {read} were read")
        expect(at(answer.body, "content") == "w1 ", f"after {tokens} tokens it says {answer.body['content']!r}")
    for tokens in (fits, fits + 1):
        answer = _complete(ctx, tokens, n_predict=1)
        expect(400 <= answer.status < 500, f"a prompt of {tokens} tokens in a slot of {fits} got {answer.status}")
        told = at(answer.body, "error", "n_prompt_tokens"), at(answer.body, "error", "n_ctx")
        expect(told == (tokens, fits), f"the error speaks of {told}, not of {(tokens, fits)}")
    return f"{fits - 1} tokens fit, {fits} are refused"


@promise(
    "edges.answer_fits", "an answer ends where the slot does, and says that it was cut", _SOURCE, server="counting"
)
def answer_fits(ctx: Context) -> str:
    fits = slot_tokens(ctx)
    if fits > _MOST:
        return f"a slot of {fits} tokens is too large to fill here"
    shifts = "--context-shift" in ctx.release.argv
    own = int(ctx.option("-n", "--predict", "--n-predict") or -1)  # what n_predict -1 means to a server with a limit
    for room, limit in ((COUNTED + 10, -1), (30, 20), (30, -1), (30, 100000)):
        body = _complete(ctx, fits - room, n_predict=limit).body
        most = limit if limit > 0 else own
        whole = min(COUNTED + 1, most if most > 0 else COUNTED + 1)
        said, cut = at(body, "tokens_predicted"), at(body, "truncated")
        if not shifts:
            expect(said == min(whole, room), f"with room for {room} tokens and n_predict {limit} it says {said}")
            expect(cut == (whole > room), f"truncated is {cut} after {said} tokens with room for {room}")
        words = at(body, "content").split()
        wanted = [f"w{n}" for n in range(1, len(words) + 1)]
        expect(words == wanted, f"with room for {room} tokens it says {' '.join(words)[-40:]!r}")
    return "cut where the slot ends"


@promise("edges.many_turns", "a conversation of very many turns is read whole", _SOURCE, server="counting", room=1536)
def many_turns(ctx: Context) -> str:
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"w{n % COUNTED + 1} "} for n in range(161)]
    read = []
    for some in (turns, turns[2:]):
        (said,) = ask(ctx, CHAT, {**chat_body(some), "max_tokens": 2, "temperature": 0})
        expect(said.content == "w1 w2 ", f"after {len(some)} turns it says {said.content!r}")
        read.append(said.read or 0)
    prompt = at(ctx.client.post("/apply-template", {"messages": turns}).body, "prompt")
    missing = [turn["content"] for turn in turns if turn["content"].strip() not in prompt]
    users = prompt.count("<|turn>user\n")
    expect(
        users == len(turns[::2]) and not missing, f"{users} turns of a user are rendered, {len(turns[::2])} are sent"
    )
    expect(read[0] > read[1], f"{len(turns)} turns are {read[0]} tokens, two less are {read[1]}")
    return f"{len(turns)} turns, {read[0]} tokens"


@promise(
    "edges.nothing",
    "an empty prompt and an empty turn are answered or refused, and do no harm",
    "OpenAI API errors: a request that is wrong is a 4xx",
    server="counting",
)
def nothing(ctx: Context) -> str:
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "an empty prompt": (NATIVE, {"prompt": "", "n_predict": 2}),
        "a prompt of no tokens": (NATIVE, {"prompt": [], "n_predict": 2}),
        "an empty turn": (CHAT, {**chat_body(""), "max_tokens": 2}),
        "a turn of spaces": (CHAT, {**chat_body("   "), "max_tokens": 2}),
        "tokens that the model has not": (NATIVE, {"prompt": [99999999], "n_predict": 2}),
        "a negative token": (NATIVE, {"prompt": [-1], "n_predict": 2}),
        "a prompt that is a number": (NATIVE, {"prompt": 5, "n_predict": 2}),
        "no prompt": (NATIVE, {"n_predict": 2}),
        "nothing to tokenize": ("/tokenize", {"content": ""}),
        "no tokens": ("/detokenize", {"tokens": []}),
        "a limit beyond all": (NATIVE, {"prompt": "model\n", "n_predict": 100000}),
    }
    for what, (route, body) in asked.items():
        status = ctx.client.post(route, body).status
        expect(status < 500, f"{what} got {status}")
    (said,) = ask(ctx, NATIVE, {"prompt": "model\n", "n_predict": 3, "temperature": 0})
    expect(said.content == "w1 w2 w3 ", f"after all that it says {said.content!r}")
    return f"{len(asked)} requests"


@promise(
    "edges.bytes",
    "bytes that are no text are refused, and bytes that are odd text are read",
    "RFC 8259: JSON is UTF-8",
    server="counting",
    known="b10605 and before answer a body that is not JSON with a 500",
)
def odd_bytes(ctx: Context) -> str:
    bad = {
        "invalid UTF-8": b'{"prompt":"\xff\xfe","n_predict":1}',
        "UTF-8 cut short": b'{"prompt":"\xe2\x82","n_predict":1}',
        "half a surrogate": b'{"prompt":"\\ud800","n_predict":1}',
        "text behind the end": b'{"prompt":"a","n_predict":1}x',
        "nothing": b"",
        "half an object": b'{"prompt":"a"',
    }
    for what, content in bad.items():
        status = ctx.client.request("POST", NATIVE, content=content).status
        expect(400 <= status < 500, f"{what} got {status}")
    for what, content in {
        "NUL": b'{"prompt":"a\\u0000model\\n","n_predict":1,"temperature":0}',
        "a surrogate pair": b'{"prompt":"\\ud83d\\ude00model\\n","n_predict":1,"temperature":0}',
    }.items():
        answer = ctx.client.request("POST", NATIVE, content=content)
        expect(answer.status == 200, f"{what} got {answer.status}")
        expect(at(answer.body, "content") == "w1 ", f"after {what} it says {answer.body['content']!r}")
    return f"{len(bad)} refused, 2 read"


@promise(
    "edges.prompts",
    "several prompts in one request are answered each, by index",
    "OpenAI API `POST /v1/completions`, prompt: a list",
    server="counting",
)
def prompts(ctx: Context) -> str:
    given = ["model\n", "w5 ", "w9 "]
    answer = ctx.client.post(NATIVE, {"prompt": given, "n_predict": 2, "temperature": 0})
    expect(answer.status == 200, f"{NATIVE} answered {answer.status}")
    said = {at(one, "index"): at(one, "content") for one in answer.body}
    wanted = {0: "w1 w2 ", 1: "w6 w7 ", 2: "w10 w11 "}
    expect(said == wanted, f"three prompts are answered {said}, not {wanted}")
    return "3 prompts"
