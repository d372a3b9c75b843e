"""The local platform without its activators: trials, refusals, words of failure."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform, server
from tasks.platforms.local.control import Control, problem_from, problem_json, socket_path
from tasks.platforms.local.proc import free_port
from tasks.release import BadInput, Release, ReleaseFailed, ToolingError
from tasks.settings import LocalSettings, ServerSettings, Settings
from tasks.store import Store, sha256_of
from tests.platforms.conftest import platform_at
from tests.platforms.stand import KEY_ENV, Stand, listens_on, until
from tests.test_release import a_release
from tests.test_store import a_build

REPOSITORY = Path(__file__).parents[2]
real = pytest.mark.real


@real
def test_a_trial_has_a_key_of_its_own_and_is_gone_on_exit(stand: Stand) -> None:
    with pytest.raises(ZeroDivisionError), stand.platform.trial(stand.first) as endpoint, Client(endpoint) as client:
        assert endpoint.api_key != stand.key
        assert client.get("/slots").status == 200
        assert client.get("/slots", key=None).status == 401
        raise ZeroDivisionError
    assert stand.servers() == []


@real
def test_nothing_listens_but_on_loopback_unless_told_otherwise(stand: Stand) -> None:
    assert stand.platform.settings.local.host == LocalSettings().host
    with stand.platform.trial(stand.first):
        stand.serve(stand.first)
        pids = [*stand.servers(), stand.status().pid]
        try:
            assert len(pids) == 3
            assert {address for pid in pids for address in listens_on(pid)} == {"127.0.0.1"}
        finally:
            stand.platform.shut_down()
    with socket.create_server(("0.0.0.0", 0)):
        assert "0.0.0.0" in listens_on(os.getpid())


@real
def test_a_trial_survives_the_thread_that_started_it(stand: Stand) -> None:
    trial = stand.platform.trial(stand.first, wait=False)
    thread = threading.Thread(target=trial.__enter__)
    thread.start()
    thread.join()
    try:
        assert len(stand.servers()) == 1
        assert not until(lambda: stand.servers() == [], 0.5)
    finally:
        trial.__exit__(None, None, None)


@real
def test_a_trial_dies_with_a_killed_parent(stand: Stand) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.platforms.conftest import platform_at\n"
        "p = platform_at(Path(sys.argv[1]))\n"
        "with p.trial(p.store.releases()[0], wait=False): print('up', flush=True); time.sleep(600)"
    )
    stand.platform.store.save_release(stand.first)
    argv = [sys.executable, "-c", script, str(stand.platform.store.root)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "up\n"
        assert len(stand.servers()) == 1
        os.kill(parent.pid, signal.SIGKILL)
    assert until(lambda: stand.servers() == [], 20.0)


@real
def test_a_lost_race_for_a_port_is_run_again(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(server, "lasting_port", lambda: next(ports))
        with stand.platform.trial(stand.first) as endpoint, Client(endpoint) as client:
            assert client.health() == 200
        assert list(ports) == []


@real
def test_a_start_past_its_time_fails_and_leaves_nothing(stand: Stand) -> None:
    settings = stand.platform.settings
    hasty = LocalPlatform(
        settings.model_copy(update={"local": settings.local.model_copy(update={"start_timeout_s": 0.05})})
    )
    with pytest.raises(ReleaseFailed, match="did not .* in 0 s"), hasty.trial(stand.first):
        pass
    assert stand.servers() == []


@real
def test_a_server_that_ends_at_once_is_quoted(stand: Stand) -> None:
    bad = stand.first.model_copy(update={"argv": ("--model", "/no/such.gguf")})
    with pytest.raises(BadInput, match="exit code 1") as caught, stand.platform.trial(bad):
        pass
    assert "failed to load model, '/no/such.gguf'" in caught.value.evidence


def test_a_server_that_something_killed_is_no_fault_of_the_release(store: Store, tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    built = a_build(files={"llama-server": sha256_of(program)})
    store.build_dir(built.digest).mkdir(parents=True)
    program.rename(store.build_dir(built.digest) / program.name)
    store.save_build(built)
    release = a_release(build=built.digest, argv=(), files={})
    with pytest.raises(ToolingError, match="was killed before it could listen"):
        server.start(store, release, None, tmp_path, 30, walled=False)


@pytest.mark.wire
def test_a_taken_port_is_named_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        platform = platform_at(tmp_path, staging_port=port)
        with pytest.raises(BadInput, match=f"port {port}") as caught:
            platform.ensure("staging")
    assert f"pid {os.getpid()} " in caught.value.evidence
    assert platform.status("staging") is None


def test_a_missing_build_is_our_fault_not_the_releases(tmp_path: Path, release_of_nothing: Release) -> None:
    with pytest.raises(ToolingError, match="not whole in the store"):
        server.command(platform_at(tmp_path).store, release_of_nothing)


def test_a_release_that_would_share_its_port_is_refused(tmp_path: Path, release_of_nothing: Release) -> None:
    shares = release_of_nothing.model_copy(update={"argv": (*release_of_nothing.argv, "--reuse-port")})
    with pytest.raises(BadInput, match="would share its port"):
        server.command(platform_at(tmp_path).store, shares)


def test_a_servers_log_is_begun_anew_when_it_has_grown_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOG_BYTES", 1000)
    path = server.new_log(tmp_path, a_release())
    with open(path, "ab", buffering=0) as said:  # as a server has it
        said.write(b"0" * 1000)
        server.bound_log(path)
        assert path.stat().st_size == 1000
        said.write(b"1")
        server.bound_log(path)
        said.write(b"2")
    assert path.read_bytes() == b"2"
    assert path.with_suffix(".earlier.log").read_bytes() == b"0" * 1000 + b"1"
    for _ in range(server.KEPT_LOGS):
        server.new_log(tmp_path, a_release())
    assert len([each for each in tmp_path.iterdir() if not each.is_symlink()]) == server.KEPT_LOGS


def test_an_open_host_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV, raising=False)
    local, keyed = LocalSettings(host="0.0.0.0"), ServerSettings(api_key_env=KEY_ENV)
    with pytest.raises(BadInput, match="no API key"):
        LocalPlatform(Settings(store=tmp_path, local=local, server=keyed))
    monkeypatch.setenv(KEY_ENV, "k")
    LocalPlatform(Settings(store=tmp_path, local=local, server=keyed))


def test_a_stage_without_a_deployment_has_no_endpoint(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="production serves nothing"):
        platform_at(tmp_path).endpoint("production")


def test_no_activator_is_no_error_for_idle_status_and_stop(tmp_path: Path) -> None:
    platform = platform_at(tmp_path)
    assert platform.status("staging") is None
    assert platform.idle("staging") == 0
    assert platform.boots("staging") == []
    platform.stop("staging")
    platform.shut_down()
    with pytest.raises(ToolingError, match="did not answer"):
        Control(tmp_path, "staging").status()


def test_a_server_inherits_no_setting_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    monkeypatch.setenv("SLACK_WEBHOOK", "s")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    env = server.environment(tmp_path, "k")
    assert {"LLAMA_ARG_CTX_SIZE", "SLACK_WEBHOOK"}.isdisjoint(env)
    assert env["LD_LIBRARY_PATH"] == f"{tmp_path}:/opt/cuda"
    assert (env["CUDA_VISIBLE_DEVICES"], env["LLAMA_API_KEY"]) == ("1", "k")
    assert "LLAMA_API_KEY" not in server.environment(tmp_path, None)


def test_own_words_puts_errors_first_and_keeps_no_stamp(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("# argv\n0.1 I fine\n0.2 E srv: couldn't bind\n" + "0.3 I more\n" * 9 + "0.4 I last\n")
    assert server.own_words(path).splitlines() == ["srv: couldn't bind", "more", "last"]
    assert server.own_words(tmp_path / "none") == "it said nothing"


def test_a_socket_path_is_short_however_deep_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 90)
    path = socket_path(tmp_path / ("deep/" * 40), "production")
    assert len(str(path)) <= 100
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("first", ["open to all", "a link", "a file", "another user"])
def test_a_socket_is_put_into_a_folder_of_this_user_alone_whoever_was_first(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr("tempfile.tempdir", short)
        theirs = Path(short, f"llama-release-{os.getuid()}")
        if first == "a file":
            theirs.touch(0o700)
        elif first == "a link":
            (tmp_path / "elsewhere").mkdir(0o700)
            theirs.symlink_to(tmp_path / "elsewhere")
        else:
            theirs.mkdir(0o700 if first == "another user" else 0o755)
        if first == "another user":
            if os.geteuid() != 0:
                pytest.skip("only root makes a folder another user's")
            os.chown(theirs, 65534, 65534)
        folder = socket_path(tmp_path, "production").parent
        assert folder == socket_path(tmp_path, "staging").parent != theirs
        found = folder.lstat()
        assert (found.st_uid, found.st_mode & 0o777) == (os.getuid(), 0o700)
        assert folder.parent == Path(short)


def test_a_problem_comes_through_the_socket_as_it_was() -> None:
    for problem in (BadInput("a", evidence="b", todo="c"), ReleaseFailed("a"), ToolingError("a", todo="c")):
        back = problem_from(problem_json(problem))
        assert (type(back), str(back)) == (type(problem), str(problem))
