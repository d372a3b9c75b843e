"""Where builds, releases, stage pointers, dossiers and the ledger live: files under one root, here or on a Volume.

    builds/<digest>/            immutable; manifest.json is written last
    files/<sha256>/<name>       models and templates by content
    releases/<id>.json
    dossiers/<id>/<verification>.json
    approvals/<request key>.json
    requests/<flow run id>.json what a flow run asks a person
    proofs/<key>.json           what the probes of a patch said, with it and without it
    surfaces/<build digest>-<basis>.json     what may be asked of a build
    answers/<id>/<set digest>[.again].jsonl    what a release answered to the evals, one line an answer
    calls/<digest>.json         a build that is being made elsewhere
    hub/<user>/<repository>.json   the commit that a repository of the Hub is pinned to
    cycles/<id>/<key>.json      the idle cycles of a restore probe that has no verdict yet
    series/<id>/<time>-<id>.json   append-only: how long a release took to answer, one file an idle cycle
    series/latency.svg          all of them as a plot; of this machine
    watch/<id>.json             what the restore watch has seen of a release in production; bounded
    watch.json                  which incidents are open, when production was last woken
    stages/<stage>.json, stages/<stage>.intent.json
    ledger/<time>-<id>.json     append-only, one file an event
    outbox.json                 how far people were told of the ledger
    reports/<id>.html           a release's report; of this machine, made anew at will
    locks/, run/                of this machine only
    reserve                     room for the documents of a full disk, of this machine only

A document is written whole or not at all, so a reader never sees half of one; only answers/ grows by lines. Documents
go through `Files`, which is a folder here and a Volume on Modal; big things (builds, models) are the business of the
place that keeps them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, get_args

from modal_app.compile import sha256_of as sha256_of  # and for all of tasks/
from modal_app.redaction import redact
from tasks.process import Output, ask, is_there
from tasks.release import (
    Approval,
    BadInput,
    Build,
    Dossier,
    Event,
    FileRef,
    Intent,
    Latency,
    Model,
    Redeploy,
    Release,
    Request,
    StageName,
    StagePointer,
    ToolingError,
    Verdict,
    Verification,
    digest_of,
)

M = TypeVar("M", bound=Model)
T = TypeVar("T")
MAX_LATENCIES = 500
"""Idle cycles that are kept of a release."""
DAMAGED = "damaged"
"""The kind of what stands in the place of an event that can't be read."""
PROC_LOCKS = Path("/proc/locks")
RESERVE_BYTES = 4 << 20
PIECE_BYTES = 64 << 10
"""What one write that finds the disk full takes of the reserve: many times what a document has, and so little that a
neighbour who fills the disk as fast as it is freed leaves enough for the dozen documents of a rollback."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file or nothing, on a full disk with room from the store's reserve. A new one is for this user
    alone, one that is there keeps its mode.

    Raises ToolingError when the disk won't take it.
    """
    try:
        with_reserve(path, lambda: _write(path, text))
    except OSError as error:
        raise ToolingError(
            f"could not write {path}", evidence=str(error), todo="free space or mend permissions, then run it again"
        ) from error


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError:
        with suppress(OSError):  # such as a parent that is a file
            temporary.unlink(missing_ok=True)
        raise


# -- a full disk ---------------------------------------------------------------------------------------


def keep_reserve(root: Path) -> None:
    """Put room aside for what has to be written on a full disk; nothing where there is little left to put aside."""
    with suppress(OSError), open(root / "reserve", "ab") as file:
        lacking = RESERVE_BYTES - os.fstat(file.fileno()).st_size
        if lacking > 0 and shutil.disk_usage(root).free > 8 * RESERVE_BYTES:
            file.write(os.urandom(lacking))  # not zeros, for which ZFS and Btrfs may take no room


def with_reserve(path: Path, write: Callable[[], T]) -> T:
    """What a small write below a store gives: made again with a piece of the reserve when the disk is full.

    Raises OSError.
    """
    try:
        return write()
    except OSError as error:
        if error.errno not in FULL or not _take_piece(path):
            raise
    return write()


def _take_piece(path: Path) -> bool:
    """Whether there was one to be had in the store above this path."""
    for reserve in (folder / "reserve" for folder in path.absolute().parents):
        with suppress(OSError):
            if size := reserve.stat().st_size:
                os.truncate(reserve, max(0, size - PIECE_BYTES))
                return True
    return False


def sync_folder(folder: Path) -> None:
    """Make renames in this folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Damaged(ToolingError):
    """A document that is there and can't be read."""


class Files(Protocol):
    """Small documents by path, such as `releases/3f0c9a.json`."""

    def read(self, path: str) -> str | None:
        """A document, or None when there is none."""

    def write(self, path: str, text: str) -> None:
        """Write a document whole or not at all. Raises ToolingError."""

    def names(self, glob: str) -> list[str]:
        """The paths that match, sorted."""

    def remove(self, path: str) -> None:
        """Remove a document or a folder of them. Nothing happens when there is none."""

    def fetch(self, path: str, file: Path) -> None:
        """Have a document that grows in a file of this machine: the one that was last shared, if it isn't there."""

    def share(self, path: str, file: Path) -> None:
        """Let everybody have what that file has now. Raises ToolingError."""

    def lock(
        self, name: str, *, holder: dict[str, Any], stale: Callable[[dict[str, Any]], None] | None = None
    ) -> AbstractContextManager[None]:
        """Hold a named lock, of which there is one for all who use these files: see `hold`."""

    def lock_holder(self, name: str) -> int | None:
        """The process of this machine that holds a named lock for certain; None when there is none, or none is seen."""

    def holders(self) -> dict[str, str]:
        """Who holds which lock just now, in its own words; but for the activators, which hold theirs for ever."""


class Taken(ToolingError):
    """A lock that another process holds; `holder` is what that wrote of itself, {} when it has not."""

    def __init__(self, what: str, *, evidence: str = "", todo: str = "", holder: dict[str, Any] | None = None) -> None:
        super().__init__(what, evidence=evidence, todo=todo)
        self.holder = holder or {}


class LocalFiles:
    """Documents in a folder of this machine: written, synced, renamed, and the folder synced."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> str | None:
        with _told(f"{path} in the store cannot be read", Damaged):
            try:
                return (self._root / path).read_text(encoding="utf-8")
            except FileNotFoundError:
                return None

    def write(self, path: str, text: str) -> None:
        write_atomic(self._root / path, text)

    def names(self, glob: str) -> list[str]:
        folder = self._root / glob.partition("*")[0]
        with _told(f"{folder.relative_to(self._root)} in the store cannot be read"):
            if folder.exists():
                os.scandir(folder).close()  # Path.glob takes a folder that may not be read for an empty one
            return sorted(str(path.relative_to(self._root)) for path in self._root.glob(glob))

    def remove(self, path: str) -> None:
        target = self._root / path
        with _told(f"{path} in the store cannot be removed"):
            if target.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            elif target.exists():
                target.unlink(missing_ok=True)
                sync_folder(target.parent)

    def fetch(self, path: str, file: Path) -> None:
        """Nothing: the file is the document."""

    def share(self, path: str, file: Path) -> None:
        """Nothing: the file is the document."""

    def lock(
        self, name: str, *, holder: dict[str, Any], stale: Callable[[dict[str, Any]], None] | None = None
    ) -> AbstractContextManager[None]:
        return hold(self._root / "locks" / f"{name}.lock", holder=holder, stale=stale)

    def lock_holder(self, name: str) -> int | None:
        return flock_holder(self._root / "locks" / f"{name}.lock")

    def holders(self) -> dict[str, str]:
        paths = [p for p in sorted((self._root / "locks").glob("*.lock")) if not p.stem.startswith("activator-")]
        held = locked_by if PROC_LOCKS.exists() else _held_by_its_holder
        return {p.stem: p.read_text(errors="replace").strip() for p in paths if held(p)}


@contextmanager
def _told(what: str, kind: type[ToolingError] = ToolingError) -> Iterator[None]:
    """Around what the system may refuse, or find damaged: raises this kind of error with its words."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise kind(
            what, evidence=str(error), todo="mend its permissions or the disk, or restore it from a backup of the store"
        ) from error


class Store:
    """Typed access to the documents, and to the big things under one root folder of this machine."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        """A new folder is for this user alone. Raises BadInput when there can't be such a folder."""
        self.root = root.absolute()
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"the store {self.root} can't be made", evidence=str(error), todo="set `store` to a folder of yours"
            ) from error
        self.files: Files = files or LocalFiles(self.root)

    # -- models as JSON files ---------------------------------------------------------------

    def _save(self, path: str, value: Model) -> None:
        self.files.write(path, value.model_dump_json(indent=1) + "\n")

    def _load(self, path: str, kind: type[M]) -> M | None:
        try:
            text = self.files.read(path)
            return None if text is None else kind.model_validate_json(text)
        except ValueError as error:
            raise Damaged(
                f"{path} in the store is not a readable {kind.__name__}",
                evidence=str(error)[:400],
                todo="restore the file from a backup of the store, or move it away",
            ) from error

    # -- builds -----------------------------------------------------------------------------

    def build_dir(self, digest: str) -> Path:
        return self.root / "builds" / digest

    def build(self, digest: str) -> Build | None:
        """The finished build of this digest, or None. A folder without a manifest is not a build."""
        return self._load(f"builds/{digest}/manifest.json", Build)

    def builds(self) -> list[Build]:
        """All finished builds, newest upstream first."""
        found = [self.build(path.split("/")[1]) for path in self.files.names("builds/*/manifest.json")]
        return sorted((b for b in found if b), key=lambda b: (b.source.upstream.build, b.built_at), reverse=True)

    def publish_build(self, build: Build, folder: Path) -> Build:
        """Move a finished folder (on the same file system) to its place, manifest last."""
        target = self.build_dir(build.digest)
        if target.exists():
            shutil.rmtree(target)  # left by a killed publication: it never had a manifest
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, target)
        return self.save_build(build)

    def save_build(self, build: Build) -> Build:
        """Write the manifest: from now on the folder is a build."""
        self._save(f"builds/{build.digest}/manifest.json", build)
        return build

    def forget_build(self, digest: str) -> Build:
        """Have a build made anew next time: the forced rebuild. Raises BadInput when there is none of this digest.

        Rarely right. The digest names the source, the recipe and the toolchain, so a stale binary cannot lie under it
        (the guide's issue 5 was an image layer's cache, which has no part in this), and a damaged one is noticed and
        made again by itself. What is left is a doubt about the compiler cache, which then has to go as well.
        """
        found = self.build(digest)
        if found is None:
            known = ", ".join(f"{build.digest} ({build.tag})" for build in self.builds()) or "none"
            raise BadInput(f"there is no build {digest}", evidence=f"known: {known}", todo="take one of them")
        self.files.remove(f"builds/{digest}/manifest.json")
        return found

    def prune_builds(self, keep: int) -> list[Build]:
        """Remove the oldest builds, so that `keep` are left besides those that a stage needs; what was removed.

        Needed are the builds of what a stage serves or retains, and of a move that was left open. Everything else
        that is known of their releases stays; an upgrade to one of them compiles it again.
        """
        if len(self.files.names("builds/*/manifest.json")) <= keep:
            return []
        wanted = set()
        for stage in get_args(StageName):
            pointer, intent = self.pointer(stage), self.intent(stage)
            wanted |= {pointer.release, *pointer.retained} | ({intent.before, intent.after} if intent else set())
        needed = {release.build for release in map(self.release, filter(None, wanted)) if release}
        by_age = sorted(self.builds(), key=lambda build: build.built_at, reverse=True)
        gone = [build for build in by_age if build.digest not in needed][keep:]
        for build in gone:
            self.files.remove(f"builds/{build.digest}/manifest.json")
            self.files.remove(f"builds/{build.digest}")
        return gone

    def damaged(self, build: Build) -> list[str]:
        """Files of a build that are gone or not what the manifest says."""
        folder = self.build_dir(build.digest)
        return [
            name
            for name, sha in build.files.items()
            if not (folder / name).is_file() or sha256_of(folder / name) != sha
        ]

    def lost(self, release: Release) -> list[str]:
        """What a release needs and the store does not have as it was recorded."""
        build = self.build(release.build)
        missing = self.damaged(build) if build else [f"build {release.build}"]
        return missing + [ref.name for ref in release.files.values() if not self.file(ref).is_file()]

    def ask(self, build: Build, *argv: str) -> Output:
        """What a build's binary says to an argv that ends it at once, such as `--version`.

        As when it serves, no setting and no secret reaches it through the environment.
        """
        return ask(self.build_dir(build.digest) / build.recipe.target, *argv, hide=[self.root])

    def search(self, build: Build, pattern: bytes) -> tuple[str, ...]:
        """What a pattern's group finds in the files of a build, sorted, each once."""
        found: set[bytes] = set()
        for path in self.build_dir(build.digest).iterdir():
            if path.name != "manifest.json" and path.is_file():
                found.update(re.findall(pattern, path.read_bytes()))
        return tuple(sorted(text.decode() for text in found))

    # -- files by content ---------------------------------------------------------------------

    def put_file(self, path: Path) -> FileRef:
        """Keep a file by its content (a hard link where possible) and return its reference.

        Raises BadInput when there is no such file, ToolingError when the disk won't take it.
        """
        ref = self.reference(path)
        target = self.file(ref)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            try:
                _link_or_copy(path, temporary)
            except OSError as error:
                temporary.unlink(missing_ok=True)  # half a model takes room for nothing
                raise ToolingError(
                    f"{path} can't be copied into the store", evidence=str(error), todo="free some space"
                ) from error
            os.replace(temporary, target)
            if target.samefile(path):  # to link and to rename it has changed its ctime, and not its content
                self.remember(target, ref.sha256)
        return ref

    def reference(self, path: Path) -> FileRef:
        """A file's reference. Raises BadInput when there is no such file."""
        try:
            return FileRef(name=path.name, sha256=self.content_of(path), size_bytes=path.stat().st_size)
        except OSError as error:
            raise BadInput(
                f"the file {path} cannot be read", evidence=str(error), todo="correct the path in the settings"
            ) from error

    def content_of(self, path: Path) -> str:
        """sha256 of a file's content, remembered while it is unchanged (see `_seen`): a 16 GB model is read once.
        Raises OSError."""
        remembered = self._seen(path)
        try:
            return remembered.read_text()
        except FileNotFoundError:
            sha = sha256_of(path)
            self.remember(path, sha)
            return sha

    def remember(self, path: Path, sha256: str) -> None:
        """That a file has this content, which was read while it was made: it need not be read for it again."""
        with suppress(ToolingError):  # on a full disk it is read again the next time
            write_atomic(self._seen(path), sha256)

    def _seen(self, path: Path) -> Path:
        """Where a file's sha256 is remembered. By its ctime too: `cp -p`, `rsync -t` and `touch` set an mtime back, and
        nobody sets a ctime (stat(3type))."""
        stat = path.stat()
        stamp = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        return self.root / "files" / ".seen" / "-".join(map(str, stamp))

    def hub_pin(self, repo: str, kind: type[M]) -> M | None:
        """What a repository of the Hub, `user/name`, stands for until somebody updates it."""
        return self._load(f"hub/{repo}.json", kind)

    def save_hub_pin(self, repo: str, pin: Model) -> None:
        self._save(f"hub/{repo}.json", pin)

    def file(self, ref: FileRef) -> Path:
        return self.root / "files" / ref.sha256 / ref.name

    def together(self, refs: Sequence[FileRef]) -> Path:
        """The first of these files in a folder in which all of them lie side by side under their own names: where
        llama-server looks for the parts of a model (llama_split_path). They must be here, and known to be whole.

        Raises ToolingError when the disk won't take it.
        """
        folder = self.root / "files" / digest_of([ref.sha256 for ref in refs])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for ref in refs:
                path, link = self.file(ref), folder / ref.name
                if not (link.exists() and link.samefile(path)):
                    temporary = link.with_name(f".{link.name}.{os.getpid()}.{threading.get_ident()}")
                    temporary.unlink(missing_ok=True)
                    os.link(path, temporary)
                    os.replace(temporary, link)
                    self.remember(path, ref.sha256)  # the link has changed its ctime, and not its content
        except OSError as error:
            raise ToolingError(
                f"the parts of {refs[0].name} can't be put side by side", evidence=str(error), todo="free some space"
            ) from error
        return folder / refs[0].name

    # -- releases and their dossiers ------------------------------------------------------------

    def save_release(self, release: Release) -> None:
        if self.release(release.id) is None:
            self._save(f"releases/{release.id}.json", release)

    def release(self, release_id: str) -> Release | None:
        return self._load(f"releases/{release_id}.json", Release)

    def get_release(self, release_id: str) -> Release:
        """The release of this id. Raises BadInput that lists the known ones."""
        found = self.release(release_id)
        if found is None:
            raise self._no_release(release_id)
        return found

    def _no_release(self, word: str) -> BadInput:
        known = ", ".join(r.label for r in self.releases()) or "none"
        return BadInput(
            f"there is no release {word} in {self.root}",
            evidence=f"known: {known}",
            todo="name one as `llama-release status` does: its tag, or its id",
        )

    def named(self, word: str, first: Iterable[str | None]) -> Release:
        """The release that people call so, see `Release.is_called`: one of `first`, by id, or else any.

        No other file is read than it takes. Raises BadInput that lists them when it may be several, or is none.
        """
        if re.fullmatch("[0-9a-f]{12}", word):
            return self.get_release(word)
        mine = [release for known in first if known and (release := self.release(known)) and release.is_called(word)]
        found = mine or [release for release in self.releases() if release.is_called(word)]
        if len(found) > 1:
            raise BadInput(
                f"{len(found)} releases are called {word}",
                evidence=", ".join(release.label for release in found), todo="name one by its id",
            )  # fmt: skip
        if not found:
            raise self._no_release(word)
        return found[0]

    def releases(self) -> list[Release]:
        found = [self.release(Path(path).stem) for path in self.files.names("releases/*.json")]
        return sorted((r for r in found if r), key=lambda r: r.upstream.build, reverse=True)

    def record(self, verification: Verification) -> None:
        """Put a verification into its release's dossier, without a secret."""
        clean = Verification.model_validate(redact(verification.model_dump()))
        self._save(f"dossiers/{clean.release}/{clean.name}.json", clean)

    def verification(self, release_id: str, name: str) -> Verification | None:
        return self._load(f"dossiers/{release_id}/{name}.json", Verification)

    def forget_verification(self, release_id: str, name: str) -> None:
        """Forget one verification: what it was made of is no more."""
        self.files.remove(f"dossiers/{release_id}/{name}.json")

    def verifications(self, release_id: str) -> list[Verification]:
        """All that was ever verified of a release and is on record, sorted by name."""
        found = [self._load(path, Verification) for path in self.files.names(f"dossiers/{release_id}/*.json")]
        return [each for each in found if each is not None]

    def fresh(self, release_id: str, names: tuple[str, ...], basis: str) -> list[Verification]:
        """The recorded verifications of these names, when none is missing, errored or of another basis; else []."""
        found = [self.verification(release_id, name) for name in names]
        good = [v for v in found if v and v.basis == basis and v.verdict is not Verdict.ERRORED]
        return good if len(good) == len(names) else []

    def forget(self, release: Release) -> None:
        """Forget a release's verifications, its answers to the evals and its idle cycles, so that all are run again."""
        for kind in ("dossiers", "answers", "cycles"):
            self.files.remove(f"{kind}/{release.id}")
        shutil.rmtree(self.root / "answers" / release.id, ignore_errors=True)

    def dossier(self, release: Release, required: tuple[str, ...]) -> Dossier:
        """The dossier as it stands: every verification that is required and recorded."""
        found = [self.verification(release.id, name) for name in sorted(required)]
        return Dossier(
            release=release, required=tuple(sorted(required)), verifications=tuple(v for v in found if v is not None)
        )

    def save_approval(self, approval: Approval) -> None:
        self._save(f"approvals/{approval.request}.json", approval)

    def approval(self, request: str) -> Approval | None:
        """What was answered to the request of this key."""
        return self._load(f"approvals/{request}.json", Approval)

    def save_request(self, request: Request) -> Request:
        self._save(f"requests/{request.run}.json", request)
        return request

    def request(self, run: str) -> Request | None:
        """What the flow run of this id asked a person."""
        return self._load(f"requests/{run}.json", Request)

    def requests(self) -> list[Request]:
        """Everything that was ever asked, oldest first."""
        found = [self._load(path, Request) for path in self.files.names("requests/*.json")]
        return sorted((r for r in found if r), key=lambda r: r.asked_at)

    def approvals(self, release_id: str) -> list[Approval]:
        """What people decided on a release, oldest first."""
        found = [self._load(path, Approval) for path in self.files.names("approvals/*.json")]
        return sorted((each for each in found if each and each.release == release_id), key=lambda each: each.at)

    def proof(self, key: str, kind: type[M]) -> M | None:
        """What the probes of a patch said, under a key that names all that they depend on."""
        return self._load(f"proofs/{key}.json", kind)

    def save_proof(self, key: str, proof: Model) -> None:
        self._save(f"proofs/{key}.json", proof)

    def surface(self, digest: str, basis: str, kind: type[M]) -> M | None:
        """The API surface of a build as code of this basis read it."""
        return self._load(f"surfaces/{digest}-{basis}.json", kind)

    def save_surface(self, digest: str, basis: str, surface: Model) -> None:
        self._save(f"surfaces/{digest}-{basis}.json", surface)

    def answers_path(self, release_id: str, set_digest: str, again: bool = False) -> Path:
        """Where a release's answers to a set of items are kept; `again`: those to being asked a second time."""
        path = f"answers/{release_id}/{set_digest}{'.again' if again else ''}.jsonl"
        self.files.fetch(path, self.root / path)
        return self.root / path

    def share_answers(self, path: Path) -> None:
        """Let the other machines that use this store have the answers in a file that `answers_path` gave."""
        if path.exists():
            self.files.share(str(path.relative_to(self.root)), path)

    # -- stages ---------------------------------------------------------------------------------

    def pointer(self, stage: StageName) -> StagePointer:
        return self._load(f"stages/{stage}.json", StagePointer) or StagePointer(stage=stage)

    def save_pointer(self, pointer: StagePointer) -> None:
        """Write it as the next version, whatever version it was made of."""
        keep_reserve(self.root)  # who serves something may have to go back, whatever the disk says
        version = self.pointer(pointer.stage).version + 1
        self._save(f"stages/{pointer.stage}.json", pointer.model_copy(update={"version": version}))

    def intent(self, stage: StageName) -> Intent | None:
        return self._load(f"stages/{stage}.intent.json", Intent)

    def open_intent(self, intent: Intent) -> None:
        self._save(f"stages/{intent.stage}.intent.json", intent)

    def close_intent(self, stage: StageName) -> None:
        self.files.remove(f"stages/{stage}.intent.json")

    def redeploy(self) -> Redeploy | None:
        """The redeploy that was begun and neither done nor given up."""
        return self._load("stages/redeploy.json", Redeploy)

    def open_redeploy(self, redeploy: Redeploy) -> None:
        self._save("stages/redeploy.json", redeploy)

    def close_redeploy(self) -> None:
        self.files.remove("stages/redeploy.json")

    def cycles(self, release_id: str, key: str, kind: type[M]) -> M | None:
        """The idle cycles of a restore probe without a verdict, under a key that names the rules and the deployment."""
        return self._load(f"cycles/{release_id}/{key}.json", kind)

    def save_cycles(self, release_id: str, key: str, cycles: Model) -> None:
        """Without a secret: an error of theirs goes into the dossier, too."""
        clean = type(cycles).model_validate(redact(cycles.model_dump()))
        self._save(f"cycles/{release_id}/{key}.json", clean)

    def forget_cycles(self, release_id: str) -> None:
        """They have their verdict."""
        self.files.remove(f"cycles/{release_id}")

    # -- series -----------------------------------------------------------------------------------

    def add_latency(self, release_id: str, latency: Latency) -> None:
        """Append one idle cycle to the release's series. Of too many the first, staging's among them, and the latest
        stay, with which the restore watch compares."""
        self._save(f"series/{release_id}/{timed_name(latency.at)}", latency)
        for path in self.files.names(f"series/{release_id}/*.json")[MAX_LATENCIES // 2 : -MAX_LATENCIES // 2]:
            self.files.remove(path)

    def latencies(self, release_id: str) -> list[Latency]:
        """Every idle cycle of a release, oldest first."""
        found = [self._load(path, Latency) for path in self.files.names(f"series/{release_id}/*.json")]
        return [each for each in found if each is not None]

    def report(self, release_id: str) -> Path:
        return self.root / "reports" / f"{release_id}.html"

    def latency_plot(self) -> Path:
        return self.root / "series" / "latency.svg"

    def watched(self, release_id: str, kind: type[M]) -> M | None:
        """What the restore watch has seen of a release."""
        return self._load(f"watch/{release_id}.json", kind)

    def save_watched(self, release_id: str, series: Model) -> None:
        self._save(f"watch/{release_id}.json", series)

    def watch_state(self, kind: type[M]) -> M | None:
        """What the restore watch has to know the next time."""
        return self._load("watch.json", kind)

    def save_watch_state(self, state: Model) -> None:
        self._save("watch.json", state)

    # -- ledger ---------------------------------------------------------------------------------

    def log(self, event: Event) -> Event:
        """Append one event to the ledger; as it stands there, without a secret."""
        event = Event.model_validate(redact(event.model_dump()))
        self._save(f"ledger/{timed_name(event.at)}", event)
        return event

    def ledger(self, last: int | None = None) -> list[Event]:
        """Every event, oldest first, or so many of the latest; one of kind DAMAGED in the place of each that can't be
        read."""
        paths = self.files.names("ledger/*.json")
        return [event for path in (paths[-last:] if last else paths) if (event := self._event(path))]

    def events(self, *, after: str = "", until: str = "~") -> Iterator[tuple[str, Event]]:
        """(file name, event), oldest first, of those whose name comes after `after`, up to and with `until`."""
        for path in self.files.names("ledger/*.json"):
            name = path.rpartition("/")[2]
            if after < name <= until and (event := self._event(path)):
                yield name, event

    def _event(self, path: str) -> Event | None:
        """One that can't be read stops nobody: whoever shows the ledger shows that it is there."""
        try:
            return self._load(path, Event)
        except (Damaged, OSError, ValueError) as error:  # a Volume that can't be reached is no damage
            why = (error.evidence if isinstance(error, Damaged) else str(error)).partition("\n")[0]
            return Event(kind=DAMAGED, summary=f"{path} can't be read: {why}", at=_event_time(path.rpartition("/")[2]))

    def load_outbox(self, kind: type[M]) -> M | None:
        """How far people were told of the ledger."""
        return self._load("outbox.json", kind)

    def save_outbox(self, outbox: Model) -> None:
        self._save("outbox.json", outbox)

    # -- locks ----------------------------------------------------------------------------------

    def lock(
        self, name: str, *, holder: dict[str, Any], stale: Callable[[dict[str, Any]], None] | None = None
    ) -> AbstractContextManager[None]:
        """Hold a named lock of this store: see `hold`."""
        return self.files.lock(name, holder=holder, stale=stale)

    def lock_holder(self, name: str) -> int | None:
        """The process of this machine that holds a named lock for certain."""
        return self.files.lock_holder(name)

    def holders(self) -> dict[str, str]:
        """Who holds which lock just now, in its own words; but for the activators, which hold theirs for ever."""
        return self.files.holders()


@contextmanager
def hold(
    path: Path,
    *,
    holder: dict[str, Any],
    wait: bool = False,
    stale: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when the process dies, however it dies.

    `stale` is told what a holder that died without letting go had written about itself.
    Raises Taken when it is taken and `wait` is false.
    """
    with _told(f"the lock {path} cannot be taken"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = with_reserve(path, lambda: open(path, "a+", encoding="utf-8", errors="replace"))  # noqa: SIM115 - below
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            words = file.read().strip()
            raise Taken(
                f"another process holds the lock {path}",
                evidence=words or "it has not said who it is",
                todo="wait for it, or stop it; nothing was changed",
                holder=_holder(words),
            ) from error
        file.seek(0)
        left = file.read().strip()
        if left and stale:
            stale(_holder(left))
        with suppress(OSError):  # the kernel knows who holds it; a full disk may not take a name
            with_reserve(path, lambda: _rewrite(file, json.dumps({"pid": os.getpid(), **holder})))
        try:
            yield
        finally:
            with suppress(OSError):  # on a full disk it is let go all the same
                _rewrite(file, "" if stale else left)  # for the next one that tells of it


def _holder(left: str) -> dict[str, Any]:
    """What a holder had written about itself; {} when it was killed while it wrote."""
    try:
        found = json.loads(left)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def flock_holder(path: Path) -> int | None:
    """The process that holds a lock file, by its own word and the kernel's; None where they do not both say so.

    Its own word alone may be that of one that was killed, whose number another process has by now.
    """
    try:
        pid = int(json.loads(path.read_text(encoding="utf-8"))["pid"])
        return pid if pid in locked_by(path) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def locked_by(path: Path) -> set[int]:
    """The processes that hold a lock file, as far as they have a number here. The kernel is asked: to try, even for a
    moment, could refuse the lock to others. Raises OSError where there is no Linux's /proc/locks (proc(5))."""
    inode = str(path.stat().st_ino)
    held = (line.split() for line in PROC_LOCKS.read_text().splitlines())
    # `1: FLOCK ADVISORY WRITE pid major:minor:inode 0 EOF`; who waits has a `->` before FLOCK
    return {int(each[4]) for each in held if each[1] != "->" and each[5].rpartition(":")[2] == inode}


def _held_by_its_holder(path: Path) -> bool:
    """As far as it can be told without /proc/locks: its holder wrote its pid into it, and lives."""
    try:
        return is_there(int(json.loads(path.read_text())["pid"]))
    except (OSError, ValueError, LookupError, TypeError):
        return False


_NAMED_BY_TIME = "%Y%m%dT%H%M%S.%fZ"


def _link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(path.resolve(), target)  # link(2) would link a symbolic link itself, which leads nowhere from there
    except OSError:
        shutil.copyfile(path, target)


def timed_name(at: datetime) -> str:
    """A file name that sorts by time and that no other event has."""
    return f"{at.strftime(_NAMED_BY_TIME)}-{secrets.token_hex(3)}.json"


def _event_time(name: str) -> datetime:
    """When a file of this name was written; the epoch where the name does not tell."""
    try:
        return datetime.strptime(name.partition("-")[0], _NAMED_BY_TIME).replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _rewrite(file: IO[str], text: str) -> None:
    os.ftruncate(file.fileno(), 0)
    os.write(file.fileno(), text.encode())  # past its buffer, which would try again and again what a full disk refused
