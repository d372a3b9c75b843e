"""The deployments of prefect.yaml on the server that `llama-release serve` runs, and what is refused there."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime

import pytest
from prefect.client.schemas.schedules import CronSchedule

from flows.server import prefect_server
from tasks.platforms.local.proc import is_alive
from tasks.release import BadInput
from tests.flows.operations import COMMAND_S, Api, Shell, environment, serving, wait_for

pytestmark = pytest.mark.wire

SCHEDULED_S = 150.0
"""Prefect looks for what to schedule every minute, and at what was just deployed every five seconds."""
FLOWS = ("upgrade", "redeploy", "rollback", "restore-watch")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Somebody's folder with settings in it, and a shell without the API key. Prefect makes its database here."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "llama-release.toml").write_text(
        f'store = "{folder}/store"\n[local]\nstaging_port = 0\nproduction_port = 0\n'
    )
    found = Shell(folder, environment(folder / "prefect"))
    yield found
    found.end()


@pytest.fixture(scope="module")
def api(shell: Shell) -> Api:
    """Prefect's API once `serve` has said where its page is."""
    return serving(shell)[1]


@pytest.mark.parametrize("flow", FLOWS)
def test_a_person_reads_in_the_page_what_a_deployment_does_and_takes(api: Api, flow: str) -> None:
    deployed = api.deployment(f"{flow}/production")
    assert len(deployed["description"]) > 80
    assert "llama-release" in deployed["tags"]
    assert deployed["enforce_parameter_schema"]
    assert deployed["concurrency_limit"] is None
    undescribed = [n for n, p in deployed["parameter_openapi_schema"]["properties"].items() if not p.get("description")]
    assert undescribed == []


def test_upgrade_and_watch_are_scheduled_in_a_named_time_zone_and_the_others_are_not(api: Api) -> None:
    schedules = {flow: api.deployment(f"{flow}/production")["schedules"] for flow in FLOWS}
    assert {flow for flow, found in schedules.items() if found} == {"upgrade", "restore-watch"}
    for found in (*schedules["upgrade"], *schedules["restore-watch"]):
        assert found["active"]
        assert CronSchedule.model_validate(found["schedule"]).timezone == "Etc/UTC"


def test_the_server_makes_the_runs_of_what_is_scheduled_and_no_others(api: Api) -> None:
    def made() -> dict[str, dict[str, datetime]]:
        return {flow: runs for flow in FLOWS if (runs := api.scheduled(f"{flow}/production"))}

    wait_for(lambda: len(made()) >= 2, SCHEDULED_S)
    runs = made()
    assert set(runs) == {"upgrade", "restore-watch"}
    assert {at.minute % 15 for at in runs["restore-watch"].values()} == {0}
    assert {(at.hour, at.minute) for at in runs["upgrade"].values()} == {(6, 0)}


@pytest.mark.parametrize(
    ("flow", "parameters", "field"),
    [
        ("upgrade", {"to": "latest"}, "to"),
        ("upgrade", {"to": "b11434; rm -rf /"}, "to"),
        ("upgrade", {"again": "maybe"}, "again"),
        ("rollback", {"by": "  ", "reason": "tool calls broke"}, "by"),
        ("rollback", {"by": "ada"}, "reason"),
        ("rollback", {"by": "ada", "reason": "worse", "to": "b11434"}, "to"),
        ("redeploy", {"by": "ada", "reason": ""}, "reason"),
        ("redeploy", {"by": "ada", "reason": "new key", "release": "latest"}, "release"),
    ],
)
def test_a_senseless_parameter_is_refused_before_there_is_a_run(
    api: Api, flow: str, parameters: dict[str, object], field: str
) -> None:
    answer = api.create(f"{flow}/production", parameters)
    assert answer.status_code == 409, answer.text
    assert f"'{field}'" in answer.json()["detail"]


def test_an_unknown_parameter_is_refused_before_the_first_line_of_the_flow(shell: Shell, api: Api) -> None:
    here = Shell(shell.folder, shell.env | {"PREFECT_API_URL": api.url})
    said = here.run("prefect deployment run upgrade/production", "-p", "tag=b11434", code=1)
    assert "'tag'" in said
    assert "'to', 'again'" in said

    past_it = api.begin("upgrade/production", {"tag": "b11434"})
    api.reaches(past_it, "Crashed")
    assert "Function expects parameters ['to', 'again'] but was provided with parameters ['tag']" in wait_for(
        lambda: api.logs(past_it)
    )
    assert not (shell.folder / "store" / "ledger").exists()


def test_a_run_says_in_one_error_all_that_its_worker_lacks(shell: Shell, api: Api) -> None:
    run = api.begin("upgrade/production", {})
    wait_for(lambda: api.state(run)[0] == "Failed")
    _, message = api.state(run)
    assert "the worker that started this run lacks what production is served with" in message
    assert f"no model: {shell.folder}/llama-release.toml sets none" in message
    assert "no API key: LLAMA_RELEASE_API_KEY is not set" in message
    assert not (shell.folder / "store" / "ledger").exists()


@pytest.mark.usefixtures("api")
def test_the_command_line_refuses_the_same_as_one_clear_error(shell: Shell) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows", "upgrade", "--to", "latest"], cwd=shell.folder, env=shell.env,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "to: String should match pattern" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_commands_of_the_store_use_its_server_and_its_port_is_taken_for_others(
    shell: Shell, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with prefect_server(shell.folder / "store") as page:
        assert f"{page}/api" == api.url
    port = int(api.url.removesuffix("/api").rpartition(":")[2])
    with pytest.raises(BadInput, match="runs for this store already"), prefect_server(shell.folder / "store", 0):
        pass
    with pytest.raises(BadInput, match=f"port {port} is taken"), prefect_server(shell.folder / "other", port):
        pass


def test_a_schedule_with_an_interval_gets_its_runs_and_they_start(api: Api) -> None:
    """With Prefect 3.8 and SQLAlchemy 2.1 the server answered, and no run was ever made."""
    watch = "restore-watch/production"
    with api.every(20, watch) as schedule:
        wait_for(lambda: len(api.scheduled(watch, schedule)) >= 2, SCHEDULED_S)
        runs = sorted(api.scheduled(watch, schedule).items(), key=lambda run: run[1])
        assert {(later - at).total_seconds() % 20 for (_, at), (_, later) in itertools.pairwise(runs)} == {0}
        wait_for(lambda: api.state(runs[0][0])[0] not in ("Scheduled", "Late", "Pending"), SCHEDULED_S)


@pytest.mark.usefixtures("api")
def test_told_to_stop_it_ends_with_all_that_it_started(shell: Shell) -> None:
    (process,) = shell.started
    mine = shell.processes()
    assert len(mine) >= 3, "itself, the Prefect server, the worker"
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    wait_for(lambda: not any(map(is_alive, mine)), 60)
    assert not (shell.folder / "store" / "prefect" / "serving").exists()
