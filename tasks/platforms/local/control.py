"""How a deployer talks to the activator of a stage: a Unix socket with a few verbs."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import httpx

from tasks.release import BadInput, Model, Problem, ReleaseFailed, StageName, ToolingError, Wake
from tasks.store import M, timed_name, write_atomic

KEY_VARIABLE = "LLAMA_API_KEY"
"""In the environment of an activator and of a llama-server."""
MAX_SOCKET_PATH = 100
"""Linux takes 108 bytes for the path of a Unix socket (unix(7)), macOS and the BSDs 104 (sun_path in sys/un.h)."""
MAX_WAKES = 200

_KINDS: dict[str, type[Problem]] = {kind.__name__: kind for kind in (BadInput, ReleaseFailed, ToolingError)}


class Deployment(Model):
    """What a stage's activator serves, also after its own restart: run/<stage>/deployment.json."""

    release: str | None = None
    generation: str = ""
    port: int


class Status(Model):
    """An activator at one moment."""

    stage: StageName
    pid: int
    port: int
    release: str | None
    generation: str = ""
    state: Literal["empty", "idle", "starting", "up"]
    server_pid: int | None
    server_url: str | None
    in_flight: int
    connections: int = 0
    """Of clients, also of those that ask nothing just now."""
    answered: int = 0
    """Requests of users that were answered since the activator began."""
    errors: int = 0
    """Those of them that were answered with 5xx."""
    prepared: str | None
    servers: int
    """llama-server processes below the activator, old and prepared ones included."""


class Prepared(Model):
    """The answer to prepare: nothing to do, or where the new server answers until commit or abort."""

    serving: bool = False
    base_url: str = ""


def run_folder(root: Path, stage: StageName) -> Path:
    return root / "run" / stage


def deployment_path(root: Path, stage: StageName) -> Path:
    return run_folder(root, stage) / "deployment.json"


def activator_log_path(root: Path, stage: StageName) -> Path:
    return run_folder(root, stage) / "activator.log"


def load_deployment(root: Path, stage: StageName) -> Deployment | None:
    """What the stage's activator serves, or None before the first. Raises ToolingError for a damaged file."""
    return load_document(deployment_path(root, stage), Deployment, "remove it and deploy again")


def load_document(path: Path, kind: type[M], todo: str) -> M | None:
    """What a file of this machine holds, or None when there is none. Raises ToolingError for a damaged one."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ToolingError(f"{path} is not a readable {kind.__name__}", evidence=str(error)[:300], todo=todo) from error


def save_deployment(root: Path, stage: StageName, deployment: Deployment) -> None:
    write_atomic(deployment_path(root, stage), deployment.model_dump_json() + "\n")


def save_wake(root: Path, wake: Wake) -> None:
    """Keep what the first request after an idle window got, and forget the oldest of too many."""
    folder = run_folder(root, wake.stage) / "wakes"
    write_atomic(folder / timed_name(wake.at), wake.model_dump_json() + "\n")
    for path in sorted(folder.glob("2*.json"))[:-MAX_WAKES]:
        path.unlink(missing_ok=True)


def load_wakes(root: Path, stage: StageName) -> tuple[Wake, ...]:
    """What the first requests after idle windows got, oldest first. Raises ToolingError for a damaged file."""
    return tuple(load_all(run_folder(root, stage) / "wakes", Wake))


def load_all(folder: Path, kind: type[M]) -> list[M]:
    """What the files of a folder hold that are named by their time, oldest first. Raises ToolingError for a damaged
    one."""
    found = (load_document(path, kind, "remove it: it is one of many") for path in sorted(folder.glob("2*.json")))
    return [each for each in found if each is not None]


def socket_path(root: Path, stage: StageName) -> Path:
    """Where an activator that starts now puts its socket: in a folder of this user alone."""
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16] + f"-{stage}.sock"
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) + len(name) + 30 > MAX_SOCKET_PATH:  # as is TMPDIR of macOS, /var/folders/xx/.../T
        base = Path("/tmp")
    return _own_folder(base) / name


@cache
def _own_folder(base: Path) -> Path:
    """A folder of this user alone. Where somebody else was first, whom /tmp lets do that and whose folder this user
    can't remove there, a new one: nobody foresees its name, and the pointer in the store leads to it."""
    folder = base / f"llama-release-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="llama-release-", dir=base))


def pointer_to_socket(root: Path, stage: StageName) -> Path:
    """The symlink in the store that leads to the socket, whatever TMPDIR is where."""
    return run_folder(root, stage) / "control.sock"


def problem_json(problem: Problem) -> dict[str, str]:
    kind = type(problem).__name__
    return {"kind": kind, "what": problem.what, "evidence": problem.evidence, "todo": problem.todo}


def problem_from(said: dict[str, str]) -> Problem:
    kind = _KINDS.get(said.get("kind", ""), ToolingError)
    return kind(said.get("what", "the activator failed"), evidence=said.get("evidence", ""), todo=said.get("todo", ""))


class Control:
    """A client of one activator; a context manager.

    Every verb raises the Problem that the activator names, and ToolingError when it doesn't answer.
    """

    def __init__(self, root: Path, stage: StageName, *, timeout_s: float = 30.0) -> None:
        self.stage = stage
        self.timeout_s = timeout_s
        try:
            path = os.readlink(pointer_to_socket(root, stage))
        except OSError:
            path = "/nonexistent"
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=path, verify=False), base_url="http://activator", timeout=timeout_s
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def running(self) -> Status | None:
        """The status, or None when no activator runs."""
        try:
            return Status.model_validate(self._http.get("/status").raise_for_status().json())
        except httpx.TransportError:
            return None

    def status(self) -> Status:
        return Status.model_validate(self._call("status"))

    def prepare(self, release: str, key: str | None, generation: str) -> Prepared:
        """A second server beside the current one, healthy; it is given up when this process ends."""
        body = {"release": release, "key": key, "generation": generation, "pid": os.getpid()}
        return Prepared.model_validate(self._call("prepare", body))

    def commit(self, release: str) -> None:
        """The prepared release is what the stage serves."""
        self._call("commit", {"release": release})

    def abort(self) -> None:
        """The prepared server is gone; fine if there is none."""
        self._call("abort", {})

    def has_key(self, key: str | None) -> bool:
        """Whether the stage's servers know this API key."""
        return bool(self._call("has_key", {"key": key})["same"])

    def idle(self, limit_s: float, answered: int | None = None) -> int:
        """Stop the server once no request is in flight, waiting up to `limit_s`; how many processes are left.

        `answered`: only if so many requests of users have been answered, and none is in flight.
        """
        return int(self._call("idle", {"limit_s": limit_s, "answered": answered})["left"])

    def stop(self, limit_s: float) -> None:
        """The activator drains for up to `limit_s` seconds and ends."""
        self._call("stop", {"limit_s": limit_s})

    def _call(self, verb: str, body: dict[str, Any] | None = None) -> Any:
        try:
            answer = self._http.request("GET" if body is None else "POST", f"/{verb}", json=body)
            said = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ToolingError(
                f"the activator of {self.stage} did not answer to {verb}",
                evidence=f"{type(error).__name__}: {error}",
                todo=f"look at run/{self.stage}/activator.log in the store; retry",
            ) from error
        if answer.is_error:
            raise problem_from(said)
        return said
