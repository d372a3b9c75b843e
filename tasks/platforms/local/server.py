"""One real llama-server process of a release: started or restored, waited for, stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from modal_app import child, wall
from modal_app.redaction import redacted
from tasks import runbook
from tasks.criu import complaint, waits
from tasks.endpoint import Client
from tasks.hardware import cpu_here
from tasks.platforms.local import kernel
from tasks.platforms.local.control import KEY_VARIABLE
from tasks.platforms.local.proc import children, lasting_port, owns_loopback_port
from tasks.platforms.local.snapshot import NoSnapshot
from tasks.process import die_with_parent
from tasks.release import BadInput, Build, Endpoint, Problem, Release, ReleaseFailed, ToolingError, now
from tasks.store import Store, with_reserve

log = logging.getLogger(__name__)

EXECUTABLE = "llama-server"
PORT_TRIES = 5
POLL_S = 0.03
RESTORE_POLL_S = 0.005
HEALTH_LIMIT_S = 5.0
"""A server that is up and does not answer /health in this time hangs."""
STOP_GRACE_S = 5.0
DYING_S = 3.0
"""How long a process may take to be gone after its connections broke: its memory is taken down in between, which took
more than a second where the cores were busy."""
KEPT_LOGS = 20
LOG_BYTES = 20_000_000
"""Of one server's log before it is begun anew; one request is some 400 bytes there."""
READ_OF_LOG = 200_000
"""Characters at the end of a log that are read for whose fault it is that a server did not come up."""
SHARES_PORT = "--reuse-port"
"""Sets SO_REUSEPORT, which llama-server has left off by itself since b8646 at the latest (server-http.cpp)."""
FILE_NAMES = ("model", "mmproj", "chat_template", "draft_model", "lora")

# the last is how GGML_ABORT begins what it says (ggml.c, `ggml_abort`)
_ERROR_WORDS = re.compile(
    r"^\S+ E |\berror\b|\bfailed\b|couldn't|\binvalid\b|terminate called|what\(\):|\.(?:c|cpp|cu|cuh|h):\d+: ",
    re.IGNORECASE,
)
_DIGEST = re.compile(r"[0-9a-f]{12}")  # what manifests had instead of features until December 2026
_LOG_STAMP = re.compile(r"^[\d.]+ [A-Z] ")
_BIND_WORDS = re.compile(r"couldn't bind|address already in use", re.IGNORECASE)

# PR_SET_PDEATHSIG fires when the *thread* that forked ends: this one lives as long as this process.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")


class _PortLost(Exception):
    """Another process took the port between its choice and the bind."""


@dataclass(frozen=True)
class Server:
    """A llama-server that this process started, or restored."""

    release: Release
    endpoint: Endpoint
    port: int
    pid: int
    process: subprocess.Popen[bytes]
    """The server itself, or the `unshare` above a restored one, which lives as long as it does."""
    log: Path
    started_s: float = field(default_factory=kernel.clock_s)

    @property
    def restored(self) -> bool:
        return self.pid != self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def ending(self) -> str:
        """How it ended: `exit code 1` or `killed by SIGKILL`; `still running` if it hasn't."""
        code = self.process.poll()
        if code is None:
            return "still running"
        if by := self.killed_by:
            return f"killed by {by.name}"
        return "the restored process has ended" if self.restored else f"exit code {code}"

    @property
    def killed_by(self) -> signal.Signals | None:
        """The signal that ended it, if one did. CRIU, the parent of a restored one, doesn't pass it on (4.2, `wait` in
        cr-restore.c takes no status): of those the kernel's log tells, or nothing does."""
        code = self.process.poll()
        if code is None:
            return None
        if self.restored:
            return kernel.signal_in(self.kernel_word)
        return signal.Signals(-code) if code < 0 else None

    @property
    def kernel_word(self) -> str:
        """What the kernel's log says of its end; '' when that is nothing, or when this user can't read it."""
        by = None
        if not self.restored and (code := self.process.poll()) is not None:
            if code >= 0:
                return ""
            by = signal.Signals(-code)
        try:
            return kernel.last_word(self.pid, self.started_s, by)
        except ToolingError:
            return ""

    @property
    def cause_of_death(self) -> str:
        """How it ended, and what the kernel's log says of that, in one line."""
        return "; ".join([self.ending, *(f"kernel: {line}" for line in [self.kernel_word] if line)])

    @property
    def last_words(self) -> str:
        """Its own last words, and the kernel's of how it ended."""
        return "\n".join([own_words(self.log), *(f"kernel: {line}" for line in [self.kernel_word] if line)])

    def gone_within(self, limit_s: float) -> bool:
        """Whether it has ended, or does in this time: a connection breaks a moment before its process is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(limit_s)
        return not self.alive

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End it: SIGTERM, and SIGKILL after `grace_s` seconds. It is gone on return."""
        if self.restored:
            end_namespace(self.process)
            return
        self.process.terminate()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def failure(self, what: str, *, ended: bool) -> Problem:
        """A server that didn't come up, in its own words. Of one that has ended they tell whose fault that is."""
        return runbook.failure(
            f"llama-server of {self.release.label} {what}",
            said=_text(self.log)[-READ_OF_LOG:] if ended else "",
            evidence=self.last_words,
            todo=f"read the whole log: {self.log}",
        )

    def died(self) -> ReleaseFailed | ToolingError:
        """The end of a server that was up, and that nobody here stopped. SIGKILL is no fault of the release: no program
        does that to itself."""
        kind = ToolingError if self.killed_by is signal.SIGKILL else ReleaseFailed
        return kind(
            f"llama-server of {self.release.label} died while it was asked: {self.ending}",
            evidence=self.last_words,
            todo=f"read the whole log, {self.log}; `llama-release explain` knows what its signal can mean",
        )


def start(
    store: Store,
    release: Release,
    key: str | None,
    folder: Path,
    timeout_s: float,
    halt: threading.Event | None = None,
    *,
    walled: bool,
) -> Server:
    """A server that listens on a loopback port of its own but may still be loading its model.

    Its log goes into `folder`; `halt` gives the start up. With `walled` it sees its own files, the network, and none of
    what holds keys. Raises what `Server.failure` says, with the server's own words, when
    it ends before it listens, ToolingError when its build or files are not in the store.
    """
    argv = command(store, release)
    for _ in range(PORT_TRIES):
        server = _spawn(argv, store, release, key, new_log(folder, release), lasting_port(), walled)
        try:
            _wait(server, lambda s=server: owns_loopback_port(s.pid, s.port), timeout_s, halt, "listen")  # type: ignore[misc]
            return server
        except _PortLost:
            log.info("port %d was taken by another process; trying the next", server.port)
    raise ToolingError(
        f"no free loopback port for llama-server in {PORT_TRIES} tries", evidence=own_words(server.log), todo="retry"
    )


def wait_healthy(server: Server, timeout_s: float, halt: threading.Event | None = None) -> None:
    """Return at the first 200 of /health. Raises `Server.failure` (and ends the server) when there is none in time."""
    with Client(Endpoint(base_url=server.endpoint.base_url)) as client:
        _wait(server, lambda: client.health() == 200, timeout_s, halt, "become healthy")


def restore(
    argv: list[str],
    release: Release,
    endpoint: Endpoint,
    path: Path,
    timeout_s: float,
    halt: threading.Event,
    check: Future[None],
    said: Path,
) -> Server:
    """The server that `argv` (see criu.restore_argv) brings back, healthy on its old port, with its output in `path`.

    It is complete, but does not run, until `check` is done. Raises what `check` raises as soon as it does (CRIU can
    wait for ever for what a damaged image lacks), and NoSnapshot, with CRIU's words in `said`, when it doesn't come
    back; no process is left then.
    """
    log.info("restoring %s", release.label)
    port = int(endpoint.base_url.rpartition(":")[2])
    with open(path, "ab") as file:
        process = _spawner.submit(_popen, argv, child.environment(), file).result()
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            if (code := process.poll()) is not None:
                raise NoSnapshot(f"CRIU did not restore: {complaint(said, f'exit code {code}')}")
            if check.done():
                check.result()
            inside = [pid for init in children(process.pid) for pid in children(init)]
            if pid := next((pid for pid in inside if waits(pid) and owns_loopback_port(pid, port)), None):
                check.result()
                os.kill(pid, signal.SIGCONT)
                if not answers(endpoint):
                    raise NoSnapshot("the restored server does not answer /health")
                return Server(release, endpoint, port, pid, process, path)
            if halt.is_set():
                raise NoSnapshot("the restore was given up")
            if time.monotonic() > deadline:
                raise NoSnapshot(f"CRIU did not restore in {timeout_s:.0f} s")
            time.sleep(RESTORE_POLL_S)
    except BaseException:
        end_namespace(process)
        raise


def end_namespace(process: subprocess.Popen[bytes]) -> None:
    """Kill an `unshare`, which leads its process group, and everything in its pid namespace.

    All of it is gone on return; a child that it forked in that very moment is killed, and soon gone.
    """
    while process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            # the kernel lets the init of a namespace go only after all others in it
            for pid in (inits := children(process.pid)):
                os.kill(pid, signal.SIGKILL)
            if not inits:
                # together with one that it forks just now, which is not yet told to die with it
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)


def answers(endpoint: Endpoint) -> bool:
    """Whether a server that listens says in time that it is well."""
    with Client(Endpoint(base_url=endpoint.base_url), timeout_s=HEALTH_LIMIT_S) as client:
        try:
            return client.get("/health").status == 200
        except ToolingError:
            return False


@contextlib.contextmanager
def telling_deaths(server: Server) -> Iterator[None]:
    """Raise `server.died()` when it isn't there any more at the end, caused by what was raised meanwhile, if anything.

    A client only sees that nobody answers, and that is what it raises. What dies of a request may do so after its
    answer: it is asked once more whether it is there.
    """
    try:
        yield
    except Exception as error:
        if server.gone_within(DYING_S):
            raise server.died() from error
        raise
    with Client(server.endpoint) as client:
        if client.health() is None and server.gone_within(DYING_S):
            raise server.died()


def _wait(server: Server, ready: Callable[[], bool], timeout_s: float, halt: threading.Event | None, verb: str) -> None:
    deadline = time.monotonic() + timeout_s
    try:
        while not ready():
            if not server.alive:
                _raise_ending(server)
            if halt is not None and halt.is_set():
                raise ToolingError(f"the start of {server.release.label} was given up", todo="deploy it again")
            if time.monotonic() > deadline:
                raise server.failure(f"did not {verb} in {timeout_s:.0f} s", ended=False)
            time.sleep(POLL_S)
    except BaseException:
        server.stop()
        raise


def _raise_ending(server: Server) -> None:
    """Raise how it ended, in the same words wherever it did on its way up: one way of dying is told as one."""
    if _BIND_WORDS.search(_text(server.log)):
        raise _PortLost
    if server.process.poll() == -signal.SIGKILL:  # which no program does to itself
        raise ToolingError(
            f"llama-server of {server.release.label} was killed before it could become healthy",
            evidence=server.last_words,
            todo="if this machine was short of memory, the kernel's log says so (`dmesg`); then run it again",
        )
    if server.process.poll() == wall.UNBUILT:
        raise ToolingError(
            f"llama-server of {server.release.label} was not started: {wall.NO_WALL}", evidence=server.last_words
        )
    raise server.failure(f"ended before it could become healthy: {server.ending}", ended=True)


def command(store: Store, release: Release) -> list[str]:
    """The argv of a release without host and port, files in place of their names.

    Raises ToolingError when the build or a file is not in the store, or the build is for another CPU; BadInput for a
    name without a file, and for a port that others may share.
    """
    if SHARES_PORT in release.argv:
        raise BadInput(
            f"release {release.label} would share its port with whoever asks for it",
            evidence=f"{SHARES_PORT} in its argv: another server of this user could take a part of its requests",
            todo=f"leave {SHARES_PORT} out and make the release again",
        )
    build, folder = store.build(release.build), store.build_dir(release.build)
    executable = folder / EXECUTABLE
    if build is None or not all(_is(store, folder / name, sha) for name, sha in build.files.items()):
        raise ToolingError(
            f"the build of {release.label} is not whole in the store",
            evidence=str(executable),
            todo="build it again: llama-release upgrade",
        )
    if lacking := lacks(build):
        raise ToolingError(
            f"the build of {release.label} was made for another CPU than this one ({cpu_here().model})",
            evidence=f"it may use {', '.join(lacking)}, which this CPU does not have: it would die of SIGILL",
            todo="have it built for this CPU: `llama-release upgrade --to "
            f'{release.upstream.tag}`; recipe.cmake = {{ GGML_NATIVE = "OFF" }} makes builds that run on any',
        )
    for name, ref in release.files.items():
        if not _is(store, store.file(ref), ref.sha256):
            raise ToolingError(
                f"the {name} of {release.label} is not whole in the store",
                evidence=str(store.file(ref)),
                todo="put the file back and run it again",
            )
    paths = {name: store.file(ref) for name, ref in release.files.items()}
    if parts := [ref for name, ref in release.files.items() if name.startswith("model.")]:
        paths["model"] = store.together([release.files["model"], *parts])
    argv = list(release.argv)
    for name, path in paths.items():
        argv = [word.replace(f"{{{name}}}", str(path)) for word in argv]
    if lost := [name for name in FILE_NAMES if any(f"{{{name}}}" in word for word in argv)]:
        raise BadInput(
            f"release {release.label} has no file for {', '.join(lost)}",
            evidence=" ".join(release.argv),
            todo="set the file in the settings and make the release again",
        )
    return [str(executable), *argv]


def lacks(build: Build) -> tuple[str, ...]:
    """What the code of a build needs of a CPU and this one does not have, as far as both are known: an older build does
    not tell, nor does a CPU where there is no /proc, but for its name."""
    needed, here = build.toolchain.get("cpu", ""), cpu_here()
    if _DIGEST.fullmatch(needed) or (here.by_name and " " in needed):
        return ()
    return tuple(sorted(set(needed.split()) - set(here.features)))


def _is(store: Store, path: Path, sha256: str) -> bool:
    try:
        return store.content_of(path) == sha256
    except OSError:
        return False


def inherited() -> tuple[str, ...]:
    """The names of this process's environment variables that a server sees too, sorted."""
    return tuple(sorted(child.environment(child.DEVICES)))


def environment(folder: Path, key: str | None) -> dict[str, str]:
    """What a server sees of the environment: the build's own libraries first, the key, and no other secret."""
    return child.serving(folder) | ({KEY_VARIABLE: key} if key else {})


def _spawn(
    argv: list[str], store: Store, release: Release, key: str | None, path: Path, port: int, walled: bool
) -> Server:
    folder = store.build_dir(release.build)
    words, env = [*argv, "--host", "127.0.0.1", "--port", str(port)], environment(folder, key) | release.env
    beside = Path(argv[argv.index("--model") + 1]).parent if "--model" in argv else folder  # the parts of a split one
    seen = [*(store.file(ref) for ref in release.files.values()), beside]
    started = wall.behind(words, env, hide=[store.root], keep=seen, network=True) if walled else words
    log.info("starting %s: %s", release.label, redacted(words))
    with open(path, "ab", buffering=0) as file:
        with contextlib.suppress(OSError):  # a server that can't say anything serves all the same
            file.write(f"# {redacted(words)}\n".encode())
        process = _spawner.submit(_popen, started, env, file).result()
    endpoint = Endpoint(base_url=f"http://127.0.0.1:{port}", api_key=key)
    return Server(release, endpoint, port, process.pid, process, path)


def _popen(argv: list[str], env: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=partial(_tie_to, os.getpid()),
        )  # fmt: skip
    except OSError as error:
        raise ToolingError(f"{argv[0]} can't be started", evidence=str(error), todo="build it again") from error


def _tie_to(parent: int) -> None:
    die_with_parent()
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)


# -- logs -------------------------------------------------------------------------------------------


def new_log(folder: Path, release: Release) -> Path:
    """A fresh log in a folder that keeps the last few; `server.log` beside it points to the newest.

    Raises ToolingError when the disk takes no new file.
    """
    path = folder / f"{now().strftime('%Y%m%dT%H%M%S.%fZ')}-{release.id}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("2*.log"))[: 1 - KEPT_LOGS]:
            old.unlink(missing_ok=True)
        with_reserve(path, path.touch)
        with_reserve(path, lambda: _point(folder / "server.log", path.name))
    except OSError as error:
        raise ToolingError(f"there can be no log {path}", evidence=str(error), todo="free some space") from error
    return path


def _point(link: Path, name: str) -> None:
    new = link.with_name(f".{link.name}.{os.getpid()}.{threading.get_ident()}")
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    os.replace(new, link)


def bound_log(path: Path) -> None:
    """Begin a server's log anew when it has grown too large: what it said is kept beside it, once, where there is room.

    The server goes on writing to the same file, which it has open to append.
    """
    if path.stat().st_size <= LOG_BYTES:
        return
    earlier = path.with_suffix(".earlier.log")  # one of those that `new_log` counts
    try:
        shutil.copyfile(path, earlier)
    except OSError:
        earlier.unlink(missing_ok=True)
    os.truncate(path, 0)


def own_words(path: Path, errors: int = 6, lines: int = 4) -> str:
    """The last relevant lines of a server's log: its own error words first, then how it ended."""
    said = [_LOG_STAMP.sub("", line) for line in _text(path).splitlines() if not line.startswith("# ")]
    wrong = [_LOG_STAMP.sub("", line) for line in _text(path).splitlines() if _ERROR_WORDS.search(line)]
    chosen = list(dict.fromkeys(wrong[-errors:] + said[-lines:]))
    return "\n".join(chosen) or "it said nothing"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
