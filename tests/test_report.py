"""What a run tells, when nobody listens."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest

from tasks.report import patiently


def test_a_run_goes_on_when_whoever_read_its_lines_is_gone() -> None:
    script = (
        "import sys; from tasks.report import console\n"
        "console.print('one'); sys.stdin.readline(); console.print('two'); console.print('three')\n"
        "print('went on', file=sys.stderr)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdin and run.stdout and run.stderr
        assert run.stdout.readline() == b"one\n"
        run.stdout.close()
        run.stdin.close()
        assert run.stderr.read() == b"went on\n"
        assert run.wait() == 0


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
