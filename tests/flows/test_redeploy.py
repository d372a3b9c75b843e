"""Redeploys by the command line of a user: a new API key under streaming clients, kills in between, refusals, a drill.

The steps build on each other and run in order. The model is scripted, and that the two releases were verified before
is made up; what is verified by a redeploy is real.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from flows.doctor import examine
from flows.required import required
from tasks import contracts, promote, restore
from tasks.contracts.scripted import Script
from tasks.contracts.scripted import build as scripted
from tasks.endpoint import chat_body
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.snapshot import folder_name, snapshots_folder
from tasks.release import Approval, BootKind, Build, Release, StageName, Verdict, Verification
from tasks.settings import LocalSettings, ServerSettings, Settings
from tasks.store import Store
from tests.conftest import own_prefect
from tests.flows.conftest import Machine
from tests.platforms.stand import KEY_ENV, until

pytestmark = pytest.mark.real

FIRST_KEY, SECOND_KEY = "key-of-before-the-rotation", "key-of-after-the-rotation"
ARGV = (
    "--model", "{model}", "--ctx-size", "4096", "--parallel", "2", "--load-mode", "none", "--metrics", "--slots",
    "--jinja", "--threads", "1",
)  # fmt: skip
ENDLESS = Script(("model\non and on ",))
STREAMS = 2


@pytest.fixture(scope="module")
def monkeys() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@dataclass
class Two(Machine):
    """A machine whose production serves `newer` and retains `older`; they differ in their alias."""

    monkeys: pytest.MonkeyPatch = field(kw_only=True)
    older: Release = field(kw_only=True)
    newer: Release = field(kw_only=True)

    def knows(self, key: str) -> None:
        """From now on this is the API key of whoever runs commands."""
        self.monkeys.setenv(KEY_ENV, key)
        self.env[KEY_ENV] = key

    @property
    def platform(self) -> LocalPlatform:
        return platform_at(self.store.root)

    def generation(self, stage: StageName) -> str:
        pointer = self.store.pointer(stage)
        return pointer.generation(pointer.release)

    def said_to(self, key: str, stage: StageName = "production") -> tuple[int, str]:
        """(status, alias) of a chat request with this key."""
        url = f"{self.platform.endpoint(stage).base_url}/v1/chat/completions"
        headers = {"Authorization": f"Bearer {key}"}
        body = chat_body("Hello", max_tokens=4)
        answer = httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False)
        return answer.status_code, answer.json().get("model", "")

    def finding(self, stage: StageName) -> str:
        """What doctor says of a stage."""
        return next(found.evidence for found in examine(self.platform.settings) if found.check == stage)

    def verified(self, release: Release) -> None:
        """As an upgrade leaves it."""
        self.store.save_release(release)
        for name in required():
            basis = contracts.basis() if name.startswith("contracts.") else ""
            self.store.record(
                Verification(name=name, release=release.id, verdict=Verdict.PASSED, summary="seen", basis=basis)
            )

    def promoted(self, release: Release) -> None:
        production = self.store.pointer("production")
        dossier = self.store.dossier(release, required())
        approval = Approval(
            release=release.id, dossier=dossier.digest, expected=production.release, version=production.version,
            decision="approve", approver="alice",
        )  # fmt: skip
        promote.swap(self.platform, dossier, approval, retain=2)


def platform_at(root: Path) -> LocalPlatform:
    local = LocalSettings(staging_port=0, production_port=0, start_timeout_s=60)
    return LocalPlatform(Settings(store=root, local=local, server=ServerSettings(api_key_env=KEY_ENV)))


@pytest.fixture(scope="module")
def two(
    base: Settings, build: Build, monkeys: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("redeploy")
    store = Store(folder / "store")
    shutil.copytree(Store(base.store).build_dir(build.digest), store.build_dir(build.digest))
    model = store.put_file(scripted(ENDLESS, folder / "endless.gguf"))
    older, newer = (
        Release(
            upstream=build.source.upstream, tree=build.source.tree, build=build.digest, alias=alias,
            argv=(*ARGV, "--alias", alias), files={"model": model},
        )
        for alias in ("older", "newer")
    )  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "PREFECT_", "DEMO_"))}
    env |= {
        "LLAMA_RELEASE_STORE": str(store.root),
        "LLAMA_RELEASE_CACHE": str(base.cache),
        "LLAMA_RELEASE_SERVER__API_KEY_ENV": KEY_ENV,
        "LLAMA_RELEASE_LOCAL__STAGING_PORT": "0",
        "LLAMA_RELEASE_LOCAL__PRODUCTION_PORT": "0",
        "LLAMA_RELEASE_RESTORE__ACCEPT_COLD": "true",
        "LLAMA_RELEASE_RESTORE__COLD_CYCLES": "1",
        "LLAMA_RELEASE_RESTORE__BAD": "0.04",
        "LLAMA_RELEASE_RESTORE__WAIT_S": "0",
        "USER": "tester",
        "COLUMNS": "160",
    }
    made = Two(store, env, monkeys=monkeys, older=older, newer=newer)
    made.knows(FIRST_KEY)
    for release in (older, newer):
        made.verified(release)
        made.promoted(release)
    with own_prefect(store.root, port=0), made:
        yield made


@dataclass
class Streaming:
    """Clients that stream from production all the time, and take the second key once the first one is refused."""

    url: str
    whole: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Streaming:
        self._threads = [threading.Thread(target=self._stream) for _ in range(STREAMS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)

    def _stream(self) -> None:
        keys = [SECOND_KEY, FIRST_KEY]
        body = chat_body("Go on.", stream=True, max_tokens=400)
        with httpx.Client(base_url=self.url, timeout=120, trust_env=False) as http:
            while not self._over.is_set():
                headers = {"Authorization": f"Bearer {keys[-1]}"}
                try:
                    with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
                        if answer.status_code == 401 and len(keys) > 1:
                            keys.pop()
                            continue
                        answer.raise_for_status()
                        if list(answer.iter_lines())[-2:] != ["data: [DONE]", ""]:
                            self.lost.append("a stream was cut off")
                        self.whole[keys[-1]] = self.whole.get(keys[-1], 0) + 1
                except httpx.HTTPError as error:
                    self.lost.append(repr(error))


def test_a_new_key_reaches_production_by_way_of_staging_and_no_stream_is_lost(two: Two) -> None:
    before, known = two.platform.status("production"), len(two.platform.boots("production"))
    assert before
    two.knows(SECOND_KEY)
    assert "the API key is newer than the servers of production" in two.finding("production")
    with Streaming(two.platform.endpoint("production").base_url) as clients:
        assert until(lambda: clients.whole.get(FIRST_KEY, 0) >= STREAMS, 60)
        said = two.run("redeploy", "--reason", "new API key", "--by", "carol")
        first = clients.whole.get(SECOND_KEY, 0)
        assert until(lambda: clients.whole.get(SECOND_KEY, 0) >= first + STREAMS, 60)
    assert said.rstrip().endswith(f"redeployed {two.newer.label}")
    assert clients.lost == []
    assert two.finding("production").startswith(two.newer.id)
    assert (two.said_to(FIRST_KEY)[0], two.said_to(SECOND_KEY)) == (401, (200, "newer"))
    (event,) = two.events("redeployed")
    assert "by carol: new API key" in event.summary
    pointer = two.store.pointer("production")
    assert (pointer.release, pointer.retained, pointer.dossier) == (
        two.newer.id, (two.older.id,), event.detail["dossier"]
    )  # fmt: skip
    assert two.generation("production") == two.generation("staging") == event.detail["generation"] != ""
    (boot,) = two.platform.boots("production")[known:]
    assert boot.kind is not BootKind.RESTORED and boot.pid != before.server_pid
    assert (two.store.redeploy(), two.store.intent("production")) == (None, None)


def test_the_restore_was_verified_anew_and_no_snapshot_of_before_is_left(two: Two) -> None:
    found = two.store.verification(two.newer.id, restore.NAME)
    assert found and found.summary != "seen"
    for stage in ("staging", "production"):
        kept = {path.name for path in snapshots_folder(two.store.root, stage).glob(f"{two.newer.id}-*")}
        new = folder_name(two.newer.id, SECOND_KEY, two.generation(stage))
        assert kept == (set() if two.platform.snapshots().kind == "cold" else {new})


KILLS: dict[str, Callable[[Two], object]] = {
    "once staging serves it": lambda two: two.store.redeploy() and two.generation("staging") == _open(two),
    "once production is about to move": lambda two: two.store.intent("production"),
    "once production moved": lambda two: two.store.redeploy() and two.generation("production") == _open(two),
}


def _open(two: Two) -> str:
    begun = two.store.redeploy()
    return begun.generation if begun else "none"


@pytest.mark.parametrize("moment", KILLS)
def test_killed_it_goes_on_in_the_same_generation_and_is_done_once(two: Two, moment: str) -> None:
    done, generation = len(two.events("redeployed")), two.generation("production")
    two.kill_when(lambda: KILLS[moment](two), "redeploy", "--reason", "base image", "--by", "dave")
    begun = two.store.redeploy()
    assert begun
    assert two.said_to(SECOND_KEY) == (200, "newer")
    two.run("redeploy", "--reason", "base image", "--by", "dave")
    assert two.generation("production") == two.generation("staging") == begun.generation != generation
    assert (two.store.redeploy(), two.store.intent("production")) == (None, None)
    assert len(two.events("redeployed")) == done + 1
    assert two.said_to(SECOND_KEY) == (200, "newer")


def test_what_does_not_come_back_on_staging_is_not_promoted_whoever_started_it(two: Two) -> None:
    before = two.store.pointer("production"), two.platform.boots("production")
    two.env["LLAMA_RELEASE_RESTORE__ANSWER_S"] = "0.0001"
    said = two.run("redeploy", "--reason", "driver", "--by", "dave", code=1)
    del two.env["LLAMA_RELEASE_RESTORE__ANSWER_S"]
    assert "restore failed" in said
    assert (two.store.pointer("production"), two.platform.boots("production")) == before
    assert two.store.redeploy() is None
    two.run("redeploy", "--reason", "driver", "--by", "dave")
    assert two.generation("production") != before[0].generation(two.newer.id)


def test_what_production_neither_has_nor_retains_is_refused(two: Two) -> None:
    said = two.run("redeploy", "--reason", "r", "--release", "ffffffffffff", code=2)
    assert "there is no release ffffffffffff" in said and two.older.label in said
    said = two.run("redeploy", "--reason", "r", "--release", two.newer.upstream.tag, code=2)
    assert "2 releases are called" in said and two.newer.label in said


def test_a_rollback_is_proved_by_an_idle_window(two: Two) -> None:
    generation = two.generation("production")
    said = two.run("rollback", "--reason", "tool calls broke", "--by", "carol")
    assert "idle window passed" in said
    assert two.said_to(SECOND_KEY) == (200, "older")
    (proof,) = two.events("rollback_proof")
    assert (proof.detail["verdict"], proof.release) == ("passed", two.older.id)
    last = two.platform.boots("production")[-1]
    assert last.kind in (BootKind.RESTORED, BootKind.COLD) and last.kind in proof.summary
    pointer = two.store.pointer("production")
    assert pointer.hold and (pointer.hold.by, pointer.hold.reason) == ("carol", "tool calls broke")
    assert pointer.generation(two.newer.id) == generation


def test_during_a_hold_only_what_is_in_production_may_be_redeployed(two: Two) -> None:
    said = two.run("redeploy", "--reason", "r", "--release", two.newer.id, code=2)
    assert "on hold" in said and "tool calls broke" in said
    two.run("redeploy", "--reason", "new API key", "--by", "carol")
    pointer = two.store.pointer("production")
    assert pointer.release == two.older.id and pointer.generation(two.older.id)
    assert pointer.hold and pointer.hold.by == "carol"


def test_a_retained_release_may_be_chosen_once_the_hold_is_lifted(two: Two) -> None:
    two.run("hold", "lift", "--by", "carol")
    two.run("redeploy", "--reason", "it was not to blame", "--by", "carol", "--release", two.newer.id[:5])
    assert two.said_to(SECOND_KEY) == (200, "newer")
    assert two.store.pointer("production").retained == (two.older.id,)


def test_at_once_whatever_else_is_broken_and_a_run_under_way_is_not_waited_for(two: Two) -> None:
    """No Prefect server answers, another run has the release lock, ledger and Prefect database are damaged."""
    two.env["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    damaged = sorted((two.store.root / "ledger").iterdir())[-1]
    damaged.write_text('{"kind": "promo')
    (two.store.root / "prefect").mkdir(exist_ok=True)
    (two.store.root / "prefect" / "prefect.db").write_text("no database")
    with two.store.lock("release", holder={"name": "an upgrade that hangs"}):
        said = two.run("rollback", "--now", "--reason", "it burns", "--by", "dora")
        two.platform.stop("production")
        assert "an upgrade that hangs" in two.run("start", code=3), "staging is that run's; production is not"
    assert two.said_to(SECOND_KEY) == (200, "older")
    assert "by dora: it burns" in said and "hold lift" in said
    pointer = two.store.pointer("production")
    assert pointer.hold and (pointer.hold.by, pointer.hold.reason) == ("dora", "it burns")
    assert damaged.name in two.run("history")
    again = two.run("rollback", "--now", "--reason", "it burns", "--by", "erin", code=2)
    assert "by dora" in again and "--to" in again
    assert two.said_to(SECOND_KEY) == (200, "older")
    printed = two.run("rollback", "--now", "--to", two.newer.id, "--reason", "r", "--json")
    shown, _ = json.JSONDecoder().raw_decode(printed[printed.index("{") :])
    assert (shown["kind"], shown["release"]["alias"]) == ("rolled_back", "newer")
