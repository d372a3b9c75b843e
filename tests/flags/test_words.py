"""Command lines as people write them, read as one build's llama-server reads them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tasks.flags.flag import Flag, flags_of_help
from tasks.flags.history import history
from tasks.flags.table import Table, known
from tasks.flags.words import read, split

NEWEST = known()
OLD = Table(
    flags_of_help(
        "\n".join(
            [
                "--mmap, --no-mmap                       whether to memory-map model (env: LLAMA_ARG_MMAP)",
                "--mlock                                 force system to keep model in RAM (env: LLAMA_ARG_MLOCK)",
                "-fa,   --flash-attn [on|off|auto]       set Flash Attention use (env: LLAMA_ARG_FLASH_ATTN)",
                "--draft, --draft-n, --draft-max N       number of tokens to draft (env: LLAMA_ARG_DRAFT_MAX)",
            ]
        )
    ),
    "b8672",
)


def said(words: str, table: Table = NEWEST, variables: Mapping[str, str] = {}) -> list[tuple[str, str]]:
    """(option, value) of all that counts; nothing may be refused."""
    found = read(words.split(), table, variables)
    assert not found.refused
    return [(each.main, each.value) for each in found.effective]


def refused(words: str, variables: Mapping[str, str] = {}) -> str:
    found = read(words.split(), known(), variables)
    return "\n".join(map(str, found.refused))


def test_short_names_long_names_and_those_with_underscores_are_one_option() -> None:
    asked = said("-c 4096"), said("--ctx-size 4096"), said("--ctx_size 4096")
    assert asked == ([("--ctx-size", "4096")],) * 3


def test_a_switch_is_on_or_off_by_its_name_and_a_short_name_may_say_no() -> None:
    assert said("--no-jinja -nocb -kvo") == [("--jinja", "off"), ("--cont-batching", "off"), ("--kv-offload", "on")]


def test_a_value_may_begin_with_a_dash_and_two_values_may_follow() -> None:
    assert said("-n -1 --control-vector-layer-range 3 7") == [
        ("--predict", "-1"),
        ("--control-vector-layer-range", "3 7"),
    ]


def test_the_last_of_several_counts_and_of_those_that_add_up_all_do() -> None:
    assert said("-c 1 --lora a -c 2 --lora b") == [("--lora", "a"), ("--ctx-size", "2"), ("--lora", "b")]
    assert [each.said for each in read(["-c", "1", "-c", "2"], known()).overridden] == ["-c 1"]


@pytest.mark.parametrize(
    ("words", "now"),
    [
        ("--no-mmap", [("--load-mode", "none")]),
        ("--mmap --mlock", [("--load-mode", "mmap+mlock")]),
        ("--mlock --no-mmap", [("--load-mode", "mlock")]),
        ("-fa -ngl 99", [("--flash-attn", "on"), ("--gpu-layers", "99")]),
        ("-ngl 99 -fa", [("--gpu-layers", "99"), ("--flash-attn", "on")]),
        ("--draft 8 --draft-min 2", [("--spec-draft-n-max", "8"), ("--spec-draft-n-min", "2")]),
        ("--spec-type mtp", [("--spec-type", "draft-mtp")]),
        ("--no-clear-idle", [("--cache-idle-slots", "off")]),
        ("--no-direct-io", []),
        ("--spec-ngram-size-n 12", [("--spec-ngram-mod-n-match", "12")]),
    ],
)  # fmt: skip
def test_words_of_earlier_builds_are_said_in_todays(words: str, now: list[tuple[str, str]]) -> None:
    assert said(words) == now


def test_words_of_today_are_said_in_those_of_an_earlier_build() -> None:
    found = read(["--load-mode", "none", "--spec-draft-n-max", "3", "-fa", "on"], OLD)
    assert found.words == ("--no-mmap", "--draft", "3", "--flash-attn", "on")


def test_what_is_uncertain_is_refused_with_what_upstream_has_instead() -> None:
    assert "each kind of n-gram has its own" in refused("--spec-ngram-size-m 3")
    assert "--spec-ngram-size-n 12" in refused("--spec-ngram-size-n 12 --spec-type ngram-map-k")
    assert "the context of the model it drafts for" in refused("-cd 512")


def test_a_slip_gets_the_nearest_name_and_takes_its_values_with_it() -> None:
    assert refused("--ctx-sizes 4096 -ngl 9") == "`--ctx-sizes 4096`: b11434 has no such option; there is --ctx-size"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("-ctk q9_0", "--cache-type-k takes bf16"),
        ("--flash-attn maybe", "--flash-attn takes auto, off, on"),
        ("--split-mode rows", "--split-mode takes layer, none, row, tensor"),
        ("--spec-type ngram-mod,tea", "--spec-type takes"),
        ("-c many", "--ctx-size takes a number"),
        ("-c", "it needs a value"),
        ("model.gguf -c 5", "`model.gguf`: it is no option"),
    ],
)
def test_a_value_that_upstream_would_not_take_is_named_before_anything_is_compiled(words: str, why: str) -> None:
    assert why in refused(words)


def test_values_that_upstream_takes_for_yes_no_and_all_are_none_of_these() -> None:
    assert not refused("-fa 1 --fit false --log-colors auto -ngl all -np -1 --temp .5 --top-k 1e2")


def test_variables_count_where_no_word_says_the_same() -> None:
    assert said("-c 1", variables={"LLAMA_ARG_CTX_SIZE": "2", "LLAMA_ARG_N_PARALLEL": "3"}) == [
        ("--parallel", "3"),
        ("--ctx-size", "1"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "now"),
    [
        ("LLAMA_ARG_JINJA", "false", [("--jinja", "off")]),
        ("LLAMA_ARG_NO_JINJA", "false", [("--jinja", "off")]),  # any value of it says no
        ("LLAMA_ARG_EMBEDDINGS", "1", [("--embedding", "on")]),
        ("LLAMA_ARG_EMBEDDINGS", "0", []),
        ("LLAMA_ARG_MMAP", "0", [("--load-mode", "none")]),
        ("LLAMA_ARG_NO_MMAP", "whatever", [("--load-mode", "none")]),
        ("LLAMA_ARG_MLOCK", "on", [("--load-mode", "mlock")]),
        ("LLAMA_ARG_WEBUI", "off", [("--ui", "off")]),
        ("LLAMA_ARG_DRAFT_MAX", "4", [("--spec-draft-n-max", "4")]),
        ("LLAMA_ARG_FLASH_ATTN", "1", [("--flash-attn", "1")]),
    ],
)
def test_a_variable_says_what_upstream_takes_it_for(name: str, value: str, now: list[tuple[str, str]]) -> None:
    assert said("", variables={name: value}) == now


def test_a_variable_that_nobody_reads_is_told_and_one_with_a_wrong_value_refused() -> None:
    assert read((), known(), {"LLAMA_ARG_LORA": "x"}).unread == ("LLAMA_ARG_LORA: no llama-server of b11434 reads it",)
    (note,) = read((), known(), {"LLAMA_ARG_CTX_SIZES": "1"}).unread
    assert note.endswith("it reads LLAMA_ARG_CTX_SIZE")
    assert "`LLAMA_ARG_JINJA=maybe`: it takes on, enabled" in refused("", {"LLAMA_ARG_JINJA": "maybe"})
    assert "`LLAMA_ARG_CTX_SIZE=many`: --ctx-size takes a number" in refused("", {"LLAMA_ARG_CTX_SIZE": "many"})


def test_every_option_of_the_newest_build_is_understood_in_each_of_its_names() -> None:
    for flag in known().flags:
        if flag.removed:
            continue
        for name in flag.names:
            value = next(iter(sorted(flag.choices)), "1")
            found = read((name, *[value] * flag.takes), known())
            assert not found.refused, (name, found.refused)
            (each,) = found.said
            assert each.main == known().find(flag.main).main  # type: ignore[union-attr]
            assert each.off is (name in flag.negative)


def test_what_history_says_today_is_an_option_of_today() -> None:
    for old in history().option:
        for now in filter(None, (old.now, old.off)):
            assert known().find(now.split()[0]), now
        assert (old.now is None) is bool(old.why), old.names
    assert all(known().of_variable(name) for name in history().variables.values())


def test_words_are_cut_where_options_begin() -> None:
    words = ["-fa", "-ngl", "9", "--new-in-b12000", "3", "4", "--jinja"]
    assert list(split(words, known())) == [("-fa",), ("-ngl", "9"), ("--new-in-b12000", "3", "4"), ("--jinja",)]


def test_placeholders_of_one_two_and_odd_values_are_counted() -> None:
    takes = {name: Flag(names=("-x",), value=name).takes for name in ("", "N", "START END", "<a b>=<c d>,...")}
    assert takes == {"": 0, "N": 1, "START END": 2, "<a b>=<c d>,...": 1}


def test_a_kind_of_n_gram_decides_what_an_old_option_means() -> None:
    assert said("--spec-type ngram-mod --spec-ngram-size-n 12")[1] == ("--spec-ngram-mod-n-match", "12")
