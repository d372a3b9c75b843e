"""The list of breaks is in order: each can be made in the tree as it is, and no package is without one."""

from __future__ import annotations

import pytest

from tests.benchmarks.suite import BREAKS, PRODUCT, REPOSITORY, Break, chosen, stale


def test_every_break_can_be_made_and_its_tests_are_there() -> None:
    assert stale(BREAKS) == []
    assert len({(each.path, each.before, each.after) for each in BREAKS}) == len(BREAKS) >= 40
    for test in {test for each in BREAKS for test in each.tests.split()}:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (REPOSITORY / path).read_text() if name else (REPOSITORY / path).is_file(), test


def test_a_text_that_is_gone_or_is_there_twice_and_what_is_no_python_are_stale() -> None:
    def made(before: str, after: str) -> list[str]:
        return stale([Break("flows/rollback.py", "", before, after, "")])

    assert "is there 0 times" in made("no such text", "")[0]
    assert "times" in made("platform", "p")[0]
    assert "is not Python there" in made("def rollback(", "def (")[0]


def test_every_package_has_one() -> None:
    modules = [path for name in PRODUCT for path in (REPOSITORY / name).rglob("*.py") if path.stat().st_size]
    packages = {Break(str(path.relative_to(REPOSITORY)), "", "", "", "").package for path in modules}
    assert packages - {each.package for each in BREAKS} == {"platforms"}, "of which there is the protocol alone"


def test_breaks_are_chosen_by_package_or_by_a_word_of_their_row_and_left_out_by_a_hyphen() -> None:
    assert {each.package for each in chosen(["redeploy"])} == {"flows/redeploy", "redeploy"}
    assert {each.package for each in chosen(["promote", "real"])} == {"promote"}
    assert not any(each.real for each in chosen(["-real"]))
    assert chosen([]) == list(BREAKS)
    with pytest.raises(SystemExit, match="no break is chosen by nothing-such; there are those of adoption"):
        chosen(["nothing-such"])
