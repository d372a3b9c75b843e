"""How a container tells what it is, and what it says of itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from modal_app.compile import tree_hash
from modal_app.deployment import Deployment, FileRef
from modal_app.server import BootFailed, how_it_came, wait_until, worker
from modal_app.settings import ModalSettings


@pytest.mark.parametrize(
    ("snapshots", "snapshotting", "task", "kind"),
    [
        (True, True, "ta-1", "created"),
        (True, True, "ta-2", "restored"),
        (True, False, "ta-1", "fell_back"),
        (False, False, "ta-1", "cold"),
    ],
)
def test_a_container_is_told_from_the_one_that_booted(
    snapshots: bool, snapshotting: bool, task: str, kind: str
) -> None:
    found, reason = how_it_came(snapshots=snapshots, snapshotting=snapshotting, booted_by="ta-1", task=task)
    assert found == kind
    assert reason


def test_a_kind_of_machine_is_told_by_its_place_its_cpu_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_REGION", "us-east-1")
    here = worker(gpu=False)
    monkeypatch.setenv("MODAL_REGION", "us-west-2")
    there = worker(gpu=False)
    assert here.startswith("us-east-1, ") and there.startswith("us-west-2, ")
    assert here.partition(", ")[2] == there.partition(", ")[2] != ""


def test_a_server_that_ends_is_not_waited_for() -> None:
    with pytest.raises(BootFailed, match="its last words"):
        wait_until(lambda: False, lambda: "its last words", 60)
    with pytest.raises(BootFailed, match="not ready in 0 s"):
        wait_until(lambda: False, lambda: "", 0)


def test_the_argv_of_a_container_names_files_by_content_in_an_immutable_folder() -> None:
    deployment = Deployment(
        stage="staging", name="s", release="r", build="b1", argv=("--model", "{model}", "--parallel", "4"),
        files={"model": FileRef(name="m.gguf", sha256="f" * 64)}, gpu="L40S", settings=ModalSettings(),
    )  # fmt: skip
    assert deployment.slots == 4
    assert deployment.command(Path("/store"), 8080) == [
        "/store/builds/b1/llama-server", "--model", f"/store/files/{'f' * 64}/m.gguf", "--parallel", "4",
        "--host", "0.0.0.0", "--port", "8080",
    ]  # fmt: skip


def test_an_image_without_a_digest_is_refused() -> None:
    with pytest.raises(ValidationError, match="devel_image"):
        ModalSettings(devel_image="nvidia/cuda:12.8.1-devel-ubuntu24.04")


def test_the_two_images_have_one_cuda_minor_and_one_distribution() -> None:
    assert ModalSettings().cuda == "12.8 ubuntu24.04"
    for other in ("12.9.1-runtime-ubuntu24.04", "12.8.1-runtime-ubuntu22.04"):
        with pytest.raises(ValueError, match="one CUDA minor and distribution"):
            _ = ModalSettings(runtime_image=f"nvidia/cuda:{other}@sha256:{'0' * 64}").cuda


def test_a_tree_hash_is_gits_own(tmp_path: Path) -> None:
    for name, text in {"a/b.txt": "b", "a.txt": "a", "a0": "0", "deep/er/x.sh": "#!/bin/sh\n"}.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "src" / "deep/er/x.sh").chmod(0o755)
    (tmp_path / "src" / "link").symlink_to("a.txt")

    def git(*words: str) -> str:
        argv = ["git", f"--git-dir={tmp_path / 'git'}", f"--work-tree={tmp_path / 'src'}", *words]
        return subprocess.run(argv, text=True, capture_output=True, check=True).stdout.strip()

    git("init", "--quiet")
    git("add", "--all")
    assert tree_hash(tmp_path / "src") == git("write-tree")
