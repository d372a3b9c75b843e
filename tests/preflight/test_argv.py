import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts.trials import with_model
from tasks.flags.flag import flags_of_help
from tasks.flags.table import Table, known
from tasks.preflight.argv import Argv, bundle, complaint, files, parts, refusal, render, shown, wants, wrong
from tasks.process import Output
from tasks.release import BadInput, Build, ReleaseFailed, digest_of
from tasks.settings import ServerSettings, Settings
from tasks.store import Store
from tests.test_release import a_release

SERVER = ServerSettings(model=Path("m.gguf"), alias="m", slots=4, ctx_per_slot=1000)


def binary_without(*unknown: str) -> Callable[[Argv], str]:
    """A binary that does not know these words, as llama-server complains."""

    def refuses(argv: Argv) -> str:
        return next((f"error: invalid argument: {w}" for w in argv if w in unknown), "")

    return refuses


def test_the_newest_spelling_is_taken_where_it_is_known() -> None:
    argv, notes = render(SERVER, lambda _: "")
    assert "--load-mode" in argv
    assert notes == []


def test_an_older_binary_gets_the_older_spelling_and_a_note() -> None:
    argv, notes = render(SERVER, binary_without("--load-mode"))
    assert "--no-mmap" in argv
    assert "--load-mode" not in argv
    assert notes == ["memory_map is `--no-mmap` here"]


def test_a_flag_without_any_known_spelling_fails_by_name_with_the_binarys_words() -> None:
    with pytest.raises(ReleaseFailed, match="memory_map.*invalid argument: --load-mode") as failed:
        render(SERVER, binary_without("--load-mode", "--no-mmap", "--metrics"))
    assert "metrics: `--metrics`" in failed.value.evidence


def test_a_binary_takes_an_argv_when_it_ends_well_whatever_it_says() -> None:
    asked: list[tuple[str, ...]] = []

    def said(code: int, words: str) -> str:
        def ask(*argv: str) -> Output:
            asked.append(argv)
            return Output(code, "", words)

        return refusal(ask, ("--chat-template-file", "{chat_template}", "--x"))

    assert said(0, "version: 11434") == ""
    assert said(1, "error: invalid argument: --x\n") == "error: invalid argument: --x"
    assert said(-11, "") == "exit status -11"
    assert set(asked) == {("--chat-template-file", "/dev/null", "--x", "--version")}


def test_context_is_per_slot_in_the_settings_and_a_total_for_the_server() -> None:
    words = [word for want in wants(SERVER) for word in want.spellings[0]]
    assert words[words.index("--ctx-size") + 1] == "4000"
    assert words[words.index("--parallel") + 1] == "4"


def test_no_setting_puts_the_api_key_on_the_command_line() -> None:
    assert not any("key" in word for want in wants(SERVER) for s in want.spellings for word in s)


def test_a_trial_of_another_model_leaves_projector_and_template_behind(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"x")
    release = a_release(argv=("--model", "{model}", "--mmproj", "{mmproj}", "--chat-template-file", "{t}", "--jinja"))
    trial = with_model(store, release, other)
    assert trial.argv == ("--model", "{model}", "--jinja")
    assert set(trial.files) == {"model"}


@pytest.mark.real
def test_a_real_binary_takes_our_argv_and_refuses_a_flag_that_upstream_removed(
    build: Build, store_with: Store, smollm2: Path
) -> None:
    assert "--no-mmap" in complaint(store_with, build, ("--no-mmap",))
    assert "--flash-attn" in complaint(store_with, build, ("--flash-attn",))
    release, notes = bundle(store_with, build, SERVER.model_copy(update={"model": smollm2}))
    assert release.files["model"].size_bytes == smollm2.stat().st_size
    assert notes == []


@pytest.mark.real
def test_a_stray_environment_variable_does_not_decide_what_the_binary_takes(
    build: Build, store_with: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "not a number")
    assert complaint(store_with, build, ("--metrics",)) == ""


@pytest.mark.real
def test_without_a_model_nothing_is_bundled(build: Build, store_with: Store) -> None:
    with pytest.raises(BadInput, match="no model is set"):
        bundle(store_with, build, ServerSettings())


# -- settings of every kind ---------------------------------------------------------------------------


def said(server: ServerSettings) -> list[str]:
    return [" ".join(want.spellings[0]) for want in wants(server)]


OPEN = ServerSettings(
    model=Path("m.gguf"), alias="m", slots="auto", ctx_per_slot="auto", kv_cache_type="auto", batch="auto",
    ubatch="auto", gpu_layers="auto", flash_attention="auto", memory_map="auto", metrics=False,
)  # fmt: skip
"""Settings that leave to llama-server what can be left to it."""


def test_what_is_left_to_the_server_is_not_said() -> None:
    assert said(OPEN) == ["--model {model}", "--jinja", "--alias m", "--flash-attn auto"]


def test_settings_of_earlier_versions_are_the_same_release() -> None:
    """The order of these words is in the identity of every release that is in somebody's production."""
    first = ServerSettings(model=Path("m"), mmproj=Path("p"), chat_template=Path("t"), alias="m", threads=3)
    assert " ".join(said(first)) == (
        "--model {model} --mmproj {mmproj} --chat-template-file {chat_template} --jinja --alias m --ctx-size 8192 "
        "--parallel 2 --cache-type-k f16 --cache-type-v f16 --batch-size 2048 --ubatch-size 512 --n-gpu-layers 0 "
        "--flash-attn on --load-mode none --metrics --threads 3"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kv_cache_type": "q8_0"}, "--cache-type-k q8_0 --cache-type-v q8_0"),
        ({"kv_cache_type": "q8_0", "value_cache_type": "f16"}, "--cache-type-k q8_0 --cache-type-v f16"),
        ({"key_cache_type": "q4_0"}, "--cache-type-k q4_0"),
        ({"slots": 3, "ctx_per_slot": 1000}, "--ctx-size 3000 --parallel 3"),
        ({"slots": 3}, "--parallel 3"),
        ({"flags": ("-c", "5000")}, "-c 5000"),
        ({"memory_map": True}, "--load-mode mmap"),
        ({"temperature": 0, "top_p": 1.0, "min_p": 0.05}, "--temp 0 --top-p 1.0 --min-p 0.05"),
        ({"jinja": False}, "--no-jinja"),
        ({"cache_prompt": False, "context_shift": True}, "--no-cache-prompt --context-shift"),
        ({"embeddings": False}, ""),
        ({"template_arguments": {"enable_thinking": False}}, '--chat-template-kwargs {"enable_thinking": false}'),
        ({"tensor_split": (3, 1.5), "devices": ("CUDA0", "CUDA1")}, "--tensor-split 3,1.5 --device CUDA0,CUDA1"),
        ({"override_tensor": ("a=CPU", "b=CPU")}, "--override-tensor a=CPU,b=CPU"),
        ({"lora": (Path("a"), Path("b"))}, "--lora {lora},{lora.2}"),
        ({"lora": (Path("a"),), "lora_scale": (0.5,)}, "--lora-scaled {lora}:0.5"),
        ({"draft_model": Path("d"), "draft_max": 4}, "--spec-draft-model {draft_model} --spec-draft-n-max 4"),
        ({"flags": ("--prio", "2", "--no-mmap")}, "--prio 2 --no-mmap"),
        ({"flags": ("--grammar-file", "/g.gbnf")}, "--grammar-file {grammar_file}"),
        ({"env": {"LLAMA_ARG_NO_MMAP": "1", "GGML_X": "1"}}, "--load-mode none"),
    ],
)
def test_a_setting_is_said_in_llama_servers_words(settings: dict[str, Any], words: str) -> None:
    changed = ServerSettings.model_validate(OPEN.model_dump() | settings)
    plain = " ".join(said(OPEN)).split(" ")
    found = " ".join(said(changed)).split(" ")
    assert [w for w in found if w not in plain or w in words.split()] == words.split()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"slots": "auto", "ctx_per_slot": 4096}, "ctx_per_slot needs server.slots"),
        ({"slots": 0}, "greater than or equal to 1"),
        ({"lora": ("a", "b"), "lora_scale": (1.0,)}, "1 numbers for 2 adapters"),
        ({"lora": ("a,b",)}, "would cut a,b in two"),
        ({"env": {"LD_PRELOAD": "x"}}, "server.env.LD_PRELOAD"),
        ({"env": {"LLAMA_API_KEY": "x"}}, "server.env.LLAMA_API_KEY"),
        ({"hub_model": "no-slash"}, "pattern"),
        ({"hub_model": "a/b:Q4", "model": "m"}, "set one of them"),
    ],
)
def test_settings_that_contradict_themselves_are_refused_when_they_are_read(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        ServerSettings.model_validate(settings)


def test_a_split_model_is_all_of_its_parts_and_only_its_first_part_names_it() -> None:
    first = Path("/m/x-00001-of-00003.gguf")
    assert list(files(ServerSettings(model=first))) == ["model", "model.2", "model.3"]
    assert parts(Path("x-1-of-3.gguf")) == [Path("x-1-of-3.gguf")]
    with pytest.raises(BadInput, match="not the first part") as refused:
        parts(Path("/m/x-00002-of-00003.gguf"))
    assert "x-00001-of-00003.gguf" in refused.value.todo


def test_a_word_of_an_earlier_build_is_said_as_this_one_takes_it() -> None:
    server = OPEN.model_copy(update={"flags": ("--no-mmap", "--draft", "4")})
    argv, notes = render(server, binary_without("--no-mmap", "--draft"))
    assert argv[-4:] == ("--load-mode", "none", "--spec-draft-n-max", "4")
    assert notes == ["flags --no-mmap is `--load-mode none` here", "flags --draft is `--spec-draft-n-max 4` here"]


def test_a_release_is_named_by_its_variables_and_one_without_any_as_it_was() -> None:
    release = a_release()
    with_some = release.model_copy(update={"env": {"GGML_X": "1"}})
    assert (
        release.id
        == digest_of(
            release.model_dump(mode="json", exclude={"upstream", "env"}) | {"build_number": release.upstream.build}
        )[:12]
    )
    assert with_some.id not in (release.id, release.model_copy(update={"env": {"GGML_X": "2"}}).id)


def test_the_command_that_is_shown_has_the_settings_own_paths() -> None:
    server = ServerSettings(model=Path("/m/x.gguf"), lora=(Path("/a"), Path("/b")), flags=("--grammar-file", "/g"))
    words = shown(Settings(server=server))
    assert words[:4] == ("--model", "/m/x.gguf", "--lora", "/a,/b")
    assert words[-6:] == ("--grammar-file", "/g", "--host", "127.0.0.1", "--port", "8080")


def test_a_scripted_model_leaves_behind_what_was_said_of_the_model(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"x")
    argv = (
        "--model", "{model}", "--lora-scaled", "{lora}:1", "-md", "{draft_model}", "--spec-type", "draft-mtp",
        "--override-kv", "a=int:1", "-ot", "a=CPU", "-ts", "1,2", "--rope-scale", "2", "--grammar-file",
        "{grammar_file}", "--temp", "0.5", "--prio", "2", "--chat-template-kwargs", "{}", "--jinja",
    )  # fmt: skip
    trial = with_model(store, a_release(argv=argv), other)
    assert trial.argv == ("--model", "{model}", "--temp", "0.5", "--prio", "2", "--jinja")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"flags": ("-md", "/m/d.gguf")}, "server.draft_model names its file"),
        ({"flags": ("--lora-scaled", "/m/a.gguf:0.5")}, "server.lora names its file"),
        ({"env": {"LLAMA_ARG_MMPROJ": "/m/p.gguf"}}, "server.mmproj names its file"),
        ({"flags": ("--gpt-oss-20b-default",)}, "downloads a model of its own"),
        ({"flags": ("--fim-qwen-7b-spec",)}, "downloads a model of its own"),
        ({"flags": ("--api-prefix", "/x")}, "have a proxy"),
        (
            {"env": {"LLAMA_CHAT_TEMPLATE_KWARGS": "{}"}, "template_arguments": {"a": 1}},
            "template_arguments says it, too",
        ),
        ({"flags": ("--apikey", "sk-1234567890abcdef")}, "`--apikey`: b11434 has no such option; there is --api-key"),
    ],
)
def test_a_flag_that_would_serve_something_else_or_tell_a_secret_is_refused(settings: dict[str, Any], why: str) -> None:
    lines = "\n".join(wrong(ServerSettings.model_validate(OPEN.model_dump() | settings), known()))
    assert why in lines
    assert "sk-1234567890abcdef" not in lines


@pytest.mark.parametrize(
    "flags",
    [
        ("--spec-default",), ("--dry-sequence-breaker", "a", "--dry-sequence-breaker", "b"), ("-fit",), ("-fit", "off"),
        ("--chat-template-kwargs", '{"a": 1}', "--chat-template-kwargs", '{"b": 1}'),
    ],
)  # fmt: skip
def test_what_llama_server_takes_several_times_or_bare_is_taken(flags: tuple[str, ...]) -> None:
    assert wrong(OPEN.model_copy(update={"flags": flags}), known()) == []


def test_every_file_that_an_option_names_is_a_part_of_the_release() -> None:
    flags = ("--control-vector", "/a,/b", "--control-vector-scaled", "/c:0.5,/d:1", "--grammar-file", "/g")
    server = OPEN.model_copy(update={"flags": flags, "env": {"LLAMA_ARG_UI_CONFIG_FILE": "/u.json"}})
    assert {name: str(path) for name, path in files(server).items()} == {
        "model": "m.gguf", "control_vector": "/a", "control_vector.2": "/b", "control_vector_scaled": "/c",
        "control_vector_scaled.2": "/d", "grammar_file": "/g", "ui_config_file": "/u.json",
    }  # fmt: skip
    assert " ".join(said(server)[-4:]) == (
        "--ui-config-file {ui_config_file} --control-vector {control_vector},{control_vector.2} "
        "--control-vector-scaled {control_vector_scaled}:0.5,{control_vector_scaled.2}:1 --grammar-file {grammar_file}"
    )


def test_a_draft_in_todays_words_can_be_said_to_a_build_that_has_other_names_for_it() -> None:
    help_text = "\n".join(("-md, --model-draft FNAME                 d", "-ngld, --gpu-layers-draft N              n"))
    old = Table(flags_of_help(help_text), "b8672")
    server = OPEN.model_copy(update={"draft_model": Path("d"), "draft_gpu_layers": 9})
    assert not [line for line in wrong(server, old) if "draft" in line]
    with pytest.raises(BadInput, match="draft_model is a split file"):
        files(OPEN.model_copy(update={"draft_model": Path("d-00001-of-00002.gguf")}))
