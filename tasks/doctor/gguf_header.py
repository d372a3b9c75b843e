"""What a GGUF file says of itself, read from its header alone.

`gguf.GGUFReader` reads every word of the vocabulary as an array of its own: half a minute for Gemma's 262,144. This
skips arrays, so a model of 16 GB takes a second or less. Format: ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tasks.release import BadInput

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LONGEST = 1 << 24  # bytes of one string: more is a damaged file
_ALIGNMENT = 32


@dataclass(frozen=True)
class Header:
    """A model file without its tensors."""

    values: dict[str, Any]
    """Key -> value, of scalars and strings."""
    needed_bytes: int
    """How long the file must be for its last tensor to be whole."""

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def chat_template(self) -> str:
        return str(self.values.get("tokenizer.chat_template", ""))


def read(path: Path) -> Header:
    """The header of a GGUF file. Raises BadInput when it is none, cut off in its header, or not there."""
    try:
        with open(path, "rb") as file:
            return _read(file)
    except OSError as error:
        raise BadInput(
            f"the file {path} cannot be read", evidence=str(error), todo="correct the path in the settings"
        ) from error
    except (struct.error, ValueError) as error:
        raise BadInput(
            f"{path} is no GGUF file, or its header is damaged",
            evidence=str(error),
            todo="fetch the file again (a Git LFS pointer is not the file), and compare its sha256",
        ) from error


def _read(file: BinaryIO) -> Header:
    if (magic := file.read(4)) != b"GGUF":
        raise ValueError(f"it begins with {magic!r}, not b'GGUF'")
    version, tensors, pairs = _unpack(file, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}")
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key = _string(file)
        (kind,) = _unpack(file, "I")
        value = _value(file, kind)
        if value is not None:
            values[key] = value
    ends = [_end_of_tensor(file) for _ in range(tensors)]
    alignment = int(values.get("general.alignment", _ALIGNMENT))
    data = -(-file.tell() // alignment) * alignment
    return Header(values, data + max(ends, default=0))


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = f"<{form}"
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > _LONGEST:
        raise ValueError(f"a string of {length} bytes")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("it ends within a string")
    return text.decode(errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    """The value, or None for an array, which is skipped."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        if kind not in _SCALARS:
            raise ValueError(f"a value of the unknown type {kind}")
        return _unpack(file, _SCALARS[kind])[0]
    of, count = _unpack(file, "IQ")
    if of in _SCALARS:
        file.seek(count * struct.calcsize(_SCALARS[of]), 1)
        return None
    for _ in range(count):
        if of == _STRING:
            file.seek(_unpack(file, "Q")[0], 1)
        else:
            _value(file, of)
    return None


def _end_of_tensor(file: BinaryIO) -> int:
    """Where a tensor ends, in bytes after the beginning of the data; 0 when its type is newer than what we know."""
    _string(file)
    (dimensions,) = _unpack(file, "I")
    size = 1
    for length in _unpack(file, f"{dimensions}Q"):
        size *= length
    kind, offset = _unpack(file, "IQ")
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return 0
    return int(offset) + size // block * block_bytes


def write_bare(path: Path, architecture: str) -> Path:
    """A GGUF of nothing but an architecture: enough for a binary to say whether it knows it."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words.encode())) + words.encode()

    pair = text("general.architecture") + struct.pack("<I", _STRING) + text(architecture)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
    return path
