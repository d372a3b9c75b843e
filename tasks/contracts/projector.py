"""A projector (mmproj) for a scripted model: Gemma 4's vision tower with random weights, in a file of 0.3 MB.

What an image means to it is chance, but it means something: two images give two sequences of embeddings. llama-server
of b8672 and later loads it as any other. Tensors as in llama.cpp `tools/mtmd/models/gemma4v.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from modal_app.png import png

_WIDTH = 64
_PATCH = 16
_SIDE = 256  # patches that a side of an image may have


def build(text_width: int, path: Path) -> Path:
    """Write the projector for a model of this embedding length and return its path; the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name("random vision")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("gemma4v")
    writer.add_vision_projection_dim(text_width)
    writer.add_vision_image_size(224)
    writer.add_vision_patch_size(_PATCH)
    writer.add_vision_embedding_length(_WIDTH)
    writer.add_vision_feed_forward_length(_WIDTH)
    writer.add_vision_block_count(1)
    writer.add_vision_head_count(1)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.0, 0.0, 0.0])
    writer.add_vision_image_std([1.0, 1.0, 1.0])
    writer.add_vision_use_gelu(True)
    for name, values in _tensors(text_width):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def picture(red: int, green: int, blue: int) -> str:
    """A PNG of 48 x 48 pixels in one colour (0-255 each), in base64."""
    side = 3 * _PATCH
    return png(side, bytes((red, green, blue)) * side**2)


RED, BLUE = picture(255, 0, 0), picture(0, 0, 255)


def _tensors(text_width: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    chance = np.random.default_rng(0)

    def random(*shape: int) -> npt.NDArray[Any]:
        return np.asarray(chance.normal(size=shape) / np.sqrt(_WIDTH), np.float32)

    yield "v.patch_embd.weight", random(_WIDTH, 3, _PATCH, _PATCH)
    yield "v.position_embd.weight", random(2, _SIDE, _WIDTH)
    for name in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_gate", "ffn_down"):
        yield f"v.blk.0.{name}.weight", random(_WIDTH, _WIDTH)
    for name in ("ln1", "ln2", "attn_q_norm", "attn_k_norm", "attn_post_norm", "ffn_post_norm"):
        yield f"v.blk.0.{name}.weight", np.ones(_WIDTH, np.float32)
    yield "mm.input_projection.weight", random(text_width, _WIDTH)
