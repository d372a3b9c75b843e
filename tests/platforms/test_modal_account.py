"""Modal's errors as a person meets them: what happened, Modal's own words, what to do."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import modal
import pytest
from grpclib import Status
from modal.client import _Client
from modal.exception import AsyncUsageWarning, ConflictError, FunctionTimeoutError, PermissionDeniedError, ServiceError
from modal_proto import api_pb2

from modal_app.settings import BAKED
from tasks.platforms.modal import ModalPlatform
from tasks.platforms.modal.account import COMMAND_LIMIT_S, command, problem
from tasks.platforms.modal.apps import LOG_LINES, classified, said, url, version
from tasks.release import BadInput, ToolingError
from tests.fakes.modal import FakeModal, Fault
from tests.modal_app.test_deployed import deployment
from tests.platforms.modal_stand import NO_BLOCKING, create_secret, fake_modal, platform_on_modal

wire = pytest.mark.wire


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeModal]:
    with fake_modal(tmp_path / "fake") as fake:
        yield fake


@pytest.fixture
def platform(tmp_path: Path, fake: FakeModal) -> ModalPlatform:  # noqa: ARG001 - what the platform talks to
    return platform_on_modal(tmp_path)


def deploy() -> None:
    command("deploy", "-m", "modal_app.app", env=deployment().baked(), limit_s=COMMAND_LIMIT_S)


@wire
def test_an_unreachable_control_plane_fails_in_seconds_and_says_where(
    platform: ModalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("MODAL_SERVER_URL", address)
    _Client._set_env_client(None)
    start = time.monotonic()
    for ask in (lambda: platform.store.pointer("production"), deploy):
        with pytest.raises(ToolingError, match=f"Modal cannot be reached at {address}"):
            ask()
    assert time.monotonic() - start < 30


@wire
def test_of_several_addresses_of_the_control_plane_one_is_enough(
    fake: FakeModal, platform: ModalPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's default names two."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}"
    alive = fake.env["MODAL_SERVER_URL"]
    for addresses in (f"{alive},{alive}", f"{gone}, {alive}"):
        monkeypatch.setenv("MODAL_SERVER_URL", addresses)
        _Client._set_env_client(None)
        assert platform.store.pointer("production").release is None
    monkeypatch.setenv("MODAL_SERVER_URL", f"{gone},{gone}?")
    with pytest.raises(ToolingError, match="Modal cannot be reached at .* or "):
        platform.store.pointer("production")
    hosts = [urlsplit(url.strip()).hostname for url in modal.config.DEFAULT_SERVER_URL.split(",")]
    assert all(host and "," not in host for host in hosts)


@wire
def test_what_a_server_says_is_its_own_lines_as_it_wrote_them_from_the_first_on(
    fake: FakeModal, platform: ModalPlatform
) -> None:
    modal.App("quiet").deploy(name="a-trial")
    app_id = str(modal.App.lookup("a-trial").app_id)
    own = ["budget: 6", *(f"line {n}" for n in range(LOG_LINES + 100)), '{"error": "of upstream"}']
    ours = ['{"argv": ["--log", "budget: 6"]}', '{"boot": {"kind": "created"}}']
    for line in [ours[0], *own, ours[1]]:
        fake.logs.write(line, api_pb2.FILE_DESCRIPTOR_STDOUT, app_id, "", "ta-1")
    assert said(platform.settings.modal, "a-trial").splitlines() == own
    assert said(platform.settings.modal, "another") == ""


@wire
def test_a_wrong_token_is_the_users_to_mend(platform: ModalPlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "wrong")
    _Client._set_env_client(None)
    for ask in (lambda: platform.store.pointer("production"), deploy):
        with pytest.raises(BadInput, match="does not know this token") as caught:
            ask()
        assert "modal token new" in caught.value.todo


@wire
@pytest.mark.usefixtures("fake")
def test_an_environment_that_is_not_there_is_named(tmp_path: Path) -> None:
    platform = platform_on_modal(tmp_path, environment="nowhere")
    with pytest.raises(BadInput, match="no such Modal environment") as caught:
        platform.store.save_pointer(platform.store.pointer("production"))
    assert "nowhere" in caught.value.evidence


@wire
@pytest.mark.usefixtures("fake")
def test_a_missing_secret_says_how_to_create_it() -> None:
    with pytest.raises(BadInput, match="the Modal Secret with the API key is not there") as caught:
        deploy()
    assert "modal secret create" in caught.value.todo


@wire
def test_an_exhausted_quota_is_no_fault_of_the_release(fake: FakeModal) -> None:
    create_secret()
    fake.faults.arm(Fault("FunctionCreate", Status.RESOURCE_EXHAUSTED, "GPU limit of this workspace reached", times=9))
    with pytest.raises(ToolingError, match="a limit of the Modal workspace") as caught:
        deploy()
    assert "GPU limit of this workspace reached" in caught.value.evidence


@wire
def test_a_failed_image_build_is_told_with_its_last_log_lines(fake: FakeModal) -> None:
    create_secret()
    fake.images.fail_builds("httpx", ["Collecting httpx", "ERROR: No matching distribution found for httpx==0.28.1"])
    with pytest.raises(ToolingError, match="could not build the image") as caught:
        deploy()
    assert "No matching distribution found for httpx==0.28.1" in caught.value.evidence
    fake.images.mend_builds()
    deploy()


@wire
def test_a_deploy_that_breaks_off_before_it_is_published_leaves_the_stage_as_it_was(
    fake: FakeModal, platform: ModalPlatform
) -> None:
    create_secret()
    fake.faults.arm(Fault("AppPublish", Status.INTERNAL, "gone", times=9))
    with pytest.raises(ToolingError):
        deploy()
    assert version(platform.settings.modal, "llama-release-staging") is None
    assert url(platform.settings.modal, "llama-release-staging") is None
    fake.faults.clear()
    deploy()
    assert version(platform.settings.modal, "llama-release-staging") == 1


@wire
@pytest.mark.filterwarnings("error::modal.exception.AsyncUsageWarning", "ignore:coroutine:RuntimeWarning")
@pytest.mark.usefixtures("platform")
def test_a_blocking_call_in_an_event_loop_would_fail_these_tests() -> None:
    async def main() -> None:
        modal.Dict.from_name("anything", create_if_missing=True).put("a", 1)

    with pytest.raises(AsyncUsageWarning):
        asyncio.run(main())


@wire
@pytest.mark.usefixtures("fake")
def test_it_would_fail_the_commands_and_containers_of_these_tests_too() -> None:
    script = "import asyncio, modal\nasync def main(): modal.Dict.from_name('d', create_if_missing=True).put('a', 1)\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}asyncio.run(main())"], env=os.environ | {"PYTHONWARNINGS": NO_BLOCKING},
        text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "AsyncUsageWarning" in done.stderr


@wire
def test_settings_of_the_environment_reach_what_is_deployed(fake: FakeModal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{BAKED}__BUILD_TIMEOUT_S", "1234")
    command("deploy", "-m", "modal_app.tools", limit_s=COMMAND_LIMIT_S)
    assert fake.apps.function("llama-release-tools", "compile_build").timeout_secs == 1234


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FunctionTimeoutError("Task's current input timed out"), ToolingError, "raise modal.build_timeout_s"),
        (ConflictError("version moved"), ToolingError, "run it again"),
        (PermissionDeniedError("no deploy"), BadInput, "use a token that may"),
        (ServiceError("deadline"), ToolingError, "nothing is lost"),
    ],
)
def test_each_error_says_what_to_do(error: Exception, kind: type[Exception], words: str) -> None:
    said = problem(error, "building b1")
    assert isinstance(said, kind)
    assert words in said.todo
    assert str(error) in said.evidence


def test_a_log_is_classified_by_its_most_telling_line() -> None:
    log = """\
{"boot": {"kind": "created"}}
Runner failed with exit code: 222
{"boot": {"kind": "fell_back"}}
Runner failed with exit code: 139
Container ran out of memory and was killed."""
    assert [line.split(",")[0] for line in classified(log).splitlines()] == [
        "out of memory",
        "crashed (segmentation fault)",
        "restore failed",
        "fell back",
        "snapshot created",
    ]
