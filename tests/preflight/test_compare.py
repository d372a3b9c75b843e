"""Differences between real excerpts: their class, its evidence, and who uses what."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.flags.flag import Flag
from tasks.patches.series import read_series
from tasks.preflight import strays, told
from tasks.preflight.compare import Difference, Kind, What, compare
from tasks.preflight.surface import Exchange
from tasks.preflight.uses import Uses, uses
from tasks.release import Release, UpstreamRelease
from tasks.settings import ServerSettings
from tests.conftest import REPOSITORY
from tests.preflight.conftest import surface

B8672, B10605, B11434 = (
    surface(tag, source) for tag, source in (("b8672", "b8672"), ("b10605", "b11434"), ("b11434", "b11434"))
)
SERVER = ServerSettings(model=Path("m.gguf"))


def found(differences: tuple[Difference, ...], name: str, what: What) -> Difference:
    (one,) = [d for d in differences if name in d.names and d.what is what]
    return one


def release(*argv: str) -> Release:
    return Release(upstream=UpstreamRelease(build=1), tree="t", build="b", argv=argv, files={}, alias="m")


def test_a_surface_does_not_differ_from_itself() -> None:
    assert compare(B8672, B8672) == ()


def test_a_flag_that_upstream_replaces_in_its_own_words_names_the_replacement() -> None:
    gone = found(compare(B10605, B11434), "--no-mmap", What.REMOVED)
    assert (gone.after, gone.gone) == ("--load-mode", True)
    assert gone.evidence.startswith("upstream says: DEPRECATED in favor of `--load-mode`")


def test_without_upstreams_words_the_help_itself_shows_the_new_name() -> None:
    renamed = found(compare(B8672, B11434), "--no-mmap", What.RENAMED)
    assert renamed.after == "--load-mode"
    assert "memory-map model if mmap disabled" in renamed.evidence


def test_a_name_alone_never_makes_a_rename() -> None:
    old = B8672.model_copy(update={"flags": (Flag(names=("--webui-port",), text="port of the web page"),)})
    new = B8672.model_copy(update={"flags": (Flag(names=("--ui-port",), text="where the page is served"),)})
    assert [(d.what, d.after) for d in compare(old, new)] == [(What.REMOVED, ""), (What.ADDED, "")]


def test_a_flag_listed_as_removed_is_gone_and_its_notice_names_the_new_one() -> None:
    gone = found(compare(B8672, B11434), "--draft-max", What.RENAMED)
    assert (gone.after, gone.gone) == ("--spec-draft-n-max", True)


def test_a_new_first_name_is_a_rename_that_breaks_nothing() -> None:
    renamed = found(compare(B8672, B11434), "--webui", What.RENAMED)
    assert (renamed.after, renamed.gone, renamed.evidence) == ("--ui", False, "--webui is still taken")


def test_variables_are_renamed_without_a_word_although_their_flag_stays() -> None:
    differences = compare(B8672, B11434)
    for old, new in (
        ("LLAMA_ARG_WEBUI", "LLAMA_ARG_UI"),
        ("LLAMA_ARG_WEBUI_CONFIG", "LLAMA_ARG_UI_CONFIG"),
        ("LLAMA_CHAT_TEMPLATE_KWARGS", "LLAMA_ARG_CHAT_TEMPLATE_KWARGS"),
    ):
        renamed = found(differences, old, What.RENAMED)
        assert (renamed.kind, renamed.after, renamed.gone) == (Kind.VARIABLE, new, True)


def test_a_changed_default_is_told_with_both() -> None:
    changed = found(compare(B8672, B11434), "--timeout", What.DEFAULT_CHANGED)
    assert (changed.before, changed.after, changed.gone) == ("600", "3600", False)


def test_a_flag_that_wants_a_value_now_is_told() -> None:
    bare = tuple(f.model_copy(update={"value": ""}) if "-fa" in f.names else f for f in B8672.flags)
    changed = found(compare(B8672.model_copy(update={"flags": bare}), B8672), "-fa", What.VALUE_CHANGED)
    assert (changed.before, changed.after) == ("none", "[on|off|auto]")


def test_a_dropped_route_names_the_one_with_the_same_handler() -> None:
    differences = compare(B8672, B11434)
    assert found(differences, "GET /api/tags", What.REMOVED).after == "GET /v1/models"
    assert found(differences, "POST /api/chat", What.REMOVED).after == "POST /v1/chat/completions"
    assert found(differences, "POST /api/show", What.REMOVED).after == ""


def test_a_field_is_gone_only_when_its_name_is_nowhere_in_the_source() -> None:
    fields = {d.name: d for d in compare(B8672, B11434) if d.kind is Kind.FIELD and d.gone}
    assert list(fields) == ["speculative.ngram_m_hits"]  # reasoning_budget_tokens is read in a way that nobody knows
    assert "speculative.ngram_min_hits is new" in fields["speculative.ngram_m_hits"].evidence


def test_answers_are_compared_by_status_and_by_key() -> None:
    before = {
        "GET /props": Exchange(status=200, keys={"webui": "boolean", "total_slots": "number"}),
        "GET /metrics": Exchange(status=200, keys={"llamacpp:prompt_tokens_total": "counter"}),
        "GET /v1/models, no key": Exchange(status=200, keys={"data": "array"}),
        "GET /health, no key": Exchange(status=200, keys={"status": "string"}),
    }
    after = {
        "GET /props": Exchange(status=200, keys={"ui": "boolean", "n_ctx": "number"}),
        "GET /metrics": Exchange(status=200),
        "GET /v1/models, no key": Exchange(status=401, keys={"error": "object"}),
        "GET /health, no key": Exchange(status=200),
    }
    old, new = (B11434.model_copy(update={"exchanges": each}) for each in (before, after))
    differences = compare(old, new)
    assert [str(d) for d in differences] == [
        "status GET /v1/models, no key status changed 200 -> 401",
        "response key webui renamed -> ui",
        "response key total_slots removed",
        "response key n_ctx added",
        "metric llamacpp:prompt_tokens_total removed",
    ]
    marked = {d.name: d for d in map(uses(SERVER, release(), release(), (), ()).mark, differences)}
    assert {"contracts.settings.slots", "contracts.state.slot"} <= {*marked["total_slots"].used_by}
    assert marked["total_slots"].fails
    assert "contracts.metrics.prompt_tokens" in marked["llamacpp:prompt_tokens_total"].used_by
    assert not marked["webui"].fails
    assert marked["n_ctx"].used_by == ()  # contracts read it; it is not gone
    assert marked["GET /v1/models, no key"].used_by == ("contracts.auth.models",)


def test_a_key_in_another_place_is_another_key() -> None:
    old, new = (
        B11434.model_copy(update={"exchanges": {"GET /props": Exchange(status=200, keys=keys)}})
        for keys in ({"a.webui": "boolean"}, {"b.ui": "boolean"})
    )
    assert [d.what for d in compare(old, new)] == [What.REMOVED, What.ADDED]


def test_what_our_argv_says_and_is_gone_fails_and_names_the_replacement() -> None:
    ours = uses(SERVER, release("--no-mmap", "--metrics"), release("--no-mmap"), (), ())
    marked = [ours.mark(d) for d in compare(B10605, B11434)]
    assert [d.name for d in marked if d.fails] == ["--mmap, --no-mmap"]
    assert told(marked).endswith(
        "flag --mmap, --no-mmap removed -> --load-mode (setting memory_map, newly `--load-mode none`)"
    )


def test_what_only_production_says_is_shown_with_how_it_is_said_now() -> None:
    ours = uses(SERVER, release("--load-mode", "none"), release("--no-mmap"), (), ())
    gone = ours.mark(found(compare(B10605, B11434), "--no-mmap", What.REMOVED))
    assert gone.used_by == ("setting memory_map, here `--load-mode none`",)
    assert not gone.fails


def test_a_variable_that_servers_see_and_nobody_reads_any_more_fails() -> None:
    old = B11434.model_copy(update={"variables": ("GGML_CUDA_P2P",)})
    gone = Uses(variables=frozenset({"GGML_CUDA_P2P"})).mark(found(compare(old, B11434), "GGML_CUDA_P2P", What.REMOVED))
    assert gone.fails
    assert gone.used_by == ("environment GGML_CUDA_P2P",)


def test_a_variable_that_is_set_here_and_kept_from_servers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMA_ARG_MMAP", "GGML_SCHED_DEBUG", "LLAMA_RELEASE_STORE"):
        monkeypatch.setenv(name, "0")
    found = strays(("GGML_SCHED_DEBUG", "PATH"))
    assert "LLAMA_ARG_MMAP" in found
    assert not {"GGML_SCHED_DEBUG", "LLAMA_RELEASE_STORE", "PATH"} & set(found)


def test_a_field_that_contracts_send_and_a_patch_handles_names_both() -> None:
    old = B11434.model_copy(update={"fields": (*B11434.fields, "tool_choice")})
    gone = found(compare(old, B11434), "tool_choice", What.REMOVED)
    marked = uses(SERVER, release(), release(), (), read_series(REPOSITORY / "patches")).mark(gone)
    assert marked.fails
    assert "contracts.tools.named" in marked.used_by
    assert "contracts.chat.usage" not in marked.used_by
    assert marked.used_by[-1] == "0002-honour-named-tool-choice.patch"
