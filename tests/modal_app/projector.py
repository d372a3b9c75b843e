"""A vision projector of random weights (Gemma 3's kind, one block, 64x64 pixels to one token): a GGUF of 100 KB."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, HIDDEN, PIXELS, PATCH = 32, 2, 64, 64, 16


def build(path: Path, text_width: int, *, one_weight_off: bool = False) -> Path:
    """Write a projector for a text model of this embedding length; the same bytes each time."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.use_gelu", True)
    for name, value in (
        ("image_size", PIXELS), ("patch_size", PATCH), ("embedding_length", WIDTH), ("feed_forward_length", HIDDEN),
        ("projection_dim", text_width), ("block_count", 1), ("attention.head_count", HEADS),
    ):  # fmt: skip
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    block: dict[str, tuple[int, ...]] = {f"attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
    block |= {"ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
    shapes = {f"v.blk.0.{name}.weight": shape for name, shape in block.items()}
    shapes |= {f"v.blk.0.{name}.bias": shape[:1] for name, shape in block.items()}
    shapes |= {
        "v.patch_embd.weight": (WIDTH, 3, PATCH, PATCH),
        "v.patch_embd.bias": (WIDTH,),
        "v.position_embd.weight": ((PIXELS // PATCH) ** 2, WIDTH),
        "mm.input_projection.weight": (WIDTH, text_width),
        "mm.soft_emb_norm.weight": (WIDTH,),
    }
    for norm in ("v.blk.0.ln1", "v.blk.0.ln2", "v.post_ln"):
        shapes |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    for name, shape in shapes.items():
        values = random.normal(0.0, 0.3, shape).astype(np.float32)
        if one_weight_off and name == "mm.soft_emb_norm.weight":
            values[0] += 1.0
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
