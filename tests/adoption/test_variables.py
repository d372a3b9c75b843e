"""Variables in files and texts, as docker, compose, systemd and a shell have them."""

from __future__ import annotations

import pytest

from tasks.adoption.shell import read_line
from tasks.adoption.unit import split
from tasks.adoption.variables import docker_file, dotenv_file, interpolate, systemd_file
from tasks.release import BadInput

KNOWN = {"A": "1", "EMPTY": "", "PATH_": "/m"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A-${A}", "1-1"),
        ("$$A costs $5", "$A costs $5"),
        ("${B:-x}${B-y}${EMPTY:-z}${EMPTY-w}", "xyz"),
        ("${A:+yes}${EMPTY:+no}${EMPTY+there}", "yesthere"),
        ("${B:-${A:-q}/b}", "1/b"),
        ("${B}", ""),
        ("a$", "a$"),
    ],
)
def test_compose_interpolates(text: str, expected: str) -> None:
    assert interpolate(text, KNOWN) == expected


@pytest.mark.parametrize(
    ("text", "named"), [("${B:?say B}", "B is not set"), ("${A", "not closed"), ("${A!x}", "not understood")]
)
def test_what_compose_refuses_is_refused(text: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        interpolate(text, KNOWN)


def test_docker_takes_lines_as_they_are() -> None:
    text = "# a comment\nA='1'\nB=x # y\nHERE\nGONE\n\n"
    assert docker_file(text, {"HERE": "h"}) == {"A": "'1'", "B": "x # y", "HERE": "h"}


def test_compose_takes_quotes_comments_and_variables() -> None:
    text = "export A='$X'\nB=\"two words\" # c\nC=${A}/c\nD=${X:-d}\nX\n"
    assert dotenv_file(text, {"X": "x"}) == {"A": "$X", "B": "two words", "C": "$X/c", "D": "x", "X": "x"}


def test_systemd_takes_quotes_and_backslashes_and_no_variables() -> None:
    text = '; c\n# d\nA="q \\" $X" \nB=\'s $X\'\nC=a\\\n b\n  D = e f  \nexport E=1\nF=x"y z"\n'
    assert systemd_file(text) == {"A": 'q " $X', "B": "s $X", "C": "a b", "D": "e f", "F": 'x"y z"'}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  'b c' \"d e\" f\\sg", ["a", "b c", "d e", "f g"]),
        (r"blk\.1 \x41\101\n", [r"blk\.1", "AA\n"]),
        ("a'b'c ''", ["abc", ""]),
    ],
)
def test_systemd_splits_words(text: str, expected: list[str]) -> None:
    assert split(text) == expected


def test_a_quote_that_is_not_closed_is_refused() -> None:
    with pytest.raises(BadInput, match="not closed"):
        split("a 'b")
    with pytest.raises(BadInput, match="only a shell"):
        read_line("a 'b", {})


def test_a_shell_s_line_as_far_as_it_starts_one_program() -> None:
    line = read_line("set -e; A=1; export D=4; B='2 3' exec srv \"x $A\" 'y $A' $C -n 9 2>&1 >> log & ", {"C": "c d"})
    assert line.words == ["exec", "srv", "x 1", "y $A", "c", "d", "-n", "9"]
    assert line.variables == {"B": "2 3", "D": "4"}, "A is the shell's own"
    assert line.dropped == ["2>&1", ">>log", "&"]


@pytest.mark.parametrize("text", ["a && b", "a || b", "a `b`", "a $(b)", 'a "$@"', "for x in y; do a; done", "(a)"])
def test_what_only_a_shell_can_tell_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="only a shell"):
        read_line(text, {})
