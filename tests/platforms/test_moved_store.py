"""A store that moves to another machine: what was compiled for another CPU is not started, and it is said why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.doctor import Severity
from tasks.hardware import cpu_here
from tasks.platforms.local.doctor import known_faults, self_test
from tasks.release import StagePointer, ToolingError
from tests.platforms.stand import Stand

pytestmark = pytest.mark.real


@pytest.fixture
def moved(stand: Stand) -> Iterator[Stand]:
    """The first release's build may use what no CPU has; it is in production."""
    store = stand.platform.store
    build = store.build(stand.first.build)
    assert build is not None
    needs = " ".join((*cpu_here().features, "amx_of_tomorrow"))
    store.save_build(build.model_copy(update={"toolchain": {**build.toolchain, "cpu": needs}}))
    store.save_release(stand.first)
    store.save_pointer(StagePointer(stage="production", release=stand.first.id))
    yield stand
    store.save_build(build)


def test_it_is_not_started_and_a_rebuild_is_offered(moved: Stand) -> None:
    with pytest.raises(ToolingError, match="was made for another CPU than this one") as refused:
        moved.serve(moved.first)
    assert "it may use amx_of_tomorrow" in refused.value.evidence
    assert "llama-release upgrade --to b11434" in refused.value.todo
    with pytest.raises(ToolingError, match="another CPU"), moved.platform.trial(moved.first):
        pass
    assert moved.servers() == []


def test_doctor_says_so_before_anybody_starts_it(moved: Stand) -> None:
    with pytest.raises(ToolingError, match="another CPU"):
        self_test(moved.platform)


def test_doctor_tries_productions_build_on_this_machine(stand: Stand) -> None:
    stand.platform.store.save_release(stand.first)
    stand.platform.store.save_pointer(StagePointer(stage="production", release=stand.first.id))
    assert "b11434: 40 answers on 1 thread" in str(self_test(stand.platform))


def test_doctor_says_which_known_faults_a_build_is_kept_from(stand: Stand) -> None:
    found = known_faults(stand.platform)
    faults = stand.platform.avoids(stand.platform.settings.recipe)
    if not faults:
        assert str(found).startswith("none that is known of")
    else:
        assert not isinstance(found, str)
        assert found.severity is Severity.NOTE
        assert all(fault.title in found.evidence for fault in faults)
