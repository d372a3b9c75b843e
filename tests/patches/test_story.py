"""The story of patches/README.md, command by command: synthetic trees under its tags."""

from __future__ import annotations

import re
import shlex

import pytest
from typer.testing import CliRunner

import tasks.patches
import tasks.upstream
from flows.__main__ import app
from tasks import proof
from tasks.patches import read_series
from tasks.release import BadInput, PatchStatus, ReleaseFailed
from tasks.settings import load
from tasks.upstream import find
from tests.conftest import REPOSITORY
from tests.patches.conftest import World
from tests.patches.test_classify import CHAT, PATCHED, SIBLINGS
from tests.patches.test_kinds import diff_of
from tests.patches.test_life import MOVED, Here
from tests.platforms.stand import Uncompiled

pytestmark = pytest.mark.wire


def story() -> list[tuple[str, str]]:
    """(command, what the page says it prints) of the story."""
    text = (REPOSITORY / "patches" / "README.md").read_text(encoding="utf-8")
    block = text.split("## The story of one patch")[1].split("```console\n")[1].split("```")[0]
    return re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)


@pytest.fixture
def at_home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands work on this series and these releases."""
    monkeypatch.chdir(world.root)
    for name, value in {"PATCHES": world.folder, "STORE": world.root / "store", "CACHE": world.root / "own"}.items():
        monkeypatch.setenv(f"LLAMA_RELEASE_{name}", str(value))
    for module in (tasks.upstream, tasks.patches):
        monkeypatch.setattr(module, "open_upstream", lambda _: Here(world))
    monkeypatch.setenv("COLUMNS", "200")


def upgrade(world: World, tag: str) -> None:
    """As far as an upgrade proves the patches, on builds that hold the sources as they are."""
    settings, release = load(), find(Here(world).releases(), tag)
    platform = Uncompiled(settings)
    source = tasks.patches.apply(platform, settings, release)
    built = platform.build(source, settings.recipe, lambda *_: None)
    proof.check(platform, settings, source, built)


@pytest.mark.usefixtures("page", "at_home")
def test_the_story_of_one_patch_from_add_to_retire(world: World) -> None:
    for build, files in ((8672, SIBLINGS), (8722, MOVED), (8746, PATCHED)):
        world.upstream(build, files)
    (world.root / "tags.diff").write_text(diff_of(world, 8672, PATCHED))
    for command, shown in story():
        words = shlex.split(command)
        if words[:2] == ["llama-release", "upgrade"]:
            upgrade(world, words[-1])
        elif words[0] == "llama-release":
            done = CliRunner().invoke(app, words[1:])
            said = str(done.exception) if shown.startswith("refused: ") else done.stdout
            assert isinstance(done.exception, BadInput) == shown.startswith("refused: "), (command, done.exception)
            for word in shown.removeprefix("refused: ").split():
                assert word in said, (command, word, said)
    assert (world.folder / "series").read_text() == ""


@pytest.mark.usefixtures("page", "at_home")
def test_what_only_looks_like_upstreams_is_not_retired_by_the_upgrade(world: World) -> None:
    """The line that its evidence describes is there, and not the tag."""
    world.upstream(100, SIBLINGS)
    evidence = "Evidence: common/*.cpp :: thinking_end_tag = "
    world.patch(100, PATCHED, "0001-tags.patch", evidence, "Proved-by: binary :: <channel|>")
    world.upstream(101, {CHAT: PATCHED[CHAT].replace("<channel|>", "another")})
    assert world.one(101).result.status is PatchStatus.UPSTREAMED
    with pytest.raises(ReleaseFailed, match="is upstreamed, and its effect is not there"):
        upgrade(world, "b101")
    retired = CliRunner().invoke(app, ["patches", "retire", "1", "--to", "b101"])
    assert "upstreamed on b101 by its text alone" in str(retired.exception)
    assert len(read_series(world.folder)) == 1
