"""Models whose weights are a script: a small GGUF that makes llama-server say exactly what a check needs.

The file has the architecture `gemma4` and Gemma 4's chat template, so the server treats it as that model: it parses
the thought channel, applies budgets, and so on. What it says is not left to chance. Each token has one successor:

    embeddings      one-hot and tied, so a hidden state is a token and a logit is its amount in the hidden state
    attention       zero, so only the last token counts; or (`attends`) random, so that a little of everything before it
                    counts too, and its order
    feed forward    gate and up are the identity, down has a 1 at (successor, token), and less at (second choice, token)
    post_ffw_norm   large, so that the successor outweighs the token itself at any temperature

It loads in well under a second on a CPU, from b8637 (where gemma4 begins) on.

`gemma4.jinja` beside this file is llama.cpp's `models/templates/google-gemma-4-31B-it.jinja` as of b11434, byte for
byte (Google's chat template of Gemma 4, Apache-2.0; distributed by llama.cpp under MIT).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tasks.release import BadInput, ToolingError

TEMPLATE = Path(__file__).with_name("gemma4.jinja")
PROMPT_END = "model\n"
"""The template ends every prompt with `<|turn>model` and a newline. One token, so that it says: speak now."""
TURN_END = "<turn|>"
"""Ends the generation; also the successor of every token that no script mentions."""

_SPECIAL = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", TURN_END, "<|channel>", "<channel|>", "<|think|>", "<|tool>",
    "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<|image|>",
    "<|image>", "<image|>", "<|audio|>", "<|video|>",
)  # fmt: skip
_PLAIN = ("\n", "\u2581", "\u2581\u2581", *map(chr, range(0x21, 0x7F)))  # U+2581 is how this tokenizer writes a space
_PIECE = re.compile("|".join([*map(re.escape, _SPECIAL), re.escape(PROMPT_END), r"\n", r"[^\s<]+ *"]))
_BLOCKS = 2  # b11434 wants at least one sliding-window block, and one block holds the script
_HEAD = 64
_SUCCESSOR_WEIGHT = 20.0
_LOGIT_SCALE = 4.0
_NEVER, _SOMETIMES = 0.5, 0.97  # of the successor's logit: e^-25 and about e^-1 times as likely, for 200 tokens
_ATTENTION_WEIGHT = 1.0  # moves logits by about one, which no successor notices
_ATTENTION_SHARPNESS = 0.5  # of q and k: some tokens count for ten times others, and where they stand counts


@dataclass(frozen=True)
class Script:
    """What a model says: chains of text in which each token leads to the next.

    The first chain starts with `model` and a newline, the prompt's end. A chain that ends with a token which already
    has a successor loops. Further chains say what follows a token that the server forces or the prompt ends with.
    A token is a special token of Gemma 4, a newline, or a word with the spaces behind it.

    `instead` are chains of second choices: where the server forbids a token's successor (a grammar does), the token
    leads to this one. They may leave the chains at any token, and join them again. `second` is a second choice's share
    of its successor's logit: by default it is never said of its own accord, yet before any token without a script.
    """

    chains: tuple[str, ...]
    instead: tuple[str, ...] = ()
    second: float = _NEVER

    @cached_property
    def successors(self) -> dict[str, str]:
        """Token -> the token after it.

        Raises BadInput when there is nothing to say, a text is no sequence of tokens, or one token would need two
        successors.
        """
        chains = [list(_pieces(chain)) for chain in self.chains]
        if not chains or any(len(chain) < 2 for chain in chains):
            raise _bad("it says nothing", repr(self.chains), "give each chain at least two tokens")
        if chains[0][0] != PROMPT_END:
            raise _bad("nothing follows the prompt", repr(self.chains[0]), f"begin the first chain with {PROMPT_END!r}")
        return _pairs(chains, "successors")

    @cached_property
    def seconds(self) -> dict[str, str]:
        """Token -> the token after it where its successor is forbidden; only where that is another one.

        Raises BadInput as `successors` does.
        """
        found = _pairs([list(_pieces(chain)) for chain in self.instead], "second choices")
        return {token: after for token, after in found.items() if self.successors.get(token) != after}

    @cached_property
    def words(self) -> list[str]:
        """All tokens of the script, sorted."""
        return sorted({w for pairs in (self.successors, self.seconds) for pair in pairs.items() for w in pair})

    def says(self, tokens: int, *, after: str = PROMPT_END) -> str:
        """The text of up to this many tokens that follow `after`, without the token that ends the turn."""
        text = ""
        for _ in range(tokens):
            after = self.successors.get(after, TURN_END)
            if after == TURN_END:
                break
            text += after
        return text


def thinks_forever() -> Script:
    """Opens the thought channel and never leaves it; once it is closed from outside, gives a short answer."""
    return Script((
        "model\n<|channel>thought\nround and about it goes again, round ",
        "<channel|>The answer is forty-two.<turn|>",
    ))  # fmt: skip


def thinks_then_answers(words: int = 60) -> Script:
    """Thinks `words` words (`t1 t2 t3 ...`), closes the thought channel itself, and gives a short answer."""
    thought = " ".join(f"t{n}" for n in range(1, words + 1))
    return Script((f"model\n<|channel>thought\n{thought}<channel|>The answer is forty-two.<turn|>",))


FIRST, SECOND = "get_weather", "get_time"
"""The functions that `calls_a_tool` can call."""
FIRST_ARGUMENTS: dict[str, Any] = {"days": 3, "metric": True}
SECOND_ARGUMENTS: dict[str, Any] = {"hours": 24}


def calls_a_tool() -> Script:
    """Calls FIRST of its own accord, SECOND where a grammar leaves nothing else, and answers when it has the result.

    Where it may not end its turn after a call, it calls again.
    """
    return Script(
        (
            f"model\n{call(FIRST, FIRST_ARGUMENTS)}<turn|>",
            "<tool_response|>The answer is forty-two.<turn|>",
        ),
        instead=(f"<tool_response|>{call(SECOND, SECOND_ARGUMENTS)}<|tool_call>",),
    )


def call(function: str, arguments: dict[str, int | bool]) -> str:
    """A call in Gemma 4's format. What stands between its marks is one token, which a grammar takes or refuses whole.

    A string would need its own marks, and the same token twice in one chain.
    """
    given = ",".join(f"{name}:{json.dumps(value)}" for name, value in arguments.items())
    return f"<|tool_call>call:{function}{{{given}}}<tool_call|>"


JSON = '{"answer":true} '
COUNTED = 40


def counts_or_skips() -> Script:
    """Counts `w1 w2 w3 ...` to COUNTED, and now and then leaves out a number or says JSON instead: so that chance, and
    what bounds it, shows. Where the last word is forbidden it begins again, without end."""
    words = [f"w{n} " for n in range(1, COUNTED + 1)]
    return Script(
        (f"model\n{''.join(words)}<turn|>", f"<channel|>{words[0]}"),
        instead=("".join([*words[0::2], words[0]]), "".join(words[1::2]), f"model\n{JSON}", f"<channel|>{JSON}"),
        second=_SOMETIMES,
    )


def build(script: Script, path: Path, template: str | None = None, *, attends: bool = False) -> Path:
    """Write the model (1 MB or less for a few hundred words) and return its path; the same script, the same bytes.

    `template` is a Jinja chat template instead of Gemma 4's. With `attends` all that the model has read (an image too)
    moves its log-probabilities, and the script is still what it says. Raises BadInput for a wrong script, and
    ToolingError when the finished file, read again, does not say what the script says.
    """
    tokens = _tokens(script)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "gemma4")
    _describe(writer, tokens, _width(tokens))
    writer.add_chat_template(TEMPLATE.read_text(encoding="utf-8") if template is None else template)
    for name, values in _tensors(tokens, script, attends):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _check(path, script)
    return path


def width(script: Script) -> int:
    """The embedding length of the script's model: what a projector for it must give."""
    return _width(_tokens(script))


def _bad(what: str, evidence: str, todo: str) -> BadInput:
    return BadInput(f"the script cannot be a model: {what}", evidence=evidence, todo=todo)


def _pairs(chains: list[list[str]], kind: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for chain in chains:
        for token, after in pairwise(chain):
            if found.setdefault(token, after) != after:
                raise _bad(
                    f"{token!r} has two {kind}",
                    f"{found[token]!r} and {after!r}",
                    "use another word in one of the places",
                )
    return found


def _pieces(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = _PIECE.match(text, at)
        if match is None or "\x00" in match[0] or any("\ud800" <= c <= "\udfff" for c in match[0]):
            raise _bad("a text cannot be tokenized", repr(text[at : at + 40]), "use words, newlines and special tokens")
        yield match[0]
        at = match.end()


def _tokens(script: Script) -> list[str]:
    return [*_SPECIAL, *_PLAIN, *sorted({*script.words, "thought"} - {*_SPECIAL, *_PLAIN})]


def _width(tokens: list[str]) -> int:
    return -(-len(tokens) // 32) * 32


def _kind(token: str) -> gguf.TokenType:
    if token in _SPECIAL:
        return gguf.TokenType.CONTROL
    # Only a user-defined token of several characters is found in text without merges that build it.
    return gguf.TokenType.NORMAL if token in _PLAIN else gguf.TokenType.USER_DEFINED


def _describe(writer: gguf.GGUFWriter, tokens: list[str], width: int) -> None:
    writer.add_name("script")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(width)
    writer.add_block_count(_BLOCKS)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_key_length_swa(_HEAD)
    writer.add_value_length_swa(_HEAD)
    writer.add_sliding_window(512)
    writer.add_sliding_window_pattern([True, False])
    writer.add_shared_kv_layers(0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_embedding_length_per_layer_input(0)
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([_kind(token) for token in tokens])
    writer.add_token_merges(["\u2581 \u2581"])
    writer.add_pad_token_id(tokens.index("<pad>"))
    writer.add_bos_token_id(tokens.index("<bos>"))
    writer.add_eos_token_id(tokens.index("<eos>"))
    writer.add_eot_token_id(tokens.index(TURN_END))
    writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _tensors(tokens: list[str], script: Script, attends: bool) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    width = _width(tokens)
    chance = np.random.default_rng(0)
    identity = np.eye(width, dtype=np.float16)
    yield "token_embd.weight", identity[: len(tokens)]
    yield "output_norm.weight", np.full(width, _LOGIT_SCALE, np.float32)
    yield "rope_freqs.weight", np.ones(_HEAD // 2, np.float32)
    for block in range(_BLOCKS):
        speaks = block == _BLOCKS - 1
        for name, shape in (
            ("attn_q", (_HEAD, width)), ("attn_k", (_HEAD, width)), ("attn_v", (_HEAD, width)),
            ("attn_output", (width, _HEAD)),
        ):  # fmt: skip
            weights = chance.normal(size=shape) if attends and speaks else np.zeros(shape)
            yield f"blk.{block}.{name}.weight", weights.astype(np.float16)
        for name in ("attn_q_norm", "attn_k_norm"):
            yield f"blk.{block}.{name}.weight", np.full(_HEAD, _ATTENTION_SHARPNESS, np.float32)
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{block}.{name}.weight", np.ones(width, np.float32)
        yield f"blk.{block}.post_attention_norm.weight", np.full(width, _ATTENTION_WEIGHT, np.float32)
        yield f"blk.{block}.ffn_gate.weight", identity
        yield f"blk.{block}.ffn_up.weight", identity
        yield f"blk.{block}.ffn_down.weight", _successor_matrix(tokens, script) if speaks else np.zeros_like(identity)
        yield f"blk.{block}.post_ffw_norm.weight", np.full(width, _SUCCESSOR_WEIGHT, np.float32)


def _successor_matrix(tokens: list[str], script: Script) -> npt.NDArray[np.float16]:
    place = {token: n for n, token in enumerate(tokens)}
    matrix = np.zeros((_width(tokens), _width(tokens)), np.float16)
    for token, n in place.items():
        if token in script.seconds:
            matrix[place[script.seconds[token]], n] = script.second
        matrix[place[script.successors.get(token, TURN_END)], n] = 1
    return matrix


def _check(path: Path, script: Script) -> None:
    reader = gguf.GGUFReader(path)
    field = reader.get_field("tokenizer.ggml.tokens")
    tokens: list[str] = field.contents() if field else []
    matrix = next((t.data for t in reader.tensors if t.name == f"blk.{_BLOCKS - 1}.ffn_down.weight"), None)
    wrong: dict[str, list[str]] = {}
    for n, token in enumerate(tokens):
        order = [] if matrix is None else [tokens[row] for row in np.argsort(-matrix[:, n], kind="stable")[:2]]
        wanted = [script.successors.get(token, TURN_END), *filter(None, [script.seconds.get(token)])]
        if order[: len(wanted)] != wanted:
            wrong[token] = order
    if wrong:
        raise ToolingError(
            f"{path} does not say its script", evidence=str(wrong)[:400], todo="check the installed gguf package"
        )
