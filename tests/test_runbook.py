"""The runbook: its rows name what there is, and real messages of real servers lead to the right row and to no other."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modal.exception import AuthError
from typer.testing import CliRunner, Result

from tasks import gguf_header, runbook
from tasks.contracts.promises import CONTRACTS
from tasks.contracts.scripted import build as build_model
from tasks.contracts.scripted import thinks_then_answers
from tasks.endpoint import Client
from tasks.release import Build, Endpoint, Problem
from tasks.runbook import Row, explain, known
from tasks.settings import Settings
from tasks.store import Store
from tests.benchmarks import messages
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
    for path in [*(REPOSITORY / "tasks/doctor").glob("*.py"), *(REPOSITORY / "tasks/platforms").glob("*/doctor.py")]
    for name in re.findall(r'yield (?:basic\()?"([\w ]+)",|^ +\("(\w+)", \w+\),$', path.read_text(), re.MULTILINE)
    for name in name
    if name
}
ISSUES = range(1, 10)
MODES = ("auto", "required", "named", "none")
RIGHT = {"labelled": 204, "unseen": 71}
"""Messages that are explained rightly, of 204 and 72."""


def ids(text: str) -> list[str]:
    return [match.row.id for match in explain(text.splitlines())]


# -- the table ------------------------------------------------------------------------------------------------------


def test_ids_are_there_once_and_what_rows_name_is_there() -> None:
    assert len({row.id for row in known()}) == len(known())
    for row in known():
        for check in row.checks:
            kind, _, name = check.partition(" ")
            there = {"doctor": name in CHECKS, "contracts": f"contracts.{name}" in CONTRACTS, "stage": name in STAGES}
            assert there.get(kind, (REPOSITORY / check).is_file()), f"{row.id}: {check}"


@pytest.mark.parametrize("row", known(), ids=lambda row: row.id)
def test_each_row_is_whole_and_its_examples_lead_to_it_first(row: Row) -> None:
    """Its expressions hold words of their own (a status alone is no symptom) and find what its texts name."""
    named = {name for text in row.texts for name in runbook.NAME.findall(text)}
    for pattern in row.patterns:
        assert len(runbook.needed(pattern)) >= 4, pattern
        assert named <= re.compile(pattern).groupindex.keys(), pattern
    for example in row.examples:
        assert ids(example)[:1] == [row.id], example
        shown = [pattern for pattern in row.patterns if re.search(pattern, example, re.IGNORECASE)]
        assert all(runbook.needed(pattern).lower() in example.lower() for pattern in shown)
        (first, *_) = explain(example.splitlines())
        assert "${" not in "".join(first.row.texts)


@given(st.data(), st.sampled_from([pattern for row in known() for pattern in row.patterns]))
def test_the_words_that_are_looked_for_first_stand_in_whatever_an_expression_matches(
    data: st.DataObject, pattern: str
) -> None:
    text = data.draw(st.from_regex(pattern))
    assert runbook.needed(pattern) in text


def test_an_expression_with_a_choice_holds_no_words_for_certain() -> None:
    assert [runbook.needed(p) for p in ("a|b", "(?:abc|d)", r"ab?c\.d+e", "(?P<x>one two)*three", r"[ab]cd\d")] == [
        "", "", "c.d", "three", "cd",
    ]  # fmt: skip


def test_every_issue_tool_mode_and_risk_of_the_guide_has_a_row() -> None:
    sources = " ".join(row.source for row in known())
    for number in ISSUES:
        assert f"guide 01 row {number}" in sources
    for mode in MODES:
        assert any(row.id == f"tool-choice-{mode}" for row in known())
    for risk in ("patch-conflict", "field-gone", "quality-regressed", "cuda-driver"):
        assert any(row.id == risk and row.area == "upgrade" for row in known())


def test_a_status_says_something_where_it_can_mean_one_thing_only() -> None:
    """llama-server says 401 and 503 for one reason each; from elsewhere a status alone may mean anything."""
    for status, row in (("401", "api-key"), ("503", "starting")):
        assert ids(f"srv  log_server_r: done request: POST /v1/chat/completions 127.0.0.1 {status}") == [row]
    for status in ("400", "401", "404", "408", "500", "502", "503"):
        assert ids(f"openai.APIStatusError: Error code: {status} - {{}}") == []
        assert ids(f'127.0.0.1 - "POST /v1/chat/completions HTTP/1.1" {status}') == []
        assert ids(f"HTTP/2 {status}") == []
    assert ids("srv  log_server_r: done request: GET /favicon.ico 127.0.0.1 404") == []


def test_commands_in_fixes_are_commands_that_there_are() -> None:
    from flows.__main__ import app

    there = {
        command.name or (command.callback.__name__.replace("_", "-") if command.callback else None)
        for command in app.registered_commands
    }
    there |= {group.name for group in app.registered_groups}
    for row in known():
        for command in re.findall(r"llama-release ([a-z]+)", row.fix):
            assert command in there, f"{row.id}: {command}"


def test_no_pattern_is_so_wide_that_it_matches_a_line_that_says_nothing() -> None:
    for harmless in ("", "ok", "200", "done request: POST /v1/chat/completions 127.0.0.1 200", "all slots are idle"):
        assert ids(harmless) == []


def test_symptoms_come_each_once_with_how_often_and_with_all_words_that_were_found() -> None:
    log = [
        "starting",
        "error: invalid argument: --no-such",
        "x",
        "error: invalid argument: --nor-such",
        "Invalid API Key",
    ]
    found = explain(log)
    assert [(match.row.id, match.at, match.count) for match in found] == [("flag-removed", 2, 2), ("api-key", 5, 1)]
    assert found[0].line == log[1]
    assert found[0].row.symptom == "the server does not know the flag --no-such, --nor-such"


LOAD_LOG = """\
0.00.100.000 I srv    load_model: loading model '/m/gemma.gguf'
0.00.150.000 W warning: failed to mlock 10737418-byte buffer (after previously locking 0 bytes): Cannot allocate memory
0.00.160.000 W srv    operator(): unauthorized: Invalid API Key
0.00.170.000 W srv    operator(): unauthorized: Invalid API Key
0.00.200.000 E llama_model_load: error loading model: missing tensor 'blk.40.ssm_conv1d.weight'
0.00.210.000 E llama_model_load_from_file_impl: failed to load model
llama-server ended with -11
"""


def test_of_a_whole_log_the_real_cause_comes_first_then_how_it_ended_then_refused_requests_and_warnings() -> None:
    found = explain(LOAD_LOG.splitlines())
    assert [(match.row.id, match.at, match.count) for match in found] == [
        ("tensors-do-not-fit", 5, 1), ("killed-sigsegv", 7, 1), ("api-key", 3, 2), ("mlock-limit", 2, 1),
    ]  # fmt: skip


def test_a_consequence_above_its_cause_does_not_outrank_it() -> None:
    told = ["openai.APIConnectionError: Connection error.", "httpx.ConnectError: [Errno -2] Name or service not known"]
    for lines in (told, told[::-1]):
        assert [match.row.id for match in explain(lines)] == ["dns", "client-cannot-connect"]


def test_colours_and_quoted_quotes_hide_nothing() -> None:
    assert ids("\x1b[31merror: invalid argument: --nope\x1b[0m") == ["flag-removed"]
    quoted = json.dumps({"log": json.dumps({"error": {"message": "Invalid API Key", "type": "authentication_error"}})})
    assert ids(quoted) == ["api-key"]


@pytest.mark.parametrize("name", ["labelled", "unseen"])
def test_messages_that_were_labelled_by_hand_are_explained_rightly_and_healthy_lines_not_at_all(name: str) -> None:
    """The measure is `python -m tests.benchmarks messages`; here nothing may become worse."""
    verdicts: dict[str, list[str]] = {}
    first = 0
    for message in messages.read(messages.FOLDER / f"{name}.jsonl"):
        said = explain(message.text.splitlines())
        verdict = messages.judge(message, said)
        verdicts.setdefault("healthy " * message.healthy + verdict, []).append(message.id)
        first += not message.healthy and messages.judge(message, said[:1]) == "right"
    assert not verdicts.get("wrong")
    assert not verdicts.get("healthy wrong")
    assert len(verdicts["right"]) >= RIGHT[name], verdicts
    assert first >= RIGHT[name]


def test_what_no_row_knows_is_not_known_and_places_to_look_at_are_named() -> None:
    text = "openai.InternalServerError: Error code: 500 - {'error': {'code': 500, 'message': 'zzz', 'type': 'x'}}"
    assert ids(text) == []
    assert "error.message" in runbook.where_to_look(text)[0]
    assert "first `error:`" in runbook.where_to_look("CMake Error at x.cmake:1 (zzz):")[0]
    assert runbook.where_to_look("zzz") == []


def asked(*words: str, text: str | None = None) -> Result:
    from flows.__main__ import app

    return CliRunner().invoke(app, ["explain", *words], input=text)


def test_a_text_that_begins_with_a_dash_is_text() -> None:
    for words in (
        ["-- error: invalid argument: --nope"], ["--", "error: invalid argument: --nope"],
        ["--nope: error: invalid argument: --nope"], ["-hf: error: invalid argument: -hf"],
        ["error:", "invalid", "argument:", "--nope"],
    ):  # fmt: skip
        result = asked(*words)
        assert result.exit_code == 0, words
        assert "does not know the flag" in result.stdout


def test_a_log_on_stdin_may_hold_bytes_that_are_no_text(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from flows.__main__ import main

    monkeypatch.setattr(sys, "argv", ["llama-release", "explain"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\nInvalid API Key\n"), encoding="utf-8"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "401 Unauthorized" in capfd.readouterr().out


def test_not_known_is_said_with_where_to_look_and_exit_code_1() -> None:
    result = asked("HTTP/1.1 500 Internal Server Error")
    assert result.exit_code == 1
    assert result.stdout.startswith("Not known. Look next at:")
    assert "curl -si URL" in result.stdout
    assert json.loads(asked("--json", "zzz").stdout) == []


BLAMED = {
    "model": "gguf_init_from_file_impl: invalid magic characters: 'vers', expected 'GGUF'",
    "settings": "failed to initialize the context: quantized V cache was requested, but this requires Flash Attention",
    "machine": "error loading model: unable to allocate CUDA0 buffer\nllama_model_load: failed to load model",
    "upstream": "llama_model_load: error loading model: unknown model architecture: 'gemma9'",
    "upstream, after what it goes on without": (
        "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected\n"
        "failed to initialize the context: Gemma4Assistant requires ctx_other to be set (this warning is normal "
        "during memory fitting)\nllama_model_load: error loading model: unknown model architecture: 'gemma9'\n"
        "killed by SIGABRT"
    ),
    None: "llama_model_load: error loading model: missing tensor 'blk.0.x.weight'\nkilled by SIGABRT",
}


@pytest.mark.parametrize("owner", BLAMED)
def test_a_load_failure_is_blamed_on_whom_its_text_blames_and_on_nobody_where_it_does_not_tell(
    owner: str | None,
) -> None:
    assert runbook.blame(BLAMED[owner])[0] == (owner and owner.partition(",")[0])
    assert runbook.blame("it said nothing") == (None, None)


def test_a_key_in_a_line_is_neither_quoted_nor_repeated_in_an_answer() -> None:
    for line in (
        'Invalid API Key: "Authorization: Bearer sk-secret-1"', "Invalid API Key with --api-key sk-secret-1",
        'error while handling argument "--api-key": no such api-key: sk-secret-1',
        "401 Client Error: Unauthorized for url: https://user:sk-secret-1@10.0.0.5/v1",
    ):  # fmt: skip
        (match,) = explain([line])
        assert "sk-secret-1" not in match.model_dump_json()
        assert re.search(r"\*\*\*|\[hidden\]", match.line)


@pytest.mark.parametrize(
    "line",
    [
        'request: {"messages": [], "response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}',
        "{{ raise_exception('Conversation roles must alternate user/assistant/user') }}",
        "PREFECT_API_AUTH_STRING=llama-release:secret",
        "criu restore --shell-job -D images",
    ],
)
def test_what_only_has_the_words_of_a_symptom_is_none(line: str) -> None:
    assert ids(line) == []


def test_numbers_that_are_no_status_name_no_place_to_look_at() -> None:
    assert runbook.where_to_look("slot 0: 425 tokens in 503 ms") == []


def test_a_queue_is_seen_in_the_metrics_and_an_empty_one_is_not() -> None:
    assert ids("llamacpp:requests_deferred 2") == ["queue"]
    assert ids("# HELP llamacpp:requests_deferred Number of requests deferred.\nllamacpp:requests_deferred 0") == []


SIGNALS = {
    "killed-sigsegv": (
        "llama-server of b11434 (2c5f) ended before it could become healthy: killed by SIGSEGV",
        "bash: line 1: 4711 Segmentation fault      (core dumped) ./llama-server",
        "[ 6140.8] llama-server[7372]: segfault at 0 ip 000055fba4d631c1 sp 00007fff90d0b230 error 6 in libggml-cpu.so",
        "[ 6140.8] traps: llama-server[7373] general protection fault ip:5565d41461f2 sp:7fffb4561c30 error:0",
        "llama-server ended with -11",
        "[process exits with code -11]",
        "Runner failed with exit code: 139",
    ),
    "killed-sigill": (
        "the server died before it answered: killed by SIGILL",
        "Illegal instruction (core dumped)",
        "[ 6140.8] traps: llama-server[7371] trap invalid opcode ip:55b963e41199 sp:7fffdc621f20 error:0 in libggml.so",
        "Exited (132) 3 minutes ago",
    ),
    "killed-sigbus": ("staging crashed (killed by SIGBUS)", "Bus error (core dumped)", "returncode=-7"),
    "killed-sigabrt": (
        "ggml/src/ggml.c:1234: GGML_ASSERT(ctx->mem_buffer != NULL) failed",
        "terminate called after throwing an instance of 'std::length_error'",
        "Aborted (core dumped)",
        "the container exited with status 134",
    ),
    "killed-sigkill": (
        "llama-server of b11434 (2c5f) was killed before it could listen",
        "[ 31.0] Memory cgroup out of memory: Killed process 91 (llama-server) total-vm:9000kB, anon-rss:8000kB",
        "Process for flow run 'spry-otter' exited with status code: -9; Process exited due to a SIGKILL signal.",
        "exited with code 137",
    ),
}


@pytest.mark.parametrize(("row", "line"), [(row, line) for row, lines in SIGNALS.items() for line in lines])
def test_each_signal_has_a_row_of_its_own_whoever_tells_of_it(row: str, line: str) -> None:
    assert ids(line) == [row]


def test_a_row_of_a_signal_tells_load_first_token_and_restore_apart_and_does_not_claim_which_it_was() -> None:
    rows = {row.id: row for row in known()}
    for name in ("killed-sigsegv", "killed-sigill"):
        assert all(word in rows[name].cause for word in ("loading", "first token", "fter a restore", "does not always"))
    for name in SIGNALS:
        assert any(word in rows[name].fix for word in ("dmesg", "log"))
        assert "doctor crashes" in rows[name].checks


def test_a_death_without_a_signal_and_numbers_that_are_none_are_taken_for_no_signal() -> None:
    assert ids("the server died before it answered: exit code 7") == ["crashed"]
    assert ids("llama-server ended with 1") == ["crashed"]
    for harmless in (
        "exit code: 1", "exited after 139 ms", "the run ended at token 137", "exit code: 1394", "ended with 139 ms",
        "srv  update_slots: sigmoid 134", "kernel: EXT4-fs (vda): mounted filesystem", "drop_caches: 3",
    ):  # fmt: skip
        assert ids(harmless) == [], harmless


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
    assert ids(said(binary, "--model", str(pointer))) == ["not-a-gguf"]
    assert ids(said(binary, "--model", str(tmp_path / "none.gguf"))) == ["model-missing"]
    assert ids(said(binary, *ours, "--mmproj", str(model))) == ["mmproj-wrong"]
    assert ids(said(binary, *ours, "--flash-attn")) == ["flag-value-missing"]
    assert ids(said(binary, *ours, "--ctx-size", "many")) == ["flag-number"]
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
    argv = [str(binary), "--model", str(model), "--port", str(port), "--threads", "1", "--ctx-size", "512",
            "--parallel", "1", "--jinja", "--api-key", "right"]  # fmt: skip
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
