"""The wall itself: what is seen behind it, what is not, and what happens where none can stand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from modal_app import wall
from modal_app.child import environment
from tasks.doctor import Seen
from tasks.platforms.local.doctor import wall_here
from tasks.platforms.local.proc import is_alive
from tasks.process import ask, run
from tasks.release import ToolingError
from tests.platforms.conftest import platform_at
from tests.platforms.stand import until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to be, or to act for, another user takes root")
stands = pytest.mark.skipif(bool(wall.standing(False)), reason=f"no wall can stand here: {wall.standing(False)}")
OTHER = 4711
"""A user who is nobody here."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    (folder / ".ssh" / "id").write_text("key")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def _no_wall(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "platform", "darwin")
    wall.standing.cache_clear()
    yield
    wall.standing.cache_clear()


def said(*words: str | Path, hide: list[Path] | None = None, keep: list[Path] | None = None) -> str:
    return run(words, timeout_s=30, check=False, behind=partial(wall.behind, hide=hide or [], keep=keep or [])).text


@stands
def test_a_home_is_empty_but_for_what_the_program_is_told_to_use(home: Path) -> None:
    (home / "model.gguf").write_text("weights")
    (home / "work").mkdir()
    assert said("/bin/ls", "-A", home) == ""
    assert said("/bin/sh", "-c", f"ls -A {home}; cat {home}/model.gguf") == "model.gguf\nweights"
    assert said("/bin/ls", "-A", home, keep=[home / "work"]) == "work"
    assert said("/bin/sh", "-c", f"echo 1 > {home}/work/out", keep=[home / "work"]) == ""
    assert (home / "work" / "out").read_text() == "1\n"


@stands
def test_a_program_on_path_in_a_home_is_seen_with_what_lies_around_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = home / "toolchain"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "lib").mkdir()
    program = prefix / "bin" / "program"
    program.write_text(f"#!/bin/sh\nls -A {home} {prefix}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(prefix / "bin"), prepend=os.pathsep)
    assert said("program").split() == [f"{home}:", "toolchain", f"{prefix}:", "bin", "lib"]


@stands
def test_a_file_behind_a_link_is_seen_by_both_its_names(home: Path) -> None:
    blob = home / "blobs" / "sha"
    blob.parent.mkdir()
    blob.write_text("weights")
    (home / "snapshots").mkdir()
    link = home / "snapshots" / "model.gguf"
    link.symlink_to(blob)
    assert said("/bin/cat", link) == "weights"


@stands
def test_a_key_in_what_is_kept_stays_hidden(home: Path) -> None:
    (home / ".local" / "share" / "keyrings").mkdir(parents=True)
    (home / ".local" / "share" / "keyrings" / "login").write_text("key")
    assert said("/bin/ls", "-A", home / ".local", keep=[home / ".local"]) == "share"
    assert said("/bin/sh", "-c", f"cd {home}; ls -A .local/share", keep=[home / ".local"]) == ""


@stands
def test_a_folder_that_is_hidden_is_not_seen_as_the_current_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home / ".ssh")
    assert said("/bin/sh", "-c", "cat id 2>&1; pwd") == "cat: id: No such file or directory\n/"


@stands
def test_what_a_variable_names_is_hidden_unless_programs_lie_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_text("key")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gh.yml").write_text("key")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("KEYRING_ROOT", "/")
    monkeypatch.setenv("MY_TOKEN_FOLDER", "/usr")
    assert said("/bin/sh", "-c", f"cat {tmp_path}/*.json; ls -A {tmp_path}/config; ls /usr/bin/env") == "/usr/bin/env"


@stands
def test_nobody_takes_it_down_from_behind(home: Path) -> None:
    takes = f"umount {home}; unshare --user --map-root-user --mount umount {home}; ls -A {home}"
    assert ".ssh" not in said("/bin/sh", "-c", takes).split()
    assert said("/bin/ls", "-A", home) == ""


@stands
@needs_root
def test_root_still_reads_and_writes_the_files_of_others(home: Path) -> None:
    theirs = home / "theirs"
    theirs.mkdir(mode=0o700)
    (theirs / "file").write_text("theirs\n")
    (theirs / "file").chmod(0o600)
    for path in (theirs / "file", theirs):
        os.chown(path, OTHER, OTHER)
    changes = f"cat {theirs}/file; echo changed > {theirs}/file; touch {theirs}/new; chown {OTHER} {theirs}/new"
    assert said("/bin/sh", "-c", changes, keep=[theirs]) == "theirs"
    assert ((theirs / "file").read_text(), (theirs / "new").stat().st_uid) == ("changed\n", OTHER)


@stands
@needs_root
def test_nothing_of_a_process_of_the_same_user_is_seen_however_little_it_may(home: Path) -> None:
    weak = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "sleep", "60"]
    with open(home / ".ssh" / "id") as key, subprocess.Popen(weak, stdin=key, env={"OTHER": "key"}) as process:
        folder = f"/proc/{process.pid}"
        assert until(lambda: Path(folder, "comm").read_text() == "sleep\n")
        seen = said("/bin/sh", "-c", f"cat {folder}/environ {folder}/fd/0; ls {folder}/root/ {folder}/cwd/")
        process.kill()
    assert seen.count("Permission denied") == 4
    assert "key" not in seen


@stands
@needs_root
def test_it_stands_without_privilege_too(tmp_path: Path) -> None:
    open_to_all = tmp_path.parent / f"open-{tmp_path.name}"
    open_to_all.mkdir(mode=0o755)
    for folder in open_to_all.parents:
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    script = shutil.copy(wall.__file__, open_to_all / "wall.py")
    (open_to_all / "hidden").mkdir()
    (open_to_all / "hidden" / "key").write_text("key")
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        pytest.skip("no Python that everybody may run")
    order = json.dumps({"hide": [str(open_to_all / "hidden")], "keep": [], "network": False})
    words = ["/bin/sh", "-c", f"ls -A {open_to_all}/hidden; id -u; tail -n +3 /proc/net/dev | cut -d: -f1"]
    done = subprocess.run(
        ["setpriv", "--reuid", str(OTHER), "--regid", str(OTHER), "--clear-groups", python, "-I", "-S", script, order,
         *words], capture_output=True, text=True, timeout=30, cwd="/",
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == ([str(OTHER), "lo"], "")


PARENT = """
import subprocess, sys
from modal_app import wall
from tasks.process import die_with_parent
words = wall.behind(["sleep", "60"], {"PATH": "/usr/bin:/bin"})
child = subprocess.Popen(words, preexec_fn=die_with_parent)
print(child.pid, flush=True)
sys.stdin.read()
"""


@stands
def test_behind_it_a_child_still_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", 20.0)
        parent.kill()
    assert until(lambda: not is_alive(pid), 10.0)


def test_what_cannot_be_run_is_said_as_without_it(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    for prepare in (lambda: None, lambda: binary.write_text("rubbish"), lambda: binary.chmod(0o755)):
        prepare()
        with pytest.raises(ToolingError, match="llama-server (is not on this machine|can't be started)"):
            ask(binary, "--version", hide=[])


@pytest.mark.usefixtures("_no_wall")
def test_where_none_can_stand_a_program_runs_all_the_same_and_doctor_says_so(tmp_path: Path) -> None:
    assert wall.behind(["/bin/echo", "ran"], environment()) == ["/bin/echo", "ran"]
    assert said("/bin/echo", "ran") == "ran"
    seen = wall_here(platform_at(tmp_path))
    assert isinstance(seen, Seen)
    assert "no wall can stand here" in seen.evidence and "darwin has no namespaces" in seen.evidence
    assert "user who has nothing else" in seen.todo


@stands
def test_doctor_names_what_is_hidden(home: Path, tmp_path: Path) -> None:
    seen = wall_here(platform_at(tmp_path / "store"))
    assert isinstance(seen, str)
    assert str(home) in seen and str(tmp_path / "store") in seen
    assert "a stage's server is kept from those files, too" in seen
