from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tasks.evals.collect import Book
from tasks.evals.shown import markdown
from tasks.evals.stage import item_set
from tasks.platforms.local import LocalPlatform
from tasks.release import Release, Verdict, Verification
from tasks.settings import Settings
from tests.evals.conftest import SMALL, another, judged
from tests.evals.proxied import Proxied
from tests.evals.weights import noised

pytestmark = pytest.mark.real


def asked_so_far(settings: Settings, release: Release) -> tuple[int, int]:
    """How many answers of a release are kept: first ones and second ones."""
    paths = LocalPlatform(settings).store.answers_path
    digest = item_set([release], SMALL).digest
    return len(Book(paths(release.id, digest))), len(Book(paths(release.id, digest, again=True)))


def test_the_same_weights_pass_and_the_items_are_neither_too_easy_nor_too_hard(itself: Verification) -> None:
    print(markdown(itself))
    assert itself.verdict is Verdict.PASSED, itself.summary
    families = {row["family"]: row for row in itself.evidence["families"]}
    assert {*SMALL.families, "capitals", "all"} == set(families)
    assert 0.3 <= families["all"]["production"] / families["all"]["items"] <= 0.7
    assert families["capitals"]["production"] > 0  # the user's own scorer judges these
    assert itself.evidence["asked"] < SMALL.items
    assert itself.evidence["noise"]["verdict"] == "passed"
    assert itself.evidence["cost"]["production again"]["tokens"] > 0


@pytest.mark.usefixtures("itself")
def test_damaged_weights_fail_and_production_is_not_asked_again(
    proxied: Proxied, eval_release: Release, smollm2: Path, tmp_path: Path
) -> None:
    weights = noised(smollm2, tmp_path / "damaged.gguf")
    damaged = eval_release.model_copy(update={"files": {"model": proxied.store.put_file(weights)}})
    found = judged(proxied, damaged, eval_release)
    print(markdown(found))
    assert found.verdict is Verdict.FAILED, found.summary
    assert (proxied.trials, proxied.asked) == (1, found.evidence["asked"])
    assert all(not d["gained"] for d in found.evidence["discordant"][:5])


@pytest.mark.usefixtures("itself")
def test_another_chat_template_is_explained(
    proxied: Proxied, eval_release: Release
) -> None:  # fmt: skip
    found = judged(proxied, another(eval_release, "--chat-template", "llama2"), eval_release)
    print(markdown(found))
    assert found.verdict in (Verdict.FAILED, Verdict.INCONCLUSIVE), found.summary
    assert "points [" in found.summary
    assert found.evidence["discordant"]


@pytest.mark.usefixtures("itself")
def test_an_endpoint_that_dies_is_errored_not_wrong_and_the_rerun_goes_on_where_it_stopped(
    proxied: Proxied, eval_release: Release, eval_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tasks.evals.collect.RECOVERY_S", 0.1)
    release = another(eval_release, "--slots")
    proxied.dies_after = 20
    half = judged(proxied, release, eval_release)
    assert half.verdict is Verdict.ERRORED
    assert "16 items have no answer of candidate" in half.summary
    assert asked_so_far(eval_settings, release) == (20, 0)
    assert half.evidence["errors"][0]["error"]

    proxied.dies_after = None
    whole = judged(proxied, release, eval_release)
    assert whole.verdict is Verdict.PASSED, whole.summary
    assert proxied.asked == whole.evidence["asked"]


def test_production_that_dies_is_told_apart_from_a_candidate_that_does(
    proxied: Proxied, eval_release: Release, eval_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.evals.collect.RECOVERY_S", 0.1)
    production, candidate = another(eval_release, "--no-escape"), another(eval_release, "--no-context-shift")
    proxied.dies_after = 4
    found = judged(proxied, candidate, production)
    assert (found.verdict, found.summary[:34]) == (Verdict.ERRORED, "32 items have no answer of product")
    assert asked_so_far(eval_settings, candidate) == (0, 0)


@pytest.mark.usefixtures("itself")
def test_production_that_differs_from_itself_is_a_broken_gate_and_the_candidate_is_not_asked(
    proxied: Proxied, eval_release: Release, eval_settings: Settings
) -> None:
    again = proxied.store.answers_path(eval_release.id, item_set([eval_release], SMALL).digest, again=True)
    kept = again.rename(again.with_suffix(".kept"))
    try:
        proxied.garble = lambda text: text[::2]
        candidate = another(eval_release, "--no-perf")
        found = judged(proxied, candidate, eval_release)
    finally:
        kept.rename(again)
    assert found.verdict is Verdict.ERRORED
    assert "production against itself" in found.summary
    assert asked_so_far(eval_settings, candidate) == (0, 0)


def test_the_first_release_is_quiet_leaves_nothing_behind_and_runs_beside_a_running_event_loop(
    eval_release: Release, eval_settings: Settings, capfd: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    release = another(eval_release, "--no-warmup")

    async def flow() -> Verification:
        return await asyncio.to_thread(judged, LocalPlatform(eval_settings), release, None)

    found = asyncio.run(flow())
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "nothing to compare with" in found.summary
    assert asked_so_far(eval_settings, release) == (SMALL.batch, 0)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert list(tmp_path.iterdir()) == []
