"""A model to try a build with, and what a right server answers: computed here, and not by any llama.cpp.

The model is a small one of the architecture `llama` with a mixture of experts, each block in another quantisation: its
attention is plain matrix products, its experts are `mul_mat_id`, so the kernels of both are asked for every type. All
experts are used, since between a right server and the reference a choice among them could flip.

Its weights are chance. Types that `gguf` can write are quantised from normal numbers; of the others (K and IQ) the
blocks themselves are random bytes with their scales set: every bit pattern is a legal block. What the weights mean is
told by gguf's own dequantisation, which is written in Python, and the forward pass by numpy in double precision: a
compiler that makes wrong code for llama.cpp has no part in either.

`modal_app/selftest.py` asks a server and compares; it needs only what is written here.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from modal_app.selftest import CASE, MODEL, Case
from tasks import gguf_header
from tasks.store import sha256_of

Array = npt.NDArray[np.float64]

USUAL = ("F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
"""Types that are tried whatever is served: those that have kernels of their own for AMX in b11434, and F16."""
SEED = 2026
PROMPT = 256
"""Tokens of the long prompt: half of a physical batch of 512, and eight tiles of 32 rows."""
STEPS = 32
"""Tokens that are added to it one by one."""
LENGTHS = (1, 2, 7, 17, 33, 64, 129)
"""Lengths of the prompts that are asked by themselves: batches of other shapes."""

WIDTH, HIDDEN, HEADS, KV_HEADS, EXPERTS = 256, 512, 4, 2, 2
HEAD = WIDTH // HEADS
VOCABULARY = 320
_ROPE_BASE, _EPSILON = 10_000.0, 1e-5
_MATRICES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (KV_HEADS * HEAD, WIDTH),
    "attn_v": (KV_HEADS * HEAD, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate_exps": (EXPERTS, HIDDEN, WIDTH),
    "ffn_up_exps": (EXPERTS, HIDDEN, WIDTH),
    "ffn_down_exps": (EXPERTS, WIDTH, HIDDEN),
}
# where a block of a type that gguf cannot write has its half-precision scales (ggml-common.h); -1.0 for the one that is
# subtracted, so that weights are about zero on average
_SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q2_K": ((80, 1.0), (82, 1.5)), "Q3_K": ((108, 1.0),), "Q4_K": ((0, 1.0), (2, 7.5)), "Q5_K": ((0, 1.0), (2, 15.5)),
    "Q6_K": ((208, 1.0),), "IQ4_NL": ((0, 1.0),), "IQ4_XS": ((0, 1.0),), "IQ3_S": ((0, 1.0),), "IQ3_XXS": ((0, 1.0),),
    "IQ2_S": ((0, 1.0),), "IQ2_XS": ((0, 1.0),), "IQ2_XXS": ((0, 1.0),), "IQ1_S": ((0, 1.0),),
}  # fmt: skip
_WRITTEN = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0")


def types_of(model: Path | None) -> tuple[str, ...]:
    """The types of weights to try a build with: the usual ones, and those of the served model where it is known."""
    served = gguf_header.read(model).types if model and model.is_file() else ()
    return tuple(dict.fromkeys((*USUAL, *(name for name in served if name in _SCALES or name in _WRITTEN))))


def untried(model: Path | None) -> tuple[str, ...]:
    """The types of the served model that no self-test is made for."""
    served = gguf_header.read(model).types if model and model.is_file() else ()
    return tuple(name for name in served if name not in _SCALES and name not in _WRITTEN)


def prepare(cache: Path, types: Sequence[str]) -> Path:
    """A folder with the model and the case (see modal_app.selftest), made once for these types and this code, and again
    when what is there is not whole."""
    code = hashlib.sha256(Path(__file__).read_bytes() + ",".join(types).encode()).hexdigest()[:12]
    folder = cache / "selftest" / code
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{code}.", dir=folder.parent) as temporary:
        making = Path(temporary, code)
        making.mkdir()
        weights = write_model(making / MODEL, types)
        case = make_case(weights, types, sha256_of(making / MODEL))
        (making / CASE).write_text(case.to_json(), encoding="utf-8")
        if folder.exists() and not _is_whole(folder):
            folder.rename(Path(temporary, "damaged"))
        with suppress(OSError):  # somebody else was as quick
            making.rename(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        case = Case.from_json((folder / CASE).read_text(encoding="utf-8"))
        return case.model_sha256 == sha256_of(folder / MODEL)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class Weights:
    """What the model's tensors mean."""

    blocks: tuple[dict[str, Array], ...]
    embedding: Array
    output: Array


def write_model(path: Path, types: Sequence[str]) -> Weights:
    """Write the model, one block a type, and return what its weights mean."""
    chance = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, len(types))
    embedding = _put(writer, chance, "token_embd.weight", "F16", (VOCABULARY, WIDTH), 1.0)
    blocks = []
    for n, name in enumerate(types):
        block = {}
        for matrix, shape in _MATRICES.items():
            block[matrix] = _put(writer, chance, f"blk.{n}.{matrix}.weight", name, shape, shape[-1] ** -0.5)
        block["ffn_gate_inp"] = _put(
            writer, chance, f"blk.{n}.ffn_gate_inp.weight", "F32", (EXPERTS, WIDTH), WIDTH**-0.5
        )
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{n}.{norm}.weight", np.ones(WIDTH, np.float32))
        blocks.append(block)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    output = _put(writer, chance, "output.weight", "Q8_0", (VOCABULARY, WIDTH), 2 * WIDTH**-0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Weights(tuple(blocks), embedding, output)


def make_case(weights: Weights, types: Sequence[str], model_sha256: str) -> Case:
    """What to ask a server with this model, and what a right one answers."""
    chance = np.random.default_rng(SEED + 1)
    tokens = chance.integers(3, VOCABULARY, PROMPT + STEPS)
    logits = forward(weights, tokens)
    lengths = sorted({*LENGTHS, *range(PROMPT, PROMPT + STEPS + 1)})
    return Case(
        types=tuple(types),
        tokens=tuple(int(token) for token in tokens),
        alone=LENGTHS,
        grown=tuple(range(PROMPT, PROMPT + STEPS + 1)),
        logprobs={n: tuple(float(x) for x in _log_softmax(logits[n - 1])) for n in lengths},
        model_sha256=model_sha256,
    )


# -- weights ----------------------------------------------------------------------------------------------------------


def _put(
    writer: gguf.GGUFWriter, chance: np.random.Generator, name: str, kind: str, shape: tuple[int, ...], spread: float
) -> Array:
    """Add a tensor of random weights with this standard deviation; what they mean."""
    of = GGMLQuantizationType[kind]
    if kind in _SCALES:
        raw = _random_blocks(chance, kind, shape, spread)
    else:
        raw = quants.quantize(chance.normal(scale=spread, size=shape).astype(np.float32), of)
    writer.add_tensor(name, raw, raw_dtype=of)
    return quants.dequantize(raw, of).astype(np.float64).reshape(shape)


def _random_blocks(
    chance: np.random.Generator, kind: str, shape: tuple[int, ...], spread: float
) -> npt.NDArray[np.uint8]:
    of = GGMLQuantizationType[kind]
    size, size_bytes = GGML_QUANT_SIZES[of]
    raw = chance.integers(0, 256, (*shape[:-1], shape[-1] // size, size_bytes), dtype=np.uint8)
    _set_scales(raw, kind, 1e-3)
    found = float(np.std(quants.dequantize(raw.reshape(-1, size_bytes), of)))
    _set_scales(raw, kind, 1e-3 * spread / found)
    return raw.reshape(*shape[:-1], -1)


def _set_scales(raw: npt.NDArray[np.uint8], kind: str, scale: float) -> None:
    for at, factor in _SCALES[kind]:
        raw[..., at : at + 2] = np.frombuffer(np.float16(scale * factor).tobytes(), np.uint8)


def _describe(writer: gguf.GGUFWriter, blocks: int) -> None:
    writer.add_name("self-test")
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(_ROPE_BASE)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(EXPERTS)
    writer.add_vocab_size(VOCABULARY)
    # Bytes of ASCII only: of a token that is a part of a UTF-8 character b11434 tells no probabilities.
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(128))]
    tokens += [f"\u2581w{n}" for n in range(VOCABULARY - len(tokens))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 128
    kinds += [gguf.TokenType.NORMAL] * (VOCABULARY - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


# -- the reference --------------------------------------------------------------------------------------------------


def forward(weights: Weights, tokens: npt.NDArray[Any]) -> Array:
    """Logits at each position of a text, (tokens, vocabulary)."""
    hidden = weights.embedding[tokens]
    for block in weights.blocks:
        hidden = hidden + _attention(block, _norm(hidden))
        hidden = hidden + _experts(block, _norm(hidden))
    return _product(_norm(hidden), weights.output)


def _attention(block: dict[str, Array], x: Array) -> Array:
    length = len(x)
    q = _rotated(_product(x, block["attn_q"]).reshape(length, HEADS, HEAD))
    k = _rotated(_product(x, block["attn_k"]).reshape(length, KV_HEADS, HEAD))
    v = _product(x, block["attn_v"]).reshape(length, KV_HEADS, HEAD)
    shared = np.repeat(np.arange(KV_HEADS), HEADS // KV_HEADS)
    scores = np.einsum("qhd,khd->hqk", q, k[:, shared]) * HEAD**-0.5
    scores[:, np.triu(np.ones((length, length), bool), 1)] = -np.inf
    heard = np.einsum("hqk,khd->qhd", _softmax(scores), v[:, shared])
    return _product(heard.reshape(length, WIDTH), block["attn_output"])


def _experts(block: dict[str, Array], x: Array) -> Array:
    share = _softmax(_product(x, block["ffn_gate_inp"]))
    found = np.zeros_like(x)
    for n in range(EXPERTS):
        gate, up = (_product(x, block[f"ffn_{name}_exps"][n]) for name in ("gate", "up"))
        found += share[:, n : n + 1] * _product(gate / (1 + np.exp(-gate)) * up, block["ffn_down_exps"][n])
    return found


def _product(x: Array, matrix: Array) -> Array:
    # einsum's own loops, as no BLAS may have a part in the reference either: some of OpenBLAS's releases count wrongly
    # on CPUs with AMX or AVX-512
    found: Array = np.einsum("ti,oi->to", x, matrix)
    return found


def _rotated(x: Array) -> Array:
    """Rotary positions over neighbouring pairs, as architecture `llama` has them."""
    half = np.arange(HEAD // 2)
    angles = np.arange(len(x))[:, None] * _ROPE_BASE ** (-2.0 * half / HEAD)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)


def _norm(x: Array) -> Array:
    normed: Array = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + _EPSILON)
    return normed


def _softmax(x: Array) -> Array:
    grown = np.exp(x - np.max(x, axis=-1, keepdims=True))
    shares: Array = grown / np.sum(grown, axis=-1, keepdims=True)
    return shares


def _log_softmax(x: Array) -> Array:
    found: Array = x - np.logaddexp.reduce(x)
    return found
