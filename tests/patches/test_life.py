"""What a person does to the series: refresh, edit, retire, and the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tasks.upstream
from flows.__main__ import app
from tasks.patches import edit, retire
from tasks.patches.export import refresh
from tasks.patches.series import read_patch
from tasks.release import BadInput, Event, PatchResult, PatchStatus, ReleaseFailed, ReleaseNotes, UpstreamRelease
from tasks.store import Store
from tasks.upstream import history
from tests.patches.conftest import World
from tests.patches.test_classify import CHAT, HEAD, PATCHED, SIBLINGS, TAG, function

THEIRS = '    data.end = "x";\n'
CONFLICTING = {CHAT: HEAD + function("init_gpt_oss") + function("init_gemma4", THEIRS) + function("init_qwen")}
MOVED = {CHAT: "// a line\n" + SIBLINGS[CHAT]}
RELEASE = UpstreamRelease(build=101)


@pytest.fixture
def tagged(world: World) -> World:
    world.upstream(100, SIBLINGS)
    world.patch(100, PATCHED, "0001-tags.patch", "Why: because.")
    return world


def refreshed(world: World) -> list[tuple[Path, str]]:
    return refresh(world.sources, world.place(101), world.trees[101], RELEASE)


# -- refresh ------------------------------------------------------------------------------------


def test_refresh_writes_the_patch_as_it_stands_and_the_same_again_byte_for_byte(tagged: World) -> None:
    tagged.upstream(101, MOVED)
    path = tagged.folder / "0001-tags.patch"
    before = read_patch(path)
    assert refreshed(tagged) == [(path, "exported on b101")]
    after, first = read_patch(path), path.read_bytes()
    assert after.trailers == {**before.trailers, "Exported-on": "b101"}
    assert (after.title, after.files[0].hunks[0].start) == (before.title, before.files[0].hunks[0].start + 1)
    assert tagged.one(101).result.status is PatchStatus.CLEAN
    assert refreshed(tagged) == [(path, "the same already")]
    assert path.read_bytes() == first


def test_refresh_leaves_what_upstream_has_as_it_is(tagged: World) -> None:
    tagged.upstream(101, PATCHED)
    before = (tagged.folder / "0001-tags.patch").read_bytes()
    assert refreshed(tagged)[0][1] == "left as it is: upstreamed"
    assert (tagged.folder / "0001-tags.patch").read_bytes() == before


def test_an_exported_message_keeps_its_author_date_folds_and_letters(world: World) -> None:
    world.upstream(100, SIBLINGS)
    path = world.patch(100, PATCHED, "0001-tags.patch")
    text = path.read_text().replace("make it better", "chat : " + "überlang " * 12, 1)
    text = text.replace(
        "From: llama-release <llama-release@localhost>", "From: =?UTF-8?q?J=C3=BCrgen?= <j@example.invalid>"
    )
    path.write_text(text.replace("Date: Sat, 1 Jan 2000 00:00:00 +0000", "Date: Sun, 22 Nov 2026 10:00:00 +0200"))
    world.upstream(101, SIBLINGS)
    refreshed(world)
    first = path.read_bytes()
    assert b"Sun, 22 Nov 2026 10:00:00 +0200" in first
    assert b"=?UTF-8?q?J=C3=BCrgen?=" in first
    refreshed(world)
    assert path.read_bytes() == first


# -- edit ---------------------------------------------------------------------------------------


def begun(world: World) -> edit.Edit:
    return edit.begin(world.root / "store", world.sources, world.one(101), world.trees[101], RELEASE)


def test_an_edit_begins_with_conflict_markers_where_a_person_must_look(tagged: World) -> None:
    tagged.upstream(101, CONFLICTING)
    work = begun(tagged)
    text = (work.tree / CHAT).read_text()
    assert f"<<<<<<< HEAD\n{THEIRS}||||||| " in text
    assert f"=======\n{TAG}>>>>>>> " in text
    assert work.unsettled == [f"{work.tree / CHAT}:{n}" for n in (20, 22, 25)]
    status = subprocess.run(["git", "-C", work.tree, "status", "--short"], capture_output=True, text=True).stdout
    assert status == f"UU {CHAT}\n"
    with pytest.raises(ReleaseFailed, match="3 conflict markers are left"):
        edit.finish(tagged.root / "store")


def test_what_a_person_made_of_it_becomes_the_patch(tagged: World) -> None:
    tagged.upstream(101, CONFLICTING)
    work = begun(tagged)
    (work.tree / CHAT).write_text(CONFLICTING[CHAT].replace(THEIRS, THEIRS + TAG))
    done, text = edit.finish(tagged.root / "store")
    assert text == (tagged.folder / "0001-tags.patch").read_text()
    assert "Exported-on: b101" in text
    assert "Why: because." in text
    assert text.startswith("From " + "0" * 40)
    assert not done.folder.exists()
    assert tagged.one(101).result.status is PatchStatus.CLEAN


def test_the_same_edit_again_is_the_folder_as_it_stands_and_another_one_is_refused(tagged: World) -> None:
    tagged.upstream(101, CONFLICTING)
    work = begun(tagged)
    (work.tree / CHAT).write_text("half done\n")
    assert begun(tagged) == work
    assert (work.tree / CHAT).read_text() == "half done\n"
    with pytest.raises(BadInput, match="an edit of 0001-tags.patch on b101 is under way"):
        edit.begin(
            tagged.root / "store", tagged.sources, tagged.one(100), tagged.trees[100], UpstreamRelease(build=100)
        )


def test_a_kill_leaves_no_half_made_folder_and_an_abort_leaves_the_patch(tagged: World) -> None:
    tagged.upstream(101, CONFLICTING)
    store = tagged.root / "store"
    (store / "edit.new" / "tree").mkdir(parents=True)  # as a kill while it was filled leaves it
    before = (tagged.folder / "0001-tags.patch").read_bytes()
    assert edit.under_way(store) is None
    begun(tagged)
    edit.abort(store)
    assert (tagged.folder / "0001-tags.patch").read_bytes() == before
    assert not list(store.glob("edit*"))
    with pytest.raises(BadInput, match="no edit is under way"):
        edit.abort(store)


def test_nothing_left_of_a_patch_is_no_patch(tagged: World) -> None:
    tagged.upstream(101, CONFLICTING)
    work = begun(tagged)
    (work.tree / CHAT).write_text(CONFLICTING[CHAT])
    with pytest.raises(BadInput, match="nothing is left of 0001-tags.patch"):
        edit.finish(tagged.root / "store")


def test_without_the_exported_tree_an_edit_begins_with_upstreams_own(tagged: World) -> None:
    tagged.upstream(101, CONFLICTING)
    del tagged.trees[100]
    assert (begun(tagged).tree / CHAT).read_text() == CONFLICTING[CHAT]


# -- retire -------------------------------------------------------------------------------------


def git(folder: Path, *argv: str) -> str:
    words = ["git", "-c", "user.name=a", "-c", "user.email=a@example.invalid", "-C", str(folder), *argv]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def repository(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a person")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "person@example.invalid")
    git(world.root, "init", "--quiet", ".")
    (world.root / "other").write_text("staged, and not part of it")
    git(world.root, "add", "patches")
    git(world.root, "commit", "--quiet", "-m", "the series")
    git(world.root, "add", "other")


def proved(world: World, store: Store, build: int = 101, passed: bool = True) -> PatchResult:
    """A proof of a build in the ledger, as the stage leaves it, of the patch as it is classified there."""
    found = world.one(build).result.model_copy(update={"passed_without": passed})
    detail = {"upstream": f"b{build}", "patches": [found.model_dump(mode="json")]}
    store.log(Event(kind="stage.proof", summary="x", detail=detail))
    return found


def test_a_patch_is_not_retired_by_its_text_alone_nor_by_a_waiver(tagged: World) -> None:
    tagged.upstream(101, PATCHED)
    store, result = Store(tagged.root / "store"), tagged.one(101).result
    assert result.status is PatchStatus.UPSTREAMED
    with pytest.raises(BadInput, match="no build without it was asked"):
        retire.retire(store, tagged.folder, result, RELEASE)
    proved(tagged, store, passed=False)
    with pytest.raises(BadInput, match="no build without it was asked"):
        retire.retire(store, tagged.folder, result, RELEASE)
    assert (tagged.folder / "0001-tags.patch").exists()


def test_a_retired_patch_leaves_its_evidence_in_the_commit_and_the_ledger(
    tagged: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(tagged, monkeypatch)
    tagged.upstream(101, PATCHED)
    store = Store(tagged.root / "store")
    result = proved(tagged, store)
    assert "commit" in retire.retire(store, tagged.folder, result, RELEASE)
    said = git(tagged.root, "log", "-1", "--format=%B", "--name-only")
    assert "Retire 0001-tags.patch: upstreamed on b101" in said
    assert f"{CHAT}:20: " in said
    assert "patches/0001-tags.patch" in said
    assert "other" not in said
    assert (tagged.folder / "series").read_text() == ""
    assert not (tagged.folder / "0001-tags.patch").exists()
    event = store.ledger()[-1]
    assert event.kind == "patches.retired"
    assert event.detail["patch"]["evidence"] == result.evidence
    assert event.detail["commit"] == git(tagged.root, "rev-parse", "HEAD").strip()


def test_outside_of_a_repository_only_the_files_change_and_it_says_so(tagged: World) -> None:
    tagged.upstream(101, PATCHED)
    store = Store(tagged.root / "store")
    told = retire.retire(store, tagged.folder, proved(tagged, store), RELEASE)
    assert "not committed" in told
    assert not (tagged.folder / "0001-tags.patch").exists()


def test_a_patch_that_is_needed_is_not_retired(tagged: World) -> None:
    tagged.upstream(101, SIBLINGS)
    with pytest.raises(BadInput, match="is clean on b101, so it stays"):
        retire.retire(Store(tagged.root / "store"), tagged.folder, tagged.one(101).result, RELEASE)
    assert (tagged.folder / "0001-tags.patch").exists()


def test_a_proof_in_the_ledger_makes_a_patch_obsolete_for_its_own_release_only(tagged: World) -> None:
    store = Store(tagged.root / "store")
    found = PatchResult(
        file="0001-tags.patch", title="t", status=PatchStatus.OBSOLETE, evidence="", passed_without=True
    )
    detail = {"upstream": "b101", "patches": [found.model_dump(mode="json")]}
    store.log(Event(kind="stage.proof", summary="x", detail=detail))
    assert retire.proved_gone(store, found.file, RELEASE) == found
    assert retire.proved_gone(store, found.file, UpstreamRelease(build=102)) is None
    assert retire.proved_gone(store, "0002-x.patch", RELEASE) is None


# -- the command line ---------------------------------------------------------------------------


class Here:
    """Upstream releases as archives on this machine."""

    def __init__(self, world: World) -> None:
        self.world = world

    def releases(self) -> list[UpstreamRelease]:
        return [UpstreamRelease(build=build) for build in sorted(self.world.trees)]

    def newest(self) -> UpstreamRelease | None:
        return next(reversed(self.releases()), None)

    def fetch(self, release: UpstreamRelease) -> Path:
        pack = self.world.root / "pack" / release.tag
        if not pack.exists():
            self.world.sources.export(self.world.trees[release.build], pack / "llama.cpp")
            (pack / "llama.cpp" / "CMakeLists.txt").write_text("project(x)\n")
        archive = self.world.root / f"{release.tag}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(pack, "pkg")
        return archive

    def changes(self, low: int, high: int) -> ReleaseNotes:
        return history.between(self.world.changes, low, high)


@pytest.fixture
def command(tagged: World, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tagged.root)
    for name, value in {"PATCHES": tagged.folder, "STORE": tagged.root / "store", "CACHE": tagged.root / "own"}.items():
        monkeypatch.setenv(f"LLAMA_RELEASE_{name}", str(value))
    monkeypatch.setattr(tasks.upstream, "open_upstream", lambda _: Here(tagged))
    return CliRunner()


def test_json_has_one_record_a_patch(tagged: World, command: CliRunner) -> None:
    tagged.upstream(101, MOVED)
    done = command.invoke(app, ["patches", "--to", "b101", "--json"])
    assert done.exit_code == 0
    (record,) = json.loads(done.stdout)
    assert record["file"] == "0001-tags.patch"
    assert record["title"] == "make it better"
    assert record["status"] == "rebased"
    assert "init_gemma4" in record["evidence"]


def test_a_blocked_patch_and_an_upstream_tree_that_is_not_there_are_one_clear_problem(
    tagged: World, command: CliRunner
) -> None:
    tagged.upstream(101, CONFLICTING)
    done = command.invoke(app, ["patches", "--to", "b101"])
    assert isinstance(done.exception, ReleaseFailed)
    assert "conflict" in done.stdout
    missing = command.invoke(app, ["patches", "--to", "b999"])
    assert isinstance(missing.exception, BadInput)
    assert "upstream has no release b999 here" in str(missing.exception)
    refused = command.invoke(app, ["patches", "refresh", "--to", "b101"])
    assert isinstance(refused.exception, ReleaseFailed)


def test_edit_continue_refresh_and_retire_from_the_command_line(tagged: World, command: CliRunner) -> None:
    tagged.upstream(101, CONFLICTING)
    tagged.upstream(102, {CHAT: "// moved\n" + CONFLICTING[CHAT]})
    tagged.upstream(103, {CHAT: CONFLICTING[CHAT].replace(THEIRS, THEIRS + TAG)})
    assert "conflict marker at" in command.invoke(app, ["patches", "edit", "1", "--to", "b101"]).stdout
    work = edit.under_way(tagged.root / "store")
    assert work
    (work.tree / CHAT).write_text(CONFLICTING[CHAT].replace(THEIRS, THEIRS + TAG))
    assert command.invoke(app, ["patches", "edit", "--continue"]).exit_code == 0
    assert "exported on b102" in command.invoke(app, ["patches", "refresh", "--to", "b102"]).stdout
    proved(tagged, Store(tagged.root / "store"), 103)
    assert "retired 0001-tags.patch" in command.invoke(app, ["patches", "retire", "1", "--to", "b103"]).stdout
    kinds = [event.kind for event in Store(tagged.root / "store").ledger()]
    assert kinds == ["patches.edited", "patches.refreshed", "stage.proof", "patches.retired"]
    shutil.rmtree(tagged.root / "own")


@pytest.mark.parametrize("words", [["edit"], ["edit", "1", "--abort"], ["edit", "--continue", "--abort"]])
def test_edit_wants_one_thing_at_a_time(command: CliRunner, words: list[str]) -> None:
    assert isinstance(command.invoke(app, ["patches", *words]).exception, BadInput)
