"""docs/operations.md for more than one machine, as it stands there: PostgreSQL, a Prefect server with a password, and
two workers with folders and caches of their own and one store."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import httpx
import pytest

from tasks.contracts import scripted
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.proc import free_port
from tasks.release import Build, StageName
from tasks.settings import Settings
from tasks.store import Store
from tests.conftest import NEWER, _link, migrated
from tests.flows.conftest import KEY, REPOSITORY
from tests.flows.operations import COMMAND_S, Api, Shell, environment, serving, wait_for
from tests.flows.postgres import Postgres, postgres
from tests.platforms.stand import command_lines

pytestmark = pytest.mark.real


@dataclass
class Site:
    """A team's machines: where Prefect runs, and two where work is done."""

    api: Api
    database: Postgres
    store: Store
    server: Shell
    first: Shell
    second: Shell


@pytest.fixture
def site(base: Settings, build: Build, tmp_path: Path) -> Iterator[Site]:
    with postgres() as database:
        port, password = free_port(), f"admin:{secrets.token_urlsafe(16)}"
        api = Api(f"http://127.0.0.1:{port}/api", password)
        store = store_of(base, build, tmp_path)
        everywhere = {"PREFECT_API_URL": api.url, "PREFECT_API_AUTH_STRING": password}
        server = Shell(
            machine(tmp_path / "server"),
            environment(tmp_path / "server" / "prefect")
            | everywhere
            | {
                "PREFECT_SERVER_API_AUTH_STRING": password,
                "PREFECT_SERVER_API_PORT": str(port),
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.url,
            },
        )
        model = scripted.build(scripted.thinks_then_answers(3), tmp_path / "model.gguf")
        workers = []
        for name in ("first", "second"):
            folder = machine(tmp_path / name)
            settings_file(folder, base, store, model, cache=folder / "cache")
            # stands for what each would download for itself
            shutil.copytree(base.cache / "downloads", folder / "cache" / "downloads", copy_function=_link)
            env = environment(folder / "prefect") | everywhere | {"LLAMA_RELEASE_API_KEY": KEY}
            workers.append(Shell(folder, env))
        found = Site(api, database, store, server, *workers)
        try:
            yield found
        finally:
            stop(store)
            for shell in (*workers, server):
                shell.end()


def machine(folder: Path) -> Path:
    folder.mkdir()
    return folder


def store_of(base: Settings, build: Build, folder: Path) -> Store:
    """A store that has what was compiled on this machine of the release."""
    store, made = Store(folder / "store"), Store(base.store)
    for each in made.builds():
        if each.tag == build.tag:
            shutil.copytree(made.build_dir(each.digest), store.build_dir(each.digest), copy_function=_link)
    return store


def settings_file(folder: Path, base: Settings, store: Store, model: Path, cache: Path) -> None:
    (folder / "llama-release.toml").write_text(f"""
store = "{store.root}"
cache = "{cache}"
patches = "{base.patches}"

[server]
model = "{model}"
alias = "scripted"
threads = 1
ctx_per_slot = 2048

[local]
staging_port = 0
production_port = 0
snapshots = "off"

[restore]
accept_cold = true
cold_cycles = 1
bad = 0.04

[evals]
items = 20
batch = 20
hardest = 0
families = ["arithmetic", "instructions", "structured"]
""")


def stop(store: Store) -> None:
    platform = LocalPlatform(Settings(store=store.root))
    for stage in get_args(StageName):
        platform.stop(stage)


@pytest.fixture
def served(base: Settings, build: Build, tmp_path: Path) -> Iterator[Shell]:
    """A small team's folder, on a machine that has the release compiled."""
    folder = machine(tmp_path / "team")
    store = store_of(base, build, folder)
    migrated(store.root / "prefect")
    model = scripted.build(scripted.thinks_then_answers(3), folder / "model.gguf")
    settings_file(folder, base, store, model, cache=base.cache)
    found = Shell(folder, environment(folder / "prefect") | {"LLAMA_RELEASE_API_KEY": KEY})
    yield found
    stop(store)
    found.end()


@pytest.mark.long
def test_an_upgrade_that_one_worker_suspended_is_promoted_by_another(site: Site) -> None:
    site.server.start("prefect server start", log="server.log")
    wait_for(lambda: healthy(site.api))
    site.server.run("prefect work-pool create llama-release --type process")
    site.server.run("prefect deploy --all --no-prompt", "--prefect-file", str(REPOSITORY / "prefect.yaml"))

    start = "prefect worker start --pool llama-release --type process --limit 4 --name"
    first = site.first.start(f"{start} first", log="worker.log")
    site.server.run(f"prefect deployment run upgrade/production -p to={NEWER}")
    (run,) = wait_for(lambda: [each["id"] for each in runs(site.api)])
    site.api.reaches(run, "Suspended")
    wait_for(lambda: "Finished in state Suspended" in site.first.said("worker.log"))
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    asked = site.store.request(run)
    assert asked
    assert (asked.state, asked.tag) == ("open", NEWER)
    assert site.store.pointer("production").release is None

    site.second.start(f"{start} second", log="worker.log")
    answer = {"run_input": {"decision": "approve", "approver": "ada", "note": "from the page"}}
    resumed = site.api.call("POST", f"/flow_runs/{run}/resume", answer)
    assert resumed.json()["status"] == "ACCEPT", resumed.text
    site.api.reaches(run, "Promoted")

    assert f"Worker 'first' submitting flow run '{run}'" in site.first.said("worker.log")
    assert f"Worker 'second' submitting flow run '{run}'" in site.second.said("worker.log")
    assert site.store.pointer("production").release == asked.release
    assert [e.kind for e in site.store.ledger()].count("approval_wanted") == 1
    assert answered_by(site.store) == NEWER

    assert site.database.run("psql", "-Atc", f"select state_name from flow_run where id = '{run}'", "prefect") == (
        "Promoted\n"
    )
    assert KEY not in site.database.run("pg_dump", "prefect")


def test_serve_that_is_stopped_ends_its_run_and_keeps_those_that_wait_for_a_person(served: Shell) -> None:
    store = Store(served.folder / "store")
    serve, api = serving(served)
    killed = api.begin("upgrade/production", {"to": NEWER})
    wait_for(lambda: list(store.root.glob("dossiers/*/contracts.*.json")))
    end(serve)

    serve, api = serving(served)
    waits = api.begin("upgrade/production", {"to": NEWER})
    api.reaches(waits, "Suspended")
    assert api.state(killed)[0] == "Crashed"
    wait_for(lambda: not any("prefect.engine" in command_lines().get(pid, []) for pid in served.processes()))
    end(serve)

    serve, api = serving(served)
    assert api.state(waits)[0] == "Suspended"
    answer = {"run_input": {"decision": "approve", "approver": "ada"}}
    assert api.call("POST", f"/flow_runs/{waits}/resume", answer).json()["status"] == "ACCEPT"
    api.reaches(waits, "Promoted")
    end(serve)
    assert answered_by(store) == NEWER, "production outlasts serve"


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(COMMAND_S) == 0


def healthy(api: Api) -> bool:
    try:
        return api.call("GET", "/health").status_code == 200
    except httpx.HTTPError:
        return False


def runs(api: Api) -> list[dict[str, str]]:
    """Those of the upgrade that somebody started."""
    flow = {"flows": {"name": {"any_": ["upgrade"]}}}
    found = api.call("POST", "/flow_runs/filter", flow).raise_for_status().json()
    return [run for run in found if not run["auto_scheduled"]]


def answered_by(store: Store) -> str:
    """The build that answers at production's address."""
    endpoint = LocalPlatform(Settings(store=store.root)).endpoint("production")
    answer = httpx.post(
        f"{endpoint.base_url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
        headers={"Authorization": f"Bearer {KEY}"}, timeout=120, trust_env=False,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return str(answer.json()["system_fingerprint"]).split("-")[0]
