from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.contracts.trials import with_model
from tasks.preflight.argv import Argv, bundle, complaint, refusal, render, wants
from tasks.process import Output
from tasks.release import BadInput, Build, ReleaseFailed
from tasks.settings import ServerSettings
from tasks.store import Store

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
    from tests.test_release import a_release

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
