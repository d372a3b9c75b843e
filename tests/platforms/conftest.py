"""A LocalPlatform of its own for each test module, with two releases of a real build."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts import scripted
from tasks.platforms.local import LocalPlatform
from tasks.release import Build, Release, UpstreamRelease
from tasks.settings import LocalSettings, ServerSettings, Settings
from tasks.store import Store
from tests.platforms.modal_stand import ModalStand, modal_stand_in
from tests.platforms.stand import KEY_ENV, Stand

# One thread: with more, llama-server spins at every barrier while the machine has other work.
ARGV = (
    "--model", "{model}", "--ctx-size", "8192", "--parallel", "2", "--load-mode", "none", "--metrics", "--jinja",
    "--threads", "1", "--no-warmup",
)  # fmt: skip


@pytest.fixture(scope="module")
def stand(base: Settings, build: Build, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A platform without snapshots that serves SmolLM2."""
    with stand_of(platform_at(tmp_path_factory.mktemp("store")), base, build, smollm2) as made:
        yield made


@contextmanager
def stand_of(platform: LocalPlatform, base: Settings, build: Build, model: Path) -> Iterator[Stand]:
    """Two releases that differ in their alias; nothing is left running."""
    store = platform.store
    shutil.copytree(
        Store(base.store).build_dir(build.digest), store.build_dir(build.digest), symlinks=True, copy_function=_link
    )
    first, second = (_release(store, build, model, alias) for alias in ("first", "second"))
    key = secrets.token_urlsafe(24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_ENV, key)
        made = Stand(platform, first, second, key)
        yield made
        platform.shut_down()
    assert made.servers() == []


@pytest.fixture(scope="module")
def modal_stand(base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalStand]:
    """Two releases of a scripted model on a fake Modal of their own."""
    folder = tmp_path_factory.mktemp("modal")
    model = scripted.build(scripted.thinks_then_answers(3), folder / "scripted.gguf")
    with modal_stand_in(folder / "fake", base, build, model, ARGV) as made:
        yield made


def platform_at(root: Path, idle_s: float = 600.0, staging_port: int = 0, **local_settings: Any) -> LocalPlatform:
    """Without snapshots, unless told otherwise."""
    given = {"snapshots": "off", "idle_s": idle_s, "staging_port": staging_port, **local_settings}
    local = LocalSettings(production_port=0, start_timeout_s=60, **given)
    return LocalPlatform(Settings(store=root, local=local, server=ServerSettings(api_key_env=KEY_ENV)))


@pytest.fixture
def release_of_nothing() -> Release:
    """A release whose build is in no store."""
    return Release(
        upstream=UpstreamRelease(build=1), tree="t", build="0" * 64, argv=("--model", "{model}"), files={}, alias="a"
    )


def _release(store: Store, build: Build, model: Path, alias: str) -> Release:
    return Release(
        upstream=build.source.upstream, tree=build.source.tree, build=build.digest, alias=alias,
        argv=(*ARGV, "--alias", alias), files={"model": store.put_file(model)},
    )  # fmt: skip


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target)
    return target
