"""Release cycles on the fake Modal under traffic, as `python -m tests.benchmarks modal` does 200 of them."""

from __future__ import annotations

import random

import pytest

from tests.benchmarks import modal
from tests.platforms.modal_stand import ModalStand

pytestmark = [pytest.mark.real, pytest.mark.long]


def test_whatever_workers_and_restores_do_production_serves_what_was_verified_and_clients_see_nothing(
    modal_stand: ModalStand,
) -> None:
    modal_stand.fake.lifecycle.workers, modal_stand.fake.lifecycle.failure_rate = modal.WORKERS, 0.3
    *_, last = modal.released(modal_stand, 6, random.Random(7))
    assert last.startswith("all as it must be"), last
