"""What each command imports: a library that takes its time to load is for the commands that cannot do without it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.__main__ import app
from tests.benchmarks.start import SCRIPT, clean, completing

SLOW = {
    "prefect", "fastapi", "sqlalchemy", "modal", "inspect_ai", "openai", "scipy", "numpy", "gguf", "aiohttp",
    "slack_sdk", "jinja2", "hypothesis", "httpx", "jsonschema", "prometheus_client", "psutil", "packaging", "pydantic",
    "pydantic_settings",
}  # fmt: skip
"""What is slow to load: everything installed that is of any size, but for Typer and rich."""

OPTIONS = {"pydantic"}
"""Typer's own: since 0.29 it asks pydantic what an option may be."""
STORE = {"pydantic", "pydantic_settings"}
"""Settings and documents."""
SERVERS = {*STORE, "httpx", "jsonschema", "psutil"}
"""Asking one; psutil where there is no /proc."""
FILES = {*SERVERS, "numpy", "gguf", "packaging"}
"""GGUF files, the stages that make some, the table of known faults."""
PREFECT = {*SERVERS, "prefect", "prometheus_client", "packaging", "fastapi", "sqlalchemy", "jinja2"}
"""Prefect's client, and what it takes along."""

MAY_LOAD = {
    "--help": set(),
    "-h": set(),
    "--version": set(),
    "status": {*FILES, "prometheus_client"},
    "status --json": {*FILES, "prometheus_client"},
    "history": STORE,
    "rebuild 0a1b2c": STORE,
    "explain x": STORE,
    "hold lift --by me": SERVERS,
    "hub update": FILES,
    "rollback --now --reason r --by me": FILES,
    "start": FILES,
    "stop": FILES,
    "plan": FILES,
    "import -- llama-server -m m.gguf": FILES,
    "doctor": {*FILES, "slack_sdk"},
    "upgrade": FILES,
    "redeploy --reason x": FILES,
    "approve some-run --by me": PREFECT,
}
"""Command -> what of SLOW it may load."""

COMPLETIONS = {
    "llama-release sta": ["status", "start"],
    "llama-release upgrade --a": ["--again", "--approver"],
    "llama-release im": ["import"],
    "llama-release import --comp": ["--compose"],
    "llama-release patches re": ["reorder", "refresh", "retire"],
}


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command and group of the command line."""
    for name, child in getattr(command, "commands", {}).items():
        yield " ".join((*words, name))
        yield from commands(child, (*words, name))


def loaded(words: str, folder: Path, more: Mapping[str, str] | None = None) -> tuple[set[str], str]:
    """(what of SLOW the real command loads, what it prints); it ends in no traceback."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), *words.split()], cwd=folder, stdin=subprocess.DEVNULL,
        env={**clean(folder), "PIP_NO_INDEX": "1", **(more or {})}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    packages = set(re.findall(r"^import time: .*\| +(\w+)", done.stderr, re.MULTILINE))
    assert "typer" in packages, done.stderr
    return SLOW & packages, done.stdout


@pytest.mark.parametrize("words", MAY_LOAD)
def test_a_command_loads_only_what_it_needs(words: str, tmp_path: Path) -> None:
    found, _ = loaded(words, tmp_path)
    assert found <= MAY_LOAD[words]


@pytest.mark.parametrize("words", [*commands(typer.main.get_command(app))])
def test_the_help_of_a_command_loads_nothing_that_the_command_runs(words: str, tmp_path: Path) -> None:
    found, printed = loaded(f"{words} --help", tmp_path)
    assert "Usage:" in printed
    assert found <= OPTIONS


def test_the_shell_is_told_what_a_line_may_go_on_with_and_nothing_else_is_loaded(tmp_path: Path) -> None:
    for line, told in COMPLETIONS.items():
        found, printed = loaded("", tmp_path, completing(line))
        assert printed.split() == told
        assert found <= OPTIONS


def test_what_is_loaded_is_seen(tmp_path: Path) -> None:
    found, _ = loaded("approve some-run --by me", tmp_path)
    assert {"prefect", "pydantic", "httpx"} <= found
