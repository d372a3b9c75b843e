"""The real SDK and the real `modal` command against the fake: what the tests of the platform stand on."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import modal
import pytest
from grpclib import Status

from tests.fakes.modal import FakeModal, Fault

pytestmark = pytest.mark.wire

DIGEST = "nvidia/cuda:12.4.1-runtime-ubuntu22.04@sha256:" + "0" * 64
APP = f'''
import os
import pathlib
import subprocess
import time

import modal

app = modal.App("tiny")
store = modal.Volume.from_name("store", create_if_missing=True)
key = modal.Secret.from_name("key", required_keys=["KEY"])
image = modal.Image.from_registry("{DIGEST}").env({{"WORD": os.environ.get("WORD", "first")}})
image = image.add_local_file(pathlib.Path(__file__).with_name("empty"), "/root/empty")


@app.function(image=image, secrets=[key], volumes={{"/store": store}}, timeout=120, scaledown_window=30)
def work(what: str) -> str:
    print("working on", what)
    if what == "nonsense":
        raise ValueError(what)
    if what == "too long":
        time.sleep(600)
    path = pathlib.Path("/store", what)
    if what == "there?":
        before = path.exists()
        store.reload()
        return f"{{before}}, then {{path.exists()}}"
    path.write_text(os.environ["KEY"])
    if what != "uncommitted":
        store.commit()
    if what == "open":
        with path.open():
            store.reload()
    return os.environ["WORD"]


@app.function(image=image, timeout=1)
def late() -> None:
    time.sleep(600)


@app.server(
    image=image, secrets=[key], port=8000, gpu="L40S", enable_memory_snapshot=True, scaledown_window=60,
    experimental_options={{"enable_gpu_snapshot": True}}, target_concurrency=2, unauthenticated=True,
    volumes={{"/store": store.with_mount_options(read_only=True)}}, startup_timeout=300,
)
class Web:
    @modal.enter(snap=True)
    def start(self):
        self.born = os.environ["MODAL_TASK_ID"]
        assert pathlib.Path("/root/empty").read_text() == ""
        assert not pathlib.Path("/store/broken").exists(), "the store is broken"
        try:
            pathlib.Path("/store/mine").touch()
        except OSError as error:
            print(error)
        pathlib.Path("/root/index.html").write_text(os.environ["WORD"] + " " + os.environ["KEY"])
        self.server = subprocess.Popen(["python", "-m", "http.server", "8000"])

    @modal.enter(snap=False)
    def wake(self):
        now = os.environ["MODAL_TASK_ID"]
        print("woke", "as born" if now == self.born else "restored", os.environ["KEY"], flush=True)

    @modal.exit()
    def stop(self):
        print("stopped by its exit method", flush=True)
        self.server.terminate()


@app.server(image=image)
class Closed:
    @modal.enter()
    def start(self):
        pass
'''


class Tiny:
    """The app above, in a folder to deploy it from."""

    def __init__(self, folder: Path, fake: FakeModal | None = None) -> None:
        self._fake, self.folder = fake, folder
        (folder / "tiny.py").write_text(APP)
        (folder / "empty").touch()
        modal.Secret.objects.create("key", {"KEY": "s3cret"}, allow_existing=True)

    @property
    def fake(self) -> FakeModal:
        assert self._fake
        return self._fake

    def cli(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("modal")), *words]
        return subprocess.run(
            command, cwd=self.folder, env=os.environ | env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def deploy(self, word: str = "first") -> None:
        """From this process, which is quicker than the command."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORD", word)
            patch.syspath_prepend(self.folder)
            patch.delitem(sys.modules, "tiny", raising=False)
            importlib.import_module("tiny").app.deploy()

    def deploy_by_command(self, word: str = "first", *options: str) -> str:
        """What the command says."""
        done = self.cli("deploy", *options, "tiny.py", WORD=word)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def version(self) -> int | None:
        return modal.App.lookup("tiny").info(refresh=True).lifecycle.version

    def history(self) -> list[dict[str, Any]]:
        return list(json.loads(self.cli("app", "history", "tiny", "--json").stdout))

    @property
    def work(self) -> modal.Function[..., Any, Any]:
        return modal.Function.from_name("tiny", "work")

    @property
    def web(self) -> modal.Server:
        return modal.Server.from_name("tiny", "Web")

    def ask(self) -> str:
        """What the server answers, brought up if need be."""
        answer = httpx.get(str(self.web.get_url()), timeout=60)
        return answer.text if answer.status_code == 200 else str(answer.status_code)

    def ask_whatever_comes(self) -> str:
        try:
            return self.ask()
        except httpx.TransportError:
            return "reset"

    def running(self) -> list[str]:
        """Container ids, from the command line."""
        return [row["container_id"] for row in json.loads(self.cli("container", "list", "--json").stdout)]

    def live(self) -> list[str]:
        """The same, from the fake itself, in no time."""
        return [container.task_id for container in self.fake.containers.live()]

    def put_to_sleep(self) -> None:
        [task_id] = self.live()
        assert self.cli("container", "stop", task_id, "--yes").returncode == 0
        until(lambda: not self.live())


def until(true: Callable[[], object], limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "this never came"
        time.sleep(0.02)


def processes(folder: Path) -> list[str]:
    """What runs in a container below `folder`, each of which was told its task id."""
    found = []
    for task_id in (each.name.encode() for each in (folder / "modal" / "containers").glob("*")):
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if task_id in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text())
    return found


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeModal]:
    """A control plane of its own; nothing was asked of it that it does not have, and nothing of it is left running."""
    with FakeModal(tmp_path / "modal") as fake, fake.here():
        fake.lifecycle.holds = True
        yield fake
    assert fake.failures == [] and not processes(tmp_path)


@pytest.fixture
def tiny(fake: FakeModal, tmp_path: Path) -> Tiny:
    return Tiny(tmp_path, fake)


def test_a_wrong_token_is_refused(tiny: Tiny) -> None:
    refused = tiny.cli("app", "list", MODAL_TOKEN_SECRET="as-wrong")
    assert refused.returncode and "Token ID is malformed" in refused.stderr
    with pytest.raises(modal.exception.AuthError):
        modal.Client.from_credentials("ak-other", "as-other").hello()


def test_what_was_deployed_is_seen_on_the_wire(tiny: Tiny) -> None:
    tiny.deploy()
    web = tiny.fake.apps.function("tiny", "Web")
    assert web.resources.gpu_config.gpu_type == "L40S"
    assert web.checkpointing_enabled and web.experimental_options == {"enable_gpu_snapshot": "True"}
    assert web.autoscaler_settings.scaledown_window == 60 and web.http_config.port == 8000
    assert [(m.mount_path, m.read_only) for m in web.volume_mounts] == [("/store", True)]
    assert tiny.fake.images.commands(web.image_id)[0] == f"FROM {DIGEST}"
    assert tiny.fake.images.environment(web.image_id)["WORD"] == "first"
    assert len(web.secret_ids) == 1
    closed = modal.Server.from_name("tiny", "Closed").get_url()
    assert httpx.get(str(closed)).status_code == 401 and not tiny.live()


def test_a_deploy_without_a_change_is_skipped_and_history_and_rollback_make_versions(tiny: Tiny) -> None:
    assert "App deployed" in tiny.deploy_by_command() and "skipped" in tiny.deploy_by_command()
    tiny.deploy_by_command("second", "--tag", "two")
    tiny.web.autoscaler.update(min_containers=0, scaledown_window=9)
    assert tiny.web.autoscaler.settings().scaledown_window == 9
    assert tiny.cli("app", "rollback", "tiny", "v1").returncode == 0
    assert tiny.web.autoscaler.settings().scaledown_window == 60
    assert [(row["version"], row.get("tag")) for row in tiny.history()] == [("v3", None), ("v2", "two"), ("v1", None)]
    first = tiny.fake.apps.function("tiny", "Web")
    assert tiny.fake.images.environment(first.image_id)["WORD"] == "first" and tiny.version() == 3
    assert tiny.cli("app", "rollback", "tiny", "v7").returncode


def test_a_stopped_app_is_gone_and_its_name_free(tiny: Tiny) -> None:
    tiny.deploy()
    url = str(tiny.web.get_url())
    assert tiny.ask() == "first s3cret"
    assert tiny.cli("app", "stop", "tiny", "--yes").returncode == 0
    assert not tiny.live() and httpx.get(url).status_code == 404
    with pytest.raises(modal.exception.NotFoundError):
        tiny.work.remote("x")
    tiny.deploy()
    apps = json.loads(tiny.cli("app", "list", "--json").stdout)
    assert sorted(app["state"] for app in apps) == ["deployed", "stopped"] and tiny.version() == 1


def test_environments_keep_their_apps_apart(tiny: Tiny) -> None:
    modal.Environment.objects.create("staging")
    modal.Secret.objects.create("key", {"KEY": "other"}, environment_name="staging")
    tiny.deploy_by_command("second", "--env", "staging")
    assert tiny.fake.apps.deployed("tiny") is None and tiny.fake.apps.deployed("tiny", "staging")
    missing = tiny.cli("deploy", "--env", "nowhere", "tiny.py")
    assert missing.returncode and "nowhere" in missing.stderr


def test_a_failing_image_build_gives_its_log_and_deploys_nothing(tiny: Tiny) -> None:
    tiny.fake.images.fail_builds("WORD=", ["compiling", "nvcc fatal: unsupported gpu architecture"])
    failed = tiny.cli("deploy", "tiny.py")
    assert failed.returncode and "nvcc fatal" in failed.stdout and tiny.fake.apps.deployed("tiny") is None
    tiny.fake.images.mend_builds()
    tiny.deploy()


def test_a_passing_fault_is_ridden_out_and_a_lasting_one_ends_the_deploy(tiny: Tiny) -> None:
    tiny.fake.faults.arm(Fault("FunctionCreate", Status.UNAVAILABLE), Fault("AppPublish", Status.DEADLINE_EXCEEDED))
    tiny.deploy()
    for status, error in (
        (Status.RESOURCE_EXHAUSTED, modal.exception.ResourceExhaustedError),
        (Status.UNAUTHENTICATED, modal.exception.AuthError),
        (Status.UNAVAILABLE, modal.exception.ServiceError),
    ):
        tiny.fake.faults.arm(Fault("DictGetOrCreate", status, "over the limit", times=4))
        with pytest.raises(error, match="over the limit"):
            modal.Dict.from_name("d", create_if_missing=True).hydrate()
        tiny.fake.faults.clear()


def test_a_connection_that_drops_in_the_middle_of_a_deploy_leaves_the_old_version(tiny: Tiny) -> None:
    tiny.deploy()
    tiny.fake.faults.arm(Fault("FunctionCreate", times=99))
    assert tiny.cli("deploy", "tiny.py", WORD="second").returncode
    tiny.fake.faults.clear()
    assert tiny.version() == 1 and tiny.fake.requests("FunctionCreate")
    tiny.fake.faults.arm(Fault("AppPublish"))  # it took effect, but the answer is lost: the second try finds no change
    tiny.deploy("second")
    assert tiny.version() == 2 and len(tiny.fake.requests("AppPublish")) == 3


def test_volumes_hold_files_of_many_blocks(fake: FakeModal, tmp_path: Path) -> None:
    big = os.urandom(9 * 2**20) + bytes(2**20)
    (tmp_path / "big").write_bytes(big)
    (tmp_path / "empty").touch()
    volume = modal.Volume.from_name("files", create_if_missing=True, version=2)
    with volume.batch_upload() as batch:
        batch.put_file(tmp_path / "big", "builds/one/big", mode=0o755)
        batch.put_file(tmp_path / "empty", "builds/one/empty")
    assert b"".join(volume.read_file("builds/one/big")) == big and b"".join(volume.read_file("builds/one/empty")) == b""
    on_disk = fake.volumes.folder_of("files") / "builds" / "one" / "big"
    assert on_disk.stat().st_mode & 0o777 == 0o755
    assert [e.path for e in volume.listdir("builds", recursive=True)] == [
        "builds/one", "builds/one/big", "builds/one/empty",
    ]  # fmt: skip
    with pytest.raises(FileExistsError), volume.batch_upload() as batch:
        batch.put_file(tmp_path / "empty", "builds/one/big")
    with pytest.raises(FileNotFoundError):
        next(iter(volume.read_file("nothing")))
    with pytest.raises(modal.exception.InvalidError):
        volume.remove_file("builds/one")
    volume.remove_file("builds/one", recursive=True)
    assert volume.listdir("/", recursive=True)[0].path == "builds" and not on_disk.exists()


def test_a_dict_is_a_lock(fake: FakeModal) -> None:
    held = modal.Dict.from_name("locks", create_if_missing=True)
    assert held.put("production", "a", skip_if_exists=True)
    assert not held.put("production", "b", skip_if_exists=True)
    assert held["production"] == "a" and "staging" not in held and held.get("staging", 7) == 7
    held.update({"staging": [1, 2]})
    assert sorted(held.keys()) == ["production", "staging"] and held.len() == 2
    assert fake.dicts.contents("locks") == {"production": "a", "staging": [1, 2]}
    assert held.pop("production") == "a"
    held.clear()
    assert dict(held.items()) == {}


def test_a_call_outlives_the_client_that_made_it(tiny: Tiny) -> None:
    tiny.deploy("second")
    code = "import modal; print(modal.Function.from_name('tiny', 'work').spawn('seen').object_id)"
    call_id = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    call = modal.FunctionCall.from_id(call_id)
    assert call.get(timeout=300) == "second" == call.get(timeout=300)
    assert (tiny.fake.volumes.folder_of("store") / "seen").read_text() == "s3cret" and tiny.fake.volumes.commits
    assert [entry.message for entry in call.logs.tail()] == ["working on seen\n"]
    assert "working on seen" in tiny.cli("app", "logs", "tiny").stdout
    tiny.work.autoscaler.update(scaledown_window=2)
    until(lambda: not tiny.live())


def test_others_see_what_is_committed_and_a_container_what_was_there_when_it_began_or_reloaded(tiny: Tiny) -> None:
    tiny.deploy()
    folder = tiny.fake.volumes.folder_of("store")
    tiny.work.remote("uncommitted")
    assert not (folder / "uncommitted").exists()
    with modal.Volume.from_name("store").batch_upload() as batch:
        batch.put_file(tiny.folder / "empty", "there?")
    assert tiny.work.remote("there?") == "False, then True"
    assert (folder / "uncommitted").exists()  # a reload commits
    modal.Volume.from_name("store").remove_file("there?")
    assert tiny.work.remote("there?") == "True, then False"


def test_what_goes_wrong_in_a_function_reaches_its_caller(tiny: Tiny) -> None:
    tiny.deploy()
    with pytest.raises(ValueError, match="nonsense"):
        tiny.work.remote("nonsense")
    with pytest.raises(RuntimeError, match="open files"):
        tiny.work.remote("open")
    with pytest.raises(modal.exception.FunctionTimeoutError):
        modal.Function.from_name("tiny", "late").remote()
    call = tiny.work.spawn("too long")
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    until(lambda: "working on too long" in tiny.fake.logs.text())
    call.cancel(terminate_containers=True)
    with pytest.raises(modal.exception.RemoteError, match="cancelled"):
        call.get(timeout=300)


def test_a_killed_container_fails_its_call_and_a_stopped_one_hands_it_on(tiny: Tiny) -> None:
    tiny.deploy()
    call = tiny.work.spawn("too long")
    until(lambda: "working on too long" in tiny.fake.logs.text())
    [container] = tiny.fake.containers.live()
    tiny.fake.containers.crash(container.task_id, 137)
    with pytest.raises(modal.exception.RemoteError, match="exit code: 137"):
        call.get(timeout=300)
    assert "out of memory" in tiny.cli("container", "logs", container.task_id).stdout
    again = tiny.work.spawn("too long")
    until(lambda: tiny.fake.logs.text().count("working on too long") == 2)
    [first] = tiny.live()
    assert tiny.cli("container", "stop", first, "--yes").returncode == 0
    until(lambda: tiny.fake.logs.text().count("working on too long") == 3)
    assert first not in tiny.live()
    again.cancel(terminate_containers=True)


def test_a_server_comes_up_on_a_request_goes_when_idle_and_comes_back_from_its_snapshot(tiny: Tiny) -> None:
    tiny.deploy()
    assert not tiny.live() and tiny.ask() == "first s3cret"
    [created] = tiny.running()
    assert created == tiny.live()[0]
    assert "woke as born" in tiny.fake.logs.text(created)
    assert "Read-only file system: '/store/mine'" in tiny.fake.logs.text(created)
    tiny.web.autoscaler.update(scaledown_window=2)
    until(lambda: not tiny.live())
    tiny.web.autoscaler.update(scaledown_window=60)
    assert "stopped by its exit method" in tiny.fake.logs.text(created)
    assert tiny.ask() == "first s3cret"
    [restored] = tiny.live()
    assert f"Restoring from the snapshot of {created}" in tiny.fake.logs.text(restored)
    assert "woke restored" in tiny.fake.logs.text(restored)


def test_a_failed_restore_exits_with_222_and_comes_back_cold(tiny: Tiny) -> None:
    tiny.deploy()
    tiny.ask()
    tiny.put_to_sleep()
    tiny.fake.containers.fail_restores()
    assert tiny.ask() == "first s3cret"
    [cold] = tiny.live()
    assert "woke as born" in tiny.fake.logs.text(cold)
    logs = tiny.cli("app", "logs", "tiny").stdout
    assert "GPU memory snapshot restore failed" in logs and "exit code: 222" in logs


def test_a_server_that_does_not_boot_answers_503_and_its_log_says_why(tiny: Tiny) -> None:
    tiny.deploy()
    assert tiny.ask() == "first s3cret"
    tiny.put_to_sleep()
    with modal.Volume.from_name("store").batch_upload() as batch:
        batch.put_file(tiny.folder / "empty", "broken")
    assert tiny.ask() == "503"
    assert "the store is broken" in tiny.cli("app", "logs", "tiny").stdout


def test_a_restored_process_keeps_the_secret_it_was_snapshotted_with(tiny: Tiny) -> None:
    tiny.deploy()
    tiny.ask()
    tiny.put_to_sleep()
    modal.Secret.from_name("key").update({"KEY": "rotated"})
    assert tiny.ask() == "first s3cret"
    assert "woke restored rotated" in tiny.fake.logs.text()


def test_a_new_version_replaces_what_runs_and_takes_a_snapshot_of_its_own(tiny: Tiny) -> None:
    tiny.deploy()
    tiny.ask()
    [old] = tiny.live()
    tiny.deploy("second")
    until(lambda: tiny.ask() == "second s3cret" and old not in tiny.live())
    assert "woke as born" in tiny.fake.logs.text(tiny.live()[0])
    assert tiny.cli("app", "rollback", "tiny").returncode == 0
    until(lambda: tiny.ask() == "first s3cret")


def test_a_server_without_a_replica_answers_503_when_told_to_and_crashes_are_logged(tiny: Tiny) -> None:
    tiny.deploy()
    tiny.fake.lifecycle.holds = False
    assert tiny.ask() == "503"
    seen = {"503"}

    def answered() -> bool:
        seen.add(tiny.ask_whatever_comes())
        return "first s3cret" in seen

    until(answered)
    assert seen <= {"503", "502", "504", "reset", "first s3cret"}
    [container] = tiny.fake.containers.live()
    tiny.fake.containers.crash(container.task_id, 139)
    until(lambda: container.finished_at)
    assert "exit code: 139" in tiny.cli("container", "logs", container.task_id).stdout
    assert tiny.ask_whatever_comes() != "first s3cret"


def test_what_a_server_was_asked_and_what_became_of_its_containers_is_counted(tiny: Tiny) -> None:
    tiny.deploy()
    tiny.fake.lifecycle.holds, tiny.fake.lifecycle.between = False, 0.0
    assert tiny.ask() == "503"
    until(lambda: tiny.ask() == "first s3cret")
    [container] = tiny.fake.containers.live()
    tiny.fake.containers.crash(container.task_id, 139)
    until(lambda: container.finished_at)
    stats = tiny.web.stats()
    assert stats.request_count_by_status_code[200] == 1 and stats.request_count_by_status_code[503] >= 1
    assert (stats.container_started_count, stats.container_error_count) == (1, 1)


def test_kept_containers_are_started_and_let_go(tiny: Tiny) -> None:
    tiny.deploy()
    tiny.web.autoscaler.update(min_containers=1)
    until(lambda: any(c.ready for c in tiny.fake.containers.live()))
    assert modal.Function.from_name("tiny", "Web").get_current_stats().num_total_runners == 1
    tiny.web.autoscaler.update(min_containers=0, scaledown_window=2)
    until(lambda: not tiny.live())


def test_what_the_fake_does_not_have_is_refused_and_noted(fake: FakeModal) -> None:
    with pytest.raises(modal.exception.UnimplementedError, match="QueueGetOrCreate"):
        modal.Queue.from_name("q", create_if_missing=True).hydrate()
    assert fake.failures == ["QueueGetOrCreate is not implemented by the fake"]
    fake.failures.clear()


def test_it_runs_on_its_own_and_its_containers_die_with_it_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "tests.fakes.modal", str(tmp_path / "modal")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in (process.stdout.readline() for _ in range(4)):
            monkeypatch.setenv(*line.removeprefix("export ").strip().split("=", 1))
        modal.Client._set_env_client(None)
        tiny = Tiny(tmp_path)
        tiny.deploy()
        tiny.work.spawn("too long")
        until(lambda: any("entrypoint" in command for command in processes(tmp_path)))
        process.kill()
    modal.Client._set_env_client(None)
    until(lambda: not processes(tmp_path), limit_s=20)  # by itself, the SDK gives up after a minute
