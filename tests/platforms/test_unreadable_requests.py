"""What an activator writes down of the requests that it could not read: nothing of what they hold."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.endpoint import Client
from tasks.platforms.local.activator import LogLines
from tasks.platforms.local.control import KEY_VARIABLE, activator_log_path
from tasks.release import Endpoint, ToolingError
from tests.conftest import ends_within
from tests.endpoint.script import says, server
from tests.platforms.stand import until

pytestmark = pytest.mark.wire

KEY = b"planted-api-key-4711"
OTHERS = b"another-key-4712"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """The log of a real activator that nothing is deployed to."""
    path = activator_log_path(tmp_path / "store", "staging")
    words = ("--store", str(tmp_path / "store"), "--stage", "staging", "--idle-s", "5", "--start-timeout-s", "5")
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.platforms.local.activator", *words],
        env=os.environ | {KEY_VARIABLE: KEY.decode()}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert until(lambda: path.exists() and " port " in path.read_text(), 60)
        yield path
    finally:
        process.terminate()
        process.wait(60)


def requests(key: bytes) -> tuple[bytes, ...]:
    """Requests that no server can read, each with a key in its header or its address line."""
    host = b" HTTP/1.1\r\nHost: x\r\n"
    return (
        b"GET /?api_key=" + key + host + b"Authorization: Bearer " + key + b"\x00\r\n\r\n",
        b"GET /?api_key=" + key + b" HTTP/9.x\r\n\r\n",
        b"GET /?api_key=" + key + b" and" + host + b"\r\n",
        b"GET /" + key + b"\x01" + host + b"\r\n",
        b"GET http://[::" + key + host + b"\r\n",
        b"GET /" + host + b"Authorization: Bearer " + key * 1000 + b"\r\n\r\n",
        b"GET /?k=" + key * 1000 + host + b"\r\n",
        b"POST /" + host + b"Content-Length: " + key + b"\r\n\r\n",
        b"POST /" + host + b"Transfer-Encoding: chunked\r\n\r\n" + key + b"\r\n",
        b"GET /" + host + b"X-Api-Key : \x1b[2J" + key + b"\r\n\r\n",
    )


def test_no_header_and_no_address_line_is_in_the_log_of_an_activator(log: Path) -> None:
    found = re.search(r"port (\d+)", log.read_text())
    assert found
    sent = [request for key in (KEY, OTHERS) for request in requests(key)]
    for request in sent:
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=30) as client:
            client.sendall(request)
            assert client.recv(12).startswith(b"HTTP/1.")
    assert until(lambda: log.read_text().count("Error handling request") > 1, 30)
    assert until(lambda: "LineTooLong" in log.read_text(), 30)
    said = log.read_bytes()
    assert b"planted" not in said
    assert b"another" not in said
    assert b"\x1b" not in said
    assert said.count(b"\n") < 3 * len(sent)


@pytest.mark.parametrize("ending", ["\n", "\r\n", " \n"])
def test_a_key_that_was_pasted_with_a_line_break_is_in_no_error(ending: str) -> None:
    with server(says("x")) as found:
        endpoint = Endpoint(base_url=found.endpoint.base_url, api_key=KEY.decode() + ending)
        with pytest.raises(ToolingError) as error, Client(endpoint) as client:
            client.chat("x")
    assert "planted" not in str(error.value)


def test_an_exception_that_is_its_own_cause_is_told() -> None:
    error = ValueError("mine")
    error.__cause__ = error
    line = logging.LogRecord("a", logging.ERROR, "a.py", 1, "it broke", (), (ValueError, error, None))
    with ends_within(5.0):
        assert "mine" in LogLines("%(message)s").format(line)
