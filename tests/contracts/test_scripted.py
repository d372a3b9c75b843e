"""Scripted models: what a script says, which scripts are refused, and that the file says it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from tasks.contracts import projector, scripted
from tasks.contracts.scripted import (
    COUNTED,
    JSON,
    Script,
    build,
    counts_or_skips,
    thinks_forever,
    thinks_then_answers,
)
from tasks.release import BadInput, ToolingError
from tests.contracts.standins import contents


def test_thinks_forever_opens_the_channel_and_loops() -> None:
    text = thinks_forever().says(40)
    assert text.startswith("<|channel>thought\nround and about it goes again, round and about ")
    assert "<channel|>" not in text


def test_thinks_forever_answers_once_the_channel_is_closed() -> None:
    assert thinks_forever().says(40, after="<channel|>") == "The answer is forty-two."


def test_thinks_then_answers_thinks_so_many_words() -> None:
    assert thinks_then_answers(3).says(40) == "<|channel>thought\nt1 t2 t3<channel|>The answer is forty-two."


def test_counts_or_skips_counts_and_may_skip_begin_again_or_say_json() -> None:
    script = counts_or_skips()
    assert script.says(99).split() == [f"w{n}" for n in range(1, COUNTED + 1)]
    assert script.says(99, after="<channel|>") == script.says(99)
    assert [script.seconds[word] for word in ("w1 ", "w38 ", "w39 ")] == ["w3 ", "w40 ", "w1 "]
    assert script.seconds["model\n"] == script.seconds["<channel|>"] == JSON


def test_a_model_that_attends_has_all_the_same_weights_but_for_its_attention(tmp_path: Path) -> None:
    blind, seeing = (
        {
            t.name: t.data
            for t in gguf.GGUFReader(build(thinks_forever(), tmp_path / f"{sees}.gguf", attends=sees)).tensors
        }
        for sees in (False, True)
    )
    changed = {name for name in blind if not np.array_equal(blind[name], seeing[name])}
    assert changed == {f"blk.1.attn_{part}.weight" for part in ("q", "k", "v", "output")}


def test_a_projector_is_small_and_always_the_same_and_gives_what_the_text_model_takes(tmp_path: Path) -> None:
    first, again = (projector.build(96, tmp_path / name) for name in ("a.gguf", "b.gguf"))
    assert first.read_bytes() == again.read_bytes()
    assert first.stat().st_size < 1_000_000
    reader = gguf.GGUFReader(first)
    assert contents(reader, "clip.vision.projection_dim") == 96
    shapes = {tensor.name: list(tensor.shape) for tensor in reader.tensors}
    assert shapes["mm.input_projection.weight"] == [64, 96]


@pytest.mark.parametrize(
    ("chains", "words"),
    [
        ((), "says nothing"),
        (("",), "says nothing"),
        (("model\n",), "says nothing"),
        (("Hello there",), "nothing follows the prompt"),
        (("model\n<|nonsense|>",), "cannot be tokenized"),
        (("model\n  indented",), "cannot be tokenized"),
        (("model\na\ud800b",), "cannot be tokenized"),
        (("model\nyes no yes maybe",), "two successors"),
        (("model\none two three", "two four"), "two successors"),
    ],
)
def test_a_wrong_script_is_refused_before_anything_is_written(
    chains: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=words):
        build(Script(chains), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_model_is_small_and_the_same_script_gives_the_same_bytes(tmp_path: Path) -> None:
    first = build(thinks_then_answers(), tmp_path / "a.gguf")
    again = build(thinks_then_answers(), tmp_path / "b.gguf")
    assert first.stat().st_size < 3_000_000
    assert first.read_bytes() == again.read_bytes()


def test_a_model_carries_gemma4_and_its_template(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(build(thinks_forever(), tmp_path / "m.gguf"))
    assert contents(reader, "general.architecture") == "gemma4"
    assert contents(reader, "tokenizer.chat_template") == scripted.TEMPLATE.read_text(encoding="utf-8")
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}  # b8672 refuses it


def test_the_template_can_be_another(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(build(thinks_forever(), tmp_path / "m.gguf", template="{{ messages }}"))
    assert contents(reader, "tokenizer.chat_template") == "{{ messages }}"


def test_a_file_that_does_not_say_its_script_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted, "_successor_matrix", lambda tokens, _: np.eye(len(tokens), dtype=np.float16))
    with pytest.raises(ToolingError, match="does not say its script"):
        build(thinks_forever(), tmp_path / "m.gguf")
