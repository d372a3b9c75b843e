"""Room for a release: disks that are small, models that are large."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gguf import GGUFWriter

from tasks.doctor import Seen, Severity
from tasks.doctor.room import disk, kv_cache_bytes, memory
from tasks.release import ToolingError
from tasks.settings import ServerSettings, Settings
from tests.doctor.machines import needs_root, small_disk


def with_model(tmp_path: Path, size: int, **server: object) -> Settings:
    """Settings whose model is a hole of this size: it takes no room."""
    model = tmp_path / "m.gguf"
    with open(model, "wb") as file:
        file.truncate(size)
    given = ServerSettings.model_validate({"model": model, **server})
    return Settings(store=tmp_path / "store", cache=tmp_path / "cache", server=given)


def available() -> int:
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def test_a_disk_too_small_for_the_next_snapshot_is_a_warning(tmp_path: Path) -> None:
    assert "GB free" in str(disk(with_model(tmp_path, 1)))
    seen = disk(with_model(tmp_path, shutil.disk_usage(tmp_path).free + 1))
    assert isinstance(seen, Seen)
    assert seen.severity is Severity.WARNING


@needs_root
def test_a_disk_on_which_no_release_fits_is_an_error_and_each_disk_is_looked_at(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "small" / "store", cache=tmp_path / "cache")
    with small_disk(tmp_path / "small", "size=1m"):
        with pytest.raises(ToolingError, match="the disk has no room for a release") as trouble:
            disk(settings)
        assert f"0.0 GB free at {tmp_path}/small" in trouble.value.evidence
        with pytest.raises(ToolingError, match="no room"):
            disk(settings.model_copy(update={"store": tmp_path / "store", "cache": tmp_path / "small" / "cache"}))
        elsewhere = settings.model_copy(update={"store": tmp_path / "store", "cache": tmp_path / "small" / "cache"})
        assert "GB free" in str(disk(elsewhere, compiles=False)), "who compiles nothing needs no cache"


@needs_root
def test_a_disk_that_takes_no_more_files_is_an_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "size=4g,nr_inodes=100"), pytest.raises(ToolingError, match="files"):
        disk(Settings(store=tmp_path / "small" / "store", cache=tmp_path / "cache"))


@needs_root
def test_a_model_on_another_disk_is_copied_and_its_copy_must_fit(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    with small_disk(tmp_path / "small", "size=1g") as small:
        settings = with_model(tmp_path, 2_000_000_000).model_copy(update={"store": small / "store"})
        with pytest.raises(ToolingError, match="no room"):
            disk(settings)
        (small / "store" / "files" / "0").mkdir(parents=True)
        (small / "store" / "files" / "0" / model.name).touch()
        assert isinstance(disk(settings), Seen), "it is there already; a snapshot of it may not fit"


def test_a_model_larger_than_memory_is_an_error_unless_it_is_mapped_or_on_the_gpu(tmp_path: Path) -> None:
    size = 2_000_000_000_000
    with pytest.raises(ToolingError, match="does not fit into this machine's memory"):
        memory(with_model(tmp_path, size))
    assert isinstance(memory(with_model(tmp_path, size, memory_map=True)), Seen)
    assert "on the GPU" in str(memory(with_model(tmp_path, size, gpu_layers=99)))


def test_two_servers_that_do_not_fit_side_by_side_are_a_warning(tmp_path: Path) -> None:
    assert "a promotion has two side by side (0 up now)" in str(memory(with_model(tmp_path, 1_000_000)))
    seen = memory(with_model(tmp_path, int(available() * 0.7)))
    assert isinstance(seen, Seen)
    assert seen.severity is Severity.WARNING


def test_the_kv_cache_is_reckoned_from_the_models_header(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    writer = GGUFWriter(model, "llama")
    writer.add_block_count(30)
    writer.add_embedding_length(576)
    writer.add_head_count(9)
    writer.add_head_count_kv(3)
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    server = ServerSettings(model=model, slots=2, ctx_per_slot=4096)
    settings = Settings(store=tmp_path / "store", server=server)
    # SmolLM2-135M: 2 x 30 layers x 3 heads x 64 wide x 2 bytes = 23040 a token
    assert kv_cache_bytes(settings) == 23040 * 8192
    q8 = settings.model_copy(update={"server": server.model_copy(update={"kv_cache_type": "q8_0"})})
    assert kv_cache_bytes(q8) == 23040 * 8192 * 34 // 64
    model.write_text("no GGUF")
    assert kv_cache_bytes(settings) == 0
