"""What a release costs, from what its containers told."""

from __future__ import annotations

import pytest

from modal_app.settings import ModalSettings
from tasks.platforms.modal.cost import Use, costs

SETTINGS = ModalSettings(prices_usd_per_s={"L40S": 0.5, "cpu_core": 0.01, "memory_gib": 0.001})


def use(stage: str, seconds: float | None, gpu: str | None = "L40S", release: str = "r1") -> Use:
    until = None if seconds is None else 1000 + seconds
    return Use(stage=stage, release=release, gpu=gpu, cpu=4, memory_mb=2048, since=1000, until=until)


def test_gpu_seconds_are_counted_by_stage_and_only_of_this_release() -> None:
    found = costs(
        "r1",
        None,
        [use("staging", 10), use("staging", 5), use("production", 7), use("staging", 99, release="r2")],
        SETTINGS,
    )
    assert [(c.stage, c.containers, c.seconds, c.gpu_seconds) for c in found] == [
        ("staging", 2, 15, 15),
        ("production", 1, 7, 7),
    ]
    assert found[0].usd == pytest.approx(15 * (0.5 + 4 * 0.01 + 2 * 0.001))


def test_a_trial_on_a_cpu_costs_no_gpu() -> None:
    (found,) = costs("r1", None, [use("trial", 100, gpu=None)], SETTINGS)
    assert (found.seconds, found.gpu_seconds) == (100, 0)
    assert found.usd == pytest.approx(100 * (4 * 0.01 + 2 * 0.001))


def test_a_container_that_has_not_told_its_end_is_counted_up_to_now_and_named() -> None:
    (found,) = costs("r1", None, [use("staging", None)], SETTINGS, now=1060)
    assert (found.seconds, found.open) == (60, 1)
