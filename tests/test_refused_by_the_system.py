"""The real command line where the system says no: files that may not be read or written, bytes that are no text, users
without a name, a Prefect server that is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.release import Event, Hold, StagePointer
from tasks.settings import SETTINGS_FILE
from tasks.store import Store
from tests.doctor.machines import needs_root, small_disk

REPOSITORY = Path(__file__).parent.parent
STORE = ".llama-release"
ORDINARY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
"""Before a command: root without any capability, which files refuse as they do other users."""
NAMELESS = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
"""Before a command: a user that no system has."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a store whose production is on hold."""
    store = Store(tmp_path / STORE)
    store.save_pointer(StagePointer(stage="production", hold=Hold(reason="it was bad", by="ada")))
    store.log(Event(kind="promoted", summary="b11434 is in production"))
    yield tmp_path
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o700)


def run(folder: Path, *words: str, code: int, log: bytes = b"", user: list[str] = ORDINARY, **env: str) -> str:
    """What a command says that ends with this code."""
    usual = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": str(folder), "LANG": "C.UTF-8"}
    done = subprocess.run(
        [*user, sys.executable, "-m", "flows", *words], cwd=folder, env=usual | env, input=log,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
    )  # fmt: skip
    said = done.stdout.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    return said


def test_a_store_that_cannot_be_made(folder: Path) -> None:
    shutil.rmtree(folder / STORE)
    folder.chmod(0o500)
    said = run(folder, "status", code=2)
    assert f"the store {folder / STORE} can't be made" in said
    assert "Permission denied" in said


@pytest.mark.parametrize("words", [["status"], ["history"], ["hold", "lift", "--by", "ada"], ["stop"]])
def test_a_store_that_may_not_be_entered(folder: Path, words: list[str]) -> None:
    (folder / STORE).chmod(0)
    assert "Permission denied" in run(folder, *words, code=3)


def test_a_ledger_that_may_not_be_read_is_not_taken_for_an_empty_one(folder: Path) -> None:
    (folder / STORE / "ledger").chmod(0o300)
    assert "ledger in the store cannot be read" in run(folder, "history", code=3)


def test_a_store_that_may_be_read_and_not_written(folder: Path) -> None:
    for path in (folder / STORE, folder / STORE / "stages"):
        path.chmod(0o555)
    assert "it was bad" in run(folder, "status", code=0)
    said = run(folder, "hold", "lift", "--by", "ada", code=3)
    assert "production.lock cannot be taken" in said
    assert Store(folder / STORE).pointer("production").hold


@needs_root
def test_a_disk_that_is_mounted_read_only(folder: Path) -> None:
    with small_disk(folder / "disk", "size=8m") as disk:
        shutil.copytree(folder / STORE, disk / STORE)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        said = run(folder, "hold", "lift", "--by", "ada", code=3, LLAMA_RELEASE_STORE=str(disk / STORE))
        assert "Read-only file system" in said


@pytest.mark.parametrize("part", ["stages", "ledger", "locks"])
def test_a_file_where_a_folder_should_be(folder: Path, part: str) -> None:
    shutil.rmtree(folder / STORE / part, ignore_errors=True)
    (folder / STORE / part).write_text("")
    words = {"stages": ["status"], "ledger": ["history"], "locks": ["hold", "lift", "--by", "ada"]}[part]
    assert part in run(folder, *words, code=3)


def test_settings_that_may_not_be_read(folder: Path) -> None:
    (folder / SETTINGS_FILE).write_text("retain = 3\n")
    (folder / SETTINGS_FILE).chmod(0o200)
    said = run(folder, "status", code=2)
    assert "Permission denied" in said
    assert SETTINGS_FILE in said


def test_a_log_may_hold_any_byte(folder: Path) -> None:
    said = run(folder, "explain", code=1, log=b"\xff\xfe\nall is well\n", PYTHONIOENCODING="utf-8:strict")
    assert "Not known." in said


def test_what_a_terminal_does_not_have_is_escaped(folder: Path) -> None:
    run(folder, "hold", "lift", "--by", "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}", code=0)
    assert r"Zo\xeb" in run(folder, "history", code=0, PYTHONIOENCODING="ascii:strict")


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*NAMELESS, "true"], capture_output=True).returncode != 0,
    reason="no user namespaces here",
)
def test_a_user_without_a_name_is_a_number(folder: Path) -> None:
    run(folder, "hold", "lift", code=0, user=NAMELESS)
    assert "54321 lifted the hold" in run(folder, "history", code=0)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", "no address"])
def test_a_prefect_server_that_is_not_there(folder: Path, address: str) -> None:
    said = run(folder, "watch", code=3, PREFECT_API_URL=address)
    assert "the Prefect server that PREFECT_API_URL names does not answer" in said


@pytest.mark.parametrize("lock", ["release", "production"])
@pytest.mark.parametrize("verb", ["start", "stop"])
def test_servers_are_not_started_or_stopped_under_a_run_that_moves_them(folder: Path, verb: str, lock: str) -> None:
    with Store(folder / STORE).lock(lock, holder={"name": "upgrade to b11434"}):
        said = run(folder, verb, code=3)
    assert f"another process holds the lock {folder / STORE / 'locks' / lock}.lock" in said
    assert "upgrade to b11434" in said
    run(folder, verb, code=0)
