"""A machine with a store of its own on which the real command line is run, killed and run again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, get_args

import httpx
import pytest

from tasks.platforms.local import LocalPlatform
from tasks.release import Build, Event, StageName
from tasks.settings import LocalSettings, Settings
from tasks.store import Store
from tests.conftest import own_prefect

REPOSITORY = Path(__file__).parent.parent.parent
KEY = "key-for-flow-tests"
PATIENCE_S = 420.0


@dataclass
class Machine:
    """The command line, the store and the servers of one test."""

    store: Store
    env: dict[str, str]
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", *words], cwd=REPOSITORY, env=self.env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.running.append(process)
        return process

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command to its end; what it printed. Fails when the exit code is another."""
        process = self.start(*words)
        text, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, f"{words} exited {process.returncode}:\n{text}"
        return text

    def kill_when(self, condition: Callable[[], object], *words: str) -> None:
        """Start a command and kill -9 it as soon as a condition holds."""
        process = self.start(*words)
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert process.poll() is None, f"it ended first:\n{process.communicate()[0]}"
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert process.returncode == -signal.SIGKILL

    def events(self, kind: str) -> list[Event]:
        return [e for e in self.store.ledger() if e.kind == kind]

    def production(self) -> str | None:
        """The tag in production by the store's pointer."""
        pointer = self.store.pointer("production")
        return self.store.get_release(pointer.release).upstream.tag if pointer.release else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """End its commands and its servers."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        for stage in get_args(StageName):
            self.platform.stop(stage)

    @property
    def platform(self) -> LocalPlatform:
        return LocalPlatform(Settings(store=self.store.root, local=LocalSettings(staging_port=0, production_port=0)))


@dataclass
class Traffic:
    """Somebody who asks production all the time, and keeps what was answered."""

    base_url: str
    fingerprints: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Traffic:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def _ask(self) -> None:
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 2}
        with httpx.Client(timeout=120, trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as client:
            while not self._stop.wait(0.1):
                try:
                    answer = client.post(f"{self.base_url}/v1/chat/completions", json=body)
                    answer.raise_for_status()
                    self.fingerprints.append(answer.json()["system_fingerprint"])
                except (httpx.HTTPError, KeyError) as error:
                    self.lost.append(repr(error))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(130)

    def __exit__(self, *exc: object) -> None:
        self.stop()


def settings_in(folder: Path, model: Path, upstream: str) -> dict[str, str]:
    """The variables of a machine whose store, cache and empty series lie in this folder, and whose upstream is a
    GitHub at this address."""
    (folder / "patches").mkdir()
    (folder / "patches/series").write_text("")
    given = {
        "STORE": folder / "store", "CACHE": folder / "cache", "PATCHES": folder / "patches",
        "LOCAL__STAGING_PORT": 0, "LOCAL__PRODUCTION_PORT": 0, "SERVER__MODEL": model,
        "UPSTREAM__KIND": "github", "UPSTREAM__API_URL": upstream,
    }  # fmt: skip
    return {f"LLAMA_RELEASE_{name}": str(value) for name, value in given.items()}


@contextmanager
def machine_with(base: Settings, builds: Iterable[Build], model: Path, root: Path) -> Iterator[Machine]:
    """A machine whose store, in this folder, has these builds; its servers and commands end with the block.

    One Prefect server serves all its commands: each would take seconds to start its own.
    """
    store = Store(root)
    for made in builds:
        shutil.copytree(Store(base.store).build_dir(made.digest), store.build_dir(made.digest))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "PREFECT_", "DEMO_"))}
    env |= {
        "LLAMA_RELEASE_STORE": str(root),
        "LLAMA_RELEASE_CACHE": str(base.cache),
        "LLAMA_RELEASE_SERVER__MODEL": str(model),
        "LLAMA_RELEASE_SERVER__ALIAS": "served",
        "LLAMA_RELEASE_SERVER__THREADS": "1",
        "LLAMA_RELEASE_LOCAL__STAGING_PORT": "0",
        "LLAMA_RELEASE_LOCAL__PRODUCTION_PORT": "0",
        "LLAMA_RELEASE_RESTORE__ACCEPT_COLD": "true",
        "LLAMA_RELEASE_RESTORE__COLD_CYCLES": "1",
        "LLAMA_RELEASE_RESTORE__BAD": "0.04",
        # what SmolLM2 can answer in little time
        "LLAMA_RELEASE_EVALS__MARGIN": "0.15",
        "LLAMA_RELEASE_EVALS__ITEMS": "20",
        "LLAMA_RELEASE_EVALS__BATCH": "20",
        "LLAMA_RELEASE_EVALS__HARDEST": "0",
        "LLAMA_RELEASE_EVALS__LONGEST_PROMPT": "150",
        "LLAMA_RELEASE_EVALS__FAMILIES": '["instructions", "arithmetic"]',
        "LLAMA_RELEASE_API_KEY": KEY,
        "USER": "tester",
        "COLUMNS": "160",
    }
    machine = Machine(store, env)
    with own_prefect(root, port=0), machine:
        yield machine


@pytest.fixture(scope="module")
def machine(
    base: Settings,
    build: Build,  # noqa: ARG001 - made now, for the compiler cache
    older_build: Build,
    smollm2: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    """A store that has b11401 built and not b11434, whose objects are in the compiler cache."""
    with machine_with(base, (older_build,), smollm2, tmp_path_factory.mktemp("flow") / "store") as machine:
        yield machine
