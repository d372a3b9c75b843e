"""The store on Modal: documents and big things on a Volume, locks in a Dict."""

from __future__ import annotations

import fnmatch
import io
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import modal
from modal.exception import NotFoundError

from modal_app.deployment import store_volume
from modal_app.settings import ModalSettings
from tasks.platforms.modal.account import SLOWEST_BYTES_PER_S, VOLUME_LIMIT_S, problem, told, within
from tasks.platforms.modal.tools import Tools
from tasks.process import Output, is_there, started
from tasks.release import BadInput, Build, FileRef, Release, ToolingError
from tasks.store import Store, Taken, write_atomic

LEASE_S = 180.0
"""A lock whose holder has not renewed it for so long is free: Modal does not know when a holder dies."""
LARGE_BYTES = 10_000_000
"""Of what is uploaded at once: with more, the time that it may take is no bound to notice by that a Volume is down."""
RENEW_S = 30.0
_NEVER_CHANGES = ("goldens/", "ledger/", "releases/", "series/")


class VolumeFiles:
    """Documents on a Volume, written and read from outside; each is one file, and the last writer of a file wins.

    What never changes once it is written is kept in a folder of this machine too, so that reading the ledger costs
    one listing.
    """

    def __init__(self, settings: ModalSettings, mirror: Path) -> None:
        self.volume = store_volume(settings)
        self._settings = settings
        self._mirror = mirror / f"{settings.environment or 'default'}-{settings.app}"
        self._leases: list[Lease] = []

    def read(self, path: str) -> str | None:
        kept = self._mirror / path
        if path.startswith(_NEVER_CHANGES) and kept.exists():
            return kept.read_text(encoding="utf-8")

        async def ask() -> str:
            return b"".join([part async for part in self.volume.read_file.aio(path)]).decode()

        try:
            text = within(VOLUME_LIMIT_S, f"reading {path} of the store", ask)
        except (FileNotFoundError, NotFoundError):
            return None
        self._keep(path, text)
        return text

    def write(self, path: str, text: str) -> None:
        self._check_leases()
        self.upload(f"writing {path} of the store", {path: io.BytesIO(text.encode())})
        self._keep(path, text)

    def upload(self, doing: str, files: Mapping[str, BinaryIO | Path]) -> None:
        """Put files on the Volume, path -> content. Raises ToolingError when they do not get there in time."""
        size = sum(each.stat().st_size if isinstance(each, Path) else len(each.read()) for each in files.values())
        if size > LARGE_BYTES:  # a Volume that is down is to be seen in a minute, not after hours
            self.upload("writing some bytes before", {"reached.txt": io.BytesIO(b"before a large file\n")})
        limit_s = VOLUME_LIMIT_S + size / SLOWEST_BYTES_PER_S

        async def put() -> None:
            async with self.volume.batch_upload(force=True) as batch:
                for path, content in files.items():
                    if not isinstance(content, Path):
                        content.seek(0)
                    batch.put_file(content, path)

        try:
            within(limit_s, doing, put)
        except NotFoundError as error:
            raise problem(error, doing) from error

    def _check_leases(self) -> None:
        """Who has lost a lock changes nothing any more, whatever it had begun. Raises ToolingError."""
        for lease in self._leases:
            lease.check()

    def _keep(self, path: str, text: str) -> None:
        if path.startswith(_NEVER_CHANGES):
            write_atomic(self._mirror / path, text)

    def names(self, glob: str) -> list[str]:
        folder, _, rest = glob.partition("*")
        return [path for path in self.listed(folder.rstrip("/"), deep="/" in rest) if fnmatch.fnmatch(path, glob)]

    def listed(self, folder: str, *, deep: bool = False) -> dict[str, int]:
        """Path -> size in bytes of the files in a folder, sorted by path; {} when there is no such folder."""
        doing = f"listing {folder} of the store"
        try:
            found = within(VOLUME_LIMIT_S, doing, lambda: self.volume.listdir.aio(folder, recursive=deep))
        except (FileNotFoundError, NotFoundError):
            return {}
        files = {entry.path.lstrip("/"): entry.size for entry in found if entry.type.name == "FILE"}
        return dict(sorted(files.items()))

    def fetch(self, path: str, file: Path) -> None:
        if not file.exists() and (text := self.read(path)) is not None:
            write_atomic(file, text)

    def share(self, path: str, file: Path) -> None:
        self.write(path, file.read_text(encoding="utf-8"))

    def remove(self, path: str) -> None:
        self._check_leases()
        with suppress(FileNotFoundError, NotFoundError):
            within(
                VOLUME_LIMIT_S, f"removing {path} of the store",
                lambda: self.volume.remove_file.aio(path, recursive=not PurePosixPath(path).suffix),
            )  # fmt: skip

    @contextmanager
    def lock(
        self, name: str, *, holder: dict[str, Any], stale: Callable[[dict[str, Any]], None] | None = None
    ) -> Iterator[None]:
        """One lock for all machines, in a Dict.

        Its turns are numbered and put with `skip_if_exists`, which only one can win. The holder renews its lease; a
        holder whose process on this machine is gone, or whose lease has run out, has lost it: nothing is written here
        by one that has.
        Raises Taken when another process holds it.
        """
        with told(f"taking the lock {name}"):
            locks = _locks(self._settings)
            mine = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8), **holder}
            turn, left = _take(locks, name, mine)
        if left and stale:
            stale(left)
        lease = Lease(locks, name, turn, mine)
        renewing = threading.Thread(target=_renew, args=(lease,), daemon=True)
        renewing.start()
        self._leases.append(lease)
        try:
            yield
        finally:
            self._leases.remove(lease)
            lease.ended.set()
            renewing.join(5)
            with told(f"letting go of the lock {name}"):
                if not lease.lost:
                    locks.put(turn, json.dumps({"free": True}))

    def lock_holder(self, name: str) -> int | None:
        """One that renewed its lease moments ago: its number is not another process's by now."""
        with told(f"looking at the lock {name}"):
            locks = _locks(self._settings)
            holder = _latest(locks, name)
        here = holder.get("host") == socket.gethostname()
        if holder.get("free") or not here or time.time() - float(holder["renewed"]) > 2 * RENEW_S:
            return None
        return None if _gone(holder) else int(holder["pid"])

    def holders(self) -> dict[str, str]:
        with told("looking at the locks"):
            locks = _locks(self._settings)
            names = {str(key).rpartition("/")[0] for key in list(locks.keys())}
            held = {name: _latest(locks, name) for name in sorted(names)}
        return {name: _words(holder) for name, holder in held.items() if not (holder.get("free") or _gone(holder))}


class Lease:
    """Our turn of a lock. It is lost when it was not renewed for LEASE_S, as on a laptop that slept, and another
    process has taken the next turn."""

    def __init__(self, locks: modal.Dict, name: str, turn: str, mine: dict[str, Any]) -> None:
        self._locks, self._name, self._turn, self._mine = locks, name, turn, mine
        self._renewed = time.time()  # not time.monotonic(): that stands still while a machine sleeps
        self.lost = False
        self.ended = threading.Event()

    def renew(self) -> None:
        """Raises ToolingError when it has been lost."""
        turns = _turns(self._locks, self._name)
        self.lost = self.lost or f"{self._name}/{turns[-1] if turns else 0}" != self._turn
        if self.lost:
            raise ToolingError(
                f"the lock {self._name} was lost: another process has it",
                evidence=f"this machine did not renew its lease for {time.time() - self._renewed:.0f} s",
                todo="run it again when that one has ended: nothing more was changed",
            )
        if self.ended.is_set():  # meanwhile: it is free, or about to be
            return
        self._locks.put(self._turn, json.dumps({**self._mine, "renewed": time.time()}))
        self._renewed = time.time()

    def check(self) -> None:
        """Nothing while nobody can have taken it. Raises ToolingError when it has been lost."""
        if self.lost or time.time() - self._renewed > LEASE_S / 2:
            with told(f"renewing the lock {self._name}"):
                self.renew()


def _locks(settings: ModalSettings) -> modal.Dict:
    return modal.Dict.from_name(f"{settings.app}-locks", environment_name=settings.environment, create_if_missing=True)


def _take(locks: modal.Dict, name: str, mine: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(key of our turn, what the holder that died left or {}). Raises Taken when it is."""
    before = _turns(locks, name)
    last = before[-1] if before else 0
    left = json.loads(locks.get(f"{name}/{last}", "{}"))
    turn = f"{name}/{last + 1}"
    if left and not left.get("free") and not _gone(left):
        raise _taken(name, left)
    won = locks.put(turn, json.dumps({**mine, "renewed": time.time()}), skip_if_exists=True)
    if won and _turns(locks, name)[-1] != last + 1:  # we were so slow that others had their turns meanwhile
        locks.pop(turn, None)
        won = False
    if not won:
        raise _taken(name, json.loads(locks.get(turn, "{}")))
    for old in before:
        locks.pop(f"{name}/{old}", None)
    return turn, {} if left.get("free") else left


def _turns(locks: modal.Dict, name: str) -> list[int]:
    return sorted(int(key.rpartition("/")[2]) for key in list(locks.keys()) if key.rpartition("/")[0] == name)


def _latest(locks: modal.Dict, name: str) -> dict[str, Any]:
    """What the holder of a lock's latest turn says of itself; {} when there was none."""
    turns = _turns(locks, name)
    found: dict[str, Any] = json.loads(locks.get(f"{name}/{turns[-1]}", "{}")) if turns else {}
    return found


def _gone(holder: dict[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname() and not is_there(int(holder["pid"])):
        return True
    return time.time() - float(holder.get("renewed", 0)) > LEASE_S


def _words(holder: dict[str, Any]) -> str:
    words = {key: value for key, value in holder.items() if key not in ("token", "renewed")}
    return json.dumps(words) if words else ""


def _taken(name: str, holder: dict[str, Any]) -> Taken:
    return Taken(
        f"another process holds the lock {name}",
        evidence=_words(holder) or "it has not said who it is",
        todo=f"wait for it, or stop it (its lease ends {LEASE_S:.0f} s after it died); nothing was changed",
        holder=holder,
    )


def _renew(lease: Lease) -> None:
    while not lease.ended.wait(RENEW_S):
        with suppress(Exception):  # the next one may come through; if none does, the lease runs out
            lease.renew()


class VolumeStore(Store):
    """The store whose documents, builds and files are on a Volume; `root` holds what is of this machine only."""

    files: VolumeFiles

    def __init__(self, root: Path, cache: Path, settings: ModalSettings, tools: Tools) -> None:
        super().__init__(root, VolumeFiles(settings, cache / "modal"))
        self._settings = settings
        self._tools = tools

    def damaged(self, build: Build) -> list[str]:
        """Files of a build that are gone or not what the manifest says, as a container sees them."""
        if not self.files.listed(f"builds/{build.digest}"):
            return sorted(build.files)
        found = self._tools.call("inspect", build.digest, build.recipe.target)["files"]
        return [name for name, sha in build.files.items() if found.get(name) != sha]

    def lost(self, release: Release) -> list[str]:
        build = self.build(release.build)
        missing = self.damaged(build) if build else [f"build {release.build}"]
        return missing + [ref.name for ref in release.files.values() if not self._has(ref)]

    def ask(self, build: Build, *argv: str) -> Output:
        said = Output(*self._tools.call("ask", build.digest, build.recipe.target, list(argv)))
        return started(build.recipe.target, said)

    def search(self, build: Build, pattern: bytes) -> tuple[str, ...]:
        return tuple(self._tools.call("search", build.digest, pattern))

    def put_file(self, path: Path) -> FileRef:
        """Have a file on the Volume by its content and return its reference.

        A file that modal.weights names is fetched by Modal; any other is uploaded from this machine, once.
        Raises BadInput when there is no such file.
        """
        if weight := self._settings.weights.get(path.name):
            size = self._tools.call("fetch", path.name, weight.model_dump())
            return FileRef(name=path.name, sha256=weight.sha256, size_bytes=size)
        ref = self.reference(path)
        if not self._has(ref):
            self.files.upload(f"uploading {path.name}", {f"files/{ref.sha256}/{ref.name}": path})
        return ref

    def _has(self, ref: FileRef) -> bool:
        return self.files.listed(f"files/{ref.sha256}").get(f"files/{ref.sha256}/{ref.name}") == ref.size_bytes

    def file(self, ref: FileRef) -> Path:
        raise BadInput(f"{ref.name} is on the Volume, not on this machine", todo="use the local platform for this")
