"""Commands and flows on a machine that lacks several things: one error, before anything is fetched or started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.__main__ import _look
from flows.redeploy import redeploy
from flows.server import prefect_server
from flows.upgrade import upgrade
from tasks.doctor import needs
from tasks.release import Intent, Problem, ToolingError
from tasks.settings import load
from tasks.store import Store
from tests.doctor.machines import needs_root, path_of, small_disk, taken_port
from tests.flows.conftest import REPOSITORY

pytestmark = [pytest.mark.wire, needs_root]

COMMANDS = {
    "upgrade": ["upgrade"],
    "redeploy": ["redeploy", "--reason", "new key"],
    "serve": ["serve", "--port", "0"],
    "demo": ["demo"],
}


@pytest.fixture
def lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without compilers and git, with production's port taken and a disk of 1 MB, in force here; its disk."""
    ours = ("LLAMA_", "PREFECT_", "DEMO_")
    for name in [name for name in os.environ if name.startswith(ours)]:
        monkeypatch.delenv(name)
    with small_disk(tmp_path / "small", "size=1m") as small, taken_port() as port:
        monkeypatch.setenv("PATH", str(path_of(tmp_path / "bin", "sh")))
        monkeypatch.setenv("LLAMA_RELEASE_STORE", str(small / "store"))
        monkeypatch.setenv("LLAMA_RELEASE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("LLAMA_RELEASE_LOCAL__STAGING_PORT", "0")
        monkeypatch.setenv("LLAMA_RELEASE_LOCAL__PRODUCTION_PORT", str(port))
        yield small


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_all_at_once_and_starts_and_fetches_nothing(
    command: str, lacking: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows", *COMMANDS[command]], cwd=REPOSITORY, env=os.environ | {"USER": "tester"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "things that a release needs are missing here" in done.stderr
    assert "can't be had: Address already in use" in done.stderr
    assert f"GB free at {lacking}" in done.stderr
    for tool in ("no compiler that works", "git is not on this machine"):
        assert (tool in done.stderr) == (command != "redeploy")
    assert ("no model is set" in done.stderr) == (command == "upgrade")
    assert "Traceback" not in done.stderr
    assert "Prefect page" not in done.stdout
    assert list(lacking.iterdir()) == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("lacking")
def test_a_move_that_was_left_open_is_for_the_flow_to_finish_first() -> None:
    with pytest.raises(Problem, match="missing here"):
        _look(load(), needs.UPGRADE)
    Store(load().store).open_intent(
        Intent(stage="production", action="promote", before=None, after="0" * 12, dossier=None, by="ada")
    )
    assert _look(load(), needs.UPGRADE) == []


def test_a_run_that_a_worker_starts_ends_with_the_same_error(lacking: Path, tmp_path: Path) -> None:
    with prefect_server(tmp_path / "elsewhere"):
        with pytest.raises(ToolingError, match="things that a release needs are missing here") as trouble:
            upgrade()
        assert "git: git is not on this machine" in trouble.value.evidence
        with pytest.raises(ToolingError, match="2 things"):
            redeploy(by="ada", reason="new key")
    assert not (lacking / "store" / "ledger").exists()
