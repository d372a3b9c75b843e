"""An activator that many clients lean on, or that has no descriptor left, in front of a real llama-server."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tasks.release import Build, Endpoint
from tasks.settings import Settings
from tests.platforms.conftest import platform_at, stand_of
from tests.platforms.stand import Stand, until

pytestmark = pytest.mark.real
LIMIT = 256
"""RLIMIT_NOFILE of the activator: what macOS gives, and a quarter of what Linux does."""


@pytest.fixture(scope="module")
def stand(
    base: Settings, build: Build, scripted_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    """A stage whose activator was started with few descriptors, and has answered a request."""
    with stand_of(platform_at(tmp_path_factory.mktemp("flood")), base, build, scripted_model) as made:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with _limited(LIMIT):
            made.serve(made.first)
        resource.prlimit(made.status().pid, resource.RLIMIT_NOFILE, (LIMIT, hard))
        made.say()
        yield made


def test_silent_clients_take_neither_the_stage_nor_its_control_socket_down(stand: Stand) -> None:
    with _connected(stand.platform.endpoint("staging"), 1100):
        assert stand.say() == "first"
        began = time.monotonic()
        assert stand.status().state == "up"
        assert time.monotonic() - began < 5
        stand.serve(stand.second)
        assert stand.say() == "second"
        stand.serve(stand.first)
        assert stand.status().connections < LIMIT
    assert _log_bytes(stand) < 100_000


def test_clients_that_keep_coming_keep_nobody_out(stand: Stand) -> None:
    """Each that is shown out comes back at once."""
    endpoint = stand.platform.endpoint("staging")
    deadline = time.monotonic() + 3
    asked = 0
    with ExitStack() as silent:
        while time.monotonic() < deadline:
            for _ in range(100):
                silent.enter_context(_connection(endpoint))
            assert stand.say() == "first"
            asked += 1
    assert asked >= 3
    assert _log_bytes(stand) < 100_000


def test_without_a_descriptor_left_the_activator_says_so_once_and_answers_when_there_are_some(stand: Stand) -> None:
    stand.say()
    pid, before = stand.status().pid, _log_bytes(stand)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with _connection(stand.platform.endpoint("staging")) as client:
        assert until(lambda: stand.status().connections <= 1)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        with _connected(stand.platform.endpoint("staging"), 20):
            time.sleep(3)  # a retry a second was enough to fill a disk
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        client.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    assert stand.say() == "first"
    assert stand.status().state == "up"
    assert _log_bytes(stand) - before < 20_000


def test_a_second_server_on_a_port_of_ours_is_refused(stand: Stand) -> None:
    stand.say()
    for endpoint in (stand.platform.endpoint("staging"), stand.direct()):
        with socket.socket() as second:
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="Address already in use"):
                second.bind(_address(endpoint))
                second.listen()


@contextmanager
def _limited(descriptors: int) -> Iterator[None]:
    """This process, and those that it starts, may open no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _connected(endpoint: Endpoint, clients: int) -> Iterator[None]:
    """So many clients connect, say nothing and stay as long as they may."""
    with ExitStack() as silent:
        for _ in range(clients):
            silent.enter_context(_connection(endpoint))
        yield


def _connection(endpoint: Endpoint) -> socket.socket:
    return socket.create_connection(_address(endpoint), timeout=30)


def _address(endpoint: Endpoint) -> tuple[str, int]:
    url = httpx.URL(endpoint.base_url)
    assert url.port is not None
    return url.host, url.port


def _log_bytes(stand: Stand) -> int:
    return (stand.platform.store.root / "run" / "staging" / "activator.log").stat().st_size
