"""What an activator's log holds, and how much of it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.platforms.local.activator_log import KEPT, MANY, REPEAT_S, ActivatorLog


def test_a_line_is_said_once_with_how_often_it_came_again(tmp_path: Path) -> None:
    path = tmp_path / "activator.log"
    with _logging_to(path) as log:
        for number in range(1000):
            log.warning("nobody can be let in: %s", "too many files")
            log.info("boot %d", number % 2)
        assert path.read_text().splitlines() == ["nobody can be let in: too many files", "boot 0", "boot 1"]
        (handler,) = log.handlers
        assert isinstance(handler, ActivatorLog)
        for said in handler._said.values():
            said.at -= REPEAT_S  # a minute goes by
        log.info("another")
    assert path.read_text().splitlines()[3:] == [
        "nobody can be let in: too many files (said 999 times more in 60 s)",
        "boot 0 (said 499 times more in 60 s)",
        "boot 1 (said 499 times more in 60 s)",
        "another",
    ]


def test_what_came_again_is_told_at_the_end_too(tmp_path: Path) -> None:
    with _logging_to(tmp_path / "activator.log") as log:
        for _ in range(3):
            log.error("again")
    assert (tmp_path / "activator.log").read_text().splitlines() == ["again", "again (said 2 times more in 60 s)"]


def test_lines_that_are_all_different_fill_no_memory(tmp_path: Path) -> None:
    with _logging_to(tmp_path / "activator.log") as log:
        for number in range(2 * MANY):
            log.info("request %d", number)
        (handler,) = log.handlers
        assert isinstance(handler, ActivatorLog) and len(handler._said) <= MANY


def test_the_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    with _logging_to(tmp_path / "activator.log", size=10_000) as log:
        for number in range(5000):
            log.info("request %d", number)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["activator.log", *(f"activator.log.{n}" for n in range(1, KEPT + 1))]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000 * (KEPT + 1)
    assert (tmp_path / "activator.log").read_text().splitlines()[-1] == "request 4999"


def test_what_the_interpreter_says_is_in_the_file_too_after_it_was_begun_anew(tmp_path: Path) -> None:
    script = (
        "import logging, sys; from pathlib import Path\n"
        "from tasks.platforms.local.activator_log import ActivatorLog\n"
        "logging.basicConfig(level='INFO', handlers=[ActivatorLog(Path(sys.argv[1]), size=1000)])\n"
        "for n in range(100): logging.info('line %d', n)\n"
        "1 / 0"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "activator.log")], check=False, timeout=60)
    assert "ZeroDivisionError" in (tmp_path / "activator.log").read_text()


@contextmanager
def _logging_to(path: Path, **given: float) -> Iterator[logging.Logger]:
    """A logger of its own; this process's standard error is put back afterwards."""
    error = os.dup(2)
    log = logging.Logger("one")
    handler = ActivatorLog(path, **given)  # type: ignore[arg-type]
    log.addHandler(handler)
    try:
        yield log
    finally:
        handler.close()
        os.dup2(error, 2)
        os.close(error)
