"""The soak in short: tests/benchmarks/soak.py says what it is; here every kind of fault strikes once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.contracts import scripted
from tasks.preflight import bundle
from tasks.release import Build
from tasks.settings import ServerSettings, Settings
from tasks.store import Store
from tests.benchmarks.soak import FAULTS, soaking

pytestmark = pytest.mark.real

CYCLES, SEED = 8, 21


def test_release_cycles_with_a_fault_of_every_kind_lose_no_request(
    base: Settings, build: Build, older_build: Build, tmp_path: Path
) -> None:
    known = Store(base.store)
    model = scripted.build(scripted.thinks_then_answers(3), tmp_path / "any.gguf")
    server = ServerSettings(model=model, threads=1)
    sources = [bundle(known, built, server)[0] for built in (older_build, build, older_build)]
    with soaking(sources, known, base.cache, SEED) as soak:
        for number in range(1, CYCLES + 1):
            soak.cycle(number)
    counts, lost = soak.told()
    assert lost == []
    assert counts["served"] > CYCLES
    assert set(soak.faults) == set(FAULTS)
