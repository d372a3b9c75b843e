"""A copy of a model whose weights are wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize, quantize

DAMAGE = 0.5
"""Noise, in standard deviations of a matrix's weights, with which SmolLM2 still writes English."""


def noised(model: Path, copy: Path, share: float = DAMAGE, of: str = "ffn_down") -> Path:
    """A copy of a GGUF with noise on these matrices, `share` times the standard deviation of their weights."""
    shutil.copyfile(model, copy)
    rng = np.random.default_rng(1)
    for tensor in GGUFReader(copy, "r+").tensors:
        if of in tensor.name:
            weights = dequantize(tensor.data, tensor.tensor_type)
            weights += share * weights.std() * rng.standard_normal(weights.shape, dtype=np.float32)
            tensor.data[:] = quantize(weights, tensor.tensor_type)
    return copy
