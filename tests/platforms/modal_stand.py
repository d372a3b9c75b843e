"""The Modal platform on the fake Modal: real SDK, real `modal` command, containers as processes of this machine."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from modal.client import _Client

from modal_app.settings import ModalSettings
from tasks.endpoint import Client
from tasks.platforms.modal import ModalPlatform
from tasks.platforms.modal.account import COMMAND_LIMIT_S, command
from tasks.release import Build, Endpoint, Release
from tasks.settings import ServerSettings, Settings
from tasks.store import Store
from tests.fakes.modal import FakeModal
from tests.platforms.stand import KEY_ENV

KEY = "key-of-the-stages"
NO_BLOCKING = "error:A blocking Modal interface is being used in an async context."
"""PYTHONWARNINGS under which a blocking call of the SDK in an event loop is an error, here and in containers."""
SECRET = "a-secret"
PROXY_ENV = ("LLAMA_RELEASE_PROXY_KEY", "LLAMA_RELEASE_PROXY_SECRET")

# A container that the fake restores boots its code once more. What was random in the snapshotted one must be the same
# again, as it would be in a copy of its memory: so what `secrets` gives follows from the container's id.
_SITE = """
import os, random, secrets
if "MODAL_TASK_ID" in os.environ:
    secrets.token_hex = lambda n=32, r=random.Random(os.environ["MODAL_TASK_ID"]): r.randbytes(n).hex()
"""
_NVIDIA_SMI = """#!/bin/sh
case "$*" in
*driver_version*) echo "NVIDIA L40S, $NVIDIA_FAKE_DRIVER" ;;
*) cat "$(dirname "$0")/gpu-memory" ;;
esac
"""


@contextmanager
def fake_modal(folder: Path) -> Iterator[FakeModal]:
    """A fake Modal that this process and its children talk to, with a GPU's `nvidia-smi` in every container."""
    machine = folder / "machine"
    machine.mkdir(parents=True)
    (machine / "sitecustomize.py").write_text(_SITE)
    (machine / "nvidia-smi").write_text(_NVIDIA_SMI)
    (machine / "nvidia-smi").chmod(stat.S_IRWXU)
    set_gpu_memory(folder, "20000, 46068")
    given = {
        "PYTHONWARNINGS": NO_BLOCKING,
        "PYTHONPATH": f"/root:/pkg:{machine}",
        "PATH": f"{machine}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with pytest.MonkeyPatch.context() as patch, FakeModal(folder, machine=given) as fake:
        for name, value in fake.env.items():
            patch.setenv(name, value)
        patch.setenv(KEY_ENV, KEY)
        for name, value in zip(PROXY_ENV, fake.lifecycle.proxy_token, strict=True):
            patch.setenv(name, value)
        _Client._set_env_client(None)
        try:
            yield fake
        finally:
            _Client._set_env_client(None)
    assert fake.failures == []


def set_gpu_memory(folder: Path, line: str) -> None:
    """What `nvidia-smi` tells from now on: used and total MiB."""
    (folder / "machine" / "gpu-memory").write_text(line + "\n")


def platform_on_modal(folder: Path, cache: Path | None = None, **modal: Any) -> ModalPlatform:
    given = {"secret": SECRET, "start_timeout_s": 300, "server_cpu": 1.0, "idle_s": 60, "warm_starts": 0, **modal}
    return ModalPlatform(
        Settings(
            platform="modal",
            store=folder / "store",
            cache=cache or folder / "cache",
            server=ServerSettings(api_key_env=KEY_ENV),
            modal=ModalSettings(**given),
        )
    )


def create_secret(key: str = KEY) -> None:
    command("secret", "create", SECRET, f"LLAMA_API_KEY={key}", "--force", limit_s=COMMAND_LIMIT_S)


def upload(platform: ModalPlatform, build: Build, folder: Path) -> Build:
    """A finished build of this machine on the Volume, as the builder would have left it."""
    with platform.on_volume.files.volume.batch_upload(force=True) as batch:
        batch.put_directory(str(folder), f"builds/{build.digest}")
    return platform.store.save_build(build)


@dataclass(frozen=True)
class ModalStand:
    fake: FakeModal
    platform: ModalPlatform
    first: Release
    second: Release
    key: str

    def say(self) -> str:
        return say(self.platform.endpoint("staging"))


def say(endpoint: Endpoint) -> str:
    """The alias of the release that answers a request."""
    with Client(endpoint) as client:
        client.wait_healthy(120, every_s=0.2)
        answer = client.chat("Hello", max_tokens=2)
    assert answer.status == 200, answer.body
    return str(answer.body["model"])


@contextmanager
def modal_stand_in(
    folder: Path, base: Settings, build: Build, model: Path, argv: tuple[str, ...]
) -> Iterator[ModalStand]:
    """Two releases that differ in their alias, of a build that says it was made for a GPU."""
    with fake_modal(folder) as fake:
        create_secret()
        platform = platform_on_modal(folder)
        recipe = build.recipe.model_copy(update={"backend": "cuda"})
        made = upload(platform, build.model_copy(update={"recipe": recipe}), Store(base.store).build_dir(build.digest))
        ref = platform.store.put_file(model)
        first, second = (
            Release(
                upstream=made.source.upstream, tree=made.source.tree, build=made.digest, alias=alias,
                argv=(*argv, "--alias", alias), files={"model": ref},
            )
            for alias in ("first", "second")
        )  # fmt: skip
        yield ModalStand(fake, platform, first, second, KEY)


@contextmanager
def clients_of(endpoint: Endpoint) -> Iterator[list[str]]:
    """One who asks something twice a second and one who reads long answers, as a stream; what went wrong for them."""
    wrong: list[str] = []
    done = threading.Event()
    auth = {"Authorization": f"Bearer {endpoint.api_key}", **endpoint.headers}

    def ask() -> None:
        short = {"prompt": "hi", "n_predict": 1}
        while not done.wait(0.5):
            try:
                answer = httpx.post(
                    f"{endpoint.base_url}/completion", json=short, headers=auth, timeout=300, trust_env=False
                )
                got = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
            except httpx.HTTPError as error:
                got = repr(error)
            if got:
                wrong.append(got)

    def read() -> None:
        long = {"prompt": "hi", "n_predict": 3000, "ignore_eos": True, "stream": True}
        with httpx.Client(base_url=endpoint.base_url, headers=auth, timeout=300, trust_env=False) as http:
            began = ""
            while not done.is_set():
                try:
                    with http.stream("POST", "/completion", json=long) as answer:
                        began = f"{time.strftime('%X')} {answer.status_code}"
                        last = [line for line in answer.iter_lines() if line.startswith("data:")][-1:]
                except httpx.HTTPError as error:
                    last = [repr(error)]
                if not (last and '"stop":true' in last[0]):
                    wrong.append(f"a stream that began with {began} ended with {last}")

    with ThreadPoolExecutor(2) as pool:
        going = [pool.submit(ask), pool.submit(read)]
        try:
            yield wrong
        finally:
            done.set()
    for each in going:
        each.result()
