"""A server that somebody runs by hand is taken over as it runs, upgraded, and put back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tasks.platforms.local.proc import free_port
from tasks.release import Build, Verdict
from tasks.settings import Settings
from tasks.store import Store
from tests import ggufs
from tests.conftest import NEWER, OLDER
from tests.flows.conftest import KEY, PATIENCE_S, REPOSITORY, machine_with
from tests.platforms.stand import until

pytestmark = [pytest.mark.real, pytest.mark.long]


def healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_server_with_a_split_model_an_adapter_and_drafts_is_taken_over_upgraded_and_put_back(
    base: Settings, build: Build, older_build: Build, smollm2: Path, tmp_path: Path
) -> None:
    first, _ = ggufs.split(smollm2, tmp_path, 2)
    adapter, port = ggufs.lora(tmp_path / "lora.gguf"), free_port()
    folder = Store(base.store).build_dir(older_build.digest)
    words = [
        str(folder / "llama-server"), "-m", str(first), "--lora", str(adapter), "-c", "8192", "-np", "2", "-t", "1",
        "--temp", "0.6", "--load-mode", "none", "--spec-type", "ngram-mod", "--alias", "mine", "--port", str(port),
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    by_hand = subprocess.Popen(
        words, env={"LD_LIBRARY_PATH": str(folder), "LLAMA_API_KEY": KEY, "HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with machine_with(base, (older_build, build), smollm2, tmp_path / "store") as machine:
        taken_over = ("SERVER__", "LOCAL__", "API_KEY")
        kept = {n: v for n, v in machine.env.items() if not n.removeprefix("LLAMA_RELEASE_").startswith(taken_over)}
        env = kept | {
            "PYTHONPATH": str(REPOSITORY),
            "LLAMA_RELEASE_PATCHES": str(base.patches),
            "PATH": os.environ["PATH"],
        }

        def run(*command: str) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "flows", *command], cwd=tmp_path, env=env, text=True, capture_output=True,
                timeout=PATIENCE_S,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
            return done.stdout

        try:
            until(lambda: healthy(address))
            made = json.loads(run("import", "--url", address, "--key", KEY, "--json"))
            assert made["written"] and KEY not in (tmp_path / "llama-release.toml").read_text()
            env[made["export"][0]] = KEY
            held = json.loads(run("plan", "--to", OLDER, "--json"))["machine"]
            assert f"pid {by_hand.pid} (llama-server) has port {port}" in held
        finally:
            by_hand.terminate()
            by_hand.wait(30)
        assert f"promoted {OLDER}" in run("upgrade", "--to", OLDER, "--approver", "ada")
        assert f"promoted {NEWER}" in run("upgrade", "--to", NEWER, "--approver", "ada")
        release = machine.store.get_release(machine.store.pointer("production").release or "")
        assert {"model", "model.2", "lora"} <= set(release.files)
        for name in ("lora", "drafts", "samplers"):
            known = machine.store.verification(release.id, f"contracts.effects.{name}")
            assert known and known.verdict is Verdict.PASSED and "leaves it" not in known.summary
        listed = httpx.get(
            f"{address}/lora-adapters", headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False
        )
        assert len(listed.json()) == 1, "at their own address, with their own key"
        run("rollback", "--reason", "as it was", "--by", "ada")
        assert machine.production() == OLDER
