"""Real snapshots of a real llama-server with a scripted model, and everything that may go wrong with one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from modal_app.warmup import ask_again
from tasks import criu
from tasks.contracts.scripted import build as build_model
from tasks.contracts.scripted import thinks_then_answers
from tasks.endpoint import Client
from tasks.platforms.local.proc import is_alive
from tasks.platforms.local.server import end_namespace
from tasks.platforms.local.snapshot import Manifest, Wanted, snapshots_folder, snapshots_here
from tasks.release import BootKind, BootRecord, Build, StagePointer
from tasks.settings import Settings
from tests.platforms.conftest import platform_at, stand_of
from tests.platforms.stand import KEY_ENV, Stand, command_lines, until

pytestmark = pytest.mark.real

REAL = 'exec "$CRIU" "$@"\n'


@dataclass(frozen=True)
class Frozen:
    """A stage whose release has a snapshot, is idle, and uses a CRIU that a test can exchange."""

    stand: Stand
    criu: Path
    real_criu: str

    @property
    def folder(self) -> Path:
        (found,) = snapshots_folder(self.stand.platform.store.root, "staging").glob("[!.]*")
        return found

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.folder / "manifest.json").read_text())

    def boots(self, act: Callable[[], object]) -> list[BootRecord]:
        """What was recorded while something was done."""
        before = len(self.stand.platform.boots("staging"))
        act()
        return self.stand.platform.boots("staging")[before:]

    def asked(self) -> list[BootRecord]:
        """What a request to the idle stage, well answered, brought about."""
        return self.boots(lambda: self.stand.say())

    def idle(self) -> None:
        assert self.stand.platform.idle("staging") == 0
        assert self.stand.servers() == []

    @contextmanager
    def other_criu(self, script: str | None) -> Iterator[None]:
        """With another CRIU, or none; in the script, $CRIU is the real one."""
        self._put(script)
        try:
            yield
        finally:
            self._put(REAL)

    def _put(self, script: str | None) -> None:
        self.criu.unlink(missing_ok=True)
        if script is not None:
            self.criu.write_text(f"#!/bin/sh\nCRIU={self.real_criu}\n{script}")
            self.criu.chmod(0o755)


@pytest.fixture(scope="module")
def shared(base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frozen]:
    real = criu.find("criu", base.cache)
    if (ability := snapshots_here(Wanted(True, "disk", real), gpu=False)).kind == "cold":
        pytest.skip(f"no snapshots here: {ability.why}")
    folder = tmp_path_factory.mktemp("snapshots")
    model = build_model(thinks_then_answers(), folder / "scripted.gguf")
    frozen_criu = folder / "criu"
    platform = platform_at(folder / "store", idle_s=600, snapshots="auto", criu=str(frozen_criu))
    with stand_of(platform, base, build, model) as stand:
        frozen = Frozen(stand, frozen_criu, real)
        with frozen.other_criu(REAL):
            stand.serve(stand.first)
        yield frozen


@pytest.fixture
def frozen(shared: Frozen) -> Iterator[Frozen]:
    """The stage is idle, and comes back from its snapshot once the test is over."""
    shared.stand.serve(shared.stand.first)
    shared.stand.say()
    shared.idle()
    yield shared
    shared.idle()
    assert [(b.kind, b.reason) for b in shared.asked()] == [
        (BootKind.RESTORED, f"disk: CRIU {criu.version(shared.real_criu)}")
    ]


def test_the_first_boot_takes_the_snapshot_and_later_ones_come_back_from_it(frozen: Frozen) -> None:
    first = frozen.stand.platform.boots("staging")[0]
    assert (first.kind, first.snapshot) == (BootKind.CREATED, frozen.manifest.id)
    (again,) = frozen.asked()
    assert (again.kind, again.snapshot) == (BootKind.RESTORED, first.snapshot)
    assert frozen.stand.servers() == [again.pid]


def test_what_comes_back_is_the_process_that_was_warmed_up(frozen: Frozen) -> None:
    golden = frozen.stand.platform.golden("staging")
    assert golden is not None
    seen = ask_again(frozen.stand.platform.endpoint("staging").base_url, frozen.stand.key, golden, patience_s=20)
    assert (seen.nonce.found, seen.control.found) == (True, False)
    assert seen.answers == golden.first


def test_twenty_clients_at_once_bring_about_one_restore(frozen: Frozen) -> None:
    with ThreadPoolExecutor(20) as pool:
        records = frozen.boots(lambda: list(pool.map(lambda _: frozen.stand.say(), range(20))))
    assert [b.kind for b in records] == [BootKind.RESTORED]


def test_a_client_that_goes_away_leaves_the_restore_to_the_others(frozen: Frozen, tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    def come_and_go() -> None:
        url = httpx.URL(frozen.stand.platform.endpoint("staging").base_url)
        with socket.create_connection((url.host, url.port or 0)) as client:
            client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
            assert until(lambda: frozen.stand.status().state == "starting")
        gone.touch()
        assert until(lambda: frozen.stand.status().state == "up" and frozen.stand.status().in_flight == 0)
        frozen.stand.say()

    wait = f"case $1 in restore) while [ ! -e {gone} ]; do sleep 0.05; done;; esac; {REAL}"
    with frozen.other_criu(wait):
        assert [b.kind for b in frozen.boots(come_and_go)] == [BootKind.RESTORED]


def test_a_killed_activator_leaves_no_restored_server_behind(frozen: Frozen) -> None:
    frozen.asked()
    os.kill(frozen.stand.status().pid, signal.SIGKILL)
    assert until(lambda: frozen.stand.servers() == [], 20.0)
    frozen.stand.platform.ensure("staging")
    assert [b.kind for b in frozen.asked()] == [BootKind.RESTORED]


def test_an_activator_killed_in_the_middle_of_a_dump_leaves_nothing_behind(frozen: Frozen, tmp_path: Path) -> None:
    dumped = tmp_path / "dumped"
    damage(frozen, "images/pages-1.img", flip)
    script = f'case $1 in dump) "$CRIU" "$@"; echo $$ >{dumped}; exec sleep 60;; esac; {REAL}'
    with frozen.other_criu(script), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: httpx.get(frozen.stand.platform.endpoint("staging").base_url, timeout=60))
        assert until(lambda: dumped.exists() and dumped.read_text().endswith("\n"), 60.0)
        os.kill(frozen.stand.status().pid, signal.SIGKILL)
        with pytest.raises(httpx.HTTPError):
            asked.result()
    assert until(lambda: frozen.stand.servers() == [] and not is_alive(int(dumped.read_text())), 20.0)
    frozen.stand.platform.ensure("staging")
    assert [b.kind for b in frozen.asked()] == [BootKind.FELL_BACK]
    assert [path.name for path in frozen.folder.parent.iterdir()] == [frozen.folder.name]


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def damage(frozen: Frozen, name: str, how: Callable[[Path], object]) -> None:
    how(frozen.folder / name)


def altered(text: str, other: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(text, other))


@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("images/pages-1.img", lambda path: os.truncate(path, path.stat().st_size - 4096), "is damaged: images/pages"),
        ("images/pages-1.img", flip, "is damaged: images/pages-1.img"),
        ("images/inventory.img", flip, "is damaged: images/inventory.img"),
        ("images/inventory.img", Path.unlink, "can't be read"),
        ("manifest.json", lambda path: os.truncate(path, 100), "manifest can't be read"),
        ("manifest.json", Path.unlink, "manifest can't be read"),
        ("manifest.json", altered('"kernel": "', '"kernel": "5.10 '), "taken with another kernel: 5.10"),
        ("manifest.json", altered('"CPU flags": "', '"CPU flags": "0'), "taken with another CPU flags"),
        ("manifest.json", altered('"release": "', '"release": "f'), "is of release f"),
    ],
)
def test_a_snapshot_that_is_not_whole_or_not_from_here_is_refused_and_replaced(
    frozen: Frozen, name: str, how: Callable[[Path], object], reason: str
) -> None:
    old = frozen.manifest.id
    damage(frozen, name, how)
    (fell_back,) = frozen.asked()
    assert fell_back.kind is BootKind.FELL_BACK and reason in fell_back.reason
    assert fell_back.snapshot == frozen.manifest.id != old


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "there is no CRIU"),
        ("echo Version: 3.17.1", "CRIU 3.17.1 doesn't work on Linux"),
        (f'[ "$1" = --version ] && echo Version: 4.99 && exit; {REAL}', ", here 4.99"),
        ("exit 9", "doesn't say its version"),
        (f'[ "$1" = check ] && echo "no CAP_SYS_ADMIN" >&2 && exit 1; {REAL}', "can't work here: no CAP_SYS_ADMIN"),
    ],
    ids=["missing", "too old", "another", "broken", "forbidden"],
)
def test_without_the_criu_that_took_it_a_snapshot_is_not_used(frozen: Frozen, script: str | None, reason: str) -> None:
    with frozen.other_criu(script):
        (fell_back,) = frozen.asked()
        frozen.idle()
    assert fell_back.kind is BootKind.FELL_BACK and reason in fell_back.reason
    frozen.stand.say()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            '"$CRIU" "$@" & while read -r child </proc/$!/task/$!/children; [ -z "$child" ]; do :; done; kill -9 $!; '
            "wait $!; exit $?",
            "exit code 137",
        ),
        ('exec "$CRIU" "$@" --action-script "${0%/*}/stop"', "does not answer /health"),
    ],
    ids=["killed half-way", "comes back and hangs"],
)
def test_a_restore_that_fails_is_a_cold_boot_with_the_reason(frozen: Frozen, script: str, reason: str) -> None:
    stop = frozen.criu.with_name("stop")
    # once the server is complete, it is stopped again whenever it is told to run
    stop.write_text(
        "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = post-resume ] || exit 0\n"
        "while kill -STOP $CRTOOLS_INIT_PID; do :; done &\n"
    )
    stop.chmod(0o755)
    with frozen.other_criu(f"case $1 in restore) {script};; esac; {REAL}"):
        (fell_back,) = frozen.asked()
    assert fell_back.kind is BootKind.FELL_BACK and reason in fell_back.reason
    assert frozen.stand.servers() == [fell_back.pid]


@pytest.mark.usefixtures("frozen")
def test_a_restore_given_up_in_its_first_moment_leaves_nothing_behind() -> None:
    for n in range(1500):
        process = subprocess.Popen(
            [*criu._NAMESPACE, "sleep", "4711.5"], start_new_session=True, stderr=subprocess.DEVNULL
        )
        due = time.perf_counter() + n % 100 * 2e-5  # `unshare` forks somewhere in the first two milliseconds
        while time.perf_counter() < due:
            pass
        end_namespace(process)

    def left() -> list[int]:
        return [pid for pid, words in command_lines().items() if words[:2] == ["sleep", "4711.5"]]

    nothing_left = until(lambda: not left(), 10.0)  # the last one is killed, and may need a moment to be gone
    for pid in left():
        os.kill(pid, signal.SIGKILL)
    assert nothing_left


def test_criu_killed_half_way_through_a_dump_is_a_cold_boot_without_a_snapshot(frozen: Frozen) -> None:
    damage(frozen, "images/pages-1.img", flip)
    # the kernel kills it (SIGXFSZ) at the first byte beyond one megabyte of the process's pages
    with frozen.other_criu(f"case $1 in dump) prlimit --fsize=1000000 --pid $$;; esac; {REAL}"):
        (fell_back,) = frozen.asked()
    assert fell_back.kind is BootKind.FELL_BACK and fell_back.snapshot is None
    assert "no snapshot was taken: CRIU did not dump" in fell_back.reason
    assert frozen.stand.servers() == [fell_back.pid]
    frozen.idle()
    assert frozen.asked()[0].kind is BootKind.FELL_BACK  # the damaged one is still there


def test_a_full_disk_costs_the_snapshot_and_nothing_else(frozen: Frozen) -> None:
    folder = snapshots_folder(frozen.stand.platform.store.root, "staging")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "none", str(folder)], check=True)
    try:
        (fell_back,) = frozen.asked()
        assert fell_back.kind is BootKind.FELL_BACK and "No space left" in fell_back.reason
        assert list(folder.iterdir()) == []
        frozen.idle()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    frozen.stand.say()


def test_a_port_that_is_taken_meanwhile_is_a_cold_boot_on_another(frozen: Frozen) -> None:
    with socket.create_server(("127.0.0.1", frozen.manifest.port)):
        (fell_back,) = frozen.asked()
    assert fell_back.kind is BootKind.FELL_BACK and "Address already in use" in fell_back.reason


def test_a_server_killed_in_its_warm_up_is_replaced_by_a_cold_one(frozen: Frozen) -> None:
    damage(frozen, "images/pages-1.img", flip)

    log = frozen.stand.platform.logs("staging")
    old = log.resolve()

    def kill_once_asked() -> None:
        assert until(lambda: log.resolve() != old and "processing task" in log.read_text(), every_s=0.001)
        os.kill(frozen.stand.servers()[0], signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_once_asked)
        (fell_back,) = frozen.asked()
        killing.result()
    assert fell_back.kind is BootKind.FELL_BACK and "the server: killed by SIGKILL" in fell_back.reason
    frozen.idle()
    frozen.stand.say()


def test_a_restored_server_that_hangs_later_is_noticed_and_its_client_answered(frozen: Frozen) -> None:
    frozen.asked()
    pid = frozen.stand.status().server_pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    crashed, restored = frozen.asked()
    assert (crashed.kind, crashed.pid) == (BootKind.CRASHED, pid) and "it hangs" in crashed.reason
    assert restored.kind is BootKind.RESTORED


@pytest.mark.parametrize("what", ["model", "llama-server"])
def test_a_file_of_the_release_that_was_replaced_is_not_served(frozen: Frozen, what: str) -> None:
    store, release = frozen.stand.platform.store, frozen.stand.first
    path = store.file(release.files["model"]) if what == "model" else store.build_dir(release.build) / what
    away = path.rename(path.with_suffix(".away"))
    try:
        path.write_bytes(away.read_bytes())
        path.chmod(0o755)
        flip(path)
        with Client(frozen.stand.platform.endpoint("staging")) as client:
            (crashed,) = frozen.boots(lambda: client.get("/v1/models"))
        assert (crashed.kind, crashed.pid) == (BootKind.CRASHED, None) and "not whole" in crashed.reason
    finally:
        away.rename(path)
    assert [b.kind for b in frozen.asked()] == [BootKind.RESTORED]


def test_a_snapshot_is_its_owners_alone_and_older_than_any_request(frozen: Frozen) -> None:
    secret = "what nobody else may read"
    frozen.asked()
    with Client(frozen.stand.platform.endpoint("staging")) as client:
        client.chat(secret, max_tokens=2)
    paths = [frozen.folder.parent, frozen.folder, *frozen.folder.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}
    pages = (frozen.folder / "images" / "pages-1.img").read_bytes()
    assert frozen.stand.key.encode() in pages and secret.encode() not in pages
    run = frozen.stand.platform.store.root / "run"
    with_key = [path for path in run.rglob("*") if path.is_file() and frozen.stand.key.encode() in path.read_bytes()]
    assert with_key == [frozen.folder / "images" / "pages-1.img"]


def test_snapshots_go_with_their_releases(frozen: Frozen) -> None:
    stand, store = frozen.stand, frozen.stand.platform.store
    mine = frozen.folder.name
    store.save_pointer(StagePointer(stage="staging", release=stand.first.id))
    stand.serve(stand.second)
    kept = {path.name.partition("-")[0] for path in snapshots_folder(store.root, "staging").iterdir()}
    assert kept == {stand.first.id, stand.second.id}
    store.save_pointer(StagePointer(stage="staging", release=stand.second.id))
    stand.platform.idle("staging")
    stand.say()
    stand.platform.ensure("staging")
    assert until(lambda: mine not in [p.name for p in snapshots_folder(store.root, "staging").iterdir()])
    store.save_pointer(StagePointer(stage="staging"))
    stand.serve(stand.first)


def test_another_key_is_another_snapshot(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = frozen.folder
    with monkeypatch.context() as patch:
        patch.setenv(KEY_ENV, "another-key-4711")  # no word: this process hides it from now on
        (created,) = frozen.boots(lambda: frozen.stand.serve(frozen.stand.first))
        assert created.kind is BootKind.CREATED
        assert frozen.folder != mine and not mine.exists()
    (created,) = frozen.boots(lambda: frozen.stand.serve(frozen.stand.first))
    assert created.kind is BootKind.CREATED and frozen.folder == mine


def test_another_generation_is_another_snapshot_which_outlives_the_activator(frozen: Frozen) -> None:
    stand, mine = frozen.stand, frozen.folder
    (created,) = frozen.boots(lambda: stand.platform.deploy("staging", stand.first, lambda _: None, generation="2"))
    assert (created.kind, created.generation) == (BootKind.CREATED, "2")
    assert frozen.folder != mine and not mine.exists()
    stand.platform.shut_down("staging")
    stand.platform.ensure("staging")
    (restored,) = frozen.asked()
    assert (restored.kind, restored.snapshot) == (BootKind.RESTORED, created.snapshot)
    (created,) = frozen.boots(lambda: stand.serve(stand.first))
    assert (created.kind, created.generation) == (BootKind.CREATED, "") and frozen.folder == mine
