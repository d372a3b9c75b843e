"""Patches are proved by their probes: the rules, and the proof of the real series on real builds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.patches import apply_series, refuse_unproved, tree_without
from tasks.patches.retire import retire
from tasks.platforms.local import LocalPlatform
from tasks.probes import Seen
from tasks.proof import NAME, Look, Proof, check, judge, owed, prove, record
from tasks.release import (
    BadInput,
    Build,
    PatchResult,
    PatchStatus,
    Release,
    ReleaseFailed,
    SourceTree,
    ToolingError,
    UpstreamRelease,
    Verdict,
)
from tasks.settings import LocalSettings, ServerSettings, Settings
from tasks.sources import Sources
from tasks.store import Store
from tasks.upstream import find, open_upstream
from tests.platforms.stand import Counting

THINKING = "0001-gemma4-thinking-tags.patch"
TOOLS = "0002-honour-named-tool-choice.patch"


def result(status: PatchStatus) -> PatchResult:
    return PatchResult(file="0001-x.patch", title="x", status=status, evidence="seen")


def seen(verdict: Verdict, *, said: str = "what it said", asked: bool = True) -> Seen:
    return Seen(verdict=verdict, said=said, asked=asked, fault=verdict is Verdict.FAILED and asked)


def proof(*looks: tuple[Seen, Seen | None]) -> Proof:
    """The proof by one probe, look by look: (what it said with the patch, and without it)."""
    found = (Look(present={"s.p": one}, without={"s.p": other} if other else {}) for one, other in looks)
    return Proof(file="0001-x.patch", probes=("s.p",), looks=tuple(found))


PASSED, FAILED, ERRORED = (seen(v) for v in (Verdict.PASSED, Verdict.FAILED, Verdict.ERRORED))
UNASKED = seen(Verdict.FAILED, said="killed by SIGSEGV", asked=False)


def test_failing_without_and_passing_with_proves_a_patch() -> None:
    judged = judge(result(PatchStatus.CLEAN), proof((PASSED, FAILED)))
    assert judged.status is PatchStatus.CLEAN
    assert judged.evidence.endswith("1 of 1 probes fail without it, 1 of 1 probes pass with it")


def test_passing_without_makes_a_patch_obsolete() -> None:
    assert judge(result(PatchStatus.REBASED), proof((PASSED, PASSED))).status is PatchStatus.OBSOLETE


def test_failing_with_the_patch_fails_the_release() -> None:
    with pytest.raises(ReleaseFailed, match="its effect is not there"):
        judge(result(PatchStatus.CLEAN), proof((FAILED, FAILED)))


def test_what_upstream_is_said_to_have_must_pass_on_upstreams_code() -> None:
    assert judge(result(PatchStatus.UPSTREAMED), proof((PASSED, None))).status is PatchStatus.UPSTREAMED
    with pytest.raises(ReleaseFailed, match="is upstreamed, and its effect is not there"):
        judge(result(PatchStatus.UPSTREAMED), proof((FAILED, None)))


def test_a_probe_that_could_not_be_run_proves_nothing_either_way() -> None:
    for made in (proof((ERRORED, FAILED)), proof((PASSED, ERRORED))):
        with pytest.raises(ToolingError, match="the probes of 0001-x.patch could not be run"):
            judge(result(PatchStatus.CLEAN), made)


def test_a_server_that_comes_up_with_the_patch_alone_proves_it() -> None:
    judged = judge(result(PatchStatus.CLEAN), proof((PASSED, UNASKED)))
    assert judged.status is PatchStatus.CLEAN
    assert judged.evidence.endswith("the server without it does not come up, 1 of 1 probes pass with it")


def test_a_waiver_is_shown_with_its_name_and_reason_and_proves_nothing() -> None:
    made = Proof(file="x", probes=(), looks=(Look(present={}),), waiver="Ada: no GPU here")
    assert not made.in_doubt
    judged = judge(result(PatchStatus.CLEAN), made)
    assert (judged.status, judged.waiver, judged.passed_without) == (PatchStatus.CLEAN, "Ada: no GPU here", False)
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
    plain = (tmp_path / "0001-x.patch").read_text()
    (tmp_path / "0001-x.patch").write_text(plain.replace("A title\n", "A title\n\nProved-by: argv :: flag\n"))
    with pytest.raises(BadInput, match="`argv :: flag` is no such proof"):
        refuse_unproved(source, tmp_path)
    (tmp_path / "0001-x.patch").write_text(plain)
    refuse_unproved(source.model_copy(update={"patches": (result(PatchStatus.NOT_APPLICABLE),)}), tmp_path)


def test_a_probe_that_was_asked_and_shows_no_fault_is_no_server_that_did_not_come_up() -> None:
    with pytest.raises(ToolingError, match="did not come up"):
        judge(result(PatchStatus.CLEAN), proof((PASSED, FAILED.model_copy(update={"fault": False}))))


def test_where_no_server_could_be_asked_nothing_is_said_of_the_patch_and_a_reason_is_told_once() -> None:
    dead, down = dict.fromkeys(("s.p", "s.q"), UNASKED), dict.fromkeys(("s.p", "s.q"), seen(Verdict.FAILED, said="no"))

    def many(present: dict[str, Seen], without: dict[str, Seen]) -> Proof:
        return Proof(file="0001-x.patch", probes=("s.p", "s.q"), looks=(Look(present=present, without=without),))

    with pytest.raises(ReleaseFailed, match=r"the server with 0001-x\.patch could not be asked") as failed:
        judge(result(PatchStatus.CLEAN), many(dead, down))
    assert failed.value.evidence == "s.p, s.q: killed by SIGSEGV"
    with pytest.raises(ToolingError, match="nor the one without it"):
        judge(result(PatchStatus.CLEAN), many(dead, dead))
    with pytest.raises(ReleaseFailed, match="its effect is not there") as broken:
        judge(result(PatchStatus.CLEAN), many(down, down))
    assert broken.value.evidence == "s.p, s.q: no"


def test_no_single_look_refuses_a_release_or_drops_a_patch_and_a_third_decides_between_two() -> None:
    assert not proof((PASSED, FAILED)).in_doubt
    assert proof((FAILED, FAILED)).in_doubt
    assert proof((PASSED, PASSED)).in_doubt
    assert not proof((PASSED, PASSED), (PASSED, PASSED)).in_doubt
    assert proof((FAILED, FAILED), (PASSED, FAILED)).in_doubt
    three = proof((FAILED, FAILED), (PASSED, FAILED), (PASSED, FAILED))
    assert not three.in_doubt
    judged = judge(result(PatchStatus.CLEAN), three)
    assert judged.evidence.endswith("1 of 1 probes pass with it; flaky: s.p with it passed in 2 of 3 looks")
    refused = proof((FAILED, FAILED), (PASSED, FAILED), (FAILED, FAILED))
    with pytest.raises(ReleaseFailed, match="its effect is not there") as failed:
        judge(result(PatchStatus.CLEAN), refused)
    assert "s.p with it passed in 1 of 3 looks" in failed.value.evidence


def test_a_waiver_stands_in_the_line_that_the_approver_reads(store: Store) -> None:
    waived = result(PatchStatus.CLEAN).model_copy(update={"waiver": "Ada: no GPU here"})
    source = SourceTree(
        upstream=UpstreamRelease(build=1), archive_sha256="", upstream_tree="a", tree="b", patches=(waived,)
    )
    release = Release(upstream=source.upstream, tree="b", build="c", argv=(), files={}, alias="m")
    platform = LocalPlatform(Settings(store=store.root))
    record(platform, release, source)
    found = store.verification(release.id, NAME)
    assert found
    assert found.summary == "0001-x clean (not proved, waived by Ada: no GPU here)"


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


@pytest.mark.real
@pytest.mark.usefixtures("page")
def test_a_real_proof_is_what_lets_a_patch_be_retired_and_nothing_else(
    settings: Settings, store_with: Store, tmp_path: Path
) -> None:
    here = settings.model_copy(update={"store": store_with.root})
    source, platform = source_of(here, "b11434"), LocalPlatform(here)
    folder = tmp_path / "patches"
    shutil.copytree(settings.patches, folder)
    by_text = {p.file: p for p in source.patches}
    with pytest.raises(BadInput, match="by its text alone"):
        retire(platform.store, folder, by_text[THINKING], source.upstream)
    check(platform, here, source, made(platform, here, source))
    assert "retired 0001" in retire(platform.store, folder, by_text[THINKING], source.upstream)
    with pytest.raises(BadInput, match="so it stays"):
        retire(platform.store, folder, by_text[TOOLS], source.upstream)
    assert [path.name for path in folder.glob("*.patch")] == [TOOLS]
