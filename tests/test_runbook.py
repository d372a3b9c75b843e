"""The runbook: its rows name what there is, and real messages of real servers lead to the right row and to no other."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from modal.exception import AuthError

from tasks.contracts.promises import CONTRACTS
from tasks.contracts.scripted import build as build_model
from tasks.contracts.scripted import thinks_then_answers
from tasks.doctor import gguf_header
from tasks.endpoint import Client
from tasks.release import Build, Endpoint, Problem
from tasks.runbook import RUNBOOK, explain
from tasks.settings import Settings
from tasks.store import Store
from tests.conftest import REPOSITORY
from tests.platforms.stand import until

STAGES = {
    name
    for path in (REPOSITORY / "tasks").rglob("*.py")
    for name in re.findall(r'^@stage\("(\w+)"|^NAME(?:, SURFACE)? = "(\w+)"', path.read_text(), re.MULTILINE)
    for name in name
    if name
}
CHECKS = {"staging", "production"} | {
    name
    for path in [*(REPOSITORY / "tasks/doctor").glob("*.py"), REPOSITORY / "tasks/platforms/modal/doctor.py"]
    for name in re.findall(r'yield (?:basic\()?"([\w ]+)",|^ +\("(\w+)", \w+\),$', path.read_text(), re.MULTILINE)
    for name in name
    if name
}
ISSUES = range(1, 10)
MODES = ("auto", "required", "named", "none")


def ids(text: str) -> list[str]:
    return [match.row.id for match in explain(text.splitlines())]


# -- the table ------------------------------------------------------------------------------------------------------


def test_ids_are_there_once_and_what_rows_name_is_there() -> None:
    assert len({row.id for row in RUNBOOK}) == len(RUNBOOK)
    for row in RUNBOOK:
        assert row.checks, row.id
        for check in row.checks:
            kind, _, name = check.partition(" ")
            known = {"doctor": name in CHECKS, "contracts": f"contracts.{name}" in CONTRACTS, "stage": name in STAGES}
            assert known.get(kind, (REPOSITORY / check).is_file()), f"{row.id}: {check}"


def test_every_issue_tool_mode_and_status_of_the_guide_has_a_row() -> None:
    sources = " ".join(row.source for row in RUNBOOK)
    for number in ISSUES:
        assert f"guide 01 row {number}" in sources
    for mode in MODES:
        assert any(row.id == f"tool-choice-{mode}" for row in RUNBOOK)
    for status, row in (("401", "api-key"), ("408", "timeout"), ("503", "starting"), ("502", "errors-after-idle")):
        assert ids(f"srv  log_server_r: done request: POST /v1/chat/completions 127.0.0.1 {status}") == [row]
        assert ids(f"openai.APIStatusError: Error code: {status} - {{}}") == [row]
        assert ids(f'127.0.0.1 - "POST /v1/chat/completions HTTP/1.1" {status}') == [row]
        assert ids(f"HTTP/2 {status}") == [row]
    for risk in ("patch-conflict", "field-gone", "quality-regressed", "cuda-driver"):
        assert any(row.id == risk and row.area == "upgrade" for row in RUNBOOK)


def test_commands_in_fixes_are_commands_that_there_are() -> None:
    from flows.__main__ import app

    there = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}  # type: ignore[union-attr]
    there |= {group.name for group in app.registered_groups}
    for row in RUNBOOK:
        for command in re.findall(r"llama-release ([a-z]+)", row.fix):
            assert command in there, f"{row.id}: {command}"


def test_no_pattern_is_so_wide_that_it_matches_a_line_that_says_nothing() -> None:
    for harmless in ("", "ok", "200", "done request: POST /v1/chat/completions 127.0.0.1 200", "all slots are idle"):
        assert ids(harmless) == []


def test_symptoms_come_in_the_order_of_their_first_line_each_once_with_how_often() -> None:
    log = ["starting", "error: invalid argument: --no-mmap", "Invalid API Key", "x", "error: invalid argument: --mlock"]
    found = explain(log)
    assert [(match.row.id, match.at, match.count) for match in found] == [("flag-removed", 2, 2), ("api-key", 3, 1)]
    assert found[0].line == log[1]


def test_a_key_in_a_line_is_not_quoted() -> None:
    for line in ('401 Unauthorized: "Authorization: Bearer sk-secret-1"', "got 401 with --api-key sk-secret-1"):
        (match,) = explain([line])
        assert "sk-secret-1" not in match.line
        assert "***" in match.line


def test_a_queue_is_seen_in_the_metrics_and_an_empty_one_is_not() -> None:
    assert ids("llamacpp:requests_deferred 2") == ["queue"]
    assert ids("# HELP llamacpp:requests_deferred Number of requests deferred.\nllamacpp:requests_deferred 0") == []


# -- messages of Modal, httpx and our own ---------------------------------------------------------------------------


def test_messages_of_libraries_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    import modal

    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", "/nonexistent")
    with pytest.raises(AuthError) as no_token:
        modal.Function.from_name("app", "work").hydrate()
    assert ids(str(no_token.value)) == ["modal-token"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(httpx.ConnectError) as refused:
            httpx.get(f"http://127.0.0.1:{taken.getsockname()[1]}", trust_env=False)
    assert ids(repr(refused.value)) == ["connection-refused"]


# -- messages of real servers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(thinks_then_answers(), tmp_path_factory.mktemp("model") / "m.gguf")


@pytest.fixture(scope="module", params=["b8672", "b11434"])
def binary(request: pytest.FixtureRequest, base: Settings, build_at: Callable[[str], Build]) -> Path:
    return Store(base.store).build_dir(build_at(request.param).digest) / "llama-server"


def said(binary: Path, *argv: str, limit: str = "unlimited") -> str:
    """All that a server which ends by itself says."""
    command = ["bash", "-c", f'ulimit -v {limit}; exec "$0" "$@"', str(binary), "--port", "0", "--threads", "1", *argv]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.real
def test_what_a_server_says_when_it_does_not_come_up_is_known(binary: Path, model: Path, tmp_path: Path) -> None:
    unknown = gguf_header.write_bare(tmp_path / "unknown.gguf", "gemma9")
    whole, cut, pointer = model.read_bytes(), tmp_path / "cut.gguf", tmp_path / "pointer.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n" + "x" * 200)
    ours = ("--model", str(model))
    assert ids(said(binary, "--model", str(unknown))) == ["unknown-architecture"]
    assert ids(said(binary, "--model", str(cut))) == ["model-incomplete"]
    assert ids(said(binary, "--model", str(pointer))) == ["model-incomplete"]
    assert ids(said(binary, "--model", str(tmp_path / "none.gguf"))) == ["model-missing"]
    assert ids(said(binary, *ours, "--mmproj", str(model))) == ["mmproj-wrong"]
    assert ids(said(binary, *ours, "--flash-attn")) == ["flag-value"]
    assert ids(said(binary, *ours, "--ctx-size", "many")) == ["flag-value"]
    assert ids(said(binary, *ours, "--no-such-flag")) == ["flag-removed"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert ids(said(binary, *ours, "--port", str(taken.getsockname()[1]))) == ["port-taken"]


@pytest.mark.real
def test_what_a_server_says_that_gets_no_memory_is_known(base: Settings, build: Build, model: Path) -> None:
    newest = Store(base.store).build_dir(build.digest) / "llama-server"  # b8672 dies of it before it has said all
    large = ("--model", str(model), "--ctx-size", "8000000", "-fit", "off", "--no-warmup")
    assert ids(said(newest, *large, limit="1500000")) == ["gpu-memory"]


@pytest.fixture(scope="module")
def serving(binary: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Endpoint, Path]]:
    """(a server with the key `right`, its log)."""
    log = tmp_path_factory.mktemp("serving") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [binary, "--model", model, "--port", str(port), "--threads", "1", "--ctx-size", "512", "--parallel", "1",
            "--jinja", "--api-key", "right"]  # fmt: skip
    with open(log, "wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as process:
        endpoint = Endpoint(base_url=f"http://127.0.0.1:{port}", api_key="right")
        try:
            with Client(endpoint) as client:
                client.wait_healthy(120, every_s=0.2)
            yield endpoint, log
        finally:
            process.terminate()


@pytest.mark.real
def test_what_a_server_answers_is_known(serving: tuple[Endpoint, Path]) -> None:
    endpoint, log = serving
    healthy = log.read_text(errors="replace")
    assert ids(healthy) == []
    chat = "/v1/chat/completions"
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
    with Client(endpoint) as client:
        answers = {
            "api-key": client.post(chat, {"messages": []}, key="wrong"),
            "context-overflow": client.chat("river " * 700, max_tokens=1),
            "bad-json": client.request("POST", chat, content=b'{"messages": ['),
            "image-refused": client.post(chat, {"messages": image}),
            "responses-tools": client.post("/v1/responses", {"input": "Hi", "previous_response_id": "resp_1"}),
            "not-enabled": client.get("/metrics"),
            "field-gone": client.get("/v1/nothing"),
            "tool-choice-named": client.chat("Hi", tool_choice="everything", tools=[]),
        }
        for row, answer in answers.items():
            assert answer.status >= 400, row
            assert ids(str(answer.body)) == [row], answer.body
        told = {"api-key", "context-overflow", "bad-json", "image-refused"}  # in the log, which may come later
        assert until(lambda: set(ids(log.read_text(errors="replace"))) >= told)
        empty = client.chat("Hi", max_tokens=4)
        assert ids(json.dumps(empty.body)) == ["empty-content"]
        with pytest.raises(Problem) as starved:
            client.ask("Hi", max_tokens=4)
        assert ids(str(starved.value))[0] == "empty-content"
