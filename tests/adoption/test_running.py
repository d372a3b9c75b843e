"""A server that answers at an address: by its process where it is of this machine, else by what it tells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.adoption.adopt import adopt
from tasks.adoption.read import Source, read_source
from tasks.flags.table import known
from tasks.platforms.local.proc import free_port
from tasks.release import BadInput, Build, ToolingError
from tasks.settings import Settings
from tasks.store import Store
from tests.fakes.listening import Answering, listening
from tests.platforms.stand import until

KEY = "sk-of-the-running-server"
PROPS: dict[str, Any] = {
    "default_generation_settings": {
        "n_ctx": 2048,
        "params": {"temperature": 0.800000011920929, "top_k": 40, "top_p": 0.949999988079071, "min_p": 0.0},
    },
    "total_slots": 4,
    "model_path": "/srv/models/m.gguf",
    "model_alias": "mine",
    "endpoint_metrics": True,
    "endpoint_props": False,
    "build_info": "b11434-07907fc44",
}


@contextmanager
def telling(props: Any = PROPS, status: int = 200) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server of this process, which is no llama-server's, that answers as one; (its address, path and key of each
    request)."""
    asked: list[tuple[str, str | None]] = []

    class Telling(Answering):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            known = {"/props": props, "/v1/models": {"data": [{"id": "mine"}]}, "/slots": [{"id": 0, "n_ctx": 2048}]}
            self.say(json.dumps(known.get(self.path, {})).encode(), status, {"Content-Type": "application/json"})

    with listening(Telling) as url:
        yield url, asked


@pytest.mark.wire
def test_what_a_server_tells_is_taken_and_what_it_does_not_tell_is_said(tmp_path: Path) -> None:
    with telling() as (url, asked):
        launch = read_source(Source(url=f"{url}/v1", key=KEY), {"LLAMA_ARG_THREADS": "9"}, tmp_path)
    found = adopt(launch, known(), tmp_path)
    server = found.settled.server
    assert (server["model"], server["alias"]) == ("/srv/models/m.gguf", "mine")
    assert (server["slots"], server["flags"]) == ("auto", ["--ctx-size", "2048"])
    assert (server["temperature"], server["top_k"], server["top_p"], server["min_p"]) == (0.8, 40, 0.95, 0)
    assert server["metrics"] is True and "threads" not in server
    assert found.settled.section("local")["production_port"] == int(url.rpartition(":")[2])
    assert "/props: n_ctx" in found.text
    assert any("GPU layers, batches" in note for note in found.settled.notes)
    assert {path for path, _ in asked} == {"/props", "/v1/models", "/slots"}
    assert {key for _, key in asked} == {f"Bearer {KEY}"}
    assert KEY not in found.text and server["api_key_env"] == "LLAMA_RELEASE_API_KEY"


@pytest.mark.wire
def test_a_redirect_does_not_take_the_key_elsewhere(tmp_path: Path) -> None:
    with telling() as (elsewhere, heard):

        class Sending(Answering):
            def do_GET(self) -> None:
                self.say(b"", 302, {"Location": elsewhere + self.path})

        with listening(Sending) as url, pytest.raises(BadInput, match="is no llama-server"):
            read_source(Source(url=url, key=KEY), {}, tmp_path)
    assert heard == []


@pytest.mark.wire
@pytest.mark.parametrize(
    ("props", "status", "told"),
    [
        ({}, 401, "wants another key"),
        ({"version": "1"}, 200, "is no llama-server"),
        ({"default_generation_settings": None}, 200, "is no llama-server"),
        ([], 404, "is no llama-server"),
    ],
)
def test_what_answers_otherwise_is_refused(props: Any, status: int, told: str, tmp_path: Path) -> None:
    with telling(props, status) as (url, _), pytest.raises(BadInput, match=told):
        read_source(Source(url=url, key=KEY), {}, tmp_path)


@pytest.mark.wire
def test_nothing_that_answers_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ToolingError, match="no answer"):
        read_source(Source(url=f"http://127.0.0.1:{free_port()}"), {}, tmp_path)


@contextmanager
def running(binary: Path, words: Sequence[str], folder: Path, **environment: str) -> Iterator[int]:
    """A llama-server started by hand in a folder; its pid."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [binary, *words], cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.real
def test_a_server_of_this_machine_is_taken_over_by_its_own_words(
    build: Build, base: Settings, scripted_model: Path, tmp_path: Path
) -> None:
    port = free_port()
    shutil.copy(scripted_model, tmp_path / "m.gguf")
    keys = f"{KEY},{KEY}-two"
    words = ("-m", "m.gguf", "-c", "1024", "-np", "2", "--port", str(port), "--api-key", keys, "--top-k", "7")
    binary = Store(base.store).build_dir(build.digest) / "llama-server"
    url = f"http://127.0.0.1:{port}"
    with running(binary, words, tmp_path, LLAMA_ARG_THREADS="1", EDITOR="vi") as pid:
        assert until(lambda: _is_healthy(url))
        launch = read_source(Source(url=url, key=f"{KEY}-two"), {"LLAMA_ARG_CTX_SIZE": "9"}, tmp_path)
    found = adopt(launch, known(), tmp_path)
    server = found.settled.server
    assert (server["model"], server["slots"], server["ctx_per_slot"]) == (str(tmp_path / "m.gguf"), 2, 512)
    assert (server["threads"], server["top_k"]) == (1, 7)
    assert f"# from LLAMA_ARG_THREADS=1 (environment of process {pid})" in found.text
    assert "EDITOR" not in str(found.settled.notes) and KEY not in found.text
    assert any("2 API keys" in note for note in found.settled.notes)
    assert any("b11434" in note for note in found.settled.notes)


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
