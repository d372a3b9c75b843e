"""What a proof leaves out of a release, on builds that hold the sources as they are: nobody is left out with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tasks.patches
from tasks.patches import apply_series
from tasks.platforms.local import LocalPlatform
from tasks.process import Output, run
from tasks.proof import prove
from tasks.release import PatchStatus, ReleaseFailed, SourceTree
from tasks.settings import Settings
from tasks.sources import WHOLE, Sources
from tests.patches.conftest import World, tree_of
from tests.patches.test_life import Here
from tests.platforms.stand import Uncompiled

FIRST, SECOND = "common/first.txt", "common/second.txt"
FILES = {WHOLE: "upstream\n", FIRST: "one\ntwo\nthree\n", SECOND: "one\ntwo\nthree\n"}
THERE, OURS = "Proved-by: binary :: three", "Proved-by: binary :: ours"
"""A proof that upstream's own files pass, and one that takes a patch."""


@pytest.fixture
def settings(world: World, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(tasks.patches, "open_upstream", lambda _: Here(world))
    world.upstream(100, FILES)
    return Settings(store=world.root / "store", cache=world.root / "own", patches=world.folder)


def applied(world: World, settings: Settings) -> SourceTree:
    here = Here(world)
    (release,) = here.releases()
    return apply_series(Sources(settings.cache), release, here.fetch(release), settings.patches, here)


def proved(world: World, settings: Settings) -> SourceTree:
    platform: LocalPlatform = Uncompiled(settings)
    source = applied(world, settings)
    done, built = prove(platform, settings, source, platform.build(source, settings.recipe, quiet), quiet)
    assert built.source.tree == done.tree
    return done


def quiet(*_: object) -> None:
    pass


def more(text: str, path: str = FIRST) -> dict[str, str]:
    """Upstream's files with a line of ours in one of them."""
    return FILES | {path: FILES[path].replace("two\n", f"two\n{text}\n")}


def series(settings: Settings) -> list[str]:
    """The titles of the commits that `refs/series` names, newest first."""
    return Sources(settings.cache).git("log", "--format=%s", "refs/series/b100").stdout.splitlines()


def test_a_patch_that_cant_be_made_without_one_that_goes_is_not_left_out_with_it(
    world: World, settings: Settings
) -> None:
    world.patch(100, more("first"), "0001-first.patch", THERE)
    on_top = tree_of(world.sources, more("first"))
    world.patch(on_top, more("first, and ours"), "0002-on-top.patch", "Exported-on: b100", OURS)
    with pytest.raises(ReleaseFailed, match=r"0002-on-top\.patch can't be built without 0001-first\.patch"):
        proved(world, settings)


def test_two_patches_that_cover_for_each_other_do_not_go_together(world: World, settings: Settings) -> None:
    world.patch(100, more("ours"), "0001-first.patch", OURS)
    world.patch(100, more("ours", SECOND), "0002-second.patch", OURS)
    with pytest.raises(ReleaseFailed, match=r"0001-first\.patch, 0002-second\.patch can't all go") as failed:
        proved(world, settings)
    assert "no file of the build holds 'ours'" in failed.value.evidence


def test_what_a_patch_owes_must_hold_without_those_that_go(world: World, settings: Settings) -> None:
    world.patch(100, more("first"), "0001-first.patch", THERE)
    world.patch(100, more("ours", SECOND), "0002-second.patch", OURS, "Proved-by: binary :: first")
    with pytest.raises(ReleaseFailed, match=r"0001-first\.patch can't go"):
        proved(world, settings)


def test_the_commits_of_the_series_are_those_that_were_built(world: World, settings: Settings) -> None:
    world.patch(100, more("ours"), "0001-first.patch", OURS)
    world.patch(100, more("other", SECOND), "0002-second.patch", "Proved-by: binary :: other")
    whole = proved(world, settings)
    assert len(series(settings)) == 3
    world.patch(100, more("idle", SECOND), "0002-second.patch", THERE)
    left = proved(world, settings)
    assert [patch.status for patch in left.patches] == [PatchStatus.CLEAN, PatchStatus.OBSOLETE]
    assert len(series(settings)) == 2
    assert Sources(settings.cache).git("log", "-1", "--format=%T", "refs/series/b100").stdout.strip() == left.tree
    assert left.tree != whole.tree


def test_what_patches_were_made_from_is_looked_for_once_for_all_the_trees_of_a_proof(
    world: World, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second", "third"):
        path = f"common/{name}.txt"
        world.patch(100, FILES | {path: f"{name} of ours\n"}, f"{name}.patch", f"Proved-by: binary :: {name} of ours")
    source = applied(world, settings)
    strict: list[str] = []

    def counted(argv: Sequence[str | Path], **options: Any) -> Output:
        strict.extend(str(word) for word in argv if word == "apply")
        return run(argv, **options)

    monkeypatch.setattr("tasks.sources.run", counted)
    platform = Uncompiled(settings)
    prove(platform, settings, source, platform.build(source, settings.recipe, quiet), quiet)
    assert len(strict) == 3 + 3 * 2, "a patch on its base, and each of two on each of three trees"
