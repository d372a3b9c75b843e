"""The deployments of prefect.yaml on the server that `llama-release serve` runs, and what is refused there."""

from __future__ import annotations

import itertools
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime

import httpx
import pytest
from prefect.client.schemas.schedules import CronSchedule

from flows.server import prefect_server
from tasks.platforms.local.proc import is_alive
from tasks.release import BadInput
from tests.flows.operations import COMMAND_S, Api, Shell, environment, serving, wait_for
from tests.platforms.stand import command_lines

pytestmark = pytest.mark.wire

SCHEDULED_S = 150.0
"""Prefect looks for what to schedule every minute, and at what was just deployed every five seconds."""
FLOWS = ("upgrade", "redeploy", "rollback", "restore-watch", "patches-watch")
SCHEDULED = {"upgrade", "restore-watch", "patches-watch"}


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
    assert {flow for flow, found in schedules.items() if found} == SCHEDULED
    for found in (each for flow in SCHEDULED for each in schedules[flow]):
        assert found["active"]
        assert CronSchedule.model_validate(found["schedule"]).timezone == "Etc/UTC"


def test_the_server_makes_the_runs_of_what_is_scheduled_and_no_others(api: Api) -> None:
    def made() -> dict[str, dict[str, datetime]]:
        return {flow: runs for flow in FLOWS if (runs := api.scheduled(f"{flow}/production"))}

    wait_for(lambda: len(made()) >= len(SCHEDULED), SCHEDULED_S)
    runs = made()
    assert set(runs) == SCHEDULED
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
        ("rollback", {"by": "ada", "reason": "worse", "to": "the last one"}, "to"),
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
    here = Shell(shell.folder, shell.env | {"PREFECT_API_URL": api.url, "PREFECT_API_AUTH_STRING": api.password})
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
    assert "is no tag of upstream" in done.stderr
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


EVIL = "http://evil.example"


def told(api: Api, path: str, method: str = "GET", password: str | None = None, **headers: str) -> int:
    """The status of what somebody is answered who knows this password, the right one by default."""
    given = api.password if password is None else password
    user, _, secret = given.partition(":")
    auth = (user, secret) if given else None
    body = "{}" if method == "POST" else None
    return httpx.request(
        method, f"{api.url}{path}", headers=headers, auth=auth, content=body, trust_env=False, timeout=60
    ).status_code


SOCKET = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


@pytest.mark.parametrize("password", ["", "admin:admin", "llama-release:", ":"])
def test_without_the_password_nothing_is_answered_and_nothing_begun(api: Api, password: str) -> None:
    upgrade = api.deployment("upgrade/production")["id"]
    assert told(api, f"/deployments/{upgrade}") == 200
    assert told(api, f"/deployments/{upgrade}", password=password) == 401
    assert told(api, "/flow_runs/filter", "POST", password, **forged(api)) == 401
    assert told(api, f"/deployments/{upgrade}/create_flow_run", "POST", password, **forged(api)) == 401
    assert told(api, "/events/in", password=password, **SOCKET) == 403


def forged(api: Api) -> dict[str, str]:
    """A CSRF token, as somebody has it who was let in once."""
    api.call("POST", "/flows/filter", {})
    return api.csrf


@pytest.mark.parametrize("origin", [EVIL, "http://127.0.0.1", "http://127.0.0.1:1", "https://localhost:4200", "null"])
def test_a_web_page_of_another_origin_is_refused_whatever_it_knows(api: Api, origin: str) -> None:
    assert told(api, "/admin/version", **{"Origin": origin}) == 403
    assert told(api, "/flow_runs/filter", "POST", **forged(api), Origin=origin) == 403
    assert told(api, "/events/in", **SOCKET, Origin=origin) == 403
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{api.url}/flow_runs/filter", headers=asked, trust_env=False)
    assert "Access-Control-Allow-Origin" not in preflight.headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4200", "127.0.0.1.evil.example", "127.0.0.2", "[::1", ""]
)
def test_a_name_that_somebody_points_at_this_machine_is_refused(api: Api, host: str) -> None:
    """DNS rebinding: to the browser the page of evil.example is of the same origin then."""
    assert told(api, "/admin/version", Host=host) == 403
    assert told(api, "/../ui-settings", Host=host) == 403
    assert told(api, "/events/in", **SOCKET, Host=host) == 403


def test_its_own_page_is_served_under_its_own_names_and_changes_nothing_without_a_token(api: Api) -> None:
    port = api.url.removesuffix("/api").rpartition(":")[2]
    for own in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        host = own.removeprefix("http://")
        assert told(api, "/admin/version", Origin=own, Host=host) == 200
        assert told(api, "/flow_runs/filter", "POST", **forged(api), Origin=own, Host=host) == 200
        assert told(api, "/flow_runs/filter", "POST", Origin=own, Host=host) == 403


def test_the_password_is_for_its_owners_eyes_and_in_no_log_and_no_command_line(shell: Shell, api: Api) -> None:
    kept = shell.folder / "store" / "prefect" / "password"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    word = api.password.partition(":")[2]
    assert len(word) >= 32
    assert not [words for words in command_lines().values() if word in " ".join(words)]
    holding = [path for path in shell.folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]
    assert holding == [kept]
    assert str(kept) in shell.said("serve.log")


@pytest.mark.parametrize(
    "variables",
    [
        {"command": "touch CANARY"}, {"env": {"PYTHONSTARTUP": "x.py"}}, {"env.PYTHONPATH": "/tmp"}, {"image": "evil"},
        {"working_dir": "/tmp"}, {"name": "x"}, {"labels": {"a": "b"}}, {"stream_output": False},
    ],
)  # fmt: skip
def test_a_run_may_set_nothing_of_how_it_is_run(api: Api, variables: dict[str, object]) -> None:
    answer = api.create("upgrade/production", {}, job_variables=variables)
    assert answer.status_code in (409, 422), answer.text
    assert "Error creating flow run" in answer.json()["detail"]


def test_a_schedule_with_an_interval_gets_its_runs_and_they_start(api: Api) -> None:
    """With Prefect 3.8 and SQLAlchemy 2.1 the server answered, and no run was ever made."""
    watch = "restore-watch/production"
    with api.every(20, watch) as schedule:
        wait_for(lambda: len(api.scheduled(watch, schedule)) >= 2, SCHEDULED_S)
        runs = sorted(api.scheduled(watch, schedule).items(), key=lambda run: run[1])
        assert {(later - at).total_seconds() % 20 for (_, at), (_, later) in itertools.pairwise(runs)} == {0}
        wait_for(lambda: api.state(runs[0][0])[0] not in ("Scheduled", "Late", "Pending"), SCHEDULED_S)


def test_whoever_has_the_password_still_runs_no_command_of_his_own(shell: Shell, api: Api) -> None:
    """Not by the pool's template, not by a deployment's variables, pull steps and entrypoint, nor by one of his own."""
    canary = shell.folder / "canary"
    (shell.folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    command = f"touch {canary}"
    default = {"type": "object", "properties": {"command": {"type": "string", "default": command}}}
    template = {"job_configuration": {"command": "{{ command }}"}, "variables": default}
    api.call("PATCH", "/work_pools/llama-release", {"base_job_template": template}).raise_for_status()
    evil = {
        "work_pool_name": "llama-release", "entrypoint": "evil.py:main", "path": str(shell.folder),
        "pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": command}}],
        "job_variables": {"command": command}, "enforce_parameter_schema": False,
    }  # fmt: skip

    def deploy(flow: str, name: str) -> str:
        made = api.call("POST", "/deployments/", {"flow_id": flow, "name": name, **evil}).raise_for_status().json()
        assert {key: made[key] for key in evil} == evil
        return str(made["id"])

    def end(deployment: str, **parameters: str) -> tuple[str, str]:
        made = api.call("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": parameters}).json()["id"]

        def over() -> tuple[str, str] | None:
            assert not canary.exists()
            return state if (state := api.state(made))[0] in ("Failed", "Crashed") else None

        found: tuple[str, str] = wait_for(over)
        return found

    ours = deploy(api.deployment("upgrade/production")["flow_id"], "production")
    his = deploy(api.call("POST", "/flows/", {"name": "mine"}).json()["id"], "mine")
    assert "the worker that started this run lacks" in end(ours)[1]
    assert end(ours, tag="b11434")[0] == "Crashed", "after which Prefect's worker looks for hooks"
    assert "runs upgrade, redeploy, rollback, restore-watch, patches-watch and nothing else" in end(his)[1]
    assert not canary.exists()


def test_told_to_stop_while_it_starts_a_run_it_ends_with_all_that_it_started_and_without_a_traceback(
    shell: Shell, api: Api
) -> None:
    (process,) = shell.started
    mine = shell.processes()
    assert len(mine) >= 3, "itself, the Prefect server, the worker"
    before = shell.said("serve.log")
    run = api.begin("restore-watch/production", {})
    wait_for(lambda: api.state(run)[0] not in ("Scheduled", "Late"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    wait_for(lambda: not any(map(is_alive, mine)), 60)
    assert not (shell.folder / "store" / "prefect" / "serving").exists()
    assert "Traceback" not in shell.said("serve.log").removeprefix(before)


def test_open_it_leaves_the_password_and_the_names_to_a_proxy_and_says_so(shell: Shell) -> None:
    """The proxy's address is the page's, and other pages may still read nothing."""
    behind = Shell(shell.folder, shell.env | {"PREFECT_UI_URL": "https://release.example/"}, shell.started)
    _, api = serving(behind, "--open")
    assert "Open: no password, any Host name." in shell.said("serve.log")
    assert told(api, "/deployments/filter", "POST", "", **forged(api), Host="release.example") == 200
    assert told(api, "/deployments/filter", "POST", "", Host="release.example") == 403, "a token is still asked for"
    settings = httpx.get(f"{api.url.removesuffix('/api')}/ui-settings", trust_env=False).json()
    assert (settings["api_url"], settings["auth"]) == ("https://release.example/api", None)
    for origin, read in ((EVIL, None), ("https://release.example", "https://release.example")):
        answer = httpx.get(f"{api.url}/admin/version", headers={"Origin": origin}, trust_env=False)
        assert answer.headers.get("Access-Control-Allow-Origin") == read
    assert api.create("upgrade/production", {}, job_variables={"command": "true"}).status_code == 422
