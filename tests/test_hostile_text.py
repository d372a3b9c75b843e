"""Whatever upstream writes, in its code, its notes, its help and what its server says, is read to its end in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modal_app.compile import first_error
from tasks.evals.model import Expectation
from tasks.evals.scorer import is_correct
from tasks.flags.flag import flags_of_help, flags_of_readme
from tasks.patches.evidence import heading_name
from tasks.patches.scopes import Scopes, Unreadable
from tasks.patches.series import Hunk
from tasks.preflight.compare import successor_of
from tasks.preflight.surface import Surface, fields_of, routes_of
from tasks.release import Change
from tasks.runbook import explain, known
from tasks.settings import UpstreamSettings
from tasks.upstream.github import Github
from tasks.upstream.history import _LEFT_IN
from tasks.upstream.notes import assess
from tasks.upstream.rules import RULES
from tests.conftest import REPOSITORY, ends_within
from tests.upstream.labelled import reference

LIMIT_S = 4.0
"""What is here takes a second at most; the square of SIZE takes longer, and a power of two for ever."""
SIZE = 40_000
"""Characters; GitHub takes 65,536 as the text of a pull request."""
USED = reference(REPOSITORY / "patches")


def scopes(text: str) -> None:
    with suppress(Unreadable):
        Scopes("x.cpp", text)


def notes(text: str) -> None:
    assess(Change(build=1, pull=1, title=text, body=text, files=()), USED)
    assess(Change(build=1, pull=1, title=f"server : x{text}", body=f"x\n{text}", files=()), USED)


def commit(text: str, folder: Path = Path("/nonexistent")) -> None:
    Github(UpstreamSettings(), folder)._change(1, {"commit": {"message": f"{text}x\n\nbody"}, "sha": "a"}, asked=False)


def surface(text: str) -> None:
    routes_of(text)
    fields_of(text)
    flags_of_help(f"-a, --all  {text}")
    flags_of_readme(f"HELP_START\n| `-a` | {text} |\nHELP_END")


def successor(text: str) -> None:
    (flag,) = flags_of_help(f"--old{' ' * 33}(DEPRECATED) {text}")
    known = Surface(build="b", tag="b1", flags=(flag,), readme=(), variables=(), routes=(), fields=(), mentioned=())
    successor_of(flag, known, known)


def heading(text: str) -> None:
    heading_name(Hunk("@@ -1 +1 @@", 1, 1, text, ()))


def answer(text: str) -> None:
    is_correct(Expectation(kind="list", value=["a"]), f"```a{text}!")


def history(text: str) -> None:
    _LEFT_IN.sub("", text)


def log_line(text: str) -> None:
    explain([text])


READERS: dict[Callable[[str], object], tuple[str, ...]] = {
    scopes: (
        "A", "A_", "f() A", "a::", "operator ", "struct A<>", "x = [](", "/*", 'R"x(', '\\"', "{", "{}", "#if 1\n{\n",
        "(", "f(", "= {},", "A() ", "\n", "static const int a[] = {1};\n", "template <", "class A : ", "f() : a{}, ",
    ),
    notes: ("rename ", "drop the ", ": (", "change default ", "<!--", "server ", "enable ", " ", "--a ", "`--", "a"),
    commit: (" ", "(#", "(#1) ", "(#1", "\t"),
    surface: (
        "\n", "\n//", " //", "json_value(", "data", '"', "default: ", "--", "-a,", "| `-", 'ctx_http.get("/', " ",
    ),
    successor: ("-", "--a-", "- "),
    heading: ("a", "a ", "a:", "~", " "),
    answer: ("```", "a", "\n", " ", "- "),
    history: ("a", "<!--", "<!", "contributing "),
    log_line: ("for url ", "GGML_ASSERT(", "exit ", "it calls '", "the raw tool token ", "HTTP/1", " "),
    first_error: ("error", "fatal ", " ", "\n"),
}  # fmt: skip


def name_of(value: object) -> str:
    return getattr(value, "__name__", "") or repr(value)


@pytest.mark.parametrize(
    ("reader", "seed"), [(reader, seed) for reader, seeds in READERS.items() for seed in seeds], ids=name_of
)
def test_a_reader_of_what_upstream_wrote_comes_to_an_end(reader: Callable[[str], object], seed: str) -> None:
    with ends_within(LIMIT_S):
        reader(seed * (SIZE // len(seed)))
    with ends_within(LIMIT_S):
        reader(f"int f() {seed * (SIZE // len(seed))} {{\n}}\n")


def words_of(patterns: Iterable[str]) -> st.SearchStrategy[str]:
    """What expressions match, and the beginnings of it: what a search begins, and then gives up or takes back."""
    matched = st.one_of([st.from_regex(pattern) for pattern in patterns])
    return st.tuples(matched, st.integers(1, 60)).map(lambda drawn: drawn[0].strip("\n")[: drawn[1]] or "a")


@given(words_of([pattern for row in known() for pattern in row.patterns]), st.text(max_size=3))
def test_a_line_of_a_log_is_looked_up_in_time(word: str, between: str) -> None:
    with ends_within(LIMIT_S):
        explain([(word + between) * (SIZE // len(word + between))])


@given(words_of([rule.words.pattern for rule in RULES]), st.text(max_size=3))
def test_the_notes_of_a_change_are_judged_in_time(word: str, between: str) -> None:
    with ends_within(LIMIT_S):
        notes((word + between) * (SIZE // len(word + between)))
