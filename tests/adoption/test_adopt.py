"""A launch as llama-release.toml: nothing that was said is lost, nothing that was not is said, no secret is written."""

from __future__ import annotations

import string
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_app import redaction
from tasks.adoption.adopt import Adopted, adopt, argv, write
from tasks.adoption.launch import Launch, apart, words_of
from tasks.adoption.read import Source, read_source
from tasks.adoption.settle import settle
from tasks.adoption.words import read_words
from tasks.doctor.model import fits
from tasks.flags.flag import Flag
from tasks.flags.table import known
from tasks.preflight.argv import OWNED, WHOLE_MODEL
from tasks.release import BadInput
from tasks.settings import SETTINGS_FILE, ServerSettings, Settings
from tests.adoption.cases import Case, cases
from tests.benchmarks.setups import judge

MODEL = ("-m", "/m/a.gguf")


def adopted(*words: str, here: Path, **environment: str) -> Adopted:
    """What a command line of llama-server comes to."""
    source = Source(words=("llama-server", *words))
    return adopt(read_source(source, environment, here), known(), here)


def server_of(*words: str, here: Path, **environment: str) -> dict[str, Any]:
    return adopted(*words, here=here, **environment).settled.server


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_a_set_up_is_taken_over_as_it_is_labelled(case: Case, tmp_path: Path) -> None:
    assert judge(case, tmp_path) == ""


def test_what_was_not_said_is_left_to_the_server_and_the_file_says_so(tmp_path: Path) -> None:
    found = adopted(*MODEL, here=tmp_path)
    assert found.settled.server == {
        "model": "/m/a.gguf", "alias": "/m/a.gguf", "slots": "auto", "ctx_per_slot": "auto", "kv_cache_type": "auto",
        "batch": "auto", "ubatch": "auto", "gpu_layers": "auto", "flash_attention": "auto", "memory_map": "auto",
        "jinja": True, "metrics": False,
    }  # fmt: skip
    line = next(line for line in found.text.splitlines() if line.startswith("slots"))
    assert line.endswith("# not said: llama-server decides")


def test_each_line_says_what_it_came_from(tmp_path: Path) -> None:
    found = adopted(
        *MODEL, "-ngl", "99", "--prio", "2", here=tmp_path, LLAMA_ARG_CTX_SIZE="4096", LLAMA_ARG_THREADS="3"
    )
    lines = {line.split(" ")[0] or line.split('"')[1]: line for line in found.text.splitlines() if line}
    assert lines["gpu_layers"].endswith("99  # from -ngl 99") or "# from -ngl 99" in lines["gpu_layers"]
    assert "# from LLAMA_ARG_THREADS=3 (your environment)" in lines["threads"]
    assert "# from --prio 2" in lines["--prio"]
    assert '"--ctx-size", "4096",' in lines["--ctx-size"], "no slots are said that could share it"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("-c", "8192", "-np", "4"), {"slots": 4, "ctx_per_slot": 2048}),
        (("-c", "8191", "-np", "4"), {"slots": 4, "ctx_per_slot": "auto", "flags": ["--ctx-size", "8191"]}),
        (("-c", "0"), {"slots": "auto", "ctx_per_slot": "auto", "flags": ["--ctx-size", "0"]}),
        (("-ctk", "q8_0", "-ctv", "q8_0"), {"kv_cache_type": "q8_0"}),
        (("-ctk", "q8_0"), {"kv_cache_type": "auto", "key_cache_type": "q8_0"}),
        (("-fa", "1"), {"flash_attention": "on"}),
        (("-fa",), {"flash_attention": "on"}),
        (("--no-mmap",), {"memory_map": False}),
        (("--mlock",), {"memory_map": "auto", "flags": ["--load-mode", "mlock"]}),
        (("--temp", "1"), {"temperature": 1}),
        (("--min-p", "0.0"), {"min_p": 0.0}),
        (("--no-jinja", "--metrics"), {"jinja": False, "metrics": True}),
        (("-ts", "3,1"), {"tensor_split": (3, 1)}),
        (("-ts", "3/1"), {"flags": ["--tensor-split", "3/1"]}),
        (("-ot", "a=CPU", "-ot", "b=CPU"), {"override_tensor": ("a=CPU", "b=CPU")}),
        (
            ("--lora", "x.gguf", "--lora-scaled", "/y.gguf:0.5"),
            {"lora": ["HERE/x.gguf", "/y.gguf"], "lora_scale": [1, 0.5]},
        ),
        (("--chat-template-kwargs", '{"a": false}'), {"template_arguments": {"a": False}}),
        (("--chat-template-kwargs", '{"a": null}'), {"flags": ["--chat-template-kwargs", '{"a": null}']}),
        (("--slot-save-path", "slots"), {"slot_save_path": "HERE/slots"}),
        (("--control-vector-scaled", "v.gguf:0.5"), {"flags": ["--control-vector-scaled", "HERE/v.gguf:0.5"]}),
        (("-c", "1024", "-c", "2048", "-np", "1"), {"ctx_per_slot": 2048}),
        (("--embedding", "--pooling", "rank", "--rerank"), {"embeddings": True, "rerank": True, "pooling": "rank"}),
    ],
)  # fmt: skip
def test_a_typed_setting_where_it_says_exactly_this_else_the_words(
    words: tuple[str, ...], expected: dict[str, Any], tmp_path: Path
) -> None:
    found = server_of(*MODEL, *words, here=tmp_path)
    assert {key: found.get(key) for key in expected} == eval(repr(expected).replace("HERE", str(tmp_path)))
    assert "flags" not in found or "flags" in expected


def values(flag: Flag) -> st.SearchStrategy[str]:
    """A value that an option may have."""
    if flag.choices:
        return st.sampled_from(sorted(flag.choices))
    if flag.value in ("N", "P", "INDEX", "SEED", "L"):
        return st.one_of(st.integers(0, 5000).map(str), st.floats(0, 1).map(lambda number: f"{number:.3f}"))
    if flag.main in ("--lora-scaled", "--control-vector-scaled"):
        return st.just("/m/l.gguf:0.5")
    if flag.main == "--tensor-split":
        return st.sampled_from(["1,2", "0.5,0.5", "3/1"])
    return st.text(string.ascii_letters + string.digits + " =\\.[]{}'\"$äß", min_size=1, max_size=12).map(
        lambda text: f"a{text}b"
    )


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, ...]:
    """Some options of the table that a release may have, each once, by any of its names."""
    whole = {flag.main for flag in known().flags if WHOLE_MODEL.fullmatch(flag.main)}
    owned = {known().main(name) for name in OWNED} | {"--model"} | whole
    flags = [flag for flag in known().flags if not flag.removed and flag.main not in owned]
    chosen = draw(st.lists(st.sampled_from(flags), max_size=8, unique_by=lambda flag: flag.main))
    found = list(MODEL)
    for flag in chosen:
        name = draw(st.sampled_from(flag.names))
        found += [name, *(draw(values(flag)) for _ in range(flag.takes))]
    return (*found, "--port", str(draw(st.integers(0, 65535))))


@given(command_lines())
def test_import_of_its_own_output_changes_nothing(words: tuple[str, ...]) -> None:
    here = PurePosixPath("/srv")
    first = settle(apart(read_words(("llama-server", *words), {}, here)), known())
    second = settle(apart(Launch(words=words_of(argv(first)), folder=here)), known())
    assert ServerSettings.model_validate(first.server) == ServerSettings.model_validate(second.server)
    assert first.section("local") == second.section("local")


def test_a_second_import_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    found = adopted(*MODEL, "-np", "2", "-c", "8192", "--api-key", "sk-of-the-test", here=tmp_path)
    assert write(found, force=False)
    text = found.path.read_text()
    again = adopt(Launch(words=words_of(argv(found.settled)), folder=PurePosixPath(tmp_path)), known(), tmp_path)
    assert not again.changes and not write(again, force=False)
    assert found.path.read_text() == text and "LLAMA_RELEASE_API_KEY" in text


def test_a_file_that_would_change_is_shown_and_left_alone_unless_forced(tmp_path: Path) -> None:
    file = tmp_path / SETTINGS_FILE
    file.write_text(
        'retain = 5  # ours\n[server]\nmodel = "/old.gguf"\n[local]\nidle_s = 60\nhost = "::1"\n'
        '[watch]\nact = "suggest"\n'
    )
    found = adopted(*MODEL, here=tmp_path)
    with pytest.raises(BadInput, match="says something else") as caught:
        write(found, force=False)
    assert '-model = "/old.gguf"' in caught.value.evidence and '+model = "/m/a.gguf"' in caught.value.evidence
    assert "/old.gguf" in file.read_text()
    assert write(found, force=True)
    tree = tomllib.loads(file.read_text())
    assert (tree["retain"], tree["local"]["idle_s"], tree["watch"]) == (5, 60, {"act": "suggest"})
    assert (tree["server"]["model"], tree["local"]["host"]) == ("/m/a.gguf", "127.0.0.1")
    assert "# ours" in file.read_text()
    assert not adopted(*MODEL, here=tmp_path).changes


def test_a_file_whose_text_can_not_be_kept_is_refused(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text('server.model = "/old.gguf"\n')
    with pytest.raises(BadInput, match="can't be kept"):
        adopted(*MODEL, here=tmp_path)


def test_all_that_can_not_be_taken_over_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        adopted(*MODEL, "--tmep", "1", "-cd", "99", "--hf-file", "x", "--pooling", "sum", here=tmp_path)
    for said in (
        "`--tmep 1`",
        "there is --temp",
        "`-cd 99`",
        "takes it no more",
        "set server.model to a file",
        "--pooling takes",
    ):
        assert said in caught.value.evidence, said
    assert caught.value.exit_code == 2 and not (tmp_path / SETTINGS_FILE).exists()


@pytest.mark.parametrize("words", [(), ("-c", "1")])
def test_a_server_without_a_model_is_a_router(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        adopted(*words, "--port", "1", here=tmp_path)
    assert "--model" in caught.value.evidence


def test_no_secret_is_in_the_file_or_in_what_is_said(tmp_path: Path) -> None:
    found = adopted(*MODEL, "--api-key", "sk-one-of-two,sk-two-of-two", here=tmp_path, HF_TOKEN="hf_of_the_test")
    said = f"{found.text} {found.pairs} {found.settled.notes} {found.settled.launch}"
    assert not any(secret in said for secret in ("sk-one-of-two", "sk-two-of-two", "hf_of_the_test"))
    assert found.settled.server["api_key_env"] == "LLAMA_RELEASE_API_KEY"
    assert [name for name, _ in found.settled.exports] == ["LLAMA_RELEASE_API_KEY", "HF_TOKEN"]
    assert any("2 API keys" in note for note in found.settled.notes)
    assert redaction.redact("sk-two-of-two") == "[key]"


def test_a_key_of_a_variable_keeps_its_variable(tmp_path: Path) -> None:
    assert server_of(*MODEL, here=tmp_path, LLAMA_API_KEY="sk-of-a-variable")["api_key_env"] == "LLAMA_API_KEY"


def test_a_mistyped_flag_of_a_key_does_not_show_it(tmp_path: Path) -> None:
    for words in (("--api-kye", "sk-short"), ("--my-token", "sk-short"), ("--api-key-fiel", "sk-short")):
        with pytest.raises(BadInput) as caught:
            adopted(*MODEL, *words, here=tmp_path)
        assert words[0] in caught.value.evidence and "sk-short" not in str(caught.value)


def test_a_key_in_a_variable_that_nobody_reads_is_told_without_it(tmp_path: Path) -> None:
    notes = " ".join(adopted(*MODEL, here=tmp_path, LLAMA_ARG_API_KEY="sk-unread").settled.notes)
    assert "LLAMA_ARG_API_KEY: no llama-server of b11434 reads it" in notes and "had no API key" in notes
    assert "sk-unread" not in notes


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((*MODEL, "--ssl-key-file", "/k.pem", "--ssl-cert-file", "/c.pem"), "TLS ends before llama-server"),
        (("--models-dir", "/models", "--models-max", "2"), "a router serves several models"),
        ((*MODEL, "--rerank"), "it answers no chat"),
    ],
)
def test_a_server_that_cannot_be_released_yet_is_taken_over_and_refused_by_name(
    words: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    found = adopted(*words, here=tmp_path).settled
    assert any("no release can be made of it yet" in note and why in note for note in found.notes)
    assert set(words[-1:]) <= set(argv(found))
    server = ServerSettings.model_validate(found.server)
    with pytest.raises(BadInput, match="can't be proved yet") as refused:
        fits(Settings.model_construct(server=server))
    assert why in refused.value.evidence


def test_what_was_dropped_is_told(tmp_path: Path) -> None:
    words = ("-c", "1", "-c", "0", "--no-direct-io", "--threads", "4")
    notes = adopted(*MODEL, *words, here=tmp_path, LLAMA_ARG_THREADS="3", LLAMA_ARG_LORA="x").settled.notes
    for said in ("-c 1: dropped", "--no-direct-io: dropped", "LLAMA_ARG_THREADS: dropped", "LLAMA_ARG_LORA: no llama"):
        assert any(said in note for note in notes), said


def test_an_image_for_cuda_is_compiled_for_cuda(tmp_path: Path) -> None:
    line = ("docker", "run", "-v", "/m:/m", "-p", "1:8080", "ghcr.io/ggml-org/llama.cpp:server-cuda", *MODEL)
    found = adopt(read_source(Source(words=line), {}, tmp_path), known(), tmp_path)
    assert found.settled.section("recipe") == {"backend": "cuda"}
    assert 'backend = "cuda"' in found.text


def test_a_path_of_a_container_is_mapped_by_hand(tmp_path: Path) -> None:
    line = ("docker", "run", "-v", "models:/models", "ghcr.io/ggml-org/llama.cpp:server", "-m", "/models/a.gguf")
    with pytest.raises(BadInput) as caught:
        adopt(read_source(Source(words=line), {}, tmp_path), known(), tmp_path)
    assert "--map /models=" in caught.value.evidence
    source = Source(words=line, maps=("/models=/srv/m",))
    assert adopt(read_source(source, {}, tmp_path), known(), tmp_path).settled.server["model"] == "/srv/m/a.gguf"
    with pytest.raises(BadInput, match="is not understood"):
        read_source(Source(words=line, maps=("models",)), {}, tmp_path)


def test_the_words_of_both_stand_side_by_side(tmp_path: Path) -> None:
    pairs = {pair.ours or pair.theirs: pair for pair in adopted(*MODEL, "-ngl", "99", "-c", "0", here=tmp_path).pairs}
    assert pairs["--gpu-layers 99"].theirs == "-ngl 99" and not pairs["--gpu-layers 99"].difference
    assert pairs["--ctx-size 0"].theirs == "-c 0"
    assert pairs["--jinja"].theirs == ""


@pytest.mark.parametrize("port", ["x", "65536", "-1", "1.5"])
def test_what_is_no_port_is_refused(port: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        adopted(*MODEL, "--port", port, here=tmp_path)
    assert f"--port {port}" in caught.value.evidence


def test_a_free_flag_that_holds_a_secret_is_refused_without_it(tmp_path: Path) -> None:
    headers = '{"a": {"headers": {"Authorization": "Bearer abcdef0123456789abcdef"}}}'
    with pytest.raises(BadInput) as caught:
        adopted(*MODEL, "--mcp-servers-json", headers, here=tmp_path)
    assert "--mcp-servers-json" in caught.value.evidence and "abcdef0123" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["services: [1]", "services: {a: 1}", "services: {a: {image: [x]}}", "[" * 3000, "\t", "a: b"]
)
def test_a_compose_file_of_another_form_is_refused_in_words(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(BadInput):
        read_source(Source(compose=Path("c.yaml")), {}, tmp_path)


def test_settings_that_are_no_text_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="can't be read"):
        adopted(*MODEL, here=tmp_path)
