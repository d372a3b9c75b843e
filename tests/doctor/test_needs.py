"""What a release needs of this machine: all that is missing is said at once."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tasks import gguf_header
from tasks.doctor import Seen, needs, room
from tasks.release import BadInput, ToolingError
from tasks.settings import LocalSettings, ServerSettings, Settings
from tests.conftest import REPOSITORY
from tests.doctor.machines import needs_root, path_of, small_disk, taken_port
from tests.platforms.conftest import platform_at

ANY_PORT = LocalSettings(staging_port=0, production_port=0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Those of a machine that has all."""
    model = gguf_header.write_bare(tmp_path / "m.gguf", "gemma4")
    return Settings(
        store=tmp_path / "store", cache=tmp_path / "cache", patches=REPOSITORY / "patches",
        server=ServerSettings(model=model), local=ANY_PORT,
    )  # fmt: skip


def changed(settings: Settings, **update: object) -> Settings:
    return settings.model_copy(update=update)


def test_a_machine_that_has_all_is_well_and_nothing_is_written_to_its_store(settings: Settings) -> None:
    assert needs.require(settings, needs.UPGRADE) == []
    assert needs.summary(settings) == "all that it needs is here"
    assert not settings.store.exists()


@needs_root
def test_all_that_is_missing_is_one_error_with_one_command(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(path_of(tmp_path / "bin", "sh")))
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "debian"})
    with small_disk(tmp_path / "small", "size=1m") as small, taken_port() as port:
        lacking = changed(
            settings, store=small / "store", patches=tmp_path / "no",
            local=LocalSettings(staging_port=0, production_port=port), server=ServerSettings(model=tmp_path / "none"),
        )  # fmt: skip
        with pytest.raises(ToolingError) as trouble:
            needs.require(lacking, needs.UPGRADE)
        said = needs.summary(lacking)
    assert trouble.value.what == "6 things that a release needs are missing here"
    for evidence in (
        "toolchain: no compiler that works",
        "git: git is not on this machine",
        f"0.0 GB free at {small}",
        f"port {port} of 127.0.0.1 can't be had: Address already in use, it is held by pid {os.getpid()}",
        f"server.model: {tmp_path}/none is not there",
        f"series: there is no patch series at {tmp_path}/no/series",
    ):
        assert evidence in trouble.value.evidence
        assert evidence.rpartition(": ")[2] in said
    first, *others = trouble.value.todo.splitlines()
    assert first == "`apt-get install g++ git`"
    assert len(others) == 4
    assert not any("apt-get" in line for line in others)


def test_one_missing_thing_is_its_own_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no patch series"):
        needs.require(changed(settings, patches=tmp_path / "no"), needs.UPGRADE)


def test_settings_alone_are_bad_input(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="2 things"):
        needs.require(changed(settings, patches=tmp_path / "no", server=ServerSettings()), needs.UPGRADE)


def test_a_warning_does_not_stop_and_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    free, memory = shutil.disk_usage("/"), room._memory()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)  # both move between two looks
    monkeypatch.setattr(room, "_memory", lambda: memory)
    model = settings.server.model
    assert model
    with open(model, "r+b") as file:
        file.truncate(2_000_000_000_000)
    mapped = changed(settings, server=ServerSettings(model=model, memory_map=True))
    told = needs.require(mapped, needs.UPGRADE)
    assert [line.partition(":")[0] for line in told] == ["memory", "disk"]
    assert needs.summary(mapped) == "; ".join(told)


def test_a_redeploy_does_without_compilers_git_and_the_settings_own_files(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(path_of(tmp_path / "bin", "sh")))
    bare = changed(settings, server=ServerSettings(), patches=tmp_path / "no")
    assert needs.require(bare, needs.REDEPLOY) == []


def test_nothing_is_asked_of_this_machine_where_servers_are_elsewhere(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert needs.require(changed(settings, platform="modal"), needs.UPGRADE) == []


@needs_root
def test_a_store_that_is_mounted_noexec_or_read_only_is_named(settings: Settings, tmp_path: Path) -> None:
    for options, why in (("noexec", "mounted noexec"), ("ro", "cannot be written")):
        with small_disk(tmp_path / options, options) as disk, pytest.raises(ToolingError) as trouble:
            needs.folders(changed(settings, store=disk / "store"))
        assert f"store: {disk}" in trouble.value.evidence
        assert why in trouble.value.evidence


def test_a_folder_below_a_file_is_named_and_so_is_a_temporary_folder_that_is_gone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ToolingError) as trouble:
        needs.folders(changed(settings, cache=tmp_path / "file" / "cache"))
    assert f"cache: {tmp_path}/file is no folder" in trouble.value.evidence
    assert "temporary folder: " in trouble.value.evidence


def test_one_port_for_both_stages_is_refused(settings: Settings) -> None:
    with pytest.raises(BadInput) as trouble:
        needs.ports(changed(settings, local=LocalSettings(staging_port=8099, production_port=8099)))
    assert "are both 8099" in trouble.value.evidence


@pytest.mark.wire
def test_a_port_that_the_stages_own_activator_holds_is_well_and_the_one_it_keeps_must_be_free(tmp_path: Path) -> None:
    platform = platform_at(tmp_path / "store")
    port = int(platform.ensure("staging").base_url.rpartition(":")[2])
    try:
        assert f"staging answers on {port}" in needs.ports(platform.settings)
    finally:
        platform.shut_down()
    assert f"{port} is free for staging" in needs.ports(platform.settings)


@pytest.mark.wire
@pytest.mark.parametrize("name", ["llama-server", "docker-proxy"])
def test_a_server_that_somebody_runs_by_hand_keeps_the_port_until_the_first_release(
    name: str, settings: Settings, tmp_path: Path
) -> None:
    program = tmp_path / name
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)  # its name is what counts
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = subprocess.Popen([program, "600"], pass_fds=[listener.fileno()])
        port = listener.getsockname()[1]
    try:
        here = changed(settings, local=LocalSettings(staging_port=0, production_port=port))
        seen = needs.ports(here)
        assert isinstance(seen, Seen)
        assert f"pid {process.pid} ({name[:15]}) has port {port}" in seen.evidence
        assert "stop it when you are asked to approve" in seen.todo
        assert any("has port" in line for line in needs.require(here, needs.UPGRADE))
        with pytest.raises(BadInput, match="a port is taken"):  # staging is nobody's but ours
            needs.ports(changed(settings, local=LocalSettings(staging_port=port, production_port=0)))
    finally:
        process.kill()
        process.wait()
