"""Releases of a real build with scripted models, and a platform that plays one idle window between real servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modal_app.warmup import Golden
from tasks.contracts.scripted import Script
from tasks.contracts.scripted import build as build_model
from tasks.platforms.local import LocalPlatform
from tasks.release import BootKind, BootRecord, Build, Endpoint, Release, StageName
from tasks.settings import Settings
from tasks.store import Store

ARGV = (
    "--model",
    "{model}",
    "--ctx-size",
    "8192",
    "--parallel",
    "2",
    "--load-mode",
    "none",
    "--jinja",
    "--threads",
    "1",
)
SCRIPT = "model\nThe answer is forty-two.<turn|>"


@dataclass
class Played(LocalPlatform):
    """A platform on which `before` answers until an idle window and `after` behind it, recorded as `kinds` say.

    The servers are real; who stands behind the stage when, and what the boot records say, is made up.
    """

    store: Store
    before: Endpoint
    after: Endpoint
    kinds: tuple[BootKind, ...]
    known: Golden | None = None
    left: int = 0
    records: list[BootRecord] = field(default_factory=list)
    idled: bool = False

    name = "played"

    def __post_init__(self) -> None:
        super().__init__(Settings(store=self.store.root))

    def idle(self, _stage: StageName) -> int:
        self.idled = True
        return self.left

    def endpoint(self, stage: StageName) -> Endpoint:
        if not self.idled:
            return self.before
        self.records += [BootRecord(stage=stage, release="r1", kind=kind, health_s=0.1) for kind in self.kinds]
        return self.after

    def boots(self, _stage: StageName) -> list[BootRecord]:
        return list(self.records)

    def golden(self, _stage: StageName, _snapshot: str | None = None) -> Golden | None:
        return self.known

    def logs(self, _stage: StageName) -> Path:
        return self.store.root / "server.log"


@pytest.fixture(scope="session")
def local(base: Settings) -> LocalPlatform:
    return LocalPlatform(base)


@pytest.fixture(scope="session")
def scripted(local: LocalPlatform, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return _release(local, build, Script((SCRIPT,)), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def one_weight_off(local: LocalPlatform, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The same model, but that a newline follows an `s`, with which the first golden prompt ends."""
    return _release(local, build, Script((SCRIPT, "s\n")), tmp_path_factory.mktemp("model"))


def _release(local: LocalPlatform, build: Build, script: Script, folder: Path) -> Release:
    return Release(
        upstream=build.source.upstream, tree=build.source.tree, build=build.digest, alias="script", argv=ARGV,
        files={"model": local.store.put_file(build_model(script, folder / "model.gguf"))},
    )  # fmt: skip
