"""Releases of a real build with SmolLM2, and a platform whose trial servers stand behind a counting proxy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tasks.evals.stage import Gate, item_set
from tasks.platforms.local import LocalPlatform
from tasks.release import Build, Release, Verification
from tasks.settings import EvalSettings, Settings
from tasks.store import Store
from tests.evals.proxied import Proxied

# One thread: with more, llama-server spins at every barrier while the machine has other work.
ARGV = (
    "--model", "{model}", "--alias", "smollm2", "--ctx-size", "4096", "--parallel", "2", "--load-mode", "none",
    "--flash-attn", "on", "--jinja", "--threads", "1",
)  # fmt: skip
SMALL = EvalSettings(
    margin=0.15, items=120, batch=36, hardest=0, longest_prompt=150,
    families=("arithmetic", "structured", "tool turns", "long context"),
    tasks=(f"{Path(__file__).parent / 'user_task.py'}@capitals",),
)  # fmt: skip
"""What SmolLM2 can answer in little time, with a task that a user wrote."""


def silent(done: int, total: int, text: str) -> None:
    pass


def another(release: Release, *argv: str) -> Release:
    """The same weights and build under another release id."""
    return release.model_copy(update={"argv": (*release.argv, *argv)})


def judged(platform: LocalPlatform, release: Release, production: Release | None) -> Verification:
    """The gate's verdict."""
    asked = item_set([release], SMALL)
    return Gate(platform, release, production, SMALL, asked, silent).verify()


@pytest.fixture(scope="session")
def eval_settings(base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("evals-store")
    shutil.copytree(
        Store(base.store).build_dir(build.digest),
        Store(root).build_dir(build.digest),
        symlinks=True,
        copy_function=_link,
    )
    return base.model_copy(update={"store": root, "evals": SMALL})


@pytest.fixture(scope="session")
def eval_release(eval_settings: Settings, build: Build, smollm2: Path) -> Release:
    return Release(
        upstream=build.source.upstream, tree=build.source.tree, build=build.digest, alias="smollm2", argv=ARGV,
        files={"model": Store(eval_settings.store).put_file(smollm2)},
    )  # fmt: skip


@pytest.fixture(scope="session")
def itself(eval_settings: Settings, eval_release: Release) -> Verification:
    """The verdict on the same weights on another server; with it production's answers, given once a session."""
    return judged(LocalPlatform(eval_settings), another(eval_release, "--metrics"), eval_release)


@pytest.fixture
def proxied(eval_settings: Settings) -> Proxied:
    return Proxied(eval_settings)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target)
    return target
