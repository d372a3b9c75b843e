"""Who broke a patch: the builds between are looked at by halves, through archives as upstream has them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tasks.upstream
from flows.__main__ import app
from tasks.patches import blame, place_series, read_series
from tasks.release import Change, PatchResult, PatchStatus, ToolingError, UpstreamRelease
from tasks.sources import WHOLE, Sources
from tests.patches.conftest import World
from tests.patches.test_classify import CHAT, EVIDENCE, HEAD, PATCHED, SIBLINGS, TAG, function
from tests.patches.test_life import CONFLICTING, THEIRS, Here

PARSER = "common/parsers/gemma4.cpp"
TOLD = Change(build=111, pull=4711, title="chat : the end tag of gemma 4 is another")


class Counted(Here):
    """Upstream releases as archives, of which some can't be had; counts what is fetched."""

    def __init__(self, world: World, gone: Iterable[int] = ()) -> None:
        super().__init__(world)
        self.fetched: list[int] = []
        self.gone = set(gone)

    def fetch(self, release: UpstreamRelease) -> Path:
        self.fetched.append(release.build)
        if release.build in self.gone:
            raise ToolingError(f"{release.tag} is not there any more")
        return super().fetch(release)


def blamed(world: World, build: int, upstream: Here, good: int | None = None) -> PatchResult:
    """The first patch of the series on a build, with who broke it."""
    sources, release = Sources(world.root / "own"), UpstreamRelease(build=build)
    _, tree = sources.add(release, upstream.fetch(release))
    placed = place_series(sources, read_series(world.folder), release, tree, upstream)
    return blame(sources, placed, release, upstream, good)[0].result


@pytest.fixture
def tagged(world: World) -> World:
    """Sixteen builds; from b111 on upstream has another line where the patch of b100 puts its own."""
    for build in range(100, 116):
        files = CONFLICTING if build >= 111 else SIBLINGS
        world.upstream(build, {WHOLE: f"b{build}\n", CHAT: f"// b{build}\n" + files[CHAT]})
    patched = {WHOLE: "b100\n", CHAT: "// b100\n" + PATCHED[CHAT]}
    world.patch(100, patched, "0001-tags.patch", EVIDENCE)
    world.changes += [Change(build=109, title="ci : faster"), TOLD, Change(build=114, title="docs : more")]
    return world


def test_the_first_build_that_breaks_a_patch_is_named_with_its_pull_request_and_its_hunk(tagged: World) -> None:
    upstream = Counted(tagged)
    found = blamed(tagged, 115, upstream)
    assert found.status is PatchStatus.CONFLICT
    assert found.evidence.splitlines()[-1] == f"b111 broke it: {TOLD}"
    theirs, ours = found.detail.split("### The patch: ")
    assert "### Upstream's change, in b111 (after b110)" in theirs
    assert "+" + THEIRS.rstrip("\n") in theirs
    assert "+" + TAG.rstrip("\n") in ours
    assert len(set(upstream.fetched)) <= 7, "by halves, not one by one"
    assert f"{THEIRS}||||||| where the patch was made\n=======\n{TAG}>>>>>>> the patch" in found.detail


def test_a_build_that_cant_be_had_is_passed_over_and_nothing_is_said_that_is_not_known(tagged: World) -> None:
    found = blamed(tagged, 115, Counted(tagged, gone=(110, 111, 112)))
    said = f"b113 broke it, by one of the 4 commits after b109; notes name 1 of them: {TOLD}"
    assert found.evidence.splitlines()[-1] == said
    tagged.changes.clear()
    found = blamed(tagged, 115, Counted(tagged))
    assert found.evidence.splitlines()[-1] == "b111 broke it: what that is, notes do not tell"


def test_of_all_commits_of_a_step_the_one_that_touches_the_files_is_named(tagged: World) -> None:
    tagged.changes[:] = [
        Change(build=build, pull=build, title=f"change {build}", files=(CHAT if build == 112 else "src/x.cpp",))
        for build in range(101, 116)
    ]
    found = blamed(tagged, 115, Counted(tagged, gone=(110, 111, 112)))
    assert found.evidence.splitlines()[-1] == "b113 broke it: b112 #112 change 112"


def test_an_archive_that_is_not_whole_breaks_nothing(tagged: World) -> None:
    for build in (103, 104, 107, 113):
        tagged.upstream(build, {"common/arg.cpp": "int x;\n"})
    assert "b111 broke it" in blamed(tagged, 115, Counted(tagged)).evidence


def test_a_function_that_went_elsewhere_with_the_fix_is_asked_of_whole_trees(tagged: World) -> None:
    for build in range(104, 116):
        there = function("init_gemma4", TAG if build < 112 else "")
        tagged.upstream(build, {WHOLE: f"b{build}\n", CHAT: HEAD + function("init_qwen"), PARSER: there})
    found = blamed(tagged, 115, Counted(tagged))
    assert found.status is PatchStatus.SOURCE_MOVED
    assert "b112 broke it" in found.evidence, "up to b111 upstream had the fix in another file"


def test_the_search_begins_where_the_series_was_last_seen_to_fit(tagged: World) -> None:
    upstream = Counted(tagged)
    assert "b111 broke it" in blamed(tagged, 115, upstream, good=109).evidence
    assert min(set(upstream.fetched) - {100}) == 109


def test_an_older_release_that_a_patch_does_not_fit_has_no_culprit(tagged: World) -> None:
    tagged.upstream(99, {WHOLE: "b99\n", CHAT: CONFLICTING[CHAT]})
    assert "broke it" not in blamed(tagged, 99, Counted(tagged)).evidence


def test_the_table_looks_for_it_when_it_is_asked_to(tagged: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tagged.root)
    for name, value in {"PATCHES": tagged.folder, "STORE": tagged.root / "store", "CACHE": tagged.root / "own"}.items():
        monkeypatch.setenv(f"LLAMA_RELEASE_{name}", str(value))
    upstream = Counted(tagged)
    monkeypatch.setattr(tasks.upstream, "open_upstream", lambda _: upstream)
    words = ["patches", "--to", "b115", "--json"]
    (plain,) = json.loads(CliRunner().invoke(app, words).stdout)
    assert "broke it" not in plain["evidence"]
    assert set(upstream.fetched) == {100, 115}
    (asked,) = json.loads(CliRunner().invoke(app, [*words, "--culprit"]).stdout)
    assert asked["evidence"].endswith(f"b111 broke it: {TOLD}")


def test_of_an_archive_only_what_is_wanted_is_read(tagged: World) -> None:
    sources, archive = Sources(tagged.root / "own"), Here(tagged).fetch(UpstreamRelease(build=100))
    part = sources.tree_of(archive, lambda name: name.endswith(CHAT))
    assert sources.files(part, "**/*") == ["CMakeLists.txt", CHAT]
