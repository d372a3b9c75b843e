"""Ctrl-C while an upgrade is at work: one message, no word of Prefect's about itself, and nothing left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import in_force
from tests.fakes.github import fake_github
from tests.flows.conftest import REPOSITORY
from tests.platforms.stand import command_lines, until

pytestmark = pytest.mark.wire

SLEEPS = "cmake_minimum_required(VERSION 3.14)\nproject(sleeps NONE)\nexecute_process(COMMAND sleep 4711)\n"


@pytest.mark.usefixtures("page")
def test_an_upgrade_that_is_interrupted_says_so_once_and_how_to_go_on(scripted_model: Path, tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches/series").write_text("")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "PREFECT_"))}
    with fake_github(tmp_path / "github") as github:
        github.commit("server : b9998", {"CMakeLists.txt": SLEEPS})
        github.release("b9998", "2026-11-01T12:00:00Z", prerelease=True)
        for name, value in {
            "STORE": tmp_path / "store", "CACHE": tmp_path / "cache", "PATCHES": tmp_path / "patches",
            "LOCAL__STAGING_PORT": 0, "LOCAL__PRODUCTION_PORT": 0, "SERVER__MODEL": scripted_model,
            "UPSTREAM__KIND": "github", "UPSTREAM__API_URL": github.url,
        }.items():  # fmt: skip
            env[f"LLAMA_RELEASE_{name}"] = str(value)
        upgrade = subprocess.Popen(
            [sys.executable, "-m", "flows", "upgrade", "--to", "b9998"], cwd=REPOSITORY, env=env | in_force(),
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

        def configures() -> set[int]:
            return {pid for pid, words in command_lines().items() if words[:2] == ["sleep", "4711"]}

        assert until(lambda: bool(configures()) or upgrade.poll() is not None, 120)
        os.killpg(upgrade.pid, signal.SIGINT)
        said, _ = upgrade.communicate(timeout=60)
    assert upgrade.returncode == 130, said
    assert re.search(r"^  build +interrupted  stopped", said, re.MULTILINE), said
    assert said.count("interrupted; nothing is lost: run it again") == 1, said
    assert not re.search("Traceback|KeyboardInterrupt|Error logging", said), said
    assert until(lambda: not configures(), 30)
