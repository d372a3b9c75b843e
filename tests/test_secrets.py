"""Secrets planted wherever a person may have one, a release's whole way, and then every word that it left behind.

One story on one machine (upgrades, a failing one, a rollback, everything that tells of it), which each test looks at.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from flows.server import prefect_server
from tasks.platforms.local import LocalPlatform
from tasks.settings import LocalSettings, Settings
from tasks.store import Store
from tests.conftest import NEWER, OLDER, own_prefect
from tests.fakes.slack import TOKEN, FakeSlack, fake_slack
from tests.flows.operations import own_api
from tests.platforms.stand import command_lines, listens_on

pytestmark = pytest.mark.real

REPOSITORY = Path(__file__).parent.parent
PATIENCE_S = 1500.0
KEY = "planted-api-key-4711"
URL_PASSWORD = "planted-url-password-4711"
PLANTED = {
    "OUR_SERVERS_WORD": KEY,
    "SLACK_BOT_TOKEN": TOKEN,
    "GITHUB_TOKEN": "planted-github-token-4711",
    "HF_TOKEN": "planted-hf-token-4711",
    "MODAL_TOKEN_ID": "planted-modal-id-4711",
    "MODAL_TOKEN_SECRET": "planted-modal-secret-4711",
    "PREFECT_API_KEY": "planted-prefect-key-4711",
    "PREFECT_SERVER_DATABASE_PASSWORD": "planted-database-password-4711",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-4711",
    "HTTPS_PROXY": "http://ada:planted-proxy-password-4711@127.0.0.1:9",
}
Place = TypeVar("Place")
SECRETS = [KEY, TOKEN, URL_PASSWORD, "planted-proxy-password-4711", *list(PLANTED.values())[2:-1]]
FAILING = {
    # an upstream that does not answer, at an address with a password: every error message is about that address
    "LLAMA_RELEASE_UPSTREAM__KIND": "github",
    "LLAMA_RELEASE_UPSTREAM__API_URL": f"http://ada:{URL_PASSWORD}@127.0.0.1:9",
}


@dataclass
class Story:
    """What was left behind."""

    platform: LocalPlatform
    slack: FakeSlack
    said: dict[str, str] = field(default_factory=dict)
    environments: dict[int, bytes] = field(default_factory=dict)

    def files(self) -> dict[Path, bytes]:
        """What lies in the store, but for builds, models and the snapshots, which hold the API key."""
        root = self.platform.store.root
        found = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != "builds"]
        return {path: path.read_bytes() for path in found if path.suffix != ".gguf" and "snapshots" not in path.parts}


def holding(texts: Mapping[Place, bytes]) -> list[tuple[Place, str]]:
    """(where, which secret) of each that is found."""
    return [(place, secret) for place, text in texts.items() for secret in SECRETS if secret.encode() in text]


@pytest.fixture(scope="module")
def story(built: Settings, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    store = Store(tmp_path_factory.mktemp("secrets") / "store")
    shutil.copytree(Store(built.store).root / "builds", store.root / "builds", copy_function=os.link)
    settings = Settings(store=store.root, cache=built.cache, local=LocalSettings(staging_port=0, production_port=0))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "PREFECT_", "DEMO_"))}
    with fake_slack() as slack:
        env |= PLANTED | {
            "NO_PROXY": "*",
            "LLAMA_RELEASE_STORE": str(store.root),
            "LLAMA_RELEASE_CACHE": str(built.cache),
            "LLAMA_RELEASE_SERVER__API_KEY_ENV": "OUR_SERVERS_WORD",
            "LLAMA_RELEASE_SERVER__MODEL": str(scripted_model),
            "LLAMA_RELEASE_SERVER__THREADS": "1",
            "LLAMA_RELEASE_LOCAL__STAGING_PORT": "0",
            "LLAMA_RELEASE_LOCAL__PRODUCTION_PORT": "0",
            "LLAMA_RELEASE_RESTORE__ACCEPT_COLD": "true",
            "LLAMA_RELEASE_RESTORE__COLD_CYCLES": "1",
            "LLAMA_RELEASE_RESTORE__BAD": "0.04",
            "LLAMA_RELEASE_EVALS__MARGIN": "0.15",
            "LLAMA_RELEASE_EVALS__ITEMS": "20",
            "LLAMA_RELEASE_EVALS__BATCH": "20",
            "LLAMA_RELEASE_EVALS__HARDEST": "0",
            "LLAMA_RELEASE_EVALS__LONGEST_PROMPT": "150",
            "LLAMA_RELEASE_EVALS__FAMILIES": '["instructions", "arithmetic"]',
            "LLAMA_RELEASE_NOTIFY__SLACK_CHANNEL": "#releases",
            "LLAMA_RELEASE_NOTIFY__SLACK_API_URL": slack.url,
            "USER": "tester",
            "COLUMNS": "160",
        }
        told = Story(LocalPlatform(settings), slack)

        def run(*words: str, code: int = 0, **more: str) -> None:
            done = subprocess.run(
                [sys.executable, "-m", "flows", *words], cwd=REPOSITORY, env=env | more, text=True, timeout=PATIENCE_S,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            told.said[f"{words} {len(told.said)}"] = done.stdout
            assert done.returncode == code, done.stdout

        with ExitStack() as ends, pytest.MonkeyPatch.context() as planted:
            for name, value in PLANTED.items():
                planted.setenv(name, value)
            ends.enter_context(own_prefect(store.root, port=0))
            planted.undo()
            ends.callback(told.platform.stop, "staging")
            ends.callback(told.platform.stop, "production")
            run("upgrade", "--to", OLDER, "--approver", "alice")
            run("upgrade", "--to", NEWER, "--approver", "alice")
            run("upgrade", code=3, **FAILING)
            told.environments = environments(store.root)
            run("rollback", "--reason", "tool calls broke", "--by", "carol")
            for words in (["status"], ["history", "--json"], ["doctor"], ["report"]):
                run(*words)
            yield told


def environments(root: Path) -> dict[int, bytes]:
    """pid -> environment of the processes that this store's stages consist of."""
    mine = [pid for pid, words in command_lines().items() if str(root) in " ".join(words)]
    return {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in mine}


def test_no_command_says_a_secret(story: Story) -> None:
    assert holding({name: text.encode() for name, text in story.said.items()}) == []
    failed = [text for name, text in story.said.items() if "127.0.0.1:9" in text]
    assert len(failed) == 1
    assert all("http://[hidden]@127.0.0.1:9" in text for text in failed)


def test_no_secret_is_in_the_store_its_ledger_its_logs_its_report_or_prefects_database(story: Story) -> None:
    found = story.files()
    kinds = {path.relative_to(story.platform.store.root).parts[0] for path in found}
    assert {"ledger", "dossiers", "answers", "reports", "prefect", "run", "stages"} <= kinds
    assert holding(found) == []


def test_no_artifact_log_line_or_state_of_a_run_holds_a_secret(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with prefect_server(story.platform.store.root) as page:
        api = own_api(story.platform.store.root, page)

        def everything(kind: str) -> list[str]:
            found: list[str] = []
            while (
                batch := api.call("POST", f"/{kind}/filter", {"offset": len(found), "limit": 200})
                .raise_for_status()
                .json()
            ):
                found += map(json.dumps, batch)
            return found

        servers = [pid for pid, words in command_lines().items() if {"flows.door", page} <= {*words}]
        assert {address for pid in servers for address in listens_on(pid)} == {"127.0.0.1"}
        told = {kind: everything(kind) for kind in ("artifacts", "flow_runs", "task_runs", "logs")}
    assert all(len(found) >= 3 for found in told.values())
    assert "http://[hidden]@127.0.0.1:9" in "".join(told["artifacts"]), "the failed row is an artifact too"
    assert holding({kind: "".join(found).encode() for kind, found in told.items()}) == []


def test_the_page_of_a_server_that_is_given_with_a_password_is_named_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"https://ada:{URL_PASSWORD}@prefect.invalid/api")
    with prefect_server(Path("unused")) as page:
        assert page == "https://[hidden]@prefect.invalid"


def test_no_message_holds_a_secret(story: Story) -> None:
    assert any("stopped at upstream" in title for title in story.slack.titles())
    assert holding({"slack": json.dumps(story.slack.messages).encode()}) == []


def test_a_stage_knows_no_secret_but_its_own_key(story: Story) -> None:
    assert len(story.environments) >= 2
    assert {secret for _, secret in holding(story.environments)} <= {KEY}


def test_snapshots_hold_the_key_no_other_secret_and_are_their_owners_alone(story: Story) -> None:
    folders = list(story.platform.store.root.glob("run/*/snapshots"))
    images = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    if not images:
        pytest.skip(f"no snapshots here: {story.platform.snapshots()}")
    assert {secret for _, secret in holding({path: path.read_bytes() for path in images})} == {KEY}
    assert {stat.S_IMODE(path.stat().st_mode) for path in images} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
