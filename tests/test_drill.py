"""Drills of a retained release, on real trial servers with scripted models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.contracts import scripted
from tasks.drill import MUST, run
from tasks.platforms.local import LocalPlatform
from tasks.release import Build, Event, Release, Verdict
from tasks.settings import Settings
from tasks.store import Store
from tests.test_release import a_release

real = pytest.mark.real

ARGV = (
    "--model", "{model}", "--ctx-size", "8192", "--parallel", "2", "--load-mode", "none", "--metrics", "--slots",
    "--jinja", "--threads", "1", "--alias", "script",
)  # fmt: skip


@pytest.fixture(scope="module")
def platform(base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    made = LocalPlatform(Settings(store=tmp_path_factory.mktemp("drill") / "store", cache=base.cache))
    shutil.copytree(Store(base.store).build_dir(build.digest), made.store.build_dir(build.digest))
    yield made
    assert not (made.store.root / "run" / "production").exists()
    assert not (made.store.root / "run" / "staging").exists()


@pytest.fixture(scope="module")
def retained(platform: LocalPlatform, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Release:
    model = scripted.build(scripted.thinks_then_answers(3), tmp_path_factory.mktemp("model") / "script.gguf")
    made = Release(
        upstream=build.source.upstream, tree=build.source.tree, build=build.digest, alias="script", argv=ARGV,
        files={"model": platform.store.put_file(model)},
    )  # fmt: skip
    platform.store.save_release(made)
    return made


def drilled(platform: LocalPlatform, release: Release) -> Event:
    return run(platform, release, lambda *_: None)


@real
def test_a_release_that_boots_and_keeps_what_must_hold_passes_and_its_dossier_stays(
    platform: LocalPlatform, retained: Release
) -> None:
    event = drilled(platform, retained)
    bad = [line for line in event.detail["contracts"].items() if not line[1].startswith("passed")]
    assert (event.detail["verdict"], bad) == (Verdict.PASSED, [])
    assert set(event.detail["contracts"]) == {contract.name for contract in MUST}
    assert platform.store.ledger()[-1] == event
    assert platform.store.dossier(retained, tuple(event.detail["contracts"])).verifications == ()


@real
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"argv": (*ARGV, "--no-such-flag")}, "ended before it could become healthy: exit code 1"),
        ({"tree": "0" * 40}, "does not serve"),
    ],
    ids=["does not boot", "is another binary"],
)
def test_one_that_does_not_do_is_failed(
    platform: LocalPlatform, retained: Release, change: dict[str, object], words: str
) -> None:
    event = drilled(platform, retained.model_copy(update=change))
    assert event.detail["verdict"] == Verdict.FAILED
    assert words in event.summary


@real
def test_one_whose_binary_was_altered_is_not_even_started(platform: LocalPlatform, retained: Release) -> None:
    binary: Path = platform.store.build_dir(retained.build) / "llama-server"
    away = binary.rename(binary.with_suffix(".away"))
    try:
        event = drilled(platform, retained)
    finally:
        os.replace(away, binary)
    assert (event.detail["verdict"], event.detail["lost"], event.detail["contracts"]) == (
        "failed",
        ["llama-server"],
        {},
    )


def test_one_of_which_the_store_has_nothing_is_failed_and_not_passed_for_want_of_promises(store: Store) -> None:
    gone = a_release(build="0" * 16)
    event = drilled(LocalPlatform(Settings(store=store.root)), gone)
    assert (event.detail["verdict"], event.detail["lost"]) == ("failed", [f"build {gone.build}", "m.gguf"])
    assert f"{gone.label} is not whole in the store" in event.summary
