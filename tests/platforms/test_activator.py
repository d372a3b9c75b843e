"""The activator in front of a real llama-server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tasks.doctor import Seen, Severity
from tasks.doctor.stored import loops
from tasks.endpoint import Client, chat_body
from tasks.platforms.local.control import activator_log_path, pointer_to_socket
from tasks.release import BadInput, BootKind, Build
from tasks.settings import Settings
from tasks.troubles import load_troubles
from tests.platforms.conftest import platform_at, stand_of
from tests.platforms.stand import Stand, command_lines, until

pytestmark = pytest.mark.real
REPOSITORY = Path(__file__).parents[2]


def test_a_cold_start_holds_twenty_clients_and_starts_once(stand: Stand) -> None:
    stand.serve(stand.first)
    assert stand.platform.idle("staging") == 0
    before = len(stand.platform.boots("staging"))
    with ThreadPoolExecutor(20) as pool:
        said = list(pool.map(lambda _: stand.say(), range(20)))
    assert said == ["first"] * 20
    boots = stand.platform.boots("staging")[before:]
    assert [(b.kind, b.reason) for b in boots] == [(BootKind.COLD, "local.snapshots is off")]
    assert boots[0].health_s and boots[0].health_s > 0
    assert stand.servers() == [boots[0].pid]


@pytest.fixture
def hasty(base: Settings, build: Build, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand whose idle window is short."""
    with stand_of(platform_at(tmp_path_factory.mktemp("hasty"), idle_s=1.5), base, build, smollm2) as made:
        yield made


def test_it_stops_after_the_idle_window_and_comes_back(hasty: Stand) -> None:
    stand = hasty
    stand.serve(stand.first)
    stand.say()
    assert until(lambda: stand.servers() == [])
    assert stand.status().state == "idle"
    assert stand.say() == "first"


def test_a_busy_server_outlives_the_idle_window_and_a_disconnect_frees_its_slot(hasty: Stand) -> None:
    stand = hasty
    endpoint = stand.serve(stand.first)
    stand.say()
    pid = stand.status().server_pid
    body = chat_body("Count to a million.", stream=True, max_tokens=3000, ignore_eos=True)
    with httpx.Client(base_url=endpoint.base_url, headers=_bearer(stand.key), timeout=60) as http:
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            began = time.monotonic()
            for _ in response.iter_lines():
                if time.monotonic() - began > 2 * stand.platform.settings.local.idle_s:
                    assert (stand.status().server_pid, stand.status().in_flight) == (pid, 1)
                    assert _busy_slots(http) == 1
                    break
            else:
                pytest.fail("the stream was too short")
        assert until(lambda: _busy_slots(http) == 0, 20.0)
    assert until(lambda: stand.status().in_flight == 0, 20.0)


def test_streams_are_passed_on_token_by_token(stand: Stand) -> None:
    endpoint = stand.serve(stand.first)
    stand.say()
    shares = []
    with Client(endpoint) as client:
        for tokens in (40, 160, 640):  # a machine that stalls this client makes a short stream look held back
            stream = client.stream("Tell a story.", max_tokens=tokens, ignore_eos=True)
            assert stream.done and stream.ttft_s is not None
            shares.append(stream.ttft_s / stream.arrived_s[-1])
            if shares[-1] < 0.5:
                break
    assert min(shares) < 0.5


def test_after_a_crash_the_next_request_is_answered(stand: Stand) -> None:
    stand.serve(stand.first)
    stand.say()
    pid = stand.status().server_pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert stand.say() == "first"
    last, new = stand.platform.boots("staging")[-2:]
    assert (last.kind, last.pid, last.reason) == (BootKind.CRASHED, pid, "killed by SIGKILL")
    assert new.kind is BootKind.COLD and new.pid != pid


def test_a_killed_activator_takes_its_server_along_and_comes_back_on_its_port(stand: Stand) -> None:
    endpoint = stand.serve(stand.first)
    stand.say()
    os.kill(stand.status().pid, signal.SIGKILL)
    assert until(lambda: stand.servers() == [], 20.0)
    assert stand.platform.status("staging") is None
    assert stand.platform.idle("staging") == 0
    with ThreadPoolExecutor(4) as pool:
        again = set(pool.map(lambda _: stand.platform.ensure("staging").base_url, range(4)))
    assert again == {endpoint.base_url}
    assert len(_activators(stand)) == 1
    assert stand.say() == "first"


def test_a_second_activator_of_a_stage_is_refused(stand: Stand) -> None:
    stand.serve(stand.first)
    argv = [sys.executable, *command_lines()[stand.status().pid][1:-1]]
    second = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert second.returncode == 3
    assert "another process holds the" in second.stderr and "activator-staging" in second.stderr
    assert stand.say() == "first"


def test_a_start_that_says_nothing_in_time_is_none_of_a_stage_that_another_looks_after(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.serve(stand.first)
    monkeypatch.setattr("tasks.platforms.local.ACTIVATOR_START_S", 0.0)
    stand.platform._start_activator("staging")
    assert len(_activators(stand)) == 1
    assert stand.say() == "first"


def test_a_deploy_under_load_loses_no_request(stand: Stand) -> None:
    stand.serve(stand.first)
    over = threading.Event()
    said: list[str] = []

    def ask() -> None:
        while not over.is_set():
            said.append(stand.say())

    def read_long() -> bool:
        with Client(stand.platform.endpoint("staging")) as client:
            return client.stream("Go on.", max_tokens=120, ignore_eos=True).done

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        reading = pool.submit(read_long)
        try:
            assert until(lambda: stand.status().in_flight == 4)
            stand.serve(stand.second)
            assert stand.say() == "second"
            assert until(lambda: "second" in said, 60.0)
        finally:
            over.set()
        for each in asking:
            each.result()
        assert reading.result()
    assert set(said) == {"first", "second"}
    assert until(lambda: len(stand.servers()) == 1)
    assert stand.status().release == stand.second.id


def test_a_failing_check_leaves_the_stage_as_it_was(stand: Stand) -> None:
    stand.serve(stand.first)
    stand.say()
    with pytest.raises(ZeroDivisionError):
        stand.platform.deploy("staging", stand.second, lambda _: 1 / 0)
    assert stand.say() == "first"
    assert (stand.status().prepared, len(stand.servers())) == (None, 1)


def test_a_release_that_does_not_come_up_says_why(stand: Stand) -> None:
    stand.serve(stand.first)
    bad = stand.second.model_copy(update={"argv": (*stand.second.argv, "--no-such-flag")})
    with pytest.raises(BadInput, match="exit code 1") as caught:
        stand.serve(bad)
    assert caught.value.evidence.splitlines()[0] == "error: invalid argument: --no-such-flag"
    last = stand.platform.boots("staging")[-1]
    assert (last.kind, last.release) == (BootKind.CRASHED, bad.id)
    assert stand.say() == "first"


def test_a_server_that_cannot_start_is_a_503_in_openais_shape(stand: Stand) -> None:
    endpoint = stand.serve(stand.first)
    assert stand.platform.idle("staging") == 0
    model = stand.platform.store.file(stand.first.files["model"])
    away = model.rename(model.with_suffix(".away"))
    try:
        with Client(endpoint) as client:
            answer = client.chat("Hello")
    finally:
        away.rename(model)
    assert answer.status == 503
    assert answer.body["error"]["type"] == "unavailable_error"
    assert "not whole in the store" in answer.body["error"]["message"]
    assert stand.say() == "first"


def test_a_prepared_server_does_not_outlive_its_deployer(stand: Stand) -> None:
    stand.serve(stand.first)
    script = (
        "import sys, time; from pathlib import Path; from tests.platforms.conftest import platform_at\n"
        "p = platform_at(Path(sys.argv[1])); r = p.store.get_release(sys.argv[2])\n"
        "p.deploy('staging', r, lambda e: (print('checking', flush=True), time.sleep(600)))"
    )
    stand.platform.store.save_release(stand.second)
    argv = [sys.executable, "-c", script, str(stand.platform.store.root), stand.second.id]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as deployer:
        assert deployer.stdout is not None
        assert deployer.stdout.readline() == "checking\n"
        assert stand.status().prepared == stand.second.id
        deployer.kill()
    assert until(lambda: stand.status().prepared is None and len(stand.servers()) <= 1)
    assert stand.say() == "first"


def test_a_deploy_of_what_is_served_does_nothing(stand: Stand) -> None:
    stand.serve(stand.first)
    before = len(stand.platform.boots("staging"))
    stand.platform.deploy("staging", stand.first, lambda _: pytest.fail("checked"))
    assert len(stand.platform.boots("staging")) == before


def test_the_key_is_in_no_file_and_no_argv(stand: Stand) -> None:
    stand.serve(stand.first)
    assert stand.say() == "first"
    with httpx.Client(base_url=stand.direct().base_url) as http:
        assert http.get("/slots").status_code == 401
    root = stand.platform.store.root
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".gguf" and not path.is_relative_to(root / "builds"):
            assert stand.key.encode() not in path.read_bytes(), path
    assert not [pid for pid, words in command_lines().items() if stand.key in " ".join(words)]
    socket = pointer_to_socket(root, "staging").resolve()
    assert (socket.stat().st_mode & 0o777, socket.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_stopped_stage_serves_nothing_and_keeps_its_port(stand: Stand) -> None:
    endpoint = stand.serve(stand.first)
    stand.platform.stop("staging")
    assert (stand.servers(), _activators(stand)) == ([], [])
    with pytest.raises(BadInput, match="staging serves nothing"):
        stand.platform.endpoint("staging")
    assert stand.platform.ensure("staging") == endpoint
    with Client(endpoint) as client:
        answer = client.chat("Hello")
    assert (answer.status, answer.body["error"]["message"]) == (503, "no release has been deployed to staging")
    assert stand.serve(stand.second) == endpoint
    assert stand.say() == "second"


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _busy_slots(http: httpx.Client) -> int:
    return sum(slot["is_processing"] for slot in http.get("/slots").json())


def _activators(stand: Stand) -> list[int]:
    mine = {"tasks.platforms.local.activator", str(stand.platform.store.root)}
    return [pid for pid, words in command_lines().items() if mine <= set(words)]


def test_what_goes_wrong_once_ends_no_loop(hasty: Stand) -> None:
    stand = hasty
    stand.serve(stand.first)
    with _damaged_pointer(stand):  # which is read when an idle server has been stopped
        assert until(lambda: stand.servers() == [])
        assert until(lambda: bool(load_troubles(stand.platform.store.root)))
    assert stand.say() == "first"
    assert until(lambda: stand.servers() == [])
    (trouble,) = load_troubles(stand.platform.store.root)
    assert trouble.what == "activator of staging, stopping what is idle"
    assert "not a readable StagePointer" in trouble.error


def test_what_goes_wrong_again_and_again_is_said_once_and_doctor_shows_it(hasty: Stand) -> None:
    stand, store = hasty, hasty.platform.store
    stand.serve(stand.first)
    stand.platform.logs("staging").resolve().unlink()
    assert until(lambda: isinstance(loops(store), Seen))
    found = loops(store)
    assert isinstance(found, Seen) and found.severity is Severity.WARNING and "keeping room" in found.evidence
    assert until(lambda: stand.servers() == [])  # several looks later
    assert until(lambda: getattr(loops(store), "severity", None) is Severity.NOTE)
    log = activator_log_path(store.root, "staging").read_text()
    assert log.count("keeping room on the disk: FileNotFoundError") == 1
    assert log.count("keeping room on the disk: well again") == 1


def test_the_earlier_releases_server_is_ended_whatever_goes_wrong_in_a_move(stand: Stand) -> None:
    stand.serve(stand.first)
    stand.say()
    with _damaged_pointer(stand):
        stand.serve(stand.second)
        assert stand.say() == "second"
        assert until(lambda: len(stand.servers()) == 1)


@contextmanager
def _damaged_pointer(stand: Stand) -> Iterator[None]:
    """What the stage serves and retains can't be read while the block runs."""
    pointer = stand.platform.store.root / "stages" / "staging.json"
    pointer.parent.mkdir(exist_ok=True)
    pointer.write_text("{")
    try:
        yield
    finally:
        pointer.unlink()
