"""Test tiers, and the real things that the `real` tier stands on: a build made by the product itself, a real model.

Tiers: unit (no mark), wire, real, browser. The closing lines say which ran; a tier named in LLAMA_RELEASE_TIERS must
not be skipped, or the run fails.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from flows.demo import model as demo_model
from tasks.patches import apply_series
from tasks.platforms.local import compile as local_compile
from tasks.release import Build
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.store import Store
from tasks.upstream import find, open_upstream

# a busy machine is no finding
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")

REPOSITORY = Path(__file__).parent.parent
TIERS = ("unit", "wire", "real", "browser")


def tier_of(item: pytest.Item) -> str:
    return next((tier for tier in TIERS if item.get_closest_marker(tier)), "unit")


class Tiers:
    """Counts what ran in each tier."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self.count: Counter[tuple[str, str]] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.of = {item.nodeid: tier_of(item) for item in items}
        items.sort(key=lambda item: TIERS.index(self.of[item.nodeid]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            self.count[self.of.get(report.nodeid, "unit"), report.outcome] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for tier in TIERS:
            seen = ", ".join(f"{n} {what}" for (t, what), n in sorted(self.count.items()) if t == tier) or "did not run"
            terminalreporter.write_line(f"tier {tier}: {seen}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        wanted = [t for t in os.environ.get("LLAMA_RELEASE_TIERS", "").split(",") if t]
        short = [t for t in wanted if self.count[t, "skipped"] or not self.count[t, "passed"]]
        if short and session.exitstatus == pytest.ExitCode.OK:
            print(f"\ntiers that must not be skipped here: {', '.join(short)}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Tiers())


@pytest.fixture(scope="session")
def base() -> Settings:
    """Settings whose cache and store survive the test run, outside the checkout: builds are made once a machine."""
    cache = Settings().cache
    return Settings(store=cache / "test-store", patches=REPOSITORY / "patches")


def build_of(base: Settings, tag: str) -> Build:
    """The product's own build of an upstream tag, from the store or made now."""
    upstream = open_upstream(base)
    release = find(upstream.releases(), tag)
    source = apply_series(Sources(base.cache), release, upstream.fetch(release), base.patches, upstream)

    def progress(done: int, total: int, what: str) -> None:
        if done % 20 == 0:
            print(f"build {tag} {done}/{total} {what}", flush=True)

    return local_compile.build(source, base.recipe, Store(base.store), base, progress)


@pytest.fixture(scope="session")
def build(base: Settings) -> Build:
    """A real llama-server of b11434."""
    return build_of(base, "b11434")


@pytest.fixture(scope="session")
def older_build(base: Settings) -> Build:
    """A real llama-server of b11401."""
    return build_of(base, "b11401")


def first_patch_alone(base: Settings, folder: Path) -> Settings:
    """Settings whose series, in this empty folder, is patch 0001: what old upstream tags are built with."""
    (patch,) = base.patches.glob("0001-*.patch")
    shutil.copy(patch, folder)
    (folder / "series").write_text(f"{patch.name}\n")
    return base.model_copy(update={"patches": folder})


@pytest.fixture(scope="session")
def build_at(base: Settings, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Build]:
    """Gives a real llama-server of any upstream tag, with patch 0001 alone: 0002 conflicts before b11401."""
    settings = first_patch_alone(base, tmp_path_factory.mktemp("patches"))
    return lambda tag: build_of(settings, tag)


@pytest.fixture(scope="session")
def smollm2(base: Settings) -> Path:
    """SmolLM2-135M-Instruct, a real instruct model of 98 MB."""
    return demo_model(base.cache)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def store_with(base: Settings, tmp_path: Path) -> Iterator[Store]:
    """A store of its own that has the machine's builds (as hard links where possible)."""
    store = Store(tmp_path / "store")
    source = Store(base.store).root / "builds"
    if source.exists():
        shutil.copytree(source, store.root / "builds", copy_function=_link)
    yield store


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
