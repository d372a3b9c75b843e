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
from tests.flows.conftest import REPOSITORY, settings_in
from tests.platforms.stand import command_lines, until

pytestmark = pytest.mark.wire

ENDLESS = """\
cmake_minimum_required(VERSION 3.14)
project(endless NONE)
execute_process(COMMAND tail -f ${CMAKE_CURRENT_LIST_FILE})
"""


@pytest.mark.usefixtures("page")
def test_an_upgrade_that_is_interrupted_says_so_once_and_how_to_go_on(scripted_model: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "PREFECT_"))}
    with fake_github(tmp_path / "github") as github:
        github.commit("server : b9998", {"CMakeLists.txt": ENDLESS})
        github.release("b9998", "2026-11-01T12:00:00Z", prerelease=True)
        env |= settings_in(tmp_path, scripted_model, github.url)
        upgrade = subprocess.Popen(
            [sys.executable, "-m", "flows", "upgrade", "--to", "b9998"], cwd=REPOSITORY, env=env | in_force(),
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

        def configures() -> set[int]:
            own = str(tmp_path)
            return {pid for pid, words in command_lines().items() if words[0] == "tail" and own in " ".join(words)}

        assert until(lambda: bool(configures()) or upgrade.poll() is not None, 120)
        os.killpg(upgrade.pid, signal.SIGINT)
        said, _ = upgrade.communicate(timeout=60)
    assert upgrade.returncode == 130, said
    assert re.search(r"^  build +interrupted  stopped", said, re.MULTILINE), said
    assert said.count("interrupted; nothing is lost: run it again") == 1, said
    assert not re.search("Traceback|KeyboardInterrupt|Error logging", said), said
    assert until(lambda: not configures(), 30)


PRESSED = """
import os, signal
from flows import __main__ as command
command._check_words = lambda _: os.kill(os.getpid(), signal.SIGINT)
command.main()
"""


def test_before_the_command_line_is_read_it_is_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", PRESSED], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted; nothing is lost: run it again")
