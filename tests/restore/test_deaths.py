"""What a client sees as no answer, told as its server's death: staging, an idle cycle, a proof of a return."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modal_app.warmup import Answer, Golden, Token
from tasks import promote
from tasks.platforms.local import LocalPlatform
from tasks.release import Release, ReleaseFailed, ToolingError, Verdict
from tasks.restore.comeback import comes_back
from tasks.restore.cycle import recorded, wake
from tasks.restore.judge import fault
from tasks.settings import RestoreSettings
from tests.platforms.conftest import platform_at
from tests.platforms.dying import dying

pytestmark = pytest.mark.real
AT_ONCE = RestoreSettings(wait_s=0, accept_cold=True)
ANSWER = Answer("The capital of France is", False, (Token(1, ((1, -0.1),)),))
GOLDEN = Golden((1, 2, 3), (4,), ((ANSWER,), (ANSWER,)))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[LocalPlatform]:
    platform = platform_at(tmp_path / "store", idle_s=600)
    yield platform
    platform.shut_down()


def deployed(stage: LocalPlatform, by: str) -> Release:
    """A release on staging whose servers die when they are asked, which nobody has done yet."""
    release = dying(stage.store, by, "asked")
    stage.deploy("staging", release, lambda _: None)
    return release


def test_a_release_that_dies_when_staging_is_asked_is_told_as_dead_and_staging_stays_empty(
    stage: LocalPlatform,
) -> None:
    release = dying(stage.store, "SEGV", "asked")
    with pytest.raises(ReleaseFailed) as failed:
        promote.to_staging(stage, release)
    assert failed.value.what == f"{release.label} on staging: the server died: killed by SIGSEGV"
    assert isinstance(failed.value.__cause__, ToolingError)
    assert stage.serving("staging") is None


def test_a_release_that_somebody_kills_is_no_bad_one(stage: LocalPlatform) -> None:
    with pytest.raises(ToolingError, match="on staging: the server died: killed by SIGKILL"):
        promote.to_staging(stage, dying(stage.store, "KILL", "asked"))


def test_a_release_that_does_not_come_up_on_staging_says_so_itself(stage: LocalPlatform) -> None:
    with pytest.raises(
        ReleaseFailed, match="^llama-server of .* ended before it could become healthy: killed by SIGILL"
    ):
        promote.to_staging(stage, dying(stage.store, "ILL", "load"))


def test_a_release_that_lives_goes_to_staging(stage: LocalPlatform) -> None:
    endpoint, _ = promote.to_staging(stage, dying(stage.store))
    assert endpoint == stage.endpoint("staging")


@pytest.mark.parametrize(("by", "verdict"), [("ILL", Verdict.FAILED), ("KILL", Verdict.ERRORED)])
def test_a_cycle_after_which_the_server_dies_names_the_signal_and_not_the_clients_words(
    by: str, verdict: Verdict, stage: LocalPlatform
) -> None:
    deployed(stage, by)
    assert stage.idle("staging") == 0
    cycle = wake(stage, "staging", GOLDEN, AT_ONCE)
    found = fault(cycle)
    assert found and found.verdict is verdict
    assert found.summary.startswith(f"the server died: killed by SIG{by}")
    assert found.summary.endswith("(boots: cold, then crashed, then cold, then crashed)")
    assert "502" in cycle.error and "502" not in found.summary


def test_golden_answers_that_cannot_be_had_for_a_death_say_so(stage: LocalPlatform) -> None:
    release = deployed(stage, "ABRT")
    with pytest.raises(ToolingError, match="gives no answers to compare with: the server died: killed by SIGABRT"):
        recorded(stage, "staging", release)


@pytest.mark.parametrize(("by", "verdict"), [("BUS", Verdict.FAILED), ("KILL", Verdict.ERRORED)])
def test_a_stage_that_dies_when_it_comes_back_is_told_as_dead(by: str, verdict: Verdict, stage: LocalPlatform) -> None:
    release = deployed(stage, by)
    found = comes_back(stage, "staging", lambda: promote.check_serving(stage.endpoint("staging"), release), AT_ONCE)
    assert found.verdict is verdict
    assert found.summary.startswith(f"the server died: killed by SIG{by}")
