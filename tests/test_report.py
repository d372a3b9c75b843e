"""What a run tells, when nobody listens."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest

from tasks.stage import patiently


def test_a_run_goes_on_when_whoever_read_its_lines_is_gone() -> None:
    script = (
        "import logging, sys; from prefect.logging.handlers import PrefectConsoleHandler\n"
        "from tasks.console import console\n"
        "console.print('one'); logger = logging.getLogger('a'); logger.addHandler(PrefectConsoleHandler())\n"
        "sys.stdin.readline(); logger.error('two'); console.print('three'); logger.error('four'); sys.exit(7)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        assert run.stdin and run.stdout
        assert run.stdout.readline() == b"one\n"
        run.stdout.close()
        run.stdin.close()
        assert run.wait() == 7


def test_what_prefect_is_told_waits_until_its_server_is_there_again() -> None:
    away = [httpx.ConnectError("refused"), httpx.ReadError("reset")]

    def tell(text: str) -> str:
        if away:
            raise away.pop()
        return text

    assert patiently(tell)("told") == "told"
    away.append(httpx.ConnectError("refused"))
    with pytest.raises(httpx.ConnectError):
        patiently(tell, limit_s=-1)("told")
