"""Texts to tokens and back: nothing lost, nothing added, nothing tidied."""

from __future__ import annotations

from typing import Any

from tasks.contracts.promises import Context, at, expect, promise
from tasks.contracts.sampling import token_of
from tasks.contracts.scripted import COUNTED, TURN_END
from tasks.contracts.twins import NATIVE, ask, ask_streamed

_SOURCE = "llama.cpp tools/server/README.md `POST /tokenize`, `POST /detokenize`"
TEXTS = {
    "a letter": "a",
    "spaces": "  two  spaces ",
    "tabs and newlines": "\t tab\n\nnl\r\n\r",
    "accents": "na\u00efve caf\u00e9",
    "a combining mark": "e\u0301 a\u0308\u0323",
    "CJK": "\u6f22\u5b57\u4eee\u540d\ud55c\uae00",
    "right to left": "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "Devanagari": "\u0939\u093f\u0928\u094d\u0926\u0940",
    "emoji": "\U0001f600\U0001f603 \u2764\ufe0f",
    "joined emoji": "\U0001f469\u200d\U0001f52c\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "flags": "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7",
    "plane 1": "\U0001d518\U0001d52b\U0001d526",
    "plane 2": "\U00020000\U0002a6d6",
    "plane 14": "\U000e0041",
    "plane 16": "\U0010fffd",
    "nothing to see": "a\u200bb\u200dc\ufeffd\u2060",
    "controls": "a\x00b\x01c\x7fd",
    "separators": "\u2028\u2029\x85",
    "compatibility forms": "\ufb01 \uff21\uff22\uff23 \u2460",
    "Turkish": "\u0130\u0131",
    "long": "x" * 300,
    "digits": "0123456789" * 4,
    "quotes": "\"'\\`\u201c\u201d",
    "markup": "<b>&amp;</b> {{ x }} {% y %} ${z}",
    "code": "def f(x):\n\treturn x  # \u00e9\n",
}
_SAID = ("caf\u00e9 ", "\U0001f469\u200d\U0001f52c", "\u6f22\u5b57 e\u0301", "\U0001f1e9\U0001f1ea\U0001d518")


def _tokens(ctx: Context, text: str, **params: Any) -> list[Any]:
    answer = ctx.client.post("/tokenize", {"content": text, **params})
    expect(answer.status == 200, f"/tokenize answered {answer.status}")
    return list(at(answer.body, "tokens"))


@promise("tokens.round_trip", "a text of any plane of Unicode is the same after /tokenize and /detokenize", _SOURCE)
def round_trip(ctx: Context) -> str:
    for what, text in TEXTS.items():
        tokens = _tokens(ctx, text)
        answer = ctx.client.post("/detokenize", {"tokens": tokens})
        expect(answer.status == 200, f"/detokenize answered {answer.status}")
        back = at(answer.body, "content")
        expect(back == text, f"{what}: {text[:40]!r} comes back as {back[:40]!r}")
    return f"{len(TEXTS)} texts"


@promise(
    "tokens.pieces",
    "the pieces of a text's tokens make up the text, and have the ids that it has without them",
    f"{_SOURCE}, with_pieces",
)
def pieces(ctx: Context) -> str:
    for what, text in TEXTS.items():
        told = _tokens(ctx, text, with_pieces=True)
        joined = b"".join(p.encode() if isinstance(p := at(t, "piece"), str) else bytes(p) for t in told)
        expect(joined == text.encode(), f"{what}: the pieces make {joined[:40]!r}")
        expect([at(t, "id") for t in told] == _tokens(ctx, text), f"{what}: with pieces the tokens are others")
    return f"{len(TEXTS)} texts"


@promise(
    "tokens.special",
    "add_special adds the model's first token and nothing else; parse_special is what makes a "
    "special token of its text",
    _SOURCE,
    server="counting",
)
def special(ctx: Context) -> str:
    text = f"w3 {TURN_END}w4 "
    plain, added = _tokens(ctx, text, add_special=False), _tokens(ctx, text, add_special=True)
    expect(added[-len(plain) :] == plain, f"add_special changes the text: {plain} and {added}")
    expect(len(added) - len(plain) == 1, f"add_special adds {len(added) - len(plain)} tokens to {len(plain)}")
    parsed, spelled = (_tokens(ctx, text, parse_special=yes) for yes in (True, False))
    expect(len(parsed) == 3, f"with parse_special {text!r} is {len(parsed)} tokens, not 3")
    expect(len(spelled) > 3, f"without parse_special {text!r} is {len(spelled)} tokens: its text makes a special token")
    return f"{len(parsed)} tokens parsed, {len(spelled)} spelled"


@promise(
    "tokens.words",
    "each word of the counting model is one token, the same one wherever it stands",
    _SOURCE,
    server="counting",
)
def words(ctx: Context) -> str:
    one_by_one = [token for n in range(1, COUNTED + 1) for token in _tokens(ctx, f"w{n} ")]
    text = "".join(f"w{n} " for n in range(1, COUNTED + 1))
    expect(_tokens(ctx, text) == one_by_one, "words side by side are other tokens than each alone")
    expect(len(set(one_by_one)) == COUNTED, f"{COUNTED} words are {len(set(one_by_one))} tokens")
    said = ctx.client.post(NATIVE, {"prompt": "model\n", "n_predict": 60, "temperature": 0, "return_tokens": True}).body
    told = at(said, "tokens")
    expect(told[:COUNTED] == one_by_one, f"the tokens of an answer are {told[:5]}..., of its text {one_by_one[:5]}...")
    given = ctx.client.post(NATIVE, {"prompt": [*one_by_one, token_of(ctx, "model\n")], "n_predict": 1}).body
    spelled = ctx.client.post(NATIVE, {"prompt": f"{text}model\n", "n_predict": 1}).body
    counts = at(given, "tokens_evaluated"), at(spelled, "tokens_evaluated")
    expect(counts[1] == counts[0] + 1, f"{counts[0]} tokens of a prompt given as tokens, {counts[1]} as its text")
    return f"{COUNTED} words"


@promise(
    "tokens.streamed",
    "a character that is several tokens arrives whole in a stream",
    "RFC 8259: JSON is UTF-8; OpenAI API, streaming",
)
def streamed(ctx: Context) -> str:
    for text in _SAID:
        grammar = f'root ::= "{text}"'
        asked = {"prompt": "a", "n_predict": 40, "temperature": 0, "grammar": grammar, "cache_prompt": True}
        (whole,), (live,) = ask(ctx, NATIVE, asked), ask_streamed(ctx, NATIVE, asked)
        expect(whole.content == text, f"a grammar of {text!r} gives {whole.content!r}")
        expect(live.content == text, f"streamed {text!r} is {live.content!r}")
    return f"{len(_SAID)} texts"
