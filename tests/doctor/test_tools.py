"""The programs that a release needs: real ones that are hidden, too old, or lack what they need themselves."""

from __future__ import annotations

import re
import shutil
import sysconfig
from pathlib import Path

import pytest

from tasks.doctor.packages import NotInstalled
from tasks.doctor.tools import KNOWN, cuda, git, toolchain, wheels
from tasks.release import Recipe, ToolingError
from tasks.settings import Settings
from tests.doctor.machines import needs_root, path_of, script, small_disk

pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler here")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("CXX", "CC", "CXXFLAGS", "CFLAGS", "LDFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return Settings(store=tmp_path / "store", cache=tmp_path / "cache")


def wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Path:
    """CXX is a compiler that counts its calls in the file `calls` and is always given these flags."""
    compiler = script(tmp_path / "my c++", f"echo >>'{tmp_path}/calls'", f'exec c++ {" ".join(flags)} "$@"')
    monkeypatch.setenv("CXX", str(compiler))
    return tmp_path / "calls"


def test_compilers_that_work_are_named_with_their_versions(settings: Settings) -> None:
    assert "c++" in toolchain(settings)


def test_a_machine_without_compilers_is_told_both_and_one_package(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(path_of(tmp_path / "bin", "sh")))
    with pytest.raises(NotInstalled) as lack:
        toolchain(settings)
    assert "there is no c++ (not on PATH)" in lack.value.evidence
    assert "there is no cc or gcc or clang (not on PATH)" in lack.value.evidence
    assert lack.value.packages == ("compiler",)


@pytest.mark.parametrize("without", [("-nostdinc++",), ("-nostdinc", "-nostdinc++")], ids=["C++", "any"])
def test_a_compiler_without_headers_is_none_and_the_header_is_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...]
) -> None:
    wrapped(tmp_path, monkeypatch, *without)
    with pytest.raises(NotInstalled, match="no compiler that works") as lack:
        toolchain(settings)
    assert "does not compile and link C++" in lack.value.evidence
    assert re.search("error: .*filesystem", lack.value.evidence)


def test_a_compiler_that_cannot_link_is_none(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDFLAGS", "-lno-such-library")
    with pytest.raises(NotInstalled) as lack:
        toolchain(settings)
    assert "cannot find -lno-such-library" in lack.value.evidence


def test_a_variable_that_names_no_compiler_is_the_evidence(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-99")
    with pytest.raises(NotInstalled) as lack:
        toolchain(settings)
    assert "there is no g++-99 (CXX or the recipe names it)" in lack.value.evidence


def test_the_recipes_own_compiler_is_the_one_that_is_tried(settings: Settings) -> None:
    other = settings.model_copy(update={"recipe": Recipe(cmake={"CMAKE_CXX_COMPILER": "/opt/c++"})})
    with pytest.raises(NotInstalled, match="no compiler"):
        toolchain(other)


def test_a_compiler_that_worked_is_not_tried_again_until_one_of_its_headers_changes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "extra.h"
    header.touch()
    calls = wrapped(tmp_path, monkeypatch, "-include", f"'{header}'")
    first = toolchain(settings)
    tried = calls.stat().st_size
    assert toolchain(settings) == first
    assert calls.stat().st_size == tried
    header.unlink()
    with pytest.raises(NotInstalled):
        toolchain(settings)


def test_what_is_remembered_may_be_damaged_and_the_cache_may_not_take_it(settings: Settings, tmp_path: Path) -> None:
    settings.cache.mkdir()
    (settings.cache / KNOWN).write_text("[1")
    assert toolchain(settings)
    (tmp_path / "file").touch()
    assert toolchain(settings.model_copy(update={"cache": tmp_path / "file" / "cache"}))


@needs_root
def test_a_full_disk_is_not_called_a_broken_compiler(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "small", "size=16k") as small:
        monkeypatch.setattr("tempfile.tempdir", str(small))
        with pytest.raises(ToolingError, match="no compiler can be tried") as trouble:
            toolchain(settings)
    assert not isinstance(trouble.value, NotInstalled)


def test_git_is_missed_and_an_old_one_is_not_enough(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "git version" in git(settings)
    monkeypatch.setenv("PATH", str(path_of(tmp_path / "bin", "sh")))
    with pytest.raises(NotInstalled, match="git is not on this machine"):
        git(settings)
    script(tmp_path / "bin" / "git", "echo git version 2.34.1")
    with pytest.raises(NotInstalled, match=r"git is older than 2\.38"):
        git(settings)
    script(tmp_path / "bin" / "git", "exit 1")
    with pytest.raises(NotInstalled, match="git does not work"):
        git(settings)


def test_wheels_run_here_and_one_that_cannot_be_started_is_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cmake version" in wheels(settings)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    script(tmp_path / "ninja", "echo 1.13")
    script(tmp_path / "cmake", "echo wrong C library; exit 127")
    (tmp_path / "sccache").write_text("may not be run")
    with pytest.raises(ToolingError, match="tools of this Python environment cannot run") as trouble:
        wheels(settings)
    assert f"{tmp_path}/cmake: wrong C library" in trouble.value.evidence
    assert f"{tmp_path}/sccache" in trouble.value.evidence
    assert "ninja" not in trouble.value.evidence


def test_a_cuda_compiler_is_needed_for_cuda_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(path_of(tmp_path / "bin", "sh")))
    assert "no CUDA compiler is needed" in cuda(settings)
    wanting = settings.model_copy(update={"recipe": Recipe(backend="cuda")})
    with pytest.raises(ToolingError, match="nvcc is not on"):
        cuda(wanting)
    script(tmp_path / "bin" / "nvcc", "echo Build cuda_13.0")
    assert cuda(wanting) == "Build cuda_13.0"
