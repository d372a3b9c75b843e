"""GGUF files made of others: a model in parts, and an adapter for it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def split(model: Path, folder: Path, count: int) -> list[Path]:
    """The same model in `count` parts, the first of which holds its metadata (as llama-gguf-split writes them)."""
    reader = gguf.GGUFReader(model)
    every = -(-len(reader.tensors) // count)
    writer = gguf.GGUFWriter(folder / "part.gguf", "", split_max_tensors=every)
    writer.kv_data[0].clear()
    for field in reader.fields.values():
        if field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = sorted(folder.glob("part-*-of-*.gguf"))
    assert len(found) == count
    return found


def lora(path: Path, *, width: int = 576, rank: int = 4) -> Path:
    """An adapter for SmolLM2 that turns the first layer's queries a little (as convert_lora_to_gguf.py writes it)."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 8.0)
    random = np.random.default_rng(1)
    for name, shape in (("lora_a", (rank, width)), ("lora_b", (width, rank))):
        writer.add_tensor(f"blk.0.attn_q.weight.{name}", random.normal(0, 0.05, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
