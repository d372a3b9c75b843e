"""Test tiers, and the real things that the `real` tier stands on: a build made by the product itself, a real model.

Tiers: unit (no mark), wire, real, browser. The closing lines say which ran; a tier named in LLAMA_RELEASE_TIERS must
not be skipped, or the run fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import prefect
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from flows.demo import model as demo_model
from flows.server import prefect_server
from tasks.contracts import scripted
from tasks.patches import apply_series
from tasks.platforms.local import compile as local_compile
from tasks.release import Build
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.store import Store, hold
from tasks.upstream import find, open_upstream

# A busy machine is no finding, and some examples take seconds. The long tests draw others each time.
PROFILE = hypothesis_settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=12, derandomize=True
)
hypothesis_settings.register_profile("short", PROFILE)
hypothesis_settings.register_profile("long", PROFILE, max_examples=200, derandomize=False, print_blob=True)
hypothesis_settings.load_profile("short")

REPOSITORY = Path(__file__).parent.parent
TIERS = ("unit", "wire", "real", "browser")
TIER = "tier"
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""Set where tests run side by side, in the processes that run them."""
NEWER, OLDER = "b11434", "b11401"
OLD = ("b8672", "b9105", "b10605")
"""Upstream tags whose command lines and routes differ, the first of them the most."""


def tier_of(item: pytest.Item) -> str:
    return next((tier for tier in TIERS if item.get_closest_marker(tier)), "unit")


class Tiers:
    """Counts what ran in each tier, in all workers."""

    def __init__(self) -> None:
        self.count: Counter[tuple[str, str]] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.user_properties.append((TIER, tier_of(item)))  # travels with the report from a worker
        # alone the quick ones first; side by side the slow files first, so that no worker is left with one at the end
        items.sort(key=lambda item: TIERS.index(tier_of(item)), reverse=bool(WORKER))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            self.count[str(dict(report.user_properties)[TIER]), report.outcome] += 1
        if report.failed and not WORKER:  # said at once: a run that is stopped for its time has no summary
            reason = report.longreprtext.strip().splitlines()[-1]
            print(f"\nFAILED {report.nodeid} ({report.when}): {reason}", flush=True)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for tier in TIERS:
            seen = ", ".join(f"{n} {what}" for (t, what), n in sorted(self.count.items()) if t == tier) or "did not run"
            terminalreporter.write_line(f"tier {tier}: {seen}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if WORKER:
            return
        wanted = [t for t in os.environ.get("LLAMA_RELEASE_TIERS", "").split(",") if t]
        short = [t for t in wanted if self.count[t, "skipped"] or not self.count[t, "passed"]]
        if short and session.exitstatus == pytest.ExitCode.OK:
            print(f"\ntiers that must not be skipped here: {', '.join(short)}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Tiers())


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Interrupts the block after these seconds of this process's own: a search by an expression, too (re looks for
    signals). A busy machine is no finding."""

    def interrupt(*_: object) -> None:
        raise AssertionError(f"it did not end within {seconds:.0f} s")

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def long_but(short: Container[str], names: Iterable[str]) -> list[object]:
    """These names as a test's parameters, of which those that are not short run with the long tests alone."""
    return [pytest.param(name, marks=() if name in short else pytest.mark.long) for name in names]


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


def series_of(base: Settings, folder: Path, *names: str) -> Settings:
    """Settings whose series, in this empty folder, has these of the product's patches."""
    for name in names:
        shutil.copy(base.patches / name, folder)
    (folder / "series").write_text("".join(f"{name}\n" for name in names))
    return base.model_copy(update={"patches": folder})


@pytest.fixture(scope="session")
def built(base: Settings, build: Build, older_build: Build) -> Settings:
    """`base`, once its store has both builds: for what takes them from there."""
    assert {build.digest, older_build.digest} <= {each.digest for each in Store(base.store).builds()}
    return base


def first_patch_alone(base: Settings, folder: Path) -> Settings:
    """Settings whose series, in this empty folder, is patch 0001: what old upstream tags are built with."""
    (patch,) = base.patches.glob("0001-*.patch")
    return series_of(base, folder, patch.name)


@dataclass(frozen=True)
class Made:
    """Gives real llama-servers of any upstream tag: made once a machine, then from the store."""

    base: Settings
    first: Settings
    none: Settings

    def everything(self, old: Iterable[str]) -> None:
        for settings, tags in (
            (self.base, (NEWER, OLDER)),
            (self.first, (NEWER, OLDER, *old)),
            (self.none, (NEWER, OLD[0])),
        ):
            for tag in tags:
                build_of(settings, tag)


@pytest.fixture(scope="session")
def made(base: Settings, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Side by side, all that any test has compiled is compiled before the first of them: commands have deadlines, and
    one that found another's build before it would wait for that."""
    first = first_patch_alone(base, tmp_path_factory.mktemp("patches"))
    made = Made(base, first, series_of(base, tmp_path_factory.mktemp("none")))
    if WORKER:
        made.everything(OLD[:1] if request.config.option.markexpr == "not long" else OLD)
    return made


@pytest.fixture(scope="session")
def build(made: Made) -> Build:
    """A real llama-server of b11434."""
    return build_of(made.base, NEWER)


@pytest.fixture(scope="session")
def older_build(made: Made) -> Build:
    """A real llama-server of b11401."""
    return build_of(made.base, OLDER)


@pytest.fixture(scope="session")
def unpatched_at(made: Made) -> Callable[[str], Build]:
    """Gives a real llama-server of any upstream tag as upstream has it."""
    return lambda tag: build_of(made.none, tag)


@pytest.fixture(scope="session")
def build_at(made: Made) -> Callable[[str], Build]:
    """Gives a real llama-server of any upstream tag, with patch 0001 alone: 0002 conflicts before b11401."""
    return lambda tag: build_of(made.first, tag)


@pytest.fixture(scope="session")
def smollm2(base: Settings) -> Path:
    """SmolLM2-135M-Instruct, a real instruct model of 98 MB."""
    return demo_model(base.cache)


def migrated(home: Path) -> None:
    """Give a Prefect folder that is to be the empty database of this Prefect: made once a machine.

    Its 100 migrations take longer than all else in the start of a server (9 of 16 s on a quiet core, 3.9.1).
    """
    cache = Settings().cache
    made = cache / f"prefect-{prefect.__version__}.db"
    with hold(cache / "prefect.lock", holder={}, wait=True):
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                subprocess.run(
                    [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"],
                    env=os.environ | {"PREFECT_HOME": folder}, check=True, capture_output=True,
                )  # fmt: skip
                with closing(sqlite3.connect(Path(folder) / "prefect.db")) as database:
                    database.execute("vacuum into ?", [f"{folder}/whole.db"])
                os.replace(f"{folder}/whole.db", made)
    home.mkdir(parents=True)
    shutil.copyfile(made, home / "prefect.db")


@pytest.fixture(scope="session")
def scripted_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that thinks and then answers, where it does not matter what is said."""
    return scripted.build(scripted.thinks_then_answers(3), tmp_path_factory.mktemp("scripted") / "scripted.gguf")


@contextmanager
def own_prefect(store: Path, port: int | None = None) -> Iterator[str]:
    """A Prefect server of our own, in force in this process; the address of its page.

    With a port (0: any) the commands that use this store find it, as they find that of `llama-release serve`.
    """
    migrated(store / "prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        with prefect_server(store, port) as address:
            yield address


def in_force() -> dict[str, str]:
    """For the environment of a process that is to use the server in force."""
    return {"PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_API_AUTH_STRING": PREFECT_API_AUTH_STRING.value()}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server of our own, in force for this module."""
    with own_prefect(tmp_path_factory.mktemp("prefect")) as address:
        yield address


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def store_with(base: Settings, tmp_path: Path) -> Store:
    """A store of its own that has the machine's builds (as hard links where possible)."""
    store = Store(tmp_path / "store")
    source = Store(base.store).root / "builds"
    if source.exists():
        shutil.copytree(source, store.root / "builds", copy_function=_link)
    return store


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
