"""What `modal deploy -m modal_app.app` puts on the wire, and what it says when it refuses."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from modal_proto import api_pb2
from pydantic import ValidationError

from modal_app.deployment import BAKED, RELEASE, STAGE, STORE, Deployment, FileRef
from modal_app.settings import ModalSettings
from tests.fakes.modal import FakeModal
from tests.platforms.modal_stand import SECRET, create_secret, fake_modal

pytestmark = pytest.mark.wire

Served = Literal["staging", "production", "trial"]
ARGV = ("--model", "{model}", "--parallel", "3", "--alias", "gemma")
FILES = {"model": FileRef(name="m.gguf", sha256="a" * 64)}


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeModal]:
    with fake_modal(tmp_path_factory.mktemp("modal") / "fake") as fake:
        create_secret()
        yield fake


def deployment(stage: Served = "staging", release: str = "3f0c9a1b2c4d", **settings: Any) -> Deployment:
    return Deployment(
        stage=stage, name=f"llama-release-{stage}", release=release, build="b" * 16, argv=ARGV, files=FILES,
        gpu="L40S", settings=ModalSettings(secret=SECRET, **settings),
    )  # fmt: skip


def modal(*words: str, env: dict[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modal", *words], env={**os.environ, **env}, cwd=cwd, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
    )  # fmt: skip


def deploy(made: Deployment, key: str = "") -> None:
    env = made.baked() | ({"LLAMA_API_KEY": key} if key else {})
    done = modal("deploy", "-m", "modal_app.app", env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def function_of(fake: FakeModal, made: Deployment) -> api_pb2.Function:
    return fake.apps.function(made.name, "Llama")


def test_a_stage_is_a_gpu_server_with_a_snapshot_behind_no_proxy(fake: FakeModal) -> None:
    made = deployment()
    deploy(made)
    function = function_of(fake, made)
    assert function.is_server
    assert function.resources.gpu_config.gpu_type == "L40S"
    assert function.resources.gpu_config.count == 1
    assert function.checkpointing_enabled
    assert function.experimental_options["enable_gpu_snapshot"] == "True"
    assert function.http_config.port == 8080
    assert not function.http_config.unauthenticated
    assert list(function.http_config.proxy_regions) == ["us-east"]
    assert not function.webhook_config.type


def test_nothing_keeps_the_container_of_the_next_version_out_and_answers_may_go_on_in_the_earlier_one(
    fake: FakeModal,
) -> None:
    made = deployment()
    deploy(made)
    assert function_of(fake, made).autoscaler_settings.max_containers == 0
    assert function_of(fake, made).http_config.exit_grace_period == 300
    with pytest.raises(ValidationError, match="max_containers"):
        ModalSettings(max_containers=1)


def test_it_scales_to_zero_and_takes_as_many_requests_as_it_has_slots(fake: FakeModal) -> None:
    made = deployment(idle_s=123, max_containers=2)
    deploy(made)
    scaling = function_of(fake, made).autoscaler_settings
    assert (scaling.min_containers, scaling.max_containers, scaling.scaledown_window) == (0, 2, 123)
    assert scaling.target_concurrency_float == 3.0


def test_the_store_is_mounted_read_only_and_the_key_comes_from_a_secret(fake: FakeModal) -> None:
    made = deployment()
    deploy(made)
    (mount,) = function_of(fake, made).volume_mounts
    assert (mount.mount_path, mount.read_only) == (STORE, True)
    (secret,) = function_of(fake, made).secret_ids
    assert set(fake.secrets.values(secret)) == {"LLAMA_API_KEY"}


def test_the_images_are_pinned_by_digest_and_have_no_layer_too_many(fake: FakeModal) -> None:
    made = deployment()
    deploy(made)
    image = function_of(fake, made).image_id
    layers = [list(layer.dockerfile_commands) for layer in fake.images.layers(image)]
    assert [commands[0].split("@")[-1] for commands in layers[:1]] == [made.settings.runtime_image.split("@")[1]]
    last = [commands[1] for commands in layers[1:]]
    assert last[0] == "ENTRYPOINT []"
    assert "httpx==0.28.1" in last[1] and "pydantic==2.14.4" in last[1]
    assert last[2].startswith(f"ENV {BAKED}=")
    assert len(layers) == 4
    assert Deployment.model_validate_json(fake.images.environment(image)[BAKED]) == made


def test_a_new_release_is_never_no_changes_and_the_same_one_always_is(fake: FakeModal) -> None:
    def versions() -> int:
        app = fake.apps.deployed("llama-release-production")
        return len(app.versions) if app else 0

    counts = []
    for release in ("1" * 12, "1" * 12, "2" * 12, "1" * 12):
        deploy(deployment("production", release))
        counts.append(versions())
    assert counts == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("snapshots", "gpu", "seen"),
    [
        ("gpu", "L40S", (True, True, "before_snapshot")),
        ("cpu", "L40S", (True, False, "start")),
        ("off", "L40S", (False, False, "start")),
        ("cpu", None, (True, False, "before_snapshot")),
    ],
)
def test_what_a_container_comes_back_from_is_a_setting(
    fake: FakeModal, snapshots: str, gpu: str | None, seen: tuple[bool, bool, str]
) -> None:
    made = deployment(snapshots=snapshots, release=secrets.token_hex(6)).model_copy(update={"gpu": gpu})
    deploy(made)
    function = function_of(fake, made)
    gpu_too = function.experimental_options.get("enable_gpu_snapshot") == "True"
    assert (function.checkpointing_enabled, gpu_too) == seen[:2]
    assert made.boots_before_snapshot is (seen[2] == "before_snapshot")


def test_a_stage_may_be_open_to_any_request_and_a_trial_is(fake: FakeModal) -> None:
    for made in (deployment(open=True), deployment("trial")):
        deploy(made, key="key-of-the-trial")
        assert function_of(fake, made).http_config.unauthenticated


def test_a_trial_takes_no_snapshot_and_has_a_key_that_is_in_no_image(fake: FakeModal) -> None:
    made = deployment("trial").model_copy(update={"gpu": None})
    deploy(made, key="key-of-the-trial")
    function = function_of(fake, made)
    assert not function.checkpointing_enabled
    assert not function.resources.gpu_config.gpu_type
    assert [fake.secrets.values(secret) for secret in function.secret_ids] == [{"LLAMA_API_KEY": "key-of-the-trial"}]
    assert "key-of-the-trial" not in "".join(fake.images.commands(function.image_id))


def test_only_one_tool_needs_a_gpu_and_only_the_builder_and_the_download_may_write(fake: FakeModal) -> None:
    done = modal("deploy", "-m", "modal_app.tools", env={})
    assert done.returncode == 0, done.stdout + done.stderr

    def tool(name: str) -> api_pb2.Function:
        return fake.apps.function("llama-release-tools", name)

    def writes(name: str) -> set[str]:
        return {mount.mount_path for mount in tool(name).volume_mounts if not mount.read_only}

    names = ("compile_build", "inspect", "try_build", "try_build_on_gpu", "ask", "search", "fetch")
    may_write = {"compile_build": {STORE, "/llama-release-cache"}, "fetch": {STORE}}
    assert {name: writes(name) for name in names} == {name: may_write.get(name, set()) for name in names}
    settings = ModalSettings()
    gpus = {name: gpu for name in names if (gpu := tool(name).resources.gpu_config.gpu_type)}
    assert gpus == {"try_build_on_gpu": settings.gpu}
    devel = fake.images.commands(tool("compile_build").image_id)
    assert f"FROM {settings.devel_image}" in devel[0]
    assert tool("compile_build").timeout_secs == settings.build_timeout_s
    assert fake.images.environment(tool("fetch").image_id)["HF_XET_HIGH_PERFORMANCE"] == "1"


@pytest.mark.usefixtures("fake")
def test_without_a_stage_and_a_release_it_says_what_to_set() -> None:
    for env in ({}, {STAGE: "staging"}, {RELEASE: "3f0c9a1b2c4d"}, {STAGE: "trial", RELEASE: "3f0c9a1b2c4d"}):
        done = modal("deploy", "-m", "modal_app.app", env=env)
        assert done.returncode != 0
        assert f"{STAGE}=staging|production" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


def test_a_release_is_named_by_an_id_in_the_store_or_by_a_file(fake: FakeModal, tmp_path: Path) -> None:
    file = tmp_path / "0123456789ab.json"
    file.write_text(
        json.dumps(
            {
                "upstream": {"build": 1},
                "tree": "t",
                "build": "c" * 16,
                "argv": ["--alias", "x"],
                "alias": "x",
                "files": {},
            }
        )
    )
    settings = tmp_path / "llama-release.toml"
    settings.write_text(f'[modal]\nsecret = "{SECRET}"\nidle_s = 77\n')
    repository = str(Path(__file__).parents[2])
    env = {STAGE: "staging", "PYTHONPATH": repository}
    missing = modal("deploy", "-m", "modal_app.app", env=env | {RELEASE: file.stem}, cwd=tmp_path)
    assert "there is no release 0123456789ab in the Volume llama-release" in missing.stdout + missing.stderr
    modal("volume", "put", "llama-release", str(file), f"/releases/{file.name}", env={})
    for named in (str(file), file.stem):
        done = modal("deploy", "-m", "modal_app.app", env=env | {RELEASE: named}, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        function = fake.apps.function("llama-release-staging", "Llama")
        made = Deployment.model_validate_json(fake.images.environment(function.image_id)[BAKED])
        assert (made.release, made.build, made.gpu) == (file.stem, "c" * 16, "L40S")
        assert function.autoscaler_settings.scaledown_window == 77
