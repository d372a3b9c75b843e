"""What the doctor says of servers that died: by real deaths on a stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.doctor import Seen, Severity
from tasks.doctor.stored import crashes
from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform
from tasks.release import Release, StagePointer, now
from tests.platforms.conftest import platform_at
from tests.platforms.dying import dying

pytestmark = pytest.mark.real


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[LocalPlatform]:
    platform = platform_at(tmp_path / "store", idle_s=600)
    yield platform
    platform.shut_down()


def asked(stage: LocalPlatform, release: Release) -> None:
    began = now()
    endpoint = stage.deploy("staging", release, lambda _: None)
    stage.store.save_pointer(StagePointer(stage="staging", release=release.id, since=began))
    with Client(endpoint) as client:
        client.chat("Hi")


def test_a_stage_whose_server_died_is_a_warning_that_says_of_what_and_how_to_find_out(stage: LocalPlatform) -> None:
    asked(stage, dying(stage.store, "ILL", "asked"))
    seen = crashes(stage)
    assert isinstance(seen, Seen) and seen.severity is Severity.WARNING
    assert "staging: 2 of 4 boots crashed" in seen.evidence and "killed by SIGILL" in seen.evidence
    assert "criu issue 1448" in seen.evidence and "lscpu" in seen.todo


def test_a_stage_that_lives_and_one_whose_release_was_put_there_since_are_well(stage: LocalPlatform) -> None:
    asked(stage, dying(stage.store))
    assert crashes(stage) == "none on record"
    asked(stage, dying(stage.store, "SEGV", "asked", "other"))
    asked(stage, dying(stage.store, alias="third"))
    assert crashes(stage) == "none on record"
