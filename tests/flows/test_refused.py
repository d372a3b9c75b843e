"""A command that has nothing to run says so without a Prefect server, by the rules that its flow goes by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from prefect import get_client
from prefect.states import Suspended

from flows.plan import foreseen
from flows.upgrade import upgrade
from tasks import patches, preflight, upstream
from tasks.platforms import open_platform
from tasks.release import Hold, Intent, Release, Request, StagePointer, now
from tasks.settings import load
from tasks.sources import Sources
from tasks.store import Store
from tests import tiny
from tests.conftest import in_force
from tests.fakes.github import FakeGithub, fake_github
from tests.flows.conftest import REPOSITORY, settings_in
from tests.test_release import seen

pytestmark = pytest.mark.wire

ON_HOLD = StagePointer(stage="production", hold=Hold(reason="it was slow", by="ada"))
TREE = {"CMakeLists.txt": tiny.CMAKE, "main.cpp": tiny.MAIN, "native.cpp": (tiny.FOLDER / "native.cpp").read_text()}


@dataclass(frozen=True)
class Here:
    """A machine that lacks nothing, whose upstream has b9998 and b9999 of a tree that compiles in a second."""

    store: Store

    def run(self, *words: str, code: int) -> str:
        """What a command says that ends with this code and has started no Prefect server."""
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "flows", *words], cwd=REPOSITORY, stdin=subprocess.DEVNULL,
            env=os.environ, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
        assert done.returncode == code, said + done.stdout
        assert not (self.store.root / "prefect").exists()
        if words[0] == "upgrade" and "waiting" not in done.stdout:
            assert " prefect\n" not in done.stderr, "the library was loaded"
        assert "Traceback" not in said
        return done.stdout + said

    def made(self) -> Release:
        """The release of b9998, built and in production."""
        settings = load()
        platform, source_of = open_platform(settings), upstream.open_upstream(settings)
        target = upstream.find(source_of.releases(), "b9998")
        archive = source_of.fetch(target)
        source = patches.apply_series(Sources(settings.cache), target, archive, settings.patches, source_of)
        built = platform.build(source, settings.recipe, lambda *_: None)
        release, _ = preflight.bundle(self.store, built, settings.server)
        self.store.save_release(release)
        self.store.save_pointer(StagePointer(stage="production", release=release.id, since=now()))
        return release


@pytest.fixture
def github(tmp_path: Path) -> Iterator[FakeGithub]:
    with fake_github(tmp_path / "github") as github:
        for tag in ("b9998", "b9999"):
            github.commit(f"server : {tag}", {**TREE, "tag.txt": tag})
            github.release(tag, "2026-11-01T12:00:00Z", prerelease=True)
        yield github


@pytest.fixture
def here(github: FakeGithub, scripted_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    for name in [name for name in os.environ if name.startswith(("LLAMA_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    for name, value in settings_in(tmp_path, scripted_model, github.url).items():
        monkeypatch.setenv(name, value)
    return Here(Store(tmp_path / "store"))


def test_a_hold_and_a_tag_that_does_not_exist(here: Here) -> None:
    assert "upstream has no release b123 here" in here.run("upgrade", "--to", "b123", code=2)
    assert "is no tag of upstream" in here.run("upgrade", "--to", "x", code=2)
    here.store.save_pointer(ON_HOLD)
    assert "by ada" in here.run("upgrade", code=2)
    assert here.store.ledger() == []


def test_a_redeploy_and_a_rollback_of_what_production_does_not_have(here: Here) -> None:
    assert "not with nothing" in here.run("redeploy", "--reason", "new key", code=2)
    assert "cannot go back to anything" in here.run("rollback", "--reason", "it is slow", code=2)
    assert "there is no release b11434" in here.run("rollback", "--reason", "it is slow", "--to", "b11434", code=2)
    here.store.save_pointer(ON_HOLD)
    assert "rolled back already" in here.run("rollback", "--reason", "it is slow", code=2)


@pytest.mark.real
@pytest.mark.usefixtures("page")
def test_nothing_newer_already_there_and_waiting(
    here: Here, github: FakeGithub, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = here.made()
    said = here.run("upgrade", "--to", "b9998", "--json", code=0)
    outcome = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert (outcome["kind"], outcome["release"]["build"]) == ("already_there", release.build)
    assert "already there" in here.run("upgrade", "--to", "b9998", "--again", code=0)
    assert foreseen(load(), None, False) is None  # b9999 is newer
    github.published.pop(0)
    said = here.run("upgrade", code=0)
    assert "nothing newer" in said and "go out on production's own build" in said

    asked = another_waits(here.store, release)
    for name, value in in_force().items():
        monkeypatch.setenv(name, value)
    said = here.run("upgrade", "--to", "b9998", code=0)
    assert "waiting" in said and f"{asked.name} waits for a person" in said
    assert here.store.ledger() == []


def another_waits(store: Store, release: Release) -> Request:
    """A run of a worker that waits for a person to decide on this release, on the Prefect server in force; production
    is empty again."""
    store.record(seen("a").model_copy(update={"release": release.id}))
    store.save_pointer(StagePointer(stage="production"))
    store.save_pointer(StagePointer(stage="staging", release=release.id))
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(upgrade, name="the other", state=Suspended())
        request = Request(
            run=str(run.id), name=run.name, api_url=str(client.api_url), link="", suspended=True,
            tag=release.upstream.tag, release=release.id, dossier=store.dossier(release, ("a",)).digest,
            required=("a",), expected=None, version=store.pointer("production").version, asked_at=now(),
            expires_at=now() + timedelta(hours=1),
        )  # fmt: skip
    return store.save_request(request)


def test_what_a_killed_run_left_is_for_the_flow_to_finish_whatever_would_refuse_it(here: Here) -> None:
    here.store.save_pointer(ON_HOLD)
    here.store.open_intent(
        Intent(stage="production", action="promote", before=None, after="0" * 12, dossier=None, by="ada")
    )
    assert foreseen(load(), "b123", False) is None
