"""Releases of a real build with SmolLM2, and a platform whose trial servers stand behind a counting proxy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.evals import Answers, answers
from tasks.platforms.local import LocalPlatform
from tasks.release import Build, Release
from tasks.settings import EvalSettings, Settings
from tasks.store import Store
from tests.evals.proxied import Proxied

# One thread: with more, llama-server spins at every barrier while the machine has other work.
ARGV = (
    "--model", "{model}", "--alias", "smollm2", "--ctx-size", "4096", "--parallel", "2", "--load-mode", "none",
    "--flash-attn", "on", "--jinja", "--threads", "1",
)  # fmt: skip


@pytest.fixture(scope="session")
def eval_settings(base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("evals-store")
    shutil.copytree(
        Store(base.store).build_dir(build.digest),
        Store(root).build_dir(build.digest),
        symlinks=True,
        copy_function=_link,
    )
    return base.model_copy(update={"store": root, "evals": EvalSettings()})


@pytest.fixture(scope="session")
def eval_release(eval_settings: Settings, build: Build, smollm2: Path) -> Release:
    return Release(
        upstream=build.source.upstream, tree=build.source.tree, build=build.digest, alias="smollm2", argv=ARGV,
        files={"model": Store(eval_settings.store).put_file(smollm2)},
    )  # fmt: skip


@pytest.fixture(scope="session")
def baseline(eval_settings: Settings, eval_release: Release) -> Answers:
    """What the sound release answers, asked once a session."""
    return answers(LocalPlatform(eval_settings), eval_release, eval_settings, lambda done, total, text: None)


@pytest.fixture
def proxied(eval_settings: Settings) -> Iterator[Proxied]:
    yield Proxied(eval_settings)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target)
    return target
