"""A model file's header, against what gguf's own reader says of the same file."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from tasks import gguf_header
from tasks.contracts import projector
from tasks.contracts.scripted import build, thinks_forever
from tasks.release import BadInput


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(thinks_forever(), tmp_path_factory.mktemp("model") / "m.gguf")


def test_what_it_reads_is_what_ggufs_own_reader_reads(model: Path) -> None:
    reader, header = gguf.GGUFReader(model), gguf_header.read(model)
    simple = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and field.types[0] is not gguf.GGUFValueType.ARRAY
    }
    assert header.values.keys() == simple.keys()
    for name, value in simple.items():
        assert header.values[name] == pytest.approx(value) if isinstance(value, float) else header.values[name] == value
    assert (header.architecture, header.chat_template[:2]) == ("gemma4", "{%")
    last = max(reader.tensors, key=lambda tensor: tensor.data_offset)
    assert header.needed_bytes == last.data_offset + last.n_bytes <= model.stat().st_size


def test_quantized_tensors_are_measured_too(smollm2: Path) -> None:
    last = max(gguf.GGUFReader(smollm2).tensors, key=lambda tensor: tensor.data_offset)
    assert gguf_header.read(smollm2).needed_bytes == last.data_offset + last.n_bytes


def test_only_the_header_is_needed(model: Path, tmp_path: Path) -> None:
    whole = gguf_header.read(model)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[: whole.needed_bytes // 2])
    assert gguf_header.read(cut) == whole


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"GGUF", b"GGUF" + b"\xff" * 64]
)
def test_what_is_no_model_file_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"is no GGUF file, or its header is damaged"):
        gguf_header.read(path)


def test_wherever_a_header_breaks_off_it_is_noticed(model: Path, tmp_path: Path) -> None:
    content, path = model.read_bytes()[:6000], tmp_path / "m.gguf"
    for length in range(0, 6000, 97):
        path.write_bytes(content[:length])
        with pytest.raises(BadInput):
            gguf_header.read(path)


def test_a_projector_says_that_it_is_one(tmp_path: Path) -> None:
    assert gguf_header.read(projector.build(96, tmp_path / "p.gguf")).architecture == "clip"
