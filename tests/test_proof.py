"""Patches are proved by their probes: the rules, and the proof of the real series on real builds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.patches import apply_series, refuse_unproved, tree_without
from tasks.platforms.local import LocalPlatform
from tasks.proof import Proof, judge, owed, prove
from tasks.release import (
    BadInput,
    Build,
    PatchResult,
    PatchStatus,
    ReleaseFailed,
    SourceTree,
    ToolingError,
    UpstreamRelease,
    Verdict,
)
from tasks.settings import LocalSettings, ServerSettings, Settings
from tasks.sources import Sources
from tasks.upstream import find, open_upstream
from tests.platforms.stand import Counting

THINKING = "0001-gemma4-thinking-tags.patch"
TOOLS = "0002-honour-named-tool-choice.patch"


def result(status: PatchStatus) -> PatchResult:
    return PatchResult(file="0001-x.patch", title="x", status=status, evidence="seen")


def proof(present: Verdict, without: Verdict | None = None, *, fault: bool = True) -> Proof:
    return Proof(
        file="0001-x.patch",
        probes=("s.p",),
        present={"s.p": present},
        without={"s.p": without} if without else {},
        fault={"s.p": without is Verdict.FAILED and fault} if without else {},
        evidence={"s.p": "what it said"},
    )


def test_failing_without_and_passing_with_proves_a_patch() -> None:
    judged = judge(result(PatchStatus.CLEAN), proof(Verdict.PASSED, Verdict.FAILED))
    assert judged.status is PatchStatus.CLEAN
    assert judged.evidence.endswith("1 of 1 probes fail without it, 1 of 1 probes pass with it")


def test_passing_without_makes_a_patch_obsolete() -> None:
    assert judge(result(PatchStatus.REBASED), proof(Verdict.PASSED, Verdict.PASSED)).status is PatchStatus.OBSOLETE


def test_failing_with_the_patch_fails_the_release() -> None:
    with pytest.raises(ReleaseFailed, match="its effect is not there"):
        judge(result(PatchStatus.CLEAN), proof(Verdict.FAILED, Verdict.FAILED))


def test_what_upstream_is_said_to_have_must_pass_on_upstreams_code() -> None:
    assert judge(result(PatchStatus.UPSTREAMED), proof(Verdict.PASSED)).status is PatchStatus.UPSTREAMED
    with pytest.raises(ReleaseFailed, match="is upstreamed, and its effect is not there"):
        judge(result(PatchStatus.UPSTREAMED), proof(Verdict.FAILED))


def test_a_probe_that_could_not_be_run_proves_nothing_either_way() -> None:
    for seen in (proof(Verdict.ERRORED, Verdict.FAILED), proof(Verdict.PASSED, Verdict.ERRORED)):
        with pytest.raises(ToolingError, match="the probes of 0001-x.patch could not be run"):
            judge(result(PatchStatus.CLEAN), seen)


def test_a_server_that_comes_up_with_the_patch_alone_proves_it() -> None:
    seen = proof(Verdict.PASSED, Verdict.FAILED, fault=False).model_copy(update={"unasked": ("s.p without",)})
    judged = judge(result(PatchStatus.CLEAN), seen)
    assert judged.status is PatchStatus.CLEAN
    assert judged.evidence.endswith("the server without it does not come up, 1 of 1 probes pass with it")


def test_a_waiver_is_shown_with_its_name_and_reason_and_proves_nothing() -> None:
    seen = Proof(file="x", probes=(), present={}, without={}, fault={}, evidence={}, waiver="Ada: no GPU here")
    judged = judge(result(PatchStatus.CLEAN), seen)
    assert judged.status is PatchStatus.CLEAN
    assert judged.evidence.endswith("not proved, waived by Ada: no GPU here")
    assert owed(judged, {"Waiver": "Ada: no GPU here"}) == ()
    with pytest.raises(BadInput, match="names no probe"):
        owed(judged, {})


def test_a_patch_without_a_proof_is_refused_before_the_compile(tmp_path: Path) -> None:
    (tmp_path / "series").write_text("0001-x.patch\n")
    (tmp_path / "0001-x.patch").write_text("A title\n\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n")
    source = SourceTree(
        upstream=UpstreamRelease(build=1), archive_sha256="", upstream_tree="a", tree="b",
        patches=(result(PatchStatus.CLEAN).model_copy(update={"file": "0001-x.patch"}),),
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"0001-x\.patch has no proof"):
        refuse_unproved(source, tmp_path)
    refuse_unproved(source.model_copy(update={"patches": (result(PatchStatus.NOT_APPLICABLE),)}), tmp_path)


def test_a_probe_that_was_asked_and_shows_no_fault_is_no_server_that_did_not_come_up() -> None:
    with pytest.raises(ToolingError, match="did not come up"):
        judge(result(PatchStatus.CLEAN), proof(Verdict.PASSED, Verdict.FAILED, fault=False))


def test_where_no_server_could_be_asked_nothing_is_said_of_the_patch_and_a_reason_is_told_once() -> None:
    many = Proof(
        file="0001-x.patch", probes=("s.p", "s.q"),
        present=dict.fromkeys(("s.p", "s.q"), Verdict.FAILED), without=dict.fromkeys(("s.p", "s.q"), Verdict.FAILED),
        fault=dict.fromkeys(("s.p", "s.q"), True),
        evidence=dict.fromkeys(("s.p", "s.q", "s.p without", "s.q without"), "killed by SIGSEGV"),
        unasked=("s.p", "s.q"),
    )  # fmt: skip
    with pytest.raises(ReleaseFailed, match="the server with 0001-x.patch could not be asked") as failed:
        judge(result(PatchStatus.CLEAN), many)
    assert failed.value.evidence == "s.p, s.q: killed by SIGSEGV"
    alike = many.model_copy(update={"unasked": ("s.p", "s.q", "s.p without", "s.q without")})
    with pytest.raises(ToolingError, match="nor the one without it"):
        judge(result(PatchStatus.CLEAN), alike)
    asked = many.model_copy(update={"unasked": ()})
    with pytest.raises(ReleaseFailed, match="its effect is not there") as broken:
        judge(result(PatchStatus.CLEAN), asked)
    assert broken.value.evidence == "s.p, s.q: killed by SIGSEGV"


@pytest.fixture
def settings(base: Settings, smollm2: Path) -> Settings:
    server = ServerSettings(model=smollm2, alias="m", ctx_per_slot=1024, threads=1)
    local = LocalSettings(staging_port=0, production_port=0)
    return base.model_copy(update={"server": server, "local": local})


def source_of(settings: Settings, tag: str) -> SourceTree:
    upstream = open_upstream(settings)
    release = find(upstream.releases(), tag)
    return apply_series(Sources(settings.cache), release, upstream.fetch(release), settings.patches, upstream)


def quiet(done: int, total: int, what: str) -> None:
    if done % 40 == 0:
        print(f"{done}/{total} {what}", flush=True)


def made(platform: LocalPlatform, settings: Settings, source: SourceTree) -> Build:
    return platform.build(source, settings.recipe, quiet)


def proved(settings: Settings, tag: str) -> dict[str, PatchResult]:
    source, platform = source_of(settings, tag), LocalPlatform(settings)
    done, _ = prove(platform, settings, source, made(platform, settings, source), quiet)
    return {p.file: p for p in done.patches}


@pytest.mark.real
def test_on_b11434_upstream_has_the_thinking_tags_and_the_tool_choice_patch_is_needed(settings: Settings) -> None:
    found = proved(settings, "b11434")
    assert found[THINKING].status is PatchStatus.UPSTREAMED
    assert "4 of 4 probes pass on upstream's own code" in found[THINKING].evidence
    assert found[TOOLS].status.built_with
    assert "probes fail without it, 5 of 5 probes pass with it" in found[TOOLS].evidence


@pytest.mark.real
def test_on_b8672_the_thinking_tags_patch_is_needed_and_works(settings: Settings, tmp_path: Path) -> None:
    only = tmp_path / "patches"
    only.mkdir()
    (only / "series").write_text(f"{THINKING}\n")
    (only / THINKING).write_bytes((settings.patches / THINKING).read_bytes())
    found = proved(settings.model_copy(update={"patches": only}), "b8672")
    assert found[THINKING].status is PatchStatus.CLEAN
    assert "4 of 4 probes fail without it, 4 of 4 probes pass with it" in found[THINKING].evidence


@pytest.mark.real
def test_a_patch_whose_probe_passes_without_it_is_obsolete_and_is_left_out(settings: Settings, tmp_path: Path) -> None:
    """The tool-choice patch with the thinking patch's probes: it applies, and nothing misses it on b11434."""
    idle = tmp_path / "patches"
    idle.mkdir()
    (idle / "series").write_text(f"{TOOLS}\n")
    text = (settings.patches / TOOLS).read_text().splitlines(keepends=True)
    probes = "Proved-by: thinking.budget_0 thinking.budget_6\n"
    (idle / TOOLS).write_text("".join(probes if line.startswith("Proved-by:") else line for line in text))
    changed = settings.model_copy(update={"patches": idle})
    source, platform = source_of(changed, "b11434"), LocalPlatform(changed)
    done, build = prove(platform, changed, source, made(platform, changed, source), quiet)
    assert done.patches[0].status is PatchStatus.OBSOLETE
    assert source.tree != done.tree == source.upstream_tree
    assert build.source.tree == done.tree


@pytest.mark.real
def test_a_proof_is_kept_and_the_probes_are_not_run_again(settings: Settings) -> None:
    source = source_of(settings, "b11434")
    platform = Counting(settings)
    build = made(platform, settings, source)
    first = prove(platform, settings, source, build, quiet)
    asked = platform.trials
    assert prove(platform, settings, source, build, quiet) == first
    assert platform.trials == asked


@pytest.mark.real
def test_the_tree_without_a_patch_is_upstreams_when_it_was_the_only_one(settings: Settings) -> None:
    source = source_of(settings, "b11434")
    assert tree_without(settings, source, TOOLS).tree == source.upstream_tree != source.tree
