"""The series on synthetic trees (real git), and on the real upstream trees that CI has."""

import tarfile
from pathlib import Path

import pytest

from tasks.patches import apply_series, read_series
from tasks.patches.series import read_patch
from tasks.patches.trees import apply_strictly
from tasks.release import BadInput, PatchStatus, ReleaseFailed, ToolingError, UpstreamRelease
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.upstream import find, open_upstream

RELEASE = UpstreamRelease(build=9000)
BODY = "".join(f"line {n}\n" for n in range(1, 21))

PATCH = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: somebody <somebody@example.invalid>
Date: Sun, 22 Nov 2026 00:00:00 +0000
Subject: [PATCH] chat : line ten is better
 so

Why: line ten.
Fixed-in: b9100
Evidence: common/**/*.cpp :: ^line ten, upstream's own$
---
 common/chat.cpp | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)

diff --git a/common/chat.cpp b/common/chat.cpp
--- a/common/chat.cpp
+++ b/common/chat.cpp
@@ -7,7 +7,7 @@
 line 7
 line 8
 line 9
-line 10
+line ten
 line 11
 line 12
 line 13
"""


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path / "cache")


def archive(tmp_path: Path, chat: str) -> Path:
    root = tmp_path / "pack" / "pkg-1" / "llama.cpp"
    (root / "common").mkdir(parents=True, exist_ok=True)
    (root / "CMakeLists.txt").write_text("project(x)\n")
    (root / "common" / "chat.cpp").write_text(chat)
    path = tmp_path / "upstream.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "pack" / "pkg-1", "pkg-1")
    return path


def series(tmp_path: Path, text: str = PATCH, name: str = "0001-ten.patch") -> Path:
    folder = tmp_path / "patches"
    folder.mkdir(exist_ok=True)
    (folder / "series").write_text(f"# the series\n{name}\n")
    (folder / "0001-ten.patch").write_text(text)
    return folder


def test_a_patch_is_read_with_its_folded_title_and_its_trailers(tmp_path: Path) -> None:
    (patch,) = read_series(series(tmp_path))
    assert patch.title == "chat : line ten is better so"
    assert patch.trailers["Fixed-in"] == "b9100"


def test_a_patch_that_fits_is_clean_and_changes_the_tree(sources: Sources, tmp_path: Path) -> None:
    source = apply_series(sources, RELEASE, archive(tmp_path, BODY), series(tmp_path))
    assert source.patches[0].status is PatchStatus.CLEAN
    assert source.tree != source.upstream_tree
    assert "line ten\n" in sources.read(source.tree, "common/chat.cpp")
    assert "line 10\n" in sources.read(source.upstream_tree, "common/chat.cpp")


def test_upstreams_own_line_makes_a_patch_upstreamed_and_names_the_place(sources: Sources, tmp_path: Path) -> None:
    chat = BODY.replace("line 10\n", "line ten, upstream's own\n")
    source = apply_series(sources, RELEASE, archive(tmp_path, chat), series(tmp_path))
    assert source.patches[0].status is PatchStatus.UPSTREAMED
    assert "common/chat.cpp:10: line ten, upstream's own" in source.patches[0].evidence
    assert source.tree == source.upstream_tree


@pytest.mark.parametrize("line", [6, 9, 12])
def test_one_changed_line_of_context_is_a_conflict_never_fuzz(sources: Sources, tmp_path: Path, line: int) -> None:
    chat = BODY.replace(f"line {line + 1}\n", f"line {line + 1} changed\n")
    with pytest.raises(ReleaseFailed, match="is in conflict on b9000"):
        apply_series(sources, RELEASE, archive(tmp_path, chat), series(tmp_path))


@pytest.mark.parametrize("line", [7, 9, 11, 13])
def test_a_strict_apply_takes_no_line_of_context_that_is_another(sources: Sources, tmp_path: Path, line: int) -> None:
    patch = read_patch(series(tmp_path) / "0001-ten.patch").diff
    _, whole = sources.add(RELEASE, archive(tmp_path, BODY))
    _, other = sources.add(RELEASE, archive(tmp_path, BODY.replace(f"line {line}\n", f"line {line} changed\n")))
    assert apply_strictly(sources, patch, whole).tree
    assert apply_strictly(sources, patch, other).tree is None


def test_half_a_patch_is_broken(sources: Sources, tmp_path: Path) -> None:
    half = PATCH[: PATCH.index(" line 11")]
    with pytest.raises(ReleaseFailed, match="is broken on b9000"):
        apply_series(sources, RELEASE, archive(tmp_path, BODY), series(tmp_path, half))


def test_a_series_naming_a_missing_file_or_another_folder_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"0002-none\.patch"):
        read_series(series(tmp_path, name="0002-none.patch"))
    with pytest.raises(BadInput, match=r"\.\./0001"):
        read_series(series(tmp_path, name="../0001-ten.patch"))


@pytest.mark.parametrize("path", ["../../outside", "common/../../outside", ".git/config", "common/.git/hooks/x"])
def test_a_patch_that_leaves_the_tree_is_refused(sources: Sources, tmp_path: Path, path: str) -> None:
    outside = PATCH.replace("common/chat.cpp", path)
    with pytest.raises(ReleaseFailed, match=rf"is broken on b9000[\s\S]*it leaves the source tree: {path}"):
        apply_series(sources, RELEASE, archive(tmp_path, BODY), series(tmp_path, outside))


def test_an_archive_is_imported_once_and_exports_what_it_held(sources: Sources, tmp_path: Path) -> None:
    path = archive(tmp_path, BODY)
    first = sources.add(RELEASE, path)
    assert sources.add(RELEASE, path) == first
    sources.export(first[1], tmp_path / "out")
    assert (tmp_path / "out" / "common" / "chat.cpp").read_text() == BODY


def test_what_upstreams_own_gitignore_names_is_in_the_tree_too(sources: Sources, tmp_path: Path) -> None:
    archive(tmp_path, BODY)
    (tmp_path / "pack" / "pkg-1" / "llama.cpp" / ".gitignore").write_text("*.cpp\n")
    _, tree = sources.add(RELEASE, archive(tmp_path, BODY))
    assert sources.files(tree, "**/*") == [".gitignore", "CMakeLists.txt", "common/chat.cpp"]


def test_an_archive_that_would_write_outside_is_refused(sources: Sources, tmp_path: Path) -> None:
    path = tmp_path / "evil.tar.gz"
    (tmp_path / "x").write_text("x")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "x", "../../evil")
    with pytest.raises(ToolingError, match="cannot be unpacked"):
        sources.add(RELEASE, path)
    assert not (tmp_path / "evil").exists()


def test_a_cut_off_archive_is_our_trouble_not_the_releases(sources: Sources, tmp_path: Path) -> None:
    path = archive(tmp_path, BODY)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ToolingError, match="cannot be unpacked"):
        sources.add(RELEASE, path)


@pytest.mark.real
@pytest.mark.parametrize("tag", ["b11401", "b11434"])
def test_the_series_on_real_trees_is_one_source_tree(base: Settings, tag: str) -> None:
    upstream = open_upstream(base)
    release = find(upstream.releases(), tag)
    source = apply_series(Sources(base.cache), release, upstream.fetch(release), base.patches, upstream)
    assert source.patches[0].status is PatchStatus.UPSTREAMED
    assert "common/parsers/gemma4.cpp:" in source.patches[0].evidence
    assert (source.tree != source.upstream_tree) == any(p.status.built_with for p in source.patches)
