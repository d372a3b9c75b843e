"""One status a patch, each on evidence: synthetic trees, real git."""

from __future__ import annotations

import os
import re
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tasks.patches import evidence, read_series, refuse_blocked
from tasks.patches.classify import classify
from tasks.release import (
    BadInput,
    Change,
    PatchResult,
    PatchStatus,
    ReleaseFailed,
    ReleaseNotes,
    UpstreamRelease,
)
from tests.patches.conftest import World

CHAT = "common/chat.cpp"
HEAD = '#include "chat.h"\n\n'


def function(name: str, tag: str = "") -> str:
    """One of many functions with the same lines around the place that a patch changes."""
    return (
        f"static params {name}(const tmpl & t) {{\n    params data;\n\n    data.prompt = apply(t);\n"
        f"    data.supports_thinking = true;\n{tag}\n    data.preserved = {{\n        1,\n    }};\n"
        "    return data;\n}\n\n"
    )


TAG = '    data.thinking_end_tag = "<channel|>";\n'
SIBLINGS = {CHAT: HEAD + function("init_gpt_oss") + function("init_gemma4") + function("init_qwen")}
PATCHED = {CHAT: HEAD + function("init_gpt_oss") + function("init_gemma4", TAG) + function("init_qwen")}
EVIDENCE = r"Evidence: common/**/*.cpp :: ^\s*data\.thinking_end_tags?\s*=\s*\{?\"<channel\|>\"\}?;"


@pytest.fixture
def tagged(world: World) -> World:
    """A world with b100 and a patch on it that could go into any of three functions."""
    world.upstream(100, SIBLINGS)
    world.patch(100, PATCHED, "0001-tags.patch")
    return world


def test_the_same_tree_is_clean(tagged: World) -> None:
    tagged.upstream(101, SIBLINGS)
    found = tagged.one(101).result
    assert found.status is PatchStatus.CLEAN
    assert "init_gemma4 (common/chat.cpp:15)" in found.evidence


def test_moved_lines_are_rebased_into_the_same_function_and_the_new_diff_is_shown(tagged: World) -> None:
    text = HEAD + "// a\n" * 7 + function("init_gpt_oss") + function("init_gemma4") + function("init_qwen")
    tagged.upstream(101, {CHAT: text})
    placed = tagged.one(101)
    assert placed.result.status is PatchStatus.REBASED
    assert "+" + TAG.rstrip("\n") in placed.result.detail
    wanted = text.replace(function("init_gemma4"), function("init_gemma4", TAG))
    assert tagged.sources.read(placed.tree, CHAT) == wanted


def test_changed_context_in_the_same_function_is_rebased_where_a_strict_apply_refuses(tagged: World) -> None:
    other = function("init_gemma4").replace("data.prompt = apply(t);", "data.prompt = apply(t, 1);")
    tagged.upstream(101, {CHAT: HEAD + function("init_gpt_oss") + other + function("init_qwen")})
    assert tagged.one(101).result.status is PatchStatus.REBASED


@pytest.mark.parametrize("order", [("init_gpt_oss", "init_qwen"), ("init_qwen",), ("init_gemma3", "init_qwen")])
def test_a_function_that_is_gone_is_a_conflict_however_well_its_siblings_fit(
    tagged: World, order: tuple[str, ...]
) -> None:
    tagged.upstream(101, {CHAT: HEAD + "".join(map(function, order))})
    found = tagged.one(101).result
    assert found.status is PatchStatus.CONFLICT
    assert "init_gemma4 of common/chat.cpp is nowhere in b101" in found.evidence


def test_a_file_that_moved_is_source_moved_and_says_where(tagged: World) -> None:
    tagged.upstream(101, {CHAT: HEAD + function("init_qwen"), "common/parsers/gemma4.cpp": function("init_gemma4")})
    found = tagged.one(101).result
    assert found.status is PatchStatus.SOURCE_MOVED
    assert "init_gemma4 is in common/parsers/gemma4.cpp:1 now" in found.evidence
    assert "data.supports_thinking" in found.detail


def test_a_file_that_moved_with_the_fix_is_upstreamed_with_source_moved_in_its_evidence(world: World) -> None:
    world.upstream(100, SIBLINGS)
    world.patch(100, PATCHED, "0001-tags.patch", EVIDENCE)
    tags = '    data.thinking_end_tags = {"<channel|>"};\n'
    world.upstream(101, {CHAT: HEAD, "common/parsers/gemma4.cpp": function("init_gemma4", tags)})
    found = world.one(101).result
    assert found.status is PatchStatus.UPSTREAMED
    assert 'common/parsers/gemma4.cpp:6: data.thinking_end_tags = {"<channel|>"};' in found.evidence
    assert "source_moved: init_gemma4 is in common/parsers/gemma4.cpp:1 now" in found.evidence


def test_evidence_in_another_function_is_no_evidence(world: World) -> None:
    world.upstream(100, SIBLINGS)
    world.patch(100, PATCHED, "0001-tags.patch", EVIDENCE)
    world.upstream(101, {CHAT: HEAD + function("init_gpt_oss", TAG) + function("init_gemma4") + function("init_qwen")})
    placed = world.one(101)
    assert placed.result.status is PatchStatus.REBASED
    assert TAG in world.sources.read(placed.tree, CHAT).split("init_gemma4")[1].split("init_qwen")[0]


def test_evidence_that_was_true_before_the_patch_proves_nothing(world: World) -> None:
    world.upstream(100, SIBLINGS)
    world.patch(100, PATCHED, "0001-tags.patch", r"Evidence: common/*.cpp :: supports_thinking")
    world.upstream(101, SIBLINGS)
    found = world.one(101).result
    assert found.status is PatchStatus.CLEAN
    assert "its Evidence trailer proves nothing: it is true of b100 too" in found.evidence


def test_upstreams_own_copy_of_the_change_is_upstreamed_without_any_trailer(tagged: World) -> None:
    tagged.upstream(101, PATCHED)
    found = tagged.one(101).result
    assert found.status is PatchStatus.UPSTREAMED
    assert 'common/chat.cpp:20: data.thinking_end_tag = "<channel|>";' in found.evidence


def test_upstreams_change_in_other_white_space_is_upstreamed_though_git_sees_a_conflict(tagged: World) -> None:
    theirs = function("init_gemma4", "    data.thinking_start_tag = 1;\n" + TAG.replace(" = ", "   = "))
    tagged.upstream(101, {CHAT: HEAD + function("init_gpt_oss") + theirs + function("init_qwen")})
    assert tagged.one(101).result.status is PatchStatus.UPSTREAMED


def test_what_upstream_has_half_of_is_not_upstreamed_and_the_other_half_is_built_with(world: World) -> None:
    world.upstream(100, SIBLINGS)
    both = {CHAT: HEAD + function("init_gpt_oss", TAG) + function("init_gemma4", TAG) + function("init_qwen")}
    world.patch(100, both)
    world.upstream(101, {CHAT: HEAD + function("init_gpt_oss", TAG) + function("init_gemma4") + function("init_qwen")})
    placed = world.one(101)
    assert placed.result.status is PatchStatus.PARTLY_UPSTREAMED
    assert f"upstream has 1 of its 2 changes: {CHAT}:8: {TAG.strip()}" in placed.result.evidence
    assert placed.result.detail.count("\n+" + TAG) == 1
    assert world.sources.read(placed.tree, CHAT) == both[CHAT]


def test_an_older_release_without_the_function_is_not_applicable(tagged: World) -> None:
    tagged.upstream(99, {CHAT: HEAD + function("init_gpt_oss")})
    placed = tagged.one(99)
    assert placed.result.status is PatchStatus.NOT_APPLICABLE
    assert "b99 is older than b100 and has no init_gemma4" in placed.result.evidence
    assert placed.tree == tagged.trees[99]


def test_an_older_release_with_half_of_its_functions_is_a_persons_business(world: World) -> None:
    world.upstream(100, SIBLINGS)
    world.patch(
        100, {CHAT: HEAD + function("init_gpt_oss", TAG) + function("init_gemma4", TAG) + function("init_qwen")}
    )
    world.upstream(99, {CHAT: HEAD + function("init_gpt_oss")})
    assert world.one(99).result.status is PatchStatus.CONFLICT


def test_the_same_lines_changed_upstream_are_a_conflict_with_all_that_a_person_needs(tagged: World) -> None:
    tagged.changes = [
        Change(build=100, pull=1, title="gemma4 : before the patch was exported"),
        Change(build=101, pull=2, title="chat : gemma4 gets another end tag"),
        Change(build=101, pull=3, title="vulkan : faster"),
    ]
    theirs = function("init_gemma4", '    data.end = "x";\n')
    tagged.upstream(101, {CHAT: HEAD + function("init_gpt_oss") + theirs + function("init_qwen")})
    placed = tagged.one(101)
    assert placed.result.status is PatchStatus.CONFLICT
    report = placed.result.detail
    assert "+" + TAG in report
    sides = '<<<<<<< upstream\n    data.end = "x";\n||||||| where the patch was made\n=======\n' + TAG
    assert f"{sides}>>>>>>> the patch" in report
    assert "`init_gemma4`: common/chat.cpp:15" in report
    assert "A guess by the words of their titles" in report
    assert "- b101 #2 chat : gemma4 gets another end tag" in report
    assert "#1 " not in report
    assert "#3 " not in report
    for command in ("edit 0001-tags.patch --to b101", "edit --continue", "edit --abort"):
        assert f"llama-release patches {command}" in report


def test_without_the_exported_tree_the_heading_decides_and_the_lack_is_said(tagged: World) -> None:
    tagged.upstream(101, {CHAT: "// a line\n" + SIBLINGS[CHAT]})
    del tagged.trees[100]
    found = tagged.one(101).result
    assert found.status is PatchStatus.CONFLICT  # its lines fit in three places: nothing tells which
    assert "less evidence: the source of b100, which it was exported on, can't be had" in found.evidence


def test_without_the_exported_tree_a_place_that_is_the_only_one_and_rightly_named_is_taken(world: World) -> None:
    before = {CHAT: HEAD + function("init_gemma4", "    // gemma\n")}
    world.upstream(100, before)
    world.patch(100, {CHAT: before[CHAT].replace("    // gemma\n", "    // gemma\n" + TAG)})
    world.upstream(101, before)
    world.upstream(102, {CHAT: before[CHAT].replace("init_gemma4", "init_gpt_oss")})
    del world.trees[100]
    assert world.one(101).result.status is PatchStatus.CLEAN
    assert "less evidence" in world.one(101).result.evidence
    assert world.one(102).result.status is PatchStatus.CONFLICT


def test_lying_about_where_it_was_exported_is_less_evidence(tagged: World) -> None:
    tagged.upstream(100, {CHAT: HEAD})
    tagged.upstream(101, SIBLINGS)
    assert "it does not apply to b100, which it says it was exported on" in tagged.one(101).result.evidence


def test_two_patches_that_touch_the_same_lines_are_a_conflict_that_names_the_series(tagged: World) -> None:
    tagged.patch(100, {CHAT: PATCHED[CHAT].replace("<channel|>", "other")}, "0002-other.patch")
    tagged.upstream(101, SIBLINGS)
    first, second = tagged.place(101)
    assert first.result.status is PatchStatus.CLEAN
    assert second.result.status is PatchStatus.CONFLICT
    assert "an earlier patch of the series did" in second.result.evidence
    with pytest.raises(ReleaseFailed, match=r"0002-other\.patch .* is in conflict on b101"):
        refuse_blocked([first, second], UpstreamRelease(build=101), tagged.folder)


def test_what_an_earlier_patch_does_already_is_not_upstreams(tagged: World) -> None:
    tagged.patch(100, PATCHED, "0002-again.patch")
    tagged.upstream(101, SIBLINGS)
    second = tagged.place(101)[1].result
    assert second.status is PatchStatus.CONFLICT
    assert "an earlier patch's of the series" in second.evidence


def test_a_patch_on_top_of_another_is_rebased_with_it(tagged: World) -> None:
    on_top = {CHAT: PATCHED[CHAT].replace(TAG, TAG + "    data.more = 1;\n")}
    tagged.patch(tagged.one(100).tree, on_top, "0002-more.patch", "Exported-on: b100")
    text = "// a line\n" + SIBLINGS[CHAT]
    tagged.upstream(101, {CHAT: text})
    first, second = tagged.place(101)
    assert [p.result.status for p in (first, second)] == [PatchStatus.REBASED, PatchStatus.REBASED]
    assert tagged.sources.read(second.tree, CHAT) == "// a line\n" + on_top[CHAT]


def test_a_file_that_cannot_be_read_for_functions_is_never_patched(tagged: World) -> None:
    tagged.upstream(101, {CHAT: SIBLINGS[CHAT] + "void cut() {\n"})
    found = tagged.one(101).result
    assert found.status is PatchStatus.UNDECIDED
    assert "can't be read for functions" in found.evidence


def test_a_new_file_is_added_and_a_lambda_counts_as_a_function(world: World) -> None:
    routes = "void routes() {\n" + "".join(
        f"    this->{name} = [this](const req & r) {{\n        auto a = 1;\n        return a;\n    }};\n"
        for name in ("get_a", "get_b")
    )
    world.upstream(100, {CHAT: routes + "}\n"})
    patched = (routes + "}\n")[::-1].replace("auto a = 1;"[::-1], "auto a = 2;"[::-1], 1)[::-1]
    world.patch(100, {CHAT: patched, "common/new.cpp": "int x() {\n    return 1;\n}\n"})
    world.upstream(101, {CHAT: "\n" + routes + "}\n"})
    placed = world.one(101)
    assert placed.result.status is PatchStatus.REBASED
    assert "routes/this->get_b" in placed.result.evidence
    assert "return 1;" in world.sources.read(placed.tree, "common/new.cpp")


def broken(world: World, text: str) -> str:
    world.put("0001-tags.patch", text)
    found = world.one(100)
    assert found.result.status is PatchStatus.BROKEN
    assert found.tree == world.trees[100]
    return found.result.evidence


def test_what_is_no_patch_is_broken_and_says_why(tagged: World) -> None:
    text = (tagged.folder / "0001-tags.patch").read_text()
    assert "some of its line ends are CRLF" in broken(tagged, text.replace(f"{CHAT}\n", f"{CHAT}\r\n"))
    upwards = re.sub(r"([ab])/common/", r"\1/../", text)
    assert "leaves the source tree: ../chat.cpp" in broken(tagged, upwards)
    absolute = re.sub(r"(---|\+\+\+) [ab]/common", r"\1 /etc", text)
    assert "leaves the source tree: /etc/chat.cpp" in broken(tagged, absolute)
    hook = re.sub(r"([ab])/common/", r"\1/.git/hooks/", text)
    assert "leaves the source tree: .git/hooks/chat.cpp" in broken(tagged, hook)
    link = text.split("diff --git")[0] + (
        "diff --git a/away b/away\nnew file mode 120000\nindex 0000000..1111111\n--- /dev/null\n+++ b/away\n"
        "@@ -0,0 +1 @@\n+/etc\n\\ No newline at end of file\n"
    )
    assert "makes or changes a link" in broken(tagged, link)
    assert "there is no diff" in broken(tagged, "hello\n")
    binary = text.split("index ")[0] + "index 0..1\n"
    assert "cut off: a binary change has no end" in broken(tagged, binary + "GIT binary patch\nliteral 3\nKcmZ")
    assert "no more than that a binary file differs" in broken(tagged, binary + "Binary files a/x and b/x differ\n")
    assert "belongs to no hunk" in broken(tagged, text + "+ more\n")
    assert "no regular expression" in broken(
        tagged, text.replace("Exported-on", "Evidence: common/*.cpp :: (\nExported-on")
    )


def test_half_a_patch_is_broken_wherever_it_is_cut(tagged: World) -> None:
    text = (tagged.folder / "0001-tags.patch").read_text()
    diff = text.index("diff --git")
    ends = [n for n, c in enumerate(text) if c == "\n" and n > diff]
    for before, end in pairwise([diff, *ends[:-2]]):
        assert broken(tagged, text[:end])
        assert broken(tagged, text[: (before + end) // 2])


def test_a_series_with_a_missing_file_is_one_clear_problem(tagged: World) -> None:
    (tagged.folder / "series").write_text("0001-tags.patch\n0009-none.patch\n")
    with pytest.raises(BadInput, match=r"0009-none\.patch, which is not a file"):
        read_series(tagged.folder)
    (tagged.folder / "series").write_text("0001-tags.patch\n0001-tags.patch\n")
    with pytest.raises(BadInput, match="twice"):
        read_series(tagged.folder)


def test_an_evidence_expression_that_does_not_end_is_a_fault_of_the_patch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "EXPRESSION_S", 1.0)
    world.upstream(100, SIBLINGS)
    world.patch(100, PATCHED, "0001-tags.patch", r"Evidence: common/*.cpp :: ^\s*(\w+\s?)+:$")
    long = SIBLINGS[CHAT].replace("    data.prompt", f"    {'a' * 60}();\n    data.prompt")
    world.upstream(101, {CHAT: long})
    found = world.one(101).result
    assert found.status is PatchStatus.BROKEN
    assert "its expression did not come to an end within 1 s" in found.evidence


def judged(world: World, patch_s: float = 60.0, series_s: float = 60.0) -> PatchResult:
    (placed,) = classify(
        world.sources, read_series(world.folder), UpstreamRelease(build=101), world.trees[101], world.known,
        lambda low, high: ReleaseNotes(low=low, high=high, until=high, changes=()), patch_s=patch_s, series_s=series_s,
    )  # fmt: skip
    return placed.result


def test_a_patch_whose_files_are_not_read_in_time_is_undecided(tagged: World) -> None:
    tagged.upstream(101, SIBLINGS)
    found = judged(tagged, patch_s=0.0)
    assert found.status is PatchStatus.UNDECIDED
    assert "it takes too long: line" in found.evidence


def test_a_git_that_hangs_is_ended_when_the_time_of_the_series_is_over(
    tagged: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagged.upstream(101, SIBLINGS)
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text(f'#!/bin/sh\ncase "$*" in *merge-tree*) exec sleep 60;; esac\nexec {shutil.which("git")} "$@"\n')
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{git.parent}:{os.environ['PATH']}")
    began = time.monotonic()
    found = judged(tagged, series_s=15.0)
    assert found.status is PatchStatus.UNDECIDED
    assert "there was no time left: git ran past" in found.evidence
    assert time.monotonic() - began < 50


def test_what_a_series_has_no_time_left_for_is_undecided(tagged: World) -> None:
    tagged.upstream(101, SIBLINGS)
    found = judged(tagged, series_s=0.0)
    assert found.status is PatchStatus.UNDECIDED
    assert found.evidence.startswith("the patches before it took more than 0 s")
