"""Blocking Modal calls in async code: found in the source, and Modal itself warns of the very same lines."""

from __future__ import annotations

import ast
import asyncio
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
from modal.exception import AsyncUsageWarning, AuthError

from tasks.doctor.modal_calls import OURS, blocking_calls, examine
from tasks.release import BadInput

BLOCKING = """
import modal

async def main():
    function = modal.Function.from_name("app", "work")
    return function.remote(1)
"""
WAITING = BLOCKING.replace("function.remote(1)", "await function.remote.aio(1)")


def lines(code: str) -> list[int]:
    return [line for line, _ in blocking_calls(ast.parse(code))]


def warned_of(code: str) -> list[int]:
    """The lines of the code that Modal warns of when it is run. Nothing is reached: there is no token."""
    space: dict[str, Callable[[], Coroutine[object, object, object]]] = {}
    exec(compile(code, "user.py", "exec"), space)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", AsyncUsageWarning)
        with pytest.raises(AuthError):
            asyncio.run(space["main"]())
    return [each.lineno for each in seen if each.category is AsyncUsageWarning]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modal's client has no token and no server here."""
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", "/nonexistent")


def test_what_modal_warns_of_is_found_and_what_it_does_not_warn_of_is_not() -> None:
    assert (lines(BLOCKING), warned_of(BLOCKING)) == ([6], [6])
    assert (lines(WAITING), warned_of(WAITING)) == ([], [])


@pytest.mark.parametrize(
    "call",
    [
        'modal.Volume.from_name("v").commit()',
        'modal.Dict.from_name("d", create_if_missing=True).put("k", 1)',
        "work.remote(1)",
        "list(work.map([1, 2]))",
        "work.spawn(1).get()",
        "Model().answer.remote(1)",
        "imported_from_elsewhere.remote(1)",
        "app.deploy()",
    ],
)
def test_a_blocking_call_is_found_however_the_object_was_come_by(call: str) -> None:
    code = f"""
import modal
from jobs import imported_from_elsewhere
app = modal.App("a")

@app.function()
def work(n): return n

@app.cls()
class Model:
    @modal.method()
    def answer(self, n): return n

async def main():
    {call}

def plain():
    {call}
"""
    assert set(lines(code)) == {15}


@pytest.mark.parametrize(
    "call", ["await work.remote.aio(1)", "print('remote')", "{}.get('k')", "run_in_thread(lambda: work.remote(1))"]
)
def test_what_does_not_block_is_left_alone(call: str) -> None:
    assert lines(f"import modal\nwork = modal.Function.from_name('a', 'b')\nasync def main():\n    {call}\n") == []


def test_files_and_folders_are_read_and_each_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "job.py").write_text(BLOCKING)
    with pytest.raises(BadInput) as caught:
        examine([tmp_path])
    assert f"{tmp_path}/client/job.py:6: function.remote(1)" in caught.value.evidence
    assert ".aio" in caught.value.todo


def test_our_own_code_has_none() -> None:
    assert "no blocking Modal call" in examine([OURS, OURS.parent / "tasks", OURS.parent / "flows"])


def test_a_path_that_is_not_there_and_code_that_is_none_are_said(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("async def (")
    for path in (tmp_path / "none", tmp_path / "bad.py"):
        with pytest.raises(BadInput):
            examine([path])
