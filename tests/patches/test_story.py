"""The story of patches/README.md, command by command: synthetic trees under its tags."""

from __future__ import annotations

import re
import shlex

import pytest
from typer.testing import CliRunner

import tasks.upstream
from flows.__main__ import app
from tasks.release import BadInput
from tasks.store import Store
from tests.conftest import REPOSITORY
from tests.patches.conftest import World
from tests.patches.test_classify import PATCHED, SIBLINGS
from tests.patches.test_kinds import diff_of
from tests.patches.test_life import MOVED, Here, proved


def story() -> list[tuple[str, str]]:
    """(command, what the page says it prints) of the story."""
    text = (REPOSITORY / "patches" / "README.md").read_text(encoding="utf-8")
    block = text.split("## The story of one patch")[1].split("```console\n")[1].split("```")[0]
    return re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)


def test_the_story_of_one_patch_from_add_to_retire(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)
    for name, value in {"PATCHES": world.folder, "STORE": world.root / "store", "CACHE": world.root / "own"}.items():
        monkeypatch.setenv(f"LLAMA_RELEASE_{name}", str(value))
    monkeypatch.setattr(tasks.upstream, "open_upstream", lambda _: Here(world))
    monkeypatch.setenv("COLUMNS", "200")
    for build, files in ((8672, SIBLINGS), (8722, MOVED), (8746, PATCHED)):
        world.upstream(build, files)
    (world.root / "tags.diff").write_text(diff_of(world, 8672, PATCHED))
    for command, shown in story():
        words = shlex.split(command)
        if words[:2] == ["llama-release", "upgrade"]:
            proved(world, Store(world.root / "store"), int(words[-1].lstrip("b")))
        elif words[0] == "llama-release":
            done = CliRunner().invoke(app, words[1:])
            said = str(done.exception) if shown.startswith("refused: ") else done.stdout
            assert isinstance(done.exception, BadInput) == shown.startswith("refused: "), (command, done.exception)
            for word in shown.removeprefix("refused: ").split():
                assert word in said, (command, word, said)
    assert (world.folder / "series").read_text() == ""
