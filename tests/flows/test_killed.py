"""One upgrade that is killed everywhere: the deployed flow at and in each of its stages, its worker, Prefect's server
and the activators, while a user's requests go through production all the time.

The kills build on each other and run in order; each is of a run that starts where the last one died.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest

from tasks.contracts import scripted
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.proc import children
from tasks.preflight import bundle
from tasks.promote import check_serving
from tasks.release import Build, Event, Release, StageName, StagePointer
from tasks.settings import Settings
from tests.conftest import NEWER, long_but
from tests.flows.conftest import KEY, Traffic
from tests.flows.deployed import FINAL, Deployed, Kill, prefect_on
from tests.platforms.stand import command_lines, until

pytestmark = pytest.mark.real

STAGES: tuple[StageName, ...] = get_args(StageName)


def recorded(stage: str) -> str:
    return rf'ledger/.*"kind": "stage\.{stage}"'


UNTIL_STAGING = {
    "before the release lock is held": Kill(r"locks/release\.lock", "open"),
    "between upstream and patches": Kill(recorded("upstream"), after=True),
    "in the middle of patches": Kill(r"\bgit\b", "subprocess.Popen", nth=8),
    "between patches and build": Kill(recorded("patches"), after=True),
    "at the end of build": Kill(recorded("build")),
    "between build and proof": Kill(recorded("build"), after=True),
    "in the middle of proof, a trial server up": Kill(r"llama-server.*--port", "subprocess.Popen", after=True),
    "between proof and preflight": Kill(recorded("proof"), after=True),
    "in the middle of preflight": Kill(r"surfaces/"),
    "between preflight and contracts": Kill(recorded("preflight"), after=True),
    "in the middle of contracts": Kill(r"dossiers/\w+/contracts\.", nth=150),
    "between contracts and staging": Kill(recorded("contracts"), after=True),
    "in the middle of staging": Kill(r"stages/staging\.json"),
}
UNTIL_APPROVED = {
    "in the middle of restore": Kill(r"series/\w+/", after=True),
    "between restore and evals": Kill(recorded("restore"), after=True),
    "in the middle of evals": Kill(r"answers/\w+/\w+\.jsonl r\+", "open", nth=7),
    "when the question is written": Kill(r"requests/", after=True),
}
AT_PRODUCTION = {
    "with the intent open": Kill(r"stages/production\.intent\.json", after=True),
    "before the pointer moves": Kill(r"stages/production\.json"),
    "after the pointer has moved": Kill(r"stages/production\.json", after=True),
}

SHORT = {
    "in the middle of patches", "in the middle of proof, a trial server up", "in the middle of staging",
    "in the middle of evals", "with the intent open", "after the pointer has moved",
}  # fmt: skip
"""At each of the others a run dies in the same ways: in the middle of something, or between two things."""


@dataclass
class Scene:
    """The machine on which it all happens."""

    platform: LocalPlatform
    prefect: Deployed
    older: Release
    seen: Traffic
    finished: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """What was finished at the last kill: its inode and when it was written."""

    unreported: str = ""
    """The run of whose end nobody told Prefect."""

    def kill(self, point: Kill) -> None:
        """A run that gets as far as this."""
        self.prefect.killed(self.prefect.run(point, to=NEWER))
        self.check()

    def events(self, kind: str) -> list[Event]:
        return [event for event in self.platform.store.ledger() if event.kind == kind]

    def check(self) -> None:
        """What holds after every kill: nothing finished was made again, nothing runs on, production answers."""
        assert until(lambda: not self.orphans(), 120.0), self.orphans()
        for path, was in self.finished.items():
            assert _identity(path) == was, f"{path} was made again"
        kinds = ["proofs/*", "surfaces/*", "approvals/*", "builds/*/manifest.json", "releases/*"]
        kinds += ["dossiers/*/contracts.*"] if self.events("stage.contracts") else []  # they are judged together
        kinds += [f"dossiers/*/{name}.json" for name in ("surface", "staging", "restore", "evals")]
        found = [path for kind in kinds for path in self.platform.store.root.glob(kind)]
        self.finished = {path: _identity(path) for path in found}

    def orphans(self) -> dict[int, str]:
        """Processes of this store that are neither Prefect's server or worker, nor an activator or below it."""
        roots = [part.pid for part in self.prefect.parts.values()]
        roots += [status.pid for stage in STAGES if (status := self.platform.status(stage))]
        known = {pid for root in roots for pid in (root, *below(root))}
        return {pid: words for pid, words in self.processes().items() if pid not in known}

    def processes_of(self, program: str) -> list[int]:
        return [pid for pid, words in self.processes().items() if program in words.split()[0]]

    def processes(self) -> dict[int, str]:
        """Every process whose command line or environment names the place where all this lives."""
        place = str(self.prefect.home.parent)
        found = {}
        for pid, words in command_lines().items():
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if pid != os.getpid() and place in " ".join(words) + environment:
                found[pid] = " ".join(words)
        return found


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def below(root: int) -> list[int]:
    """Pids of all processes below this one."""
    found = children(root)
    return found + [pid for child in found for pid in below(child)]


def slow_script() -> scripted.Script:
    """Says little, and knows so many words that each takes a moment: a stream is one on a busy machine, too."""
    (said,) = scripted.thinks_then_answers(3).chains
    return scripted.Script((said, " ".join(f"unsaid{n}" for n in range(900))))


@pytest.fixture(scope="module")
def scene(built: Settings, older_build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Production serves the older release, somebody uses it, and the newer one has been built."""
    home = tmp_path_factory.mktemp("killed")
    shutil.copytree(built.store / "builds", home / "store" / "builds", copy_function=os.link)
    model = scripted.build(slow_script(), home / "scripted.gguf")
    settings = {
        "STORE": home / "store",
        "CACHE": built.cache,
        "SERVER__MODEL": model,
        "SERVER__ALIAS": "scripted",
        "SERVER__THREADS": 1,
        "LOCAL__STAGING_PORT": 0,
        "LOCAL__PRODUCTION_PORT": 0,
        "RESTORE__ACCEPT_COLD": "true",
        "RESTORE__COLD_CYCLES": 1,
        "RESTORE__BAD": 0.04,
        "EVALS__ITEMS": 20,
        "EVALS__BATCH": 20,
        "EVALS__HARDEST": 0,
        "EVALS__LONGEST_PROMPT": 120,
        "EVALS__FAMILIES": '["instructions"]',
        "API_KEY": KEY,
    }
    ours = {f"LLAMA_RELEASE_{name}": str(value) for name, value in settings.items()}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "PREFECT_"))}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ours.items():
            patch.setenv(name, value)
        platform = LocalPlatform(Settings())
        older, _ = bundle(platform.store, older_build, platform.settings.server)
        try:
            platform.deploy("production", older, lambda endpoint: check_serving(endpoint, older))
            platform.store.save_pointer(StagePointer(stage="production", release=older.id))
            with (
                prefect_on(home / "prefect", env | ours) as prefect,
                Traffic(platform.endpoint("production").base_url) as seen,
            ):
                yield Scene(platform, prefect, older, seen)
        finally:
            for stage in STAGES:
                platform.stop(stage)


@pytest.mark.parametrize("point", long_but(SHORT, UNTIL_STAGING))
def test_a_run_is_killed(scene: Scene, point: str) -> None:
    scene.kill(UNTIL_STAGING[point])


def test_the_server_is_killed_and_the_run_goes_on(scene: Scene) -> None:
    begun = len(scene.platform.store.ledger())
    run = scene.prefect.run(Kill(recorded("staging"), after=True), to=NEWER)
    scene.prefect.wait(run, lambda: len(scene.platform.store.ledger()) > begun)
    scene.prefect.kill("server")
    scene.prefect.start("server")
    scene.prefect.killed(run)
    scene.check()


def test_the_activators_are_killed_and_brought_back(scene: Scene) -> None:
    """A client of production may lose what it asks meanwhile; staging's is brought back by the run that needs it."""
    before = list(scene.seen.lost)
    for stage in STAGES:
        status = scene.platform.status(stage)
        assert status is not None
        os.kill(status.pid, signal.SIGKILL)
    scene.platform.ensure("production")
    check_serving(scene.platform.endpoint("production"), scene.older)
    assert until(lambda: len(scene.processes_of("llama-server")) == 1)
    scene.seen.lost[:] = before


@pytest.mark.parametrize("point", long_but(SHORT, UNTIL_APPROVED))
def test_a_later_run_is_killed(scene: Scene, point: str) -> None:
    scene.kill(UNTIL_APPROVED[point])


def test_the_worker_is_killed_and_then_its_run(scene: Scene) -> None:
    """The run goes on without its worker; when it dies too, only the next run can tell Prefect, by the lock it left."""
    run = scene.prefect.run(Kill(recorded("evals"), after=True), to=NEWER)
    scene.prefect.wait(run, lambda: scene.prefect.state(run)["type"] == "RUNNING")
    scene.prefect.kill("worker")
    assert scene.prefect.plan.exists()  # the run is still before its end
    scene.prefect.killed(run)
    assert scene.prefect.state(run)["type"] == "RUNNING"
    scene.prefect.start("worker")
    scene.check()
    scene.unreported = run


def test_worker_and_server_are_killed_while_a_run_is_suspended_and_it_dies_on_resume(scene: Scene) -> None:
    run = scene.prefect.run(to=NEWER)
    scene.prefect.wait(run, lambda: scene.prefect.state(run)["type"] == "PAUSED")
    assert scene.prefect.state(scene.unreported)["type"] == "CRASHED"
    scene.prefect.kill("worker")
    scene.prefect.kill("server")
    scene.prefect.start("server")
    scene.prefect.aim(Kill(r"approvals/", after=True))
    scene.prefect.answer(run, "approve")
    scene.prefect.start("worker")
    scene.prefect.killed(run)
    scene.check()


@pytest.mark.parametrize("point", long_but(SHORT, AT_PRODUCTION))
def test_a_run_that_may_promote_is_killed(scene: Scene, point: str) -> None:
    scene.kill(AT_PRODUCTION[point])


def test_a_worker_is_killed_with_a_run_in_its_hands(scene: Scene) -> None:
    """The run is pending, and no process will ever have it."""
    scene.prefect.kill("worker")
    scene.prefect.aim(Kill("_workspace_supervisor", "subprocess.Popen"))
    scene.prefect.start("worker")
    run = scene.prefect.run(to=NEWER)
    scene.prefect.killed(run)
    assert scene.prefect.state(run)["type"] == "PENDING"
    scene.prefect.kill("worker")
    scene.prefect.start("worker")


def test_the_last_run_ends_it(scene: Scene) -> None:
    scene.prefect.hours_later()
    run = scene.prefect.run(to=NEWER)
    assert scene.prefect.ended(run)["name"] == "Already there"
    scene.check()
    store = scene.platform.store
    pointer = store.pointer("production")
    assert pointer.release is not None
    newer = store.get_release(pointer.release)
    assert newer.upstream.tag == NEWER
    check_serving(scene.platform.endpoint("production"), newer)
    assert pointer.retained == (scene.older.id,)
    assert store.intent("production") is None
    assert len(scene.events("promoted")) == 1
    with store.lock("release", holder={}):
        pass
    assert scene.seen.lost == []


def test_no_run_is_left_open_and_no_process_runs(scene: Scene) -> None:
    assert set(scene.prefect.states().values()) <= FINAL
    scene.seen.stop()
    scene.prefect.close()
    for stage in STAGES:
        scene.platform.stop(stage)
    assert until(lambda: not scene.processes()), scene.processes()
