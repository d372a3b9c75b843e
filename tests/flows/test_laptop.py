"""The command line on an operator's machine that is no Linux (`tests.laptop`): Modal whole, local as far as it goes.

The fake Modal runs on this machine as it is, since its containers need /proc; only the operator's processes have none.
A whole upgrade on Modal, from a laptop, begins the story of test_modal.py.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.contracts import scripted
from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform
from tasks.preflight import bundle
from tasks.release import BootKind, Build, StagePointer
from tasks.settings import LocalSettings, ServerSettings, Settings
from tasks.store import Store
from tests import laptop
from tests.conftest import migrated
from tests.fakes.github import FakeGithub, fake_github
from tests.laptop import Laptop, laptop_in
from tests.platforms.modal_stand import NO_BLOCKING, PROXY_ENV, SECRET, create_secret, fake_modal
from tests.platforms.stand import KEY_ENV, until

pytestmark = pytest.mark.skipif(bool(laptop.why_not()), reason=laptop.why_not())

NEEDS_LINUX = "snapshots need Linux and its /proc"


@pytest.fixture
def github(tmp_path: Path) -> Iterator[FakeGithub]:
    """Two builds of a project that needs no patch."""
    with fake_github(tmp_path / "github") as github:
        for build in (10601, 10602):
            github.commit(f"server : change {build}", {"CMakeLists.txt": f"project(x) # {build}\n"})
            github.release(f"b{build}", "2026-11-01T12:00:00Z", prerelease=True)
        yield github


@pytest.fixture
def at(tmp_path: Path, github: FakeGithub) -> Laptop:
    """A laptop with a store of its own, an empty series and that upstream; the platform is the default."""
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "series").touch()
    migrated(tmp_path / "store" / "prefect")
    ours = ("LLAMA_", "PREFECT_", "DEMO_", "GITHUB_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {
        "LLAMA_RELEASE_STORE": str(tmp_path / "store"),
        "LLAMA_RELEASE_CACHE": str(tmp_path / "cache"),
        "LLAMA_RELEASE_PATCHES": str(tmp_path / "patches"),
        "LLAMA_RELEASE_UPSTREAM__KIND": "github",
        "LLAMA_RELEASE_UPSTREAM__API_URL": github.url,
        "LLAMA_RELEASE_LOCAL__STAGING_PORT": "0",
        "LLAMA_RELEASE_LOCAL__PRODUCTION_PORT": "0",
        "LLAMA_RELEASE_SERVER__API_KEY_ENV": KEY_ENV,
        KEY_ENV: "key-of-a-laptop",
        "USER": "tester",
        "COLUMNS": "160",
    }
    return laptop_in(tmp_path, env)


@pytest.fixture
def on_modal(at: Laptop, tmp_path: Path) -> Iterator[Laptop]:
    """That laptop, with an account on a fake Modal."""
    with fake_modal(tmp_path / "fake") as fake:
        create_secret()
        tokens = dict(zip(PROXY_ENV, fake.lifecycle.proxy_token, strict=True))
        env = {**at.env, **fake.env, **tokens, "LLAMA_RELEASE_PLATFORM": "modal", "PYTHONWARNINGS": NO_BLOCKING}
        yield Laptop(at.window, {**env, "LLAMA_RELEASE_MODAL__SECRET": SECRET})


def findings(laptop: Laptop, code: int) -> dict[str, dict[str, str]]:
    return {each["check"]: each for each in json.loads(laptop.run("doctor", "--json", code=code))}


@pytest.mark.wire
def test_it_has_neither_proc_nor_prctl_and_its_processes_are_seen_all_the_same(at: Laptop) -> None:
    looks = """
import ctypes, os, psutil
print(os.listdir("/proc"), hasattr(ctypes.CDLL(None), "prctl"), hasattr(ctypes.CDLL(None), "getpid"))
print(psutil.Process(os.getppid()).is_running())
"""
    assert at.python("-c", looks).stdout == "[] False True\nTrue\n"


@pytest.mark.wire
def test_on_modal_nothing_is_missed(on_modal: Laptop) -> None:
    seen = findings(on_modal, code=0)
    assert {"account", "secret", "images", "disk"} <= seen.keys() and "snapshots" not in seen
    assert {each["severity"] for each in seen.values()} <= {"ok", "note"}, seen
    for words in (("status",), ("history",), ("patches", "--to", "b10602")):
        on_modal.run(*words)
    plan = json.loads(on_modal.run("plan", "--to", "b10601", "--json"))
    assert (plan["target"]["build"], plan["problem"], plan["build"]) == (10601, "", None)


@pytest.mark.wire
def test_on_modal_an_upgrade_that_modal_cannot_build_ends_in_words_and_one_that_nobody_waits_for_cannot_be_approved(
    on_modal: Laptop,
) -> None:
    on_modal.run("approve", "no-such-run", "--by", "alice", code=2)
    said = on_modal.run("upgrade", "--to", "b10601", "--approver", "alice", code=1)
    assert "b10601" in said and "does not compile on Modal" in said


@pytest.mark.wire
def test_scheduled_upgrades_are_served_until_it_is_told_to_stop_and_no_process_is_left(on_modal: Laptop) -> None:
    with on_modal.start("serve", "--port", "0") as serving:
        assert serving.stdout
        said = ""
        while "started!" not in said:
            line = serving.stdout.readline()
            assert line, said
            said += line
        serving.send_signal(signal.SIGTERM)
        said += serving.stdout.read()
    assert (serving.returncode, "Traceback" in said) == (0, False), said
    assert until(lambda: not _of(on_modal), 10.0), _of(on_modal)


@pytest.mark.wire
def test_on_the_local_platform_doctor_says_what_needs_linux_in_a_line_and_is_well(at: Laptop) -> None:
    seen = findings(at, code=0)
    assert seen["snapshots"]["evidence"] == f"cold: {NEEDS_LINUX}"
    assert "only Linux ends it" in seen["kernel"]["evidence"]
    assert seen["toolchain"]["severity"] == seen["locks"]["severity"] == "ok"
    at.run("status")


@pytest.mark.wire
def test_on_the_local_platform_a_plan_says_that_it_would_be_compiled(at: Laptop) -> None:
    assert "to be compiled" in at.run("plan", "--to", "b10601")


def _of(laptop: Laptop) -> list[str]:
    """The command lines of the processes that run in a laptop, by what they were given in their environment."""
    mark, found = f"PYTHON_LAPTOP_PROC={laptop.window}\0".encode(), []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and mark in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


# -- with servers -----------------------------------------------------------------------------------------


@pytest.mark.real
def test_on_the_local_platform_a_server_comes_up_cold_and_comes_back_cold(
    at: Laptop, store_with: Store, build: Build, tmp_path: Path
) -> None:
    settings = ServerSettings(
        model=scripted.build(scripted.thinks_then_answers(3), tmp_path / "m.gguf"), threads=1, api_key_env=KEY_ENV
    )
    release, _ = bundle(store_with, build, settings)
    store_with.save_release(release)
    store_with.save_pointer(StagePointer(stage="production", release=release.id))
    platform = LocalPlatform(Settings(store=store_with.root, local=LocalSettings(production_port=0)))
    try:
        assert "production answers at" in at.run("start")
        assert platform.idle("production") == 0
        with Client(platform.endpoint("production").model_copy(update={"api_key": at.env[KEY_ENV]})) as client:
            assert client.chat("Hello", max_tokens=2).status == 200
        boots = platform.boots("production")
        assert [(boot.kind, boot.reason) for boot in boots] == [(BootKind.COLD, NEEDS_LINUX)] * 2
        assert findings(at, code=0)["production"]["severity"] == "ok"
        at.run("stop")
        assert _of(at) == []
    finally:
        platform.stop("production")
