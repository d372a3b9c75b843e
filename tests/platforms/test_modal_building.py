"""Builds on a fake Modal: the builder's own code runs in a container, on a source tree of one file."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modal_app import images
from modal_app.compile import collect, sha256_of
from tasks.platforms.modal import ModalPlatform, building
from tasks.platforms.modal.building import toolchain
from tasks.release import BadInput, Build, Recipe, ReleaseFailed, SourceTree, ToolingError
from tests.fakes.modal import FakeModal
from tests.platforms.modal_stand import fake_modal, platform_on_modal
from tests.tiny import CMAKE, MAIN, that_dies, tiny

pytestmark = pytest.mark.wire

RECIPE = Recipe()


@dataclasses.dataclass
class Site:
    fake: FakeModal
    platform: ModalPlatform
    folder: Path
    progress: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)

    def source(self, main: str = MAIN, cmake: str = CMAKE) -> SourceTree:
        folder = self.folder / f"source-{len(list(self.folder.glob('source-*')))}"
        folder.mkdir()
        return tiny(self.platform.settings, folder, main, cmake)

    def build(self, source: SourceTree, recipe: Recipe = RECIPE) -> Build:
        return self.platform.build(source, recipe, lambda *seen: self.progress.append(seen))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("modal-building")
    with fake_modal(folder / "fake") as fake:
        yield Site(fake, platform_on_modal(folder), folder)


def builder_starts(site: Site) -> int:
    return site.fake.logs.text().count("[1/")


def test_a_build_is_compiled_inspected_and_only_then_published(site: Site) -> None:
    source = site.source()
    assert site.platform.built(source, RECIPE) is None
    build = site.build(source)
    assert build.version.startswith("version: 9999")
    assert build.objects >= 2
    assert build.toolchain["devel"] == site.platform.settings.modal.devel_image
    assert site.platform.store.damaged(build) == []
    assert (build.objects, build.objects, "inspecting it in the runtime image") in site.progress
    assert any(what for done, total, what in site.progress if total == build.objects), "object counts reach the flow"
    paths = list(site.platform.on_volume.files.listed("builds", deep=True))
    assert f"builds/{build.digest}/manifest.json" in paths
    assert site.platform.on_volume.files.listed("calls") == {}


def test_a_build_that_is_another_one_on_the_volume_than_was_made_is_not_taken() -> None:
    made = {"files": {"llama-server": "1", "libggml.so": "2"}}
    building._check({**made, "missing": []}, made)
    for seen in ({"llama-server": "1"}, {"llama-server": "1", "libggml.so": "3"}):
        with pytest.raises(ToolingError, match="the build is not on the Volume as it was made"):
            building._check({"files": seen, "missing": []}, made)


def test_the_same_source_is_not_compiled_again(site: Site) -> None:
    source = site.source()
    first, before = site.build(source), builder_starts(site)
    assert site.build(source) == first
    assert site.platform.built(source, RECIPE) == first
    assert builder_starts(site) == before


def test_a_forced_rebuild_compiles_again_and_comes_to_the_same_files(site: Site) -> None:
    source = site.source()
    first, before = site.build(source), builder_starts(site)
    site.platform.store.forget_build(first.digest)
    again = site.build(source)
    assert builder_starts(site) == before + 1
    assert (again.digest, again.files) == (first.digest, first.files)
    assert again.built_at > first.built_at


def by_hand(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """`modal run modal_app/tools.py::...`, as the playbook has it, from the folder of a checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | site.fake.env
    return subprocess.run(
        [Path(sys.executable).with_name("modal"), "run", f"modal_app/tools.py::{words[0]}", *words[1:]],
        cwd=Path(__file__).parents[2], env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_by_hand_a_build_is_compiled_again_and_proved_and_what_is_served_is_never_written(site: Site) -> None:
    made = site.build(site.source())
    folder = site.fake.volumes.folder_of("llama-release") / "builds" / made.digest
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    status = by_hand(site, "status")
    assert f"build       {made.digest} b9999" in status.stdout, status.stderr
    starts = builder_starts(site)
    idle = by_hand(site, "build", "--digest", made.digest)
    assert "is there, of b9999" in idle.stdout and builder_starts(site) == starts, idle.stderr
    forced = by_hand(site, "build", "--digest", made.digest, "--force")
    assert "has the same files" in forced.stdout and builder_starts(site) == starts + 1, forced.stderr
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    proved = by_hand(site, "prove", "--digest", made.digest)
    assert proved.returncode == 0 and "self-test" in proved.stdout, proved.stdout + proved.stderr
    site.platform.store.files.write(f"builds/{made.digest}/llama-server", "rubbish")
    assert by_hand(site, "prove", "--digest", made.digest).returncode == 1
    helped = by_hand(site, "build", "--help")
    assert "--digest TEXT" in helped.stdout and "--force" in helped.stdout and "::prove [--digest" in status.stdout
    unknown = by_hand(site, "build")
    assert unknown.returncode and "no stage serves a build" in unknown.stdout + unknown.stderr


def test_a_file_that_a_server_has_mapped_is_never_written_into(tmp_path: Path) -> None:
    bin_folder, out = tmp_path / "bin", tmp_path / "out"
    for folder in (bin_folder, out):
        folder.mkdir()
    for name in ("llama-server", "libggml.so"):
        (bin_folder / name).write_text(f"new {name}")
    (out / "llama-server").write_text("new llama-server")
    (out / "libggml.so").write_text("old")
    same = (out / "llama-server").stat().st_ino
    with (out / "libggml.so").open() as mapped:
        collect(bin_folder, "llama-server", out)
        assert mapped.read() == "old"
    assert (out / "llama-server").stat().st_ino == same and (out / "libggml.so").read_text() == "new libggml.so"
    (out / "manifest.json").write_text(json.dumps({"files": whole_files(out)}))
    (bin_folder / "llama-server").write_text("another one")
    assert collect(bin_folder, "llama-server", out)["llama-server"] == sha256_of(out / "llama-server")
    assert (out / "llama-server").read_text() == "new llama-server"


def whole_files(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


def test_a_build_that_is_damaged_on_the_volume_is_made_again(site: Site) -> None:
    source = site.source()
    first = site.build(source)
    site.platform.store.files.write(f"builds/{first.digest}/llama-server", "rubbish")
    assert site.platform.store.damaged(first) == ["llama-server"]
    assert site.build(source).files == first.files
    assert site.platform.store.damaged(first) == []


def test_a_flow_that_was_killed_picks_the_same_build_up_again(site: Site) -> None:
    slow = CMAKE + "add_custom_command(TARGET llama-server PRE_LINK COMMAND sleep 4)\n"
    source = site.source(cmake=slow)

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        if site.platform.on_volume.files.listed("calls"):
            raise Killed

    before = builder_starts(site)
    with pytest.raises(Killed):
        site.platform.build(source, RECIPE, kill)
    assert site.platform.on_volume.files.listed("calls"), "the call's id is kept"
    assert site.build(source).version.startswith("version: 9999")
    assert builder_starts(site) == before + 1


def test_source_that_does_not_compile_fails_the_release_with_the_compilers_words(site: Site) -> None:
    with pytest.raises(ReleaseFailed, match="does not compile on Modal") as failed:
        site.build(site.source("int main() { nope(); }\n"))
    assert "was not declared in this scope" in failed.value.evidence


def test_a_binary_that_names_another_build_is_never_published(site: Site) -> None:
    before = site.platform.store.builds()
    with pytest.raises(ReleaseFailed, match="the finished binary is not b9999"):
        site.build(site.source(MAIN.replace(", N,", ", 8202,")))
    assert site.platform.store.builds() == before


def test_a_library_that_the_runtime_image_lacks_fails_the_release(site: Site) -> None:
    cmake = CMAKE.replace("add_executable", "add_library(gone SHARED gone.cpp)\nadd_executable") + (
        'file(WRITE ${CMAKE_SOURCE_DIR}/gone.cpp "int gone() { return 1; }")\n'
        "target_link_libraries(llama-server PRIVATE -Wl,--no-as-needed gone)\n"
        "set_target_properties(gone PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/elsewhere)\n"
        "set_target_properties(llama-server PROPERTIES SKIP_BUILD_RPATH ON)\n"
    )
    with pytest.raises(ReleaseFailed, match="libraries that the runtime image does not have") as failed:
        site.build(site.source(cmake=cmake))
    assert "llama-server: libgone.so" in failed.value.evidence


def test_a_build_that_dies_where_it_will_be_served_is_never_published(site: Site) -> None:
    before = site.platform.store.builds()
    with pytest.raises(
        ToolingError, match="b9999 as it was built here is killed by SIGSEGV at the first token"
    ) as failed:
        site.build(site.source(cmake=that_dies(signal.SIGSEGV)))
    assert "whose fault it is could not be told" in failed.value.what
    assert site.platform.store.builds() == before


def test_further_flags_reach_the_code_that_computes(site: Site) -> None:
    source = site.source(cmake=that_dies(signal.SIGILL, native=True))
    assert site.build(source).selftest
    with pytest.raises(ToolingError, match="killed by SIGILL"):
        site.build(source, Recipe(cpu_flags=("-DTINY_NATIVE",)))


def test_a_build_says_what_its_self_test_said(site: Site) -> None:
    assert "log-probabilities within 0.0" in site.build(site.source()).selftest


def test_a_build_for_one_cpu_is_refused_before_anything_is_compiled(site: Site) -> None:
    before = builder_starts(site)
    with pytest.raises(BadInput, match="a build for one CPU cannot be served on Modal"):
        site.build(site.source(), Recipe(cmake={"GGML_NATIVE": "ON"}))
    assert builder_starts(site) == before


def test_a_cuda_compiler_with_a_known_fault_is_kept_from_it(site: Site) -> None:
    image = "nvidia/cuda:13.2.1-devel-ubuntu24.04@sha256:" + "0" * 64
    settings = site.platform.settings.modal.model_copy(
        update={"devel_image": image, "runtime_image": image.replace("devel", "runtime")}
    )
    found = toolchain(Recipe(backend="cuda"), settings)
    assert found["with"] == "CMAKE_CUDA_FLAGS=-Xcicc -O1"
    assert "with" not in toolchain(Recipe(backend="cuda"), site.platform.settings.modal)


def test_an_archive_that_is_not_the_tree_that_was_asked_for_is_not_compiled(site: Site) -> None:
    source = site.source(MAIN + "// as it was asked for\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("main.cpp"))
    packed.seek(0)
    with site.platform.on_volume.files.volume.batch_upload() as batch:
        batch.put_file(packed, f"sources/{source.tree}.tar.gz")
    before = builder_starts(site)
    with pytest.raises(ToolingError, match="could not compile it") as failed:
        site.build(source)
    assert f"{source.tree}.tar.gz unpacks to the tree" in failed.value.evidence
    assert "remove it" in failed.value.todo
    assert builder_starts(site) == before


def test_a_finished_build_is_asked_and_searched_where_it_will_be_served(site: Site) -> None:
    build = site.build(site.source())
    assert site.platform.store.ask(build, "--version").stdout.strip() == build.version
    assert site.platform.store.search(build, rb"(version: %d) ") == ("version: %d",)


HUB = """
import pathlib
def hf_hub_download(repo, path, *, revision, local_dir):
    target = pathlib.Path(local_dir, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{repo} {path} {revision}")
    return str(target)
"""
"""What stands for huggingface_hub in a container: the real one would need the network."""


def test_weights_are_fetched_by_modal_and_only_what_has_its_sha256_is_kept(site: Site) -> None:
    (site.fake.folder / "machine" / "huggingface_hub.py").write_text(HUB)
    sha = hashlib.sha256(f"org/repo m.gguf {'1' * 40}".encode()).hexdigest()
    weight = {"repo": "org/repo", "revision": "1" * 40, "path": "m.gguf", "sha256": sha}
    good, bad = (
        platform_on_modal(site.folder, weights={"m.gguf": weight | change}) for change in ({}, {"sha256": "0" * 64})
    )
    ref = good.store.put_file(Path("m.gguf"))
    assert (ref.sha256, ref.size_bytes) == (sha, 56)
    assert f"files/{sha}/m.gguf" in good.on_volume.files.listed("files", deep=True)
    with pytest.raises(ToolingError, match="fetch failed") as failed:
        bad.store.put_file(Path("m.gguf"))
    assert f"has sha256 {sha}" in failed.value.evidence
    assert not good.on_volume.files.listed(f"files/{'0' * 64}")


def test_images_that_do_not_fit_are_refused_before_anything_is_compiled(site: Site) -> None:
    other = "nvidia/cuda:12.9.1-runtime-ubuntu24.04@sha256:" + "0" * 64
    platform = platform_on_modal(site.folder, runtime_image=other)
    with pytest.raises(ToolingError, match="the two images do not fit"):
        platform.build(site.source(), RECIPE, lambda *_: None)


def test_what_the_images_install_is_what_the_constraints_pin() -> None:
    pinned = Path(__file__).parents[2].joinpath("constraints.txt").read_text().splitlines()
    assert {*images.COMMON, *images.BUILDING, *images.SERVING} <= set(pinned)
