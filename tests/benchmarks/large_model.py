"""A model as large as production's, of random weights: what a snapshot of it costs depends on its bytes alone.

    python -m tests.benchmarks.large_model small.gguf large.gguf [layers]

The tokenizer is the small one's; the shape is that of a dense 13B model, about 290 MB a layer at Q8_0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

LAYERS, WIDTH, FEED_FORWARD, HEADS, KV_HEADS = 48, 5120, 13824, 40, 8
BLOCK, BLOCK_BYTES = 32, 34
SEED = 2026


def quantized(rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Random Q8_0 blocks, [rows, bytes of a row]: small enough that no activation overflows."""
    blocks = rows * columns // BLOCK
    one = np.empty((min(blocks, 1 << 16), BLOCK_BYTES), dtype=np.uint8)
    one[:, :2] = np.full(len(one), 2e-4, dtype=np.float16).view(np.uint8).reshape(-1, 2)
    one[:, 2:] = random.integers(0, 256, (len(one), BLOCK), dtype=np.uint8)
    return np.resize(one, (rows, columns // BLOCK * BLOCK_BYTES))


def write(small: Path, large: Path, layers: int = LAYERS) -> None:
    """Write the model to `large`."""
    random = np.random.default_rng(SEED)
    writer = GGUFWriter(large, "llama")
    tokens = 0
    for name, field in GGUFReader(small).fields.items():
        if not name.startswith("tokenizer."):
            continue
        sub = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub)
        if name == "tokenizer.ggml.tokens":
            tokens = len(field.data)
    writer.add_context_length(32768)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(tokens)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(
            name, quantized(rows, columns, random), raw_shape=(rows, columns // BLOCK * BLOCK_BYTES),
            raw_dtype=GGMLQuantizationType.Q8_0,
        )  # fmt: skip

    matrix("token_embd.weight", tokens, WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    kv = WIDTH // HEADS * KV_HEADS
    for n in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{n}.{norm}.weight", np.ones(WIDTH, dtype=np.float32))
        for name, rows, columns in (
            ("attn_q", WIDTH, WIDTH), ("attn_k", kv, WIDTH), ("attn_v", kv, WIDTH), ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", FEED_FORWARD, WIDTH), ("ffn_up", FEED_FORWARD, WIDTH), ("ffn_down", WIDTH, FEED_FORWARD),
        ):  # fmt: skip
            matrix(f"blk.{n}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
