"""What a target's own source says of our settings, before it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from tasks.flags.flag import flags_of_help
from tasks.flags.table import KNOWN, Table, known
from tasks.preflight import foreseen
from tasks.release import BadInput, Build
from tasks.settings import ServerSettings, Settings
from tasks.sources import Sources
from tasks.store import Store
from tests.test_release import a_build

ONLY_IN_SOURCE = {"--binary-file", "--file", "--prompt", "-bf", "-f", "-p", "--rpc"}
"""What llama-server has only when it is built with RPC, or what it leaves out of its help."""


def as_read(table: Table) -> dict[str, tuple[int, str, bool, frozenset[str]]]:
    return {n: (f.takes, f.env, f.removed, f.negative) for f in table.flags for n in f.names}


@pytest.mark.real
@pytest.mark.parametrize(
    "tag", ["b11434", *(pytest.param(tag, marks=pytest.mark.long) for tag in ("b8672", "b9105", "b10605"))]
)
def test_a_tree_declares_what_its_binary_lists(tag: str, base: Settings, build_at: Callable[[str], Build]) -> None:
    build = build_at(tag)
    table = foreseen.table_of(Sources(base.cache), build.source)
    assert table is not None
    listed = as_read(Table(flags_of_help(Store(base.store).ask(build, "--help").stdout), tag))
    declared = as_read(table)
    assert {name: declared.get(name) for name in listed} == listed
    assert set(declared) - set(listed) <= ONLY_IN_SOURCE
    if tag == KNOWN:  # what lies in the package for whoever has no build to ask
        assert as_read(known()) == listed


@pytest.mark.real
def test_settings_are_refused_by_the_source_with_every_reason_at_once(base: Settings, build: Build) -> None:
    server = ServerSettings(
        slots="auto", ctx_per_slot="auto",
        flags=("--no-mmap", "--port", "1", "--prioo", "2", "-np", "3", "-np", "4", "-ctk", "q9", "--spec-draft-p-min"),
        env={"LLAMA_ARG_LORA": "x", "GGML_SCHED_DEBUG": "1"},
    )  # fmt: skip
    with pytest.raises(BadInput, match="can't be said to b11434") as refused:
        foreseen.check(base.model_copy(update={"server": server}), build.source)
    assert refused.value.evidence.splitlines() == [
        "server.flags: `--load-mode`: server.memory_map says it, too; leave one of them out",
        "server.flags: `--port`: local.production_port and local.staging_port say where servers listen",
        "server.flags --prioo: `--prioo 2`: b11434 has no such option; there is --prio",
        "server.flags: `--parallel` stands there twice: llama-server would take the last one only",
        "server.flags: `--cache-type-k`: server.kv_cache_type says it, too; leave one of them out",
        "server.flags --spec-draft-p-min: `--spec-draft-p-min`: it needs a value",
        "server.env: LLAMA_ARG_LORA: no llama-server of b11434 reads it",
    ]


@pytest.mark.real
def test_settings_in_todays_words_can_be_said_to_an_older_source(
    base: Settings, build_at: Callable[[str], Build]
) -> None:
    old = build_at("b8672").source
    foreseen.check(base.model_copy(update={"server": ServerSettings(draft_max=4, flags=("--no-mmproj",))}), old)
    with pytest.raises(BadInput, match="b8672") as refused:
        foreseen.check(base.model_copy(update={"server": ServerSettings(flags=("--lazy-mode", "on"))}), old)
    assert "--lazy-mode" in refused.value.evidence


def test_a_source_that_declares_its_options_in_another_way_says_nothing(tmp_path: Path) -> None:
    sources, work, index = Sources(tmp_path / "cache"), tmp_path / "tree", tmp_path / "index"
    (work / "common").mkdir(parents=True)
    (work / "common/arg.cpp").write_text("options = generated();\n")
    sources.git("add", ".", index=index, work_tree=work)
    tree = sources.git("write-tree", index=index).stdout.strip()
    assert foreseen.table_of(sources, a_build().source.model_copy(update={"tree": tree})) is None


@pytest.mark.real
def test_files_that_a_source_does_not_know_are_named(
    base: Settings, build_at: Callable[[str], Build], smollm2: Path, tmp_path: Path
) -> None:
    source = build_at("b8672").source
    foreseen.check(base.model_copy(update={"server": ServerSettings(model=smollm2)}), source)
    strange = gguf.GGUFWriter(tmp_path / "strange.gguf", "gemma9")
    strange.add_tokenizer_model("gpt2")
    strange.add_tokenizer_pre("nobodys")
    odd = gguf.GGUFWriter(tmp_path / "odd.gguf", "clip")
    odd.add_string("clip.projector_type", "tomorrows")
    for writer in (strange, odd):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    server = ServerSettings(model=tmp_path / "strange.gguf", mmproj=tmp_path / "odd.gguf")
    with pytest.raises(BadInput, match="b8672") as refused:
        foreseen.check(base.model_copy(update={"server": server}), source)
    assert [line.split(" is not known")[0] for line in refused.value.evidence.splitlines()] == [
        "strange.gguf: the architecture gemma9",
        "strange.gguf: the pre-tokenizer nobodys",
        "odd.gguf: the kind of projector tomorrows",
    ]
