"""What a GGUF file says of itself, read from its header alone.

`gguf.GGUFReader` reads every word of the vocabulary as an array of its own: half a minute for Gemma's 262,144. This
skips arrays, so a model of 16 GB takes a second or less. Format: ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
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
    types: tuple[str, ...] = ()
    """Types of the tensors (`Q4_K`) in the order of their first, each once; `type 99` for one that is newer than us."""

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def chat_template(self) -> str:
        return str(self.values.get("tokenizer.chat_template", ""))


def read(path: Path) -> Header:
    """The header of a GGUF file, read once while the file is unchanged: several checks ask for it, and a vocabulary of
    262,144 words takes a while. Raises BadInput when it is none, cut off in its header, or not there."""
    try:
        stat = path.stat()
        return _read_once(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
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


@lru_cache(maxsize=32)
def _read_once(path: Path, *_stamp: int) -> Header:
    with open(path, "rb") as file:
        return _read(file)


def before_vocabulary(path: Path) -> dict[str, Any]:
    """The values that stand before the vocabulary, where upstream's converter writes those of the architecture; {} for
    a file that is none. It takes a millisecond, whatever the vocabulary's size."""
    with suppress(OSError, struct.error, ValueError), open(path, "rb") as file:
        return dict(takewhile(lambda pair: not pair[0].startswith("tokenizer."), _pairs(file, _begin(file)[1])))
    return {}


def value_of(path: Path, name: str) -> Any:
    """One value of a file's header; '' where it has none, or is no GGUF. What stands after it is not read."""
    with suppress(OSError, struct.error, ValueError), open(path, "rb") as file:
        return next((value for key, value in _pairs(file, _begin(file)[1]) if key == name), "")
    return ""


def _begin(file: BinaryIO) -> tuple[int, int]:
    """(tensors, pairs) that follow."""
    if (magic := file.read(4)) != b"GGUF":
        raise ValueError(f"it begins with {magic!r}, not b'GGUF'")
    version, tensors, pairs = _unpack(file, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}")
    return tensors, pairs


def _pairs(file: BinaryIO, count: int) -> Iterator[tuple[str, Any]]:
    """(key, value) of all but arrays."""
    for _ in range(count):
        key = _string(file)
        (kind,) = _unpack(file, "I")
        value = _value(file, kind)
        if value is not None:
            yield key, value


def _read(file: BinaryIO) -> Header:
    tensors, pairs = _begin(file)
    values = dict(_pairs(file, pairs))
    found = [_tensor(file) for _ in range(tensors)]
    alignment = int(values.get("general.alignment", _ALIGNMENT))
    data = -(-file.tell() // alignment) * alignment
    types = tuple(dict.fromkeys(name for name, _ in found))
    return Header(values, data + max(end for _, end in found) if found else file.tell(), types)


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


def _tensor(file: BinaryIO) -> tuple[str, int]:
    """(type of a tensor, where it ends in bytes after the beginning of the data: 0 for a type newer than us)."""
    _string(file)
    (dimensions,) = _unpack(file, "I")
    size = 1
    for length in _unpack(file, f"{dimensions}Q"):
        size *= length
    kind, offset = _unpack(file, "IQ")
    try:
        of = GGMLQuantizationType(kind)
        block, block_bytes = GGML_QUANT_SIZES[of]
    except (ValueError, KeyError):
        return f"type {kind}", 0
    return of.name, int(offset) + size // block * block_bytes


def write_bare(path: Path, architecture: str) -> Path:
    """A GGUF of nothing but an architecture: enough for a binary to say whether it knows it."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words.encode())) + words.encode()

    pair = text("general.architecture") + struct.pack("<I", _STRING) + text(architecture)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
    return path
