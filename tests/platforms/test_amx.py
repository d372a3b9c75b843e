"""AMX as it is, where this CPU has it: what an old gcc makes of it, and what CRIU leaves of it.

Where the CPU has none there is nothing to test, and no test: what is decided for such machines is in tests/test_faults.
"""

from __future__ import annotations

import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import criu
from tasks.hardware import compiler_here, cpu_here
from tasks.platforms.local.compile import build as compile_build
from tasks.platforms.local.snapshot import Wanted, snapshots_here
from tasks.release import BootKind, Build, Recipe, SourceTree, ToolingError
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.store import Store
from tests.platforms.conftest import platform_at, stand_of
from tests.platforms.stand import Stand
from tests.tiny import that_dies, tiny

pytestmark = pytest.mark.real

AMX = Recipe(cpu_flags=("-mamx-bf16", "-mamx-int8", "-mamx-tile"))
"""The last word: with AMX, whatever is known of this compiler."""
LOADS = "    _tile_loadconfig(&tc);\n"
STORES_FIRST = '    asm volatile("" : : "r"(&tc) : "memory");\n'
"""What gcc before 13.2.1 needs so that it stores the whole configuration before it is loaded (llama.cpp#26954)."""


def with_amx(base: Settings, folder: Path) -> Settings:
    local = base.local.model_copy(update={"amx": "on"})
    return base.model_copy(update={"store": folder / "store", "local": local})


def mended(base: Settings, source: SourceTree, folder: Path) -> SourceTree:
    """The source tree with the one line that makes an old gcc's AMX code right."""
    root = folder / "p" / "llama.cpp"
    root.parent.mkdir()
    Sources(base.cache).export(source.tree, root)
    file = root / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
    text = file.read_text()
    assert text.count(LOADS) == 1
    file.write_text(text.replace(LOADS, STORES_FIRST + LOADS))
    packed = folder / "mended.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(folder / "p", "p")
    sha, tree = Sources(base.cache).add(source.upstream, packed)
    return SourceTree(upstream=source.upstream, archive_sha256=sha, upstream_tree=tree, tree=tree)


def made(settings: Settings, source: SourceTree, recipe: Recipe = AMX) -> Build:
    return compile_build(source, recipe, Store(settings.store), settings, lambda *_: None)


if "amx_tile" in cpu_here().features:

    def test_what_only_amx_dies_of_is_found_by_leaving_amx_out(base: Settings, tmp_path: Path) -> None:
        settings = with_amx(base, tmp_path).model_copy(update={"cache": tmp_path / "cache"})
        with pytest.raises(ToolingError, match="without AMX it is right") as failed:
            made(settings, tiny(settings, tmp_path, cmake=that_dies(signal.SIGSEGV, with_amx=True)))
        assert 'recipe.cpu_flags = ["-mno-amx-bf16", "-mno-amx-int8", "-mno-amx-tile"]' in failed.value.todo

    @pytest.fixture(scope="module")
    def amx_build(base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
        """A right build of b11434 that uses AMX, in the machine's own store."""
        folder = tmp_path_factory.mktemp("amx")
        settings = with_amx(base, folder).model_copy(update={"store": base.store})
        return made(settings, mended(base, build.source, folder))

    @pytest.fixture
    def amx_stand(amx_build: Build, base: Settings, smollm2: Path, tmp_path: Path) -> Iterator[Stand]:
        platform = platform_at(tmp_path / "store", snapshots="auto", criu=criu.find("criu", base.cache))
        if (ability := snapshots_here(Wanted.of(platform.settings), gpu=False)).kind == "cold":
            pytest.skip(f"no snapshots here: {ability.why}")
        with stand_of(platform, base, amx_build, smollm2) as stand:
            yield stand

    def test_a_right_build_with_amx_counts_as_the_reference_does(amx_build: Build) -> None:
        assert "amx_tile" in amx_build.toolchain["cpu"].split()
        assert "log-probabilities within 0." in amx_build.selftest

    def test_a_server_that_uses_amx_is_not_snapshotted_and_says_why(amx_stand: Stand) -> None:
        amx_stand.serve(amx_stand.first)
        amx_stand.say()
        boots = amx_stand.platform.boots("staging")
        assert {boot.kind for boot in boots} == {BootKind.COLD}
        assert "the build uses AMX" in boots[-1].reason

    def test_a_snapshot_out_of_which_nothing_answers_does_not_count(amx_stand: Stand, amx_build: Build) -> None:
        # a manifest as they were before they told what a build needs of a CPU
        old = amx_build.model_copy(update={"toolchain": {**amx_build.toolchain, "cpu": "0123456789ab"}})
        amx_stand.platform.store.save_build(old)
        amx_stand.serve(amx_stand.first)
        assert amx_stand.say()
        (boot,) = amx_stand.platform.boots("staging")
        assert boot.kind is BootKind.FELL_BACK
        assert "what came out of it does not answer" in boot.reason

    if compiler_here().family == "gcc" and compiler_here().version < "13.2.1":

        def test_an_intact_tree_by_an_old_gcc_dies_in_its_self_test_and_upstream_is_not_blamed(
            base: Settings, build: Build, tmp_path: Path
        ) -> None:
            # a general protection fault, or an undefined instruction: what is in the rest of the configuration decides
            with pytest.raises(
                ToolingError, match="killed by SIG(SEGV|ILL) at load.*without AMX it is right"
            ) as failed:
                made(with_amx(base, tmp_path), build.source)
            assert "whose fault it is could not be told" in failed.value.what
