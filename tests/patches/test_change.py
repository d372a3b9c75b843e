"""What a person does to the series from the command line: patches come, go, move and become one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import tasks.upstream
from flows.__main__ import app
from tasks.patches import apply_series, edit, read_series
from tasks.patches.series import read_patch
from tasks.release import BadInput, PatchStatus, Problem, ReleaseFailed
from tasks.sources import Sources
from tasks.store import Store
from tests.patches.conftest import World, tree_of
from tests.patches.test_classify import CHAT, HEAD, PATCHED, SIBLINGS, TAG, function
from tests.patches.test_kinds import diff_of
from tests.patches.test_life import Here, git

REASONS = ("--why", "it is needed.", "--proved-by", "thinking.budget_6")
QWEN = {CHAT: SIBLINGS[CHAT].replace(function("init_qwen"), function("init_qwen", TAG))}


@pytest.fixture
def tagged(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(world.root)
    for name, value in {"PATCHES": world.folder, "STORE": world.root / "store", "CACHE": world.root / "own"}.items():
        monkeypatch.setenv(f"LLAMA_RELEASE_{name}", str(value))
    monkeypatch.setattr(tasks.upstream, "open_upstream", lambda _: Here(world))
    world.upstream(100, SIBLINGS)
    return world


def say(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["patches", *words], input=stdin)


def done(*words: str, stdin: str | None = None) -> str:
    said = say(*words, stdin=stdin)
    assert said.exit_code == 0, said.exception
    return said.stdout


def refused(kind: type[Problem], *words: str) -> str:
    said = say(*words)
    assert isinstance(said.exception, kind), (said.stdout, said.exception)
    return str(said.exception)


def two(world: World) -> None:
    """A series of two patches on one file, the second made on top of the first."""
    world.patch(100, PATCHED, "0001-tags.patch", "Why: one.")
    both = {CHAT: PATCHED[CHAT].replace(function("init_qwen"), function("init_qwen", TAG))}
    world.patch(tree_of(world.sources, PATCHED), both, "0002-qwen.patch", "Exported-on: b100")


# -- in ------------------------------------------------------------------------------------------


def test_a_plain_diff_becomes_a_patch_with_its_reasons(tagged: World) -> None:
    (tagged.root / "x.diff").write_text(diff_of(tagged, 100, PATCHED))
    told = done("add", "x.diff", "--to", "b100", "--title", "chat : tags of gemma 4", *REASONS)
    assert "added: chat : tags of gemma 4: clean on b100" in told
    (patch,) = read_series(tagged.folder)
    assert patch.name == "0001-chat-tags-of-gemma-4.patch"
    assert patch.title == "chat : tags of gemma 4"
    assert patch.trailers == {"Why": "it is needed.", "Proved-by": "thinking.budget_6", "Exported-on": "b100"}
    assert "Date: " in patch.path.read_text()
    assert tagged.one(100).result.status is PatchStatus.CLEAN


def test_a_patch_without_a_reason_or_a_proof_is_refused_and_a_proof_proposed(tagged: World) -> None:
    (tagged.root / "x.diff").write_text(diff_of(tagged, 100, PATCHED))
    assert "has no Why" in refused(BadInput, "add", "x.diff", "--to", "b100", "--title", "t")
    said = refused(BadInput, "add", "x.diff", "--to", "b100", "--title", "t", "--why", "so.")
    assert "has no Proved-by" in said
    assert "for its proof: " in said
    assert not tagged.folder.exists()
    told = done("add", "x.diff", "--to", "b100", "--title", "t", "--why", "so.", "--waive", "no GPU", "--by", "Ada")
    assert "added: t" in told
    assert read_series(tagged.folder)[0].trailers["Waiver"] == "Ada: no GPU"


def test_a_patch_that_does_not_fit_is_not_in_the_series(tagged: World) -> None:
    tagged.upstream(101, {CHAT: HEAD + function("init_gemma4", '    data.end = "x";\n')})
    (tagged.root / "x.diff").write_text(diff_of(tagged, 100, PATCHED))
    assert "nothing is added to the series" in refused(
        ReleaseFailed, "add", "x.diff", "--to", "b101", "--title", "t", *REASONS
    )
    assert not tagged.folder.exists()


def checkout(world: World) -> Path:
    """A fork: a git work tree with upstream's b100 on `master`."""
    fork = world.root / "fork"
    world.sources.export(world.trees[100], fork)
    git(fork, "init", "--quiet", "--initial-branch", "master", ".")
    git(fork, "add", "--all")
    git(fork, "commit", "--quiet", "-m", "b100")
    return fork


def test_what_is_changed_in_a_work_tree_and_no_stray_file(tagged: World) -> None:
    fork = checkout(tagged)
    (fork / CHAT).write_text(PATCHED[CHAT])
    (fork / "build.log").write_text("stray")
    done("add", str(fork), "--to", "b100", "--title", "tags", *REASONS)
    assert [file.path for file in read_series(tagged.folder)[0].files] == [CHAT]
    git(fork, "checkout", "--quiet", CHAT)
    assert "nothing is changed" in refused(BadInput, "add", str(fork), "--to", "b100", "--title", "t", *REASONS)


def test_a_forks_branch_comes_in_commit_by_commit_with_its_authors(tagged: World) -> None:
    fork = checkout(tagged)
    git(fork, "checkout", "--quiet", "-b", "ours")
    for text, title in ((PATCHED[CHAT], "chat : first"), (PATCHED[CHAT] + "// more\n", "chat : second")):
        (fork / CHAT).write_text(text)
        git(fork, "commit", "--quiet", "--all", "-m", f"{title}\n\nIts own words.")
    done("import", str(fork), "--since", "master", "--to", "b100", *REASONS)
    first, second = read_series(tagged.folder)
    assert (first.title, second.title) == ("chat : first", "chat : second")
    assert "From: a <a@example.invalid>" in second.path.read_text()
    assert "Its own words." in second.path.read_text()
    assert [p.result.status for p in tagged.place(100)] == [PatchStatus.CLEAN, PatchStatus.CLEAN]


def test_a_commit_by_its_name(tagged: World) -> None:
    fork = checkout(tagged)
    (fork / CHAT).write_text(PATCHED[CHAT])
    git(fork, "commit", "--quiet", "--all", "-m", "chat : tags")
    done("add", str(fork), "--commit", "HEAD", "--to", "b100", *REASONS)
    assert read_series(tagged.folder)[0].title == "chat : tags"


def test_a_quilt_series_keeps_its_names_and_its_order(tagged: World) -> None:
    quilt = tagged.root / "debian"
    quilt.mkdir()
    (quilt / "series").write_text("# theirs\nzz-first.patch -p1\naa-second.patch\n")
    (quilt / "zz-first.patch").write_text(f"Description: tags\n\n{diff_of(tagged, 100, PATCHED)}")
    (quilt / "aa-second.patch").write_text(f"Description: qwen\n\n{diff_of(tagged, 100, QWEN)}")
    done("import", str(quilt), "--to", "b100", *REASONS)
    assert [patch.name for patch in read_series(tagged.folder)] == ["zz-first.patch", "aa-second.patch"]
    assert "empty" not in done("export", "out", "--to", "b100")
    assert (tagged.root / "out" / "series").read_text() == "zz-first.patch\naa-second.patch\n"
    assert "is not empty" in refused(BadInput, "export", "out", "--to", "b100")


def test_of_a_folder_all_patches_come_in_or_none(tagged: World) -> None:
    theirs = tagged.root / "theirs"
    theirs.mkdir()
    (theirs / "a.patch").write_text(f"Tags\n\n{diff_of(tagged, 100, PATCHED)}")
    (theirs / "b.patch").write_text(f"The same again\n\n{diff_of(tagged, 100, PATCHED)}")
    said = refused(ReleaseFailed, "import", str(theirs), "--to", "b100", *REASONS)
    assert "nothing is added to the series" in said
    assert not tagged.folder.exists()
    (theirs / "b.patch").write_text(f"Qwen\n\n{diff_of(tagged, 100, QWEN)}")
    done("import", str(theirs), "--to", "b100", *REASONS)
    assert "has a a.patch already" in refused(BadInput, "import", str(theirs), "--to", "b100", *REASONS)
    (theirs / "series").write_text("a.patch\nnone.patch\n")
    assert "names none.patch, which is not there" in refused(BadInput, "import", str(theirs), "--to", "b100", *REASONS)
    assert [patch.name for patch in read_series(tagged.folder)] == ["a.patch", "b.patch"]


# -- around ------------------------------------------------------------------------------------------


def test_two_patches_become_one_under_the_name_and_reasons_of_the_first(tagged: World) -> None:
    two(tagged)
    before = tagged.place(100)[-1].tree
    assert "does not follow" in refused(BadInput, "fold", "2", "1", "--to", "b100")
    done("fold", "1", "2", "--to", "b100")
    (patch,) = read_series(tagged.folder)
    assert patch.trailers["Why"] == "one."
    assert tagged.one(100).tree == before


def test_an_order_that_makes_another_tree_is_refused_and_a_good_one_is_written(tagged: World) -> None:
    two(tagged)
    before = tagged.place(100)[-1].tree
    done("reorder", "2", "--to", "b100")
    assert [patch.name for patch in read_series(tagged.folder)] == ["0002-qwen.patch", "0001-tags.patch"]
    placed = tagged.place(100)
    assert [p.result.status for p in placed] == [PatchStatus.CLEAN, PatchStatus.CLEAN]
    assert placed[-1].tree == before


def test_a_patch_that_another_is_built_on_does_not_move_behind_it_and_is_not_dropped(tagged: World) -> None:
    tagged.patch(100, PATCHED, "0001-tags.patch")
    on_top = {CHAT: PATCHED[CHAT].replace(TAG, TAG.replace("<channel|>", "other"))}
    tagged.patch(tree_of(tagged.sources, PATCHED), on_top, "0002-more.patch", "Exported-on: b100")
    files = {path.name: path.read_bytes() for path in tagged.folder.iterdir()}
    assert "0002-more.patch would be" in refused(ReleaseFailed, "reorder", "2", "--to", "b100")
    assert "0002-more.patch would be" in refused(ReleaseFailed, "drop", "1", "--reason", "no", "--to", "b100")
    assert {path.name: path.read_bytes() for path in tagged.folder.iterdir()} == files


def test_a_dropped_patch_leaves_its_reason_in_the_ledger(tagged: World) -> None:
    two(tagged)
    done("drop", "1", "--reason", "nobody asks for it", "--to", "b100")
    (left,) = read_series(tagged.folder)
    assert left.name == "0002-qwen.patch"
    assert tagged.one(100).result.status is PatchStatus.CLEAN
    (event,) = Store(tagged.root / "store").ledger()
    assert (event.kind, event.summary) == ("patches.dropped", "0001-tags.patch: nobody asks for it")


# -- as commits -----------------------------------------------------------------------------------------


def test_the_series_is_commits_in_the_repository_of_the_sources(tagged: World) -> None:
    two(tagged)
    (tagged.folder / "0002-qwen.patch").write_text(
        read_patch(tagged.folder / "0002-qwen.patch").diff
    )  # no header, no date
    sources, here = Sources(tagged.root / "own"), Here(tagged)
    release = here.releases()[0]
    archive = here.fetch(release)
    source = apply_series(sources, release, archive, tagged.folder, here)
    log = sources.git("log", "--format=%s|%an|%T", "refs/series/b100").stdout.splitlines()
    assert [line.split("|")[0] for line in log[:2]] == ["0002-qwen.patch", "make it better"]
    assert log[2].startswith("upstream b100")
    assert log[0].endswith(source.tree)
    tip = sources.git("rev-parse", "refs/series/b100").stdout
    apply_series(sources, release, archive, tagged.folder, here)
    assert sources.git("rev-parse", "refs/series/b100").stdout == tip


def test_a_stray_file_in_an_edit_is_not_exported_and_is_named(tagged: World) -> None:
    tagged.patch(100, PATCHED | {"common/new.cpp": "int x;\n"}, "0001-tags.patch")
    done("edit", "1", "--to", "b100")
    work = edit.under_way(tagged.root / "store")
    assert work
    (work.tree / "build.log").write_text("stray")
    (work.tree / "common" / "new.cpp").write_text("int y;\n")
    (work.tree / "wanted.h").write_text("int z;\n")
    subprocess.run(["git", "-C", work.tree, "add", "wanted.h"], check=True)
    assert "not exported, since git was not told of it (`git add`): build.log" in done("edit", "--continue")
    paths = {file.path for file in read_series(tagged.folder)[0].files}
    assert paths == {CHAT, "common/new.cpp", "wanted.h"}
