"""The whole upgrade on Modal: the command line of a user against a fake Modal, whose containers run real servers.

The steps build on each other and run in order. What was compiled on this machine before stands for what Modal's
builder would make of the same trees (tests/platforms/test_modal_building.py runs the builder itself).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import httpx
import pytest

from tasks.contracts import scripted
from tasks.endpoint import Client
from tasks.platforms.modal import ModalPlatform, apps
from tasks.platforms.modal.account import COMMAND_LIMIT_S, command
from tasks.platforms.modal.building import toolchain
from tasks.release import BootKind, Build, StageName
from tasks.settings import Settings
from tasks.store import Store
from tests import laptop
from tests.conftest import NEWER, OLDER, own_prefect
from tests.fakes.modal import FakeModal
from tests.laptop import laptop_in
from tests.platforms.modal_stand import KEY, NO_BLOCKING, create_secret, fake_modal, platform_on_modal, upload
from tests.platforms.stand import KEY_ENV

pytestmark = pytest.mark.real

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 1500.0
PLANTED = {"GITHUB_TOKEN": "planted-github-token-4711", "HF_TOKEN": "planted-hf-token-4711"}


@dataclass
class Account:
    """A Modal account, and the machine that a user's commands run on."""

    fake: FakeModal
    platform: ModalPlatform
    env: dict[str, str]
    said: list[str] = field(default_factory=list)

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command to its end; what it printed. Fails when the exit code is another."""
        done = subprocess.run(
            [sys.executable, "-m", "flows", *words], cwd=REPOSITORY, env=self.env, text=True, timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.said.append(done.stdout)
        assert done.returncode == code, f"{words} exited {done.returncode}:\n{done.stdout}"
        return done.stdout

    def tag(self, stage: StageName) -> str | None:
        """The tag that the store's pointer of a stage names."""
        store = self.platform.store
        pointer = store.pointer(stage)
        return store.get_release(pointer.release).upstream.tag if pointer.release else None

    def answered_by(self, stage: StageName) -> str:
        endpoint = self.platform.endpoint(stage)
        with Client(endpoint) as client:
            client.wait_healthy(120, every_s=0.2)
        answer = httpx.post(
            f"{endpoint.base_url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
            headers={"Authorization": f"Bearer {KEY}", **endpoint.headers}, timeout=120, trust_env=False,
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        return str(answer.json()["system_fingerprint"]).split("-")[0]

    def kinds(self, stage: StageName) -> list[BootKind]:
        return [boot.kind for boot in self.platform.boots(stage)]


@pytest.fixture(scope="module")
def account(
    built: Settings, build_at: Callable[[str], Build], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Account]:
    """An account with nothing in it but what the builder would make of the trees that the flow wants."""
    # what the proof compares with, too: without the compiler cache of this machine the fake's builder takes ten minutes
    for tag in (OLDER, NEWER):
        build_at(tag)
    folder = tmp_path_factory.mktemp("modal-flow")
    model = scripted.build(scripted.thinks_then_answers(3), folder / "scripted.gguf")
    with fake_modal(folder / "fake") as fake:
        create_secret()
        platform = platform_on_modal(folder, cache=built.cache)
        local = Store(built.store)
        for made in local.builds():
            if made.tag in (OLDER, NEWER):
                tools = toolchain(made.recipe, platform.settings.modal)
                digest = Build.identity(made.source, made.recipe, tools)
                upload(
                    platform,
                    made.model_copy(update={"digest": digest, "toolchain": tools}),
                    local.build_dir(made.digest),
                )
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DEMO_"))}
        env |= {
            "LLAMA_RELEASE_PLATFORM": "modal",
            "LLAMA_RELEASE_MODAL": platform.settings.modal.model_dump_json(),
            "LLAMA_RELEASE_STORE": str(platform.settings.store),
            "LLAMA_RELEASE_CACHE": str(built.cache),
            "LLAMA_RELEASE_SERVER__MODEL": str(model),
            "LLAMA_RELEASE_SERVER__ALIAS": "scripted",
            "LLAMA_RELEASE_SERVER__THREADS": "1",
            "LLAMA_RELEASE_SERVER__CTX_PER_SLOT": "2048",
            "LLAMA_RELEASE_SERVER__API_KEY_ENV": KEY_ENV,
            "LLAMA_RELEASE_RESTORE__COLD_CYCLES": "1",
            "LLAMA_RELEASE_RESTORE__BAD": "0.04",
            # a scripted model reads letter by letter: what is long for it is short for others
            "LLAMA_RELEASE_EVALS__ITEMS": "20",
            "LLAMA_RELEASE_EVALS__BATCH": "20",
            "LLAMA_RELEASE_EVALS__HARDEST": "0",
            "LLAMA_RELEASE_EVALS__FAMILIES": '["arithmetic", "instructions", "structured"]',
            **PLANTED,
            "PYTHONWARNINGS": NO_BLOCKING,
            "PYTHONPATH": str(REPOSITORY),
            "USER": "tester",
            "COLUMNS": "160",
        }
        with own_prefect(platform.settings.store, port=0):
            yield Account(fake, platform, env)


def test_the_first_release_goes_the_whole_way_to_production(account: Account, tmp_path: Path) -> None:
    """From a machine that is no Linux, where that can be had here: people who serve on Modal sit at one."""
    run = account.run if laptop.why_not() else partial(laptop_in(tmp_path, account.env).run, timeout_s=PATIENCE_S)
    said = run("upgrade", "--to", OLDER, "--approver", "alice")
    assert "2 of 2 restored" in said
    assert account.tag("production") == OLDER == account.answered_by("production")
    assert account.kinds("staging") == [BootKind.CREATED, *[BootKind.RESTORED] * 2]
    status = {each["stage"]: each for each in json.loads(run("status", "--json"))}
    assert status["production"]["release"] == account.platform.store.pointer("production").release
    refused = run("rollback", "--reason", "none is retained", "--by", "carol", code=2)
    assert Path(run("report").strip().splitlines()[-1]).is_file()
    account.said += (said, refused)


def test_the_next_release_replaces_it_and_the_earlier_one_is_retained(account: Account) -> None:
    account.run("upgrade", "--to", NEWER, "--approver", "alice")
    assert account.tag("production") == NEWER == account.answered_by("production")
    pointer = account.platform.store.pointer("production")
    assert [account.platform.store.get_release(r).upstream.tag for r in pointer.retained] == [OLDER]


def test_rollback_is_complete_when_the_earlier_release_answers(account: Account) -> None:
    account.run("rollback", "--reason", "tool calls broke", "--by", "carol")
    assert account.tag("production") == OLDER == account.answered_by("production")
    assert "production is on hold" in account.run("upgrade", "--to", NEWER, "--approver", "alice", code=2)


def test_status_and_history_read_the_store_on_the_volume(account: Account) -> None:
    status = {s["stage"]: s for s in json.loads(account.run("status", "--json"))}
    assert account.platform.store.get_release(status["production"]["release"]).upstream.tag == OLDER
    kinds = [event["kind"] for event in json.loads(account.run("history", "--json", "--last", "500"))]
    assert kinds.count("promoted") == 2
    assert kinds.count("rolled_back") == 1


@pytest.mark.usefixtures("account")
def test_no_trial_is_left() -> None:
    listed = json.loads(command("app", "list", "--json", limit_s=COMMAND_LIMIT_S).stdout)
    assert {app["description"] for app in listed if app["state"] == "deployed"} == {
        "llama-release-staging", "llama-release-production", "llama-release-tools",
    }  # fmt: skip


def test_no_secret_is_said_logged_or_kept_on_the_volume_or_here(account: Account) -> None:
    account.run("report")
    account.run("doctor")
    secrets = [KEY, account.fake.token[1], *account.fake.lifecycle.proxy_token, *PLANTED.values()]
    folders = (account.fake.folder / "volumes", account.platform.settings.store)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    texts = {str(path): path.read_bytes() for path in files if path.stat().st_size < 10_000_000}
    assert any("ledger" in name for name in texts) and any(name.endswith(".html") for name in texts)
    texts |= {"said": "".join(account.said).encode(), "logs": account.fake.logs.text().encode()}
    assert [(name, secret) for name, text in texts.items() for secret in secrets if secret.encode() in text] == []


def test_a_redeploy_of_the_same_release_is_a_new_version_of_both_apps_with_a_new_snapshot_and_the_new_key(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = account.platform.settings.modal
    stages: tuple[StageName, ...] = get_args(StageName)
    before = {stage: apps.version(settings, settings.stage_app(stage)) or 0 for stage in stages}
    known = {stage: len(account.kinds(stage)) for stage in stages}
    create_secret("key-of-after-the-rotation")
    monkeypatch.setenv(KEY_ENV, "key-of-after-the-rotation")
    monkeypatch.setitem(account.env, KEY_ENV, "key-of-after-the-rotation")
    account.run("redeploy", "--reason", "new API key", "--by", "carol")
    assert {stage: apps.version(settings, settings.stage_app(stage)) for stage in stages} == {
        stage: version + 1 for stage, version in before.items()
    }
    assert account.kinds("staging")[known["staging"] :] == [BootKind.CREATED, *[BootKind.RESTORED] * 2]
    assert account.kinds("production")[known["production"] :] == [BootKind.CREATED]
    with Client(account.platform.endpoint("production")) as client:
        assert client.get("/slots").status == 200
        assert client.get("/slots", key=KEY).status == 401
    pointer = account.platform.store.pointer("production")
    assert account.tag("production") == OLDER and pointer.hold and pointer.generation(pointer.release)
