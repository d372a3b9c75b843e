"""A server that dies is told as such, by real processes that do: its signal, its own words, and the kernel's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform, kernel
from tasks.release import BadInput, BootKind, Problem, ReleaseFailed, ToolingError
from tests.platforms.conftest import platform_at
from tests.platforms.dying import MAY_LOG, dying

real = pytest.mark.real
SIGNALS = ("SEGV", "ILL", "BUS", "ABRT")
T = TypeVar("T")


@pytest.fixture
def platform(tmp_path: Path) -> LocalPlatform:
    return platform_at(tmp_path / "store")


def kernel_log_can_be_read() -> bool:
    try:
        kernel.last_word(1, 0.0)
    except ToolingError:
        return False
    return True


def with_the_kernels_word(die: Callable[[], T], told: Callable[[T], bool]) -> T:
    """What comes of a death that the kernel wrote of: after ten in five seconds on the whole machine it is silent
    (printk_ratelimit), and other tests' servers die beside this one."""
    for _ in range(6):
        if told(seen := die()):
            break
        time.sleep(5)
    return seen


@real
@pytest.mark.parametrize("by", SIGNALS)
def test_a_server_that_dies_at_load_is_told_with_its_signal_and_the_kernels_word(
    by: str, platform: LocalPlatform
) -> None:
    def die() -> ReleaseFailed:
        with pytest.raises(ReleaseFailed) as failed, platform.trial(dying(platform.store, by, "load")):
            pass
        return failed.value

    logged = by in MAY_LOG and kernel_log_can_be_read()
    failed = with_the_kernels_word(die, lambda failed: not logged or "kernel: " in failed.evidence)
    assert failed.what.endswith(f"ended before it could become healthy: killed by SIG{by}")
    assert "loading the model" in failed.evidence
    line = failed.evidence.splitlines()[-1]
    if logged:
        assert line.startswith("kernel: ") and "llama-server[" in line
        assert kernel.signal_in(line) is signal.Signals[f"SIG{by}"]
    else:
        assert not line.startswith("kernel: ")
    if by == "ABRT":
        assert "GGML_ASSERT(ctx->mem_buffer != NULL) failed" in failed.evidence


MAGIC = "llama_model_load: error loading model: gguf_init_from_file_impl: invalid magic characters: 'vers'"
NO_ROOM = "llama_model_load: error loading model: unable to allocate CUDA0 buffer"
UNKNOWN = "llama_model_load: error loading model: unknown model architecture: 'gemma9'"


@real
@pytest.mark.parametrize(
    ("says", "kind", "told"),
    [
        (MAGIC, BadInput, "; the model file's fault, and not the build's: the model file is no GGUF"),
        ("error: invalid argument: --nope", BadInput, "; the settings' fault, and not the build's: "),
        (NO_ROOM, ToolingError, "; the machine's fault, and not the build's: "),
        (UNKNOWN, ReleaseFailed, "; upstream's fault: "),
        ("error: zzz", ReleaseFailed, "healthy: exit code 7"),
        ("W failed to mlock 1024-byte buffer: Cannot allocate memory", ReleaseFailed, "healthy: exit code 7"),
    ],
)
def test_a_server_that_does_not_come_up_is_blamed_on_whom_its_own_words_blame(
    says: str, kind: type[Problem], told: str, platform: LocalPlatform
) -> None:
    with pytest.raises(Problem) as failed, platform.trial(dying(platform.store, "EXIT", "load", says=says)):
        pass
    assert type(failed.value) is kind
    assert told in failed.value.what
    assert says.rpartition(": ")[2] in failed.value.evidence
    assert "read the whole log: " in failed.value.todo


@real
@pytest.mark.parametrize("by", SIGNALS)
@pytest.mark.parametrize("when", ["asked", "answered"])
def test_a_server_that_dies_while_it_is_asked_is_no_error_of_the_client(
    by: str, when: str, platform: LocalPlatform
) -> None:
    release = dying(platform.store, by, when)
    with pytest.raises(ReleaseFailed) as failed, platform.trial(release) as endpoint, Client(endpoint) as client:
        client.chat("Hi")
        client.chat("Hi")
    said = f"llama-server of {release.label} died while it was asked: killed by SIG{by}"
    assert failed.value.what == said
    assert isinstance(failed.value.__cause__, ToolingError)
    assert "no answer from" not in str(failed.value)


@real
def test_a_death_that_no_client_told_of_is_told_on_exit(platform: LocalPlatform) -> None:
    with (
        pytest.raises(ReleaseFailed, match="died while it was asked: exit code 7"),
        platform.trial(dying(platform.store, "EXIT", "asked")) as endpoint,
    ):
        with Client(endpoint) as client, pytest.raises(ToolingError):
            client.chat("Hi")
        time.sleep(0.2)


@real
def test_a_server_that_was_killed_is_no_fault_of_the_release(platform: LocalPlatform) -> None:
    release = dying(platform.store, "KILL", "asked")
    with (
        pytest.raises(ToolingError, match="died while it was asked: killed by SIGKILL"),
        platform.trial(release) as endpoint,
        Client(endpoint) as client,
    ):
        client.chat("Hi")


@real
def test_what_goes_wrong_while_the_server_lives_is_told_as_it_is(platform: LocalPlatform) -> None:
    with pytest.raises(ZeroDivisionError), platform.trial(dying(platform.store)) as endpoint:
        with Client(endpoint) as client:
            assert client.chat("Hi").status == 200
        raise ZeroDivisionError


# -- behind the activator ------------------------------------------------------------------------------------------


@pytest.fixture
def stage(platform: LocalPlatform) -> Iterator[LocalPlatform]:
    """The platform, whose staging is gone when the test is over."""
    yield platform
    platform.shut_down()


def crashes(platform: LocalPlatform) -> list[str]:
    return [boot.reason for boot in platform.boots("staging") if boot.kind is BootKind.CRASHED]


@real
@pytest.mark.parametrize("by", SIGNALS)
def test_a_client_behind_the_proxy_is_told_how_the_server_ended_and_it_is_on_record_by_then(
    by: str, stage: LocalPlatform
) -> None:
    endpoint = stage.deploy("staging", dying(stage.store, by, "asked"), lambda _: None)
    logged = by in MAY_LOG and kernel_log_can_be_read()

    def die() -> list[str]:
        before = len(crashes(stage))
        with Client(endpoint) as client:
            answer = client.chat("Hi")
        said = answer.body["error"]["message"]
        assert (answer.status, said) == (502, f"the server died before it answered: killed by SIG{by}")
        return crashes(stage)[before:]

    def in_words(recorded: list[str]) -> bool:
        return all("kernel: " in reason and "llama-server[" in reason for reason in recorded)

    recorded = with_the_kernels_word(die, lambda recorded: not logged or in_words(recorded))
    assert [reason.partition(";")[0] for reason in recorded] == [f"killed by SIG{by}"] * 2  # it was tried twice
    assert in_words(recorded) == logged


@real
def test_a_server_that_dies_after_it_was_resumed_is_on_record_and_the_next_one_answers(stage: LocalPlatform) -> None:
    endpoint = stage.deploy("staging", dying(stage.store, "ILL", "resumed"), lambda _: None)
    with Client(endpoint) as client:
        assert client.chat("Hi").status == 200
        (boot,) = stage.boots("staging")
        assert boot.pid
        os.kill(boot.pid, signal.SIGSTOP)
        os.kill(boot.pid, signal.SIGCONT)
        assert client.chat("Hi").status == 200
    assert [reason.partition(";")[0] for reason in crashes(stage)] == ["killed by SIGILL"]


# -- the kernel's log ----------------------------------------------------------------------------------------------

# as Linux 6.18 and 6.1 wrote them; the last of another program
LINES = """\
[   10.000001] llama-server[70]: segfault at 0 ip 000055fba4d631c1 sp 00007fff90d0b230 error 6 in llama-server[11c1]
[   20.000001] traps: llama-server[81] trap invalid opcode ip:55b963e41199 sp:7fffdc621f20 error:0 in libggml-cpu.so
[   21.000001] traps: llama-server[82] general protection fault ip:5565d41461f2 sp:7fff error:0 in libggml-cpu.so
[   30.000001] Out of memory: Killed process 90 (llama-server) total-vm:9000kB, anon-rss:8000kB, UID:0
[   31.000001] Memory cgroup out of memory: Killed process 91 (llama-server) total-vm:9000kB, anon-rss:8000kB, UID:0
[   32.000001] traps: python3[95] trap invalid opcode ip:55b963e41199 sp:7fffdc621f20 error:0 in python3.11
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without /dev/kmsg, whose dmesg says LINES."""
    program = tmp_path / "bin" / "dmesg"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LINES}END\n")
    program.chmod(0o755)
    monkeypatch.setattr(kernel, "KMSG", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    ("pid", "since_s", "by", "said"),
    [
        (70, 9, "SIGSEGV", "segfault at 0"),
        (80, 19, "SIGILL", "llama-server[81] trap invalid opcode"),  # a thread of it, as far as can be told
        (80, 19, "SIGSEGV", "llama-server[82] general protection fault"),
        (80, 19, "SIGBUS", ""),
        (80, 19, "SIGABRT", ""),
        (80, 25, "SIGILL", ""),  # which was before it began, and python3 is no llama-server
        (91, 19, "SIGKILL", "Memory cgroup out of memory: Killed process 91"),
        (90, 19, "SIGKILL", "Out of memory: Killed process 90"),
        (82, 50, "SIGSEGV", "llama-server[82] general protection fault"),  # its own pid, and a clock that is behind
    ],
)
def test_the_kernels_line_is_the_one_of_this_server_and_this_signal(
    pid: int, since_s: float, by: str, said: str
) -> None:
    found = kernel.last_word(pid, since_s, signal.Signals[by])
    assert (said in found) if said else found == ""


@pytest.mark.usefixtures("log")
def test_of_a_restored_server_the_kernels_line_is_all_that_tells_the_signal() -> None:
    assert kernel.signal_in(kernel.last_word(81, 19)) is signal.SIGILL
    assert kernel.signal_in("EXT4-fs (vda): mounted filesystem") is None


def test_a_log_that_may_not_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "dmesg"
    program.write_text("#!/bin/sh\necho 'dmesg: read kernel buffer failed: Operation not permitted' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(kernel, "KMSG", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert subprocess.run(["dmesg"], capture_output=True).returncode == 1
    with pytest.raises(ToolingError, match="can't be read") as refused:
        kernel.last_word(1, 0.0)
    assert "Operation not permitted" in refused.value.evidence
