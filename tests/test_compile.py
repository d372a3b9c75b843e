"""The builder: logs read for people, and real compiles that fail, are interrupted, or are stale."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from modal_app.compile import first_error
from tasks.platforms.local.compile import build as compile_build
from tasks.platforms.local.compile import check_version
from tasks.process import Output, run
from tasks.release import Build, Recipe, ReleaseFailed, SourceTree, ToolingError
from tasks.settings import Settings
from tasks.store import Store
from tests.doctor.machines import path_of
from tests.platforms.stand import command_lines
from tests.test_release import a_build
from tests.tiny import CMAKE, MAIN, tiny

REPOSITORY = Path(__file__).parent.parent

LOG = """\
[1/3] Building CXX object a.o
[2/3] Building CXX object b.o
FAILED: [code=1] b.o
/usr/bin/c++ -o b.o -c b.cpp
b.cpp:3:5: error: 'nope' was not declared in this scope
    3 |     nope();
[3/3] Building CXX object c.o
c.cpp:9:1: error: a later one
ninja: build stopped: subcommand failed.
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=tmp_path / "store", cache=tmp_path / "cache")


def made(settings: Settings, source: SourceTree) -> Build:
    return compile_build(source, Recipe(), Store(settings.store), settings, lambda *_: None)


def test_the_first_error_is_shown_not_the_end_of_the_log() -> None:
    assert first_error(LOG).startswith("b.cpp:3:5: error: 'nope'")


def test_a_log_without_a_known_error_shows_its_end() -> None:
    assert first_error("one\ntwo") == "one\ntwo"


def test_a_binary_is_taken_for_the_build_and_the_tree_that_it_names_and_for_no_other() -> None:
    source = a_build().source
    assert check_version(Output(0, "version: 11434 (ttttttttt)\nbuilt with c++", ""), source).startswith("version")
    for said in (
        Output(0, "version: 11434 (uuuuuuuuu)", ""),
        Output(0, "version: 11433 (ttttttttt)", ""),
        Output(0, "version: 114341 (ttttttttt)", ""),
        Output(1, "version: 11434 (ttttttttt)", ""),
        Output(0, "", ""),
    ):
        with pytest.raises(ReleaseFailed, match="the finished binary is not b11434 of tree ttttttttt"):
            check_version(said, source)


@pytest.mark.real
def test_a_build_is_content_addressed_and_the_same_source_is_reused(settings: Settings, tmp_path: Path) -> None:
    source = tiny(settings, tmp_path, MAIN)
    first = made(settings, source)
    assert first.version == f"version: 9999 ({source.tree[:9]})"
    manifest = Store(settings.store).build_dir(first.digest) / "manifest.json"
    stamp = manifest.stat().st_mtime_ns
    assert made(settings, source) == first
    assert manifest.stat().st_mtime_ns == stamp
    other = made(settings, tiny(settings, tmp_path, MAIN + "// changed\n"))
    assert other.digest != first.digest


@pytest.mark.real
def test_a_damaged_build_is_made_again(settings: Settings, tmp_path: Path) -> None:
    source = tiny(settings, tmp_path, MAIN)
    first = made(settings, source)
    (Store(settings.store).build_dir(first.digest) / "llama-server").write_text("rubbish")
    again = made(settings, source)
    assert again.files == first.files
    assert Store(settings.store).damaged(again) == []


@pytest.mark.real
def test_source_that_does_not_compile_fails_the_release_with_the_compilers_words(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ReleaseFailed, match="does not compile") as failed:
        made(settings, tiny(settings, tmp_path, "int main() { nope(); }\n"))
    assert "was not declared in this scope" in failed.value.evidence.splitlines()[0]
    assert Store(settings.store).builds() == []


@pytest.mark.parametrize("missing", ["cmake", "ninja", "sccache", "c++"])
def test_a_tool_that_is_not_there_is_the_machines_fault_and_named(
    missing: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny(settings, tmp_path, MAIN)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in {"cmake", "ninja", "sccache"} - {missing}:
        (scripts / name).symlink_to(Path(sysconfig.get_path("scripts"), name))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(scripts))
    monkeypatch.setenv("PATH", str(path_of(tmp_path / "bin", "sh", "git", "cc", *({"c++"} - {missing}))))
    with pytest.raises(ToolingError) as trouble:
        made(settings, source)
    assert missing in str(trouble.value)
    assert Store(settings.store).builds() == []


@pytest.mark.real
def test_a_cmake_error_fails_the_release_with_cmakes_words(settings: Settings, tmp_path: Path) -> None:
    broken = CMAKE + 'message(FATAL_ERROR "needs a newer something")\n'
    with pytest.raises(ReleaseFailed, match="needs a newer something"):
        made(settings, tiny(settings, tmp_path, MAIN, broken))


@pytest.mark.real
def test_a_binary_that_names_another_build_or_tree_is_refused_as_stale(settings: Settings, tmp_path: Path) -> None:
    for stale in (MAIN.replace(", N,", ", 8202,"), MAIN.replace(", COMMIT)", ', "unknown")')):
        with pytest.raises(ReleaseFailed, match="the finished binary is not b9999"):
            made(settings, tiny(settings, tmp_path, stale))
    assert Store(settings.store).builds() == []


@pytest.mark.real
def test_a_machine_without_a_compiler_is_our_trouble(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny(settings, tmp_path, MAIN)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolingError, match="no-such-compiler is not on this machine"):
        made(settings, source)


@pytest.mark.real
def test_a_killed_build_leaves_no_build_and_no_process_and_the_next_one_is_whole(
    settings: Settings, tmp_path: Path
) -> None:
    slow = CMAKE + "add_custom_command(TARGET llama-server PRE_LINK COMMAND sleep 30)\n"
    source = tiny(settings, tmp_path, MAIN, slow)
    (tmp_path / "source.json").write_text(source.model_dump_json())
    script = (
        "import sys; from pathlib import Path; from tasks.settings import Settings; from tasks.release import *\n"
        "from tasks.store import Store; from tasks.platforms.local.compile import build\n"
        f"s = Settings(store=Path({str(settings.store)!r}), cache=Path({str(settings.cache)!r}))\n"
        f"source = SourceTree.model_validate_json(Path({str(tmp_path / 'source.json')!r}).read_text())\n"
        "build(source, Recipe(), Store(s.store), s, lambda *a: print(*a, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "main.cpp" in line:
                break
        process.send_signal(signal.SIGKILL)
    time.sleep(0.5)
    assert Store(settings.store).builds() == []
    lines = [" ".join(words) for words in command_lines().values()]
    assert [line for line in lines if "ninja" in line and str(settings.cache) in line] == []
    assert made(settings, tiny(settings, tmp_path, MAIN)).version.startswith("version: 9999")


@pytest.mark.real
def test_the_real_build_says_which_source_it_is_of(build: Build, base: Settings) -> None:
    store = Store(base.store)
    folder = store.build_dir(build.digest)
    assert check_version(run([folder / "llama-server", "--version"], timeout_s=60), build.source) == build.version
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["llama-server"] == build.files["llama-server"]
    assert os.access(folder / "llama-server", os.X_OK)
    assert build.objects > 100
