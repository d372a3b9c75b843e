"""The gate on servers that die under it: whose death it was decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.evals.collect import Asking, Book, Unanswered
from tasks.evals.stage import Gate, item_set
from tasks.platforms.local import LocalPlatform
from tasks.release import Release, ReleaseFailed, ToolingError, Verification
from tasks.settings import EvalSettings
from tests.platforms.conftest import platform_at
from tests.platforms.dying import dying

pytestmark = pytest.mark.real
SETTINGS = EvalSettings(families=("arithmetic",), items=20, batch=10, hardest=0, max_connections=1)


@pytest.fixture
def platform(tmp_path: Path) -> LocalPlatform:
    return platform_at(tmp_path / "store")


def judged(platform: LocalPlatform, release: Release, production: Release | None) -> Verification:
    asked = item_set([release], SETTINGS)
    return Gate(platform, release, production, SETTINGS, asked, lambda *_: None).verify()


def test_a_candidate_that_dies_is_told_as_dead_and_not_as_items_without_an_answer(platform: LocalPlatform) -> None:
    with pytest.raises(ReleaseFailed, match="died while it was asked: killed by SIGSEGV"):
        judged(platform, dying(platform.store, "SEGV", "asked"), None)


def test_items_are_not_asked_of_a_server_that_is_gone(platform: LocalPlatform, tmp_path: Path) -> None:
    release = dying(platform.store, "SEGV", "asked")
    with Asking(SETTINGS) as asking, pytest.raises(ReleaseFailed) as failed, platform.trial(release) as endpoint:
        items = item_set([release], SETTINGS).items
        asking.ask(endpoint, release.alias, items, Book(tmp_path / "book"), lambda *_: None)
    unanswered = failed.value.__cause__
    assert isinstance(unanswered, Unanswered)
    assert len(unanswered.answers) == 1


def test_production_that_dies_is_no_fault_of_the_candidate(platform: LocalPlatform) -> None:
    production, release = (dying(platform.store, "SEGV", "asked", alias) for alias in ("old", "new"))
    with pytest.raises(ToolingError, match="production's .* could not be asked") as failed:
        judged(platform, release, production)
    assert "died while it was asked: killed by SIGSEGV" in failed.value.evidence
