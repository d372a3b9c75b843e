"""What the local platform asks of ports and processes has one answer, from Linux's /proc and from psutil alike."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from types import ModuleType

import pytest

from tasks.platforms.local import portable, proc, procfs
from tests import laptop
from tests.laptop import Laptop
from tests.platforms.stand import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc to compare with")

# A child that listens, has a connection of its own, a child of its own, and one that has ended and was not waited for.
BUSY = """
import os, socket, subprocess, sys, time
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
sleeper = subprocess.Popen(["sleep", "60"])
zombie = subprocess.Popen(["true"])
until = time.process_time() + 0.1
while time.process_time() < until: pass
os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
print(listener.getsockname()[1], sleeper.pid, zombie.pid, flush=True)
sys.stdin.read()
sleeper.kill()
"""


@pytest.fixture(params=[procfs, portable], ids=["procfs", "portable"])
def machine(request: pytest.FixtureRequest) -> ModuleType:
    implementation: ModuleType = request.param
    return implementation


@pytest.fixture
def busy() -> Iterator[tuple[int, int, int, int]]:
    """(pid, the port it listens on, its living child, its ended one)."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        port, sleeper, zombie = map(int, process.stdout.readline().split())
        yield process.pid, port, sleeper, zombie


def test_a_port_is_owned_by_who_listens_on_it_and_by_nobody_else(
    machine: ModuleType, busy: tuple[int, int, int, int]
) -> None:
    pid, port, _, _ = busy
    assert machine.owns_loopback_port(pid, port)
    assert not machine.owns_loopback_port(os.getpid(), port)
    assert not machine.owns_loopback_port(pid, proc.free_port())
    assert re.fullmatch(rf"pid {pid} \(python[\d.]*\)", machine.holder(port))
    assert machine.holder(proc.free_port()) == "a process that can't be seen from here"


def test_a_listener_is_seen_past_a_descriptor_that_is_closed_meanwhile(machine: ModuleType) -> None:
    """A listing of one's own descriptors names its own, which is closed by then: here it is below the listener's."""
    hole = os.open("/dev/null", os.O_RDONLY)
    with socket.create_server(("127.0.0.1", 0)) as mine:
        os.close(hole)
        assert machine.owns_loopback_port(os.getpid(), mine.getsockname()[1])


def test_a_port_that_two_listen_on_is_owned_by_neither(machine: ModuleType) -> None:
    """As llama-server allows: cpp-httplib sets SO_REUSEPORT (default_socket_options in httplib.h)."""
    shares = (
        "import socket, sys; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1);"
        "s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); print('listens', flush=True); sys.stdin.read()"
    )
    with socket.socket() as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        mine.bind(("127.0.0.1", 0))
        mine.listen()
        port = mine.getsockname()[1]
        assert machine.owns_loopback_port(os.getpid(), port)
        with subprocess.Popen(
            [sys.executable, "-c", shares, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout and other.stdout.readline()
            assert not machine.owns_loopback_port(os.getpid(), port)
            assert not machine.owns_loopback_port(other.pid, port)
            other.communicate()


def test_children_and_descendants_are_those_that_run(machine: ModuleType, busy: tuple[int, int, int, int]) -> None:
    pid, _, sleeper, zombie = busy
    assert set(machine.children(pid)) == {sleeper, zombie}
    assert pid in machine.children(os.getpid()) and sleeper not in machine.children(os.getpid())
    assert machine.descendants(os.getpid(), "sleep") == [sleeper]
    assert machine.descendants(os.getpid(), "true") == []
    assert [machine.is_alive(each) for each in (pid, sleeper, zombie)] == [True, True, False]


def test_a_connection_counts_and_a_listening_socket_does_not(
    machine: ModuleType, busy: tuple[int, int, int, int]
) -> None:
    pid, port, sleeper, _ = busy
    assert machine.connections(pid) == 1
    with socket.create_connection(("127.0.0.1", port)):
        assert machine.connections(pid) == 1  # not accepted: it is the kernel's yet
    assert machine.connections(sleeper) == 0


def test_cpu_time_is_told_in_ticks(machine: ModuleType, busy: tuple[int, int, int, int]) -> None:
    pid, _, sleeper, _ = busy
    assert abs(machine.cpu_ticks(pid) - procfs.cpu_ticks(pid)) <= 1
    assert machine.cpu_ticks(pid) >= 0.1 * os.sysconf("SC_CLK_TCK") - 1
    assert machine.cpu_ticks(sleeper) <= 1


def test_a_process_that_is_gone_has_nothing(machine: ModuleType) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    assert until(lambda: not machine.is_alive(gone.pid), 5.0)
    asked = (machine.children, machine.connections, machine.cpu_ticks)
    assert [ask(gone.pid) for ask in asked] == [[], 0, 0]
    assert machine.descendants(gone.pid, "true") == []
    assert not machine.owns_loopback_port(gone.pid, 80)


def test_linux_is_asked_through_proc_and_another_kernel_through_psutil() -> None:
    assert proc.is_alive is procfs.is_alive


@pytest.mark.skipif(bool(laptop.why_not()), reason=laptop.why_not())
def test_without_proc_the_processes_are_seen_and_ports_are_chosen_below_the_outgoing_ones(
    tmp_path_factory: pytest.TempPathFactory, busy: tuple[int, int, int, int]
) -> None:
    asks = f"""
import os
from tasks.platforms.local import portable, proc
assert proc.is_alive is portable.is_alive
assert proc.owns_loopback_port({busy[0]}, {busy[1]}) and proc.is_alive({busy[2]}) and not proc.is_alive({busy[3]})
assert all(proc.LOWEST_PORT <= proc.lasting_port() < 32768 for _ in range(50))
print("seen")
"""
    began = time.monotonic()
    assert Laptop(tmp_path_factory.mktemp("proc")).python("-c", asks).stdout == "seen\n"
    assert time.monotonic() - began < 60
