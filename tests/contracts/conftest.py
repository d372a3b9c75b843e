"""Real trial servers for the contracts, of the build and the model that tests/conftest.py gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks.contracts.promises import Server
from tasks.contracts.trials import trial_release
from tasks.platforms.local import LocalPlatform
from tasks.release import Build, Endpoint, Release
from tasks.settings import Settings

Serving = Callable[[Server], tuple[Endpoint, Release]]
"""Gives the trial server of a kind, and what it runs."""


@pytest.fixture(scope="session")
def platform(base: Settings) -> LocalPlatform:
    return LocalPlatform(base)


def release_of(platform: LocalPlatform, build: Build, smollm2: Path) -> Release:
    """A release of this build that serves SmolLM2."""
    load = ("--load-mode", "none") if build.source.upstream.build >= 10884 else ("--no-mmap",)  # upstream b10884
    return Release(
        upstream=build.source.upstream, tree=build.source.tree, build=build.digest, alias="smollm2",
        argv=("--model", "{model}", "--alias", "smollm2", "--ctx-size", "8192", "--parallel", "2", *load,
              "--flash-attn", "on", "--metrics", "--jinja", "--threads", "1"),
        files={"model": platform.store.put_file(smollm2)},
    )  # fmt: skip


@pytest.fixture(scope="session")
def release(platform: LocalPlatform, build: Build, smollm2: Path) -> Release:
    return release_of(platform, build, smollm2)


@pytest.fixture(scope="session")
def older_release(platform: LocalPlatform, older_build: Build, smollm2: Path) -> Release:
    return release_of(platform, older_build, smollm2)


@pytest.fixture(scope="session")
def unpatched_release(platform: LocalPlatform, unpatched_at: Callable[[str], Build], smollm2: Path) -> Release:
    return release_of(platform, unpatched_at("b11434"), smollm2)


@pytest.fixture(scope="session")
def serving(platform: LocalPlatform, release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One server of each kind for the whole session, started when it is first asked for."""
    found: dict[Server, tuple[Endpoint, Release]] = {}
    with ExitStack() as stack:

        def serve(server: Server) -> tuple[Endpoint, Release]:
            if server not in found:
                runs = trial_release(platform.store, release, server, tmp_path_factory.mktemp("script"))
                found[server] = stack.enter_context(platform.trial(runs)), runs
            return found[server]

        yield serve


@pytest.fixture(scope="session")
def calling_release(platform: LocalPlatform, release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return trial_release(platform.store, release, "calling", tmp_path_factory.mktemp("script"))


@pytest.fixture(scope="session")
def calling_server(platform: LocalPlatform, calling_release: Release) -> Iterator[Endpoint]:
    with platform.trial(calling_release) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def scripted_release(platform: LocalPlatform, release: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return trial_release(platform.store, release, "scripted", tmp_path_factory.mktemp("script"))


@pytest.fixture(scope="session")
def scripted_server(platform: LocalPlatform, scripted_release: Release) -> Iterator[Endpoint]:
    with platform.trial(scripted_release) as endpoint:
        yield endpoint
