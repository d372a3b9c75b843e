"""What a set-up really gives its llama-server, read from wherever people have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.adoption.read import Source, read_source
from tasks.release import BadInput
from tests.adoption.cases import Case, cases

READ = [case for case in cases() if case.words is not None]
UNREADABLE = [case for case in cases() if case.words is None and "/" not in (case.refused or "")]


@pytest.mark.parametrize("case", READ, ids=lambda case: case.id)
def test_what_a_set_up_gives_its_server(case: Case, tmp_path: Path) -> None:
    case = case.lay_out(tmp_path)
    launch = read_source(case.source, case.environment, tmp_path)
    assert tuple(word.text for word in launch.words) == case.words
    assert {name: launch.value(name) for name in {each.name for each in launch.variables}} == case.variables
    assert tuple(each.variable for each in launch.secrets) == case.secrets
    if not case.refused:
        assert {path: str(launch.outside(path)) for path in case.paths} == case.paths


@pytest.mark.parametrize("case", UNREADABLE, ids=lambda case: case.id)
def test_what_can_not_be_known_is_refused_and_said(case: Case, tmp_path: Path) -> None:
    case = case.lay_out(tmp_path)
    with pytest.raises(BadInput) as caught:
        read_source(case.source, case.environment, tmp_path)
    assert case.refused and case.refused in str(caught.value)
    assert caught.value.todo


def test_one_source_is_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="import reads one thing"):
        read_source(Source(), {}, tmp_path)
    with pytest.raises(BadInput, match="import reads one thing"):
        read_source(Source(words=("llama-server",), url="http://127.0.0.1:1"), {}, tmp_path)


def test_what_compose_does_not_find_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("services: {llm: {image: 'llama.cpp:server', command: '-m /m/${GONE}.gguf'}}")
    launch = read_source(Source(compose=Path("c.yaml")), {}, tmp_path)
    assert any("GONE: not set" in note for note in launch.notes)
