"""A machine on which production serves the older build, and a browser beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tasks.release import Build
from tasks.settings import Settings
from tasks.store import Store
from tests.flows.conftest import Machine, machine_with

CHROMIUM = shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))


@pytest.fixture(scope="module")
def machine(
    base: Settings, build: Build, older_build: Build, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A store with every build of both tags: nothing is compiled."""
    made = [each for each in Store(base.store).builds() if each.tag in (build.tag, older_build.tag)]
    with machine_with(base, made, scripted_model, tmp_path_factory.mktemp("browser") / "store") as machine:
        yield machine
