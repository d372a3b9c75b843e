"""The Python in the pages, run against a real llama-server as a reader would run it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tasks.contracts.promises import CONTRACTS, Recorder, Server, verify
from tasks.evals.collect import others
from tasks.release import Release, Verdict
from tasks.settings import EvalSettings
from tests.contracts.conftest import Serving, platform, release, serving
from tests.docs.examples import Example, examples

__all__ = ["platform", "release", "serving"]
ADDRESS = "http://127.0.0.1:8080"
"""Where the pages have their server."""
PYTHON = examples("python")


def named(file: str) -> Example:
    """The example that is the file of this name."""
    (example,) = (example for example in PYTHON if example.marked("file") == file)
    return example


def test_every_python_example_is_run() -> None:
    files = {example.marked("file") for example in PYTHON if not example.marked("server")}
    assert files == {"house_evals.py", "tasks/contracts/house.py"}


@pytest.mark.real
@pytest.mark.parametrize("example", [e for e in PYTHON if e.marked("server")], ids=lambda example: example.name)
def test_an_example_prints_what_its_page_says(
    example: Example, serving: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint, _ = serving(cast(Server, example.marked("server")))
    monkeypatch.setenv("LLAMA_RELEASE_API_KEY", endpoint.api_key or "")
    code = compile(example.text.replace(ADDRESS, endpoint.base_url), example.name, "exec")
    exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out == example.shows


@pytest.mark.real
def test_the_promise_of_the_page_is_kept_by_a_real_server(
    serving: Serving, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CONTRACTS:
        monkeypatch.setitem(CONTRACTS, name, CONTRACTS[name])
    example, before = named("tasks/contracts/house.py"), set(CONTRACTS)
    exec(compile(example.text, example.name, "exec"), {"__name__": "house"})
    (name,) = set(CONTRACTS) - before
    contract = CONTRACTS.pop(name)
    endpoint, runs = serving(contract.server)
    with Recorder(endpoint) as client:
        found = verify(contract, client, runs, subject=release, basis="")
    assert found.verdict is Verdict.PASSED, found.summary


@pytest.mark.wire
def test_the_inspect_task_of_the_page_joins_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = named("house_evals.py")
    (tmp_path / "house_evals.py").write_text(example.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    asked = others(EvalSettings(tasks=("house_evals.py@tickets",)))
    assert {item.family for item in asked.items} == {"tickets"}
    assert len({item.template for item in asked.items}) > 1
