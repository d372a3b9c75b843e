"""Snapshots of a warmed server, as files: what this machine can take, where they lie, whether one may be used.

    run/<stage>/snapshots/                    0700: the images hold the API key
        <release>-<tag of key and generation>/
            images/                           CRIU's
            golden.json                       what the warmed server answered (modal_app.warmup)
            manifest.json                     written last; the folder is renamed to its place after it

An image is used only by the release, the key and the machine that it was taken with. What comes out of it runs only
after every byte was read again (the pages while CRIU restores them: it leaves the process stopped). So nothing needs
to be synced: what a power failure cut short is refused like any other damage.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from modal_app.warmup import Golden
from tasks import criu, cuda_checkpoint
from tasks.criu import CriuFailed
from tasks.criu_images import checksums
from tasks.flags.words import values_of
from tasks.hardware import cpu_here
from tasks.platforms.local.control import run_folder
from tasks.release import Model, Release, StageName, digest_of
from tasks.settings import Settings

log = logging.getLogger(__name__)

Depth = Literal["memory", "disk"]
FORMAT = "1"


class NoSnapshot(Exception):
    """There is no snapshot that may be used, or none could be taken: why, in one line."""


@dataclass(frozen=True)
class Wanted:
    """What the settings ask for."""

    on: bool
    depth: Depth
    criu: str
    """The CRIU to use, found or not."""

    @classmethod
    def of(cls, settings: Settings) -> Wanted:
        local = settings.local
        return cls(local.snapshots == "auto", local.snapshot_depth, criu.find(local.criu, settings.cache))


@dataclass(frozen=True)
class Ability:
    """What an idle server is brought back from on this machine, and by what or why not; one line for a person."""

    kind: Literal["disk", "memory", "cold"]
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}"


class Manifest(Model):
    """A snapshot on disk."""

    id: str
    release: str
    machine: dict[str, str]
    port: int
    """Where the server listened, and will again."""
    output: Path
    """The file that its stdout was."""
    files: dict[str, str]
    """Path in the folder -> `checksum`."""
    size_bytes: int


def snapshots_here(wanted: Wanted, *, gpu: bool) -> Ability:
    """What can be done on this machine with a server that does, or does not, use a GPU."""
    if not wanted.on:
        return Ability("cold", "local.snapshots is off")
    if gpu and (lack := cuda_checkpoint.why_not()):
        return Ability("cold", lack)
    if gpu and wanted.depth == "memory":
        return Ability("memory", "the GPU is emptied, the process stays in RAM")
    try:
        version = criu.version(wanted.criu)
    except CriuFailed as error:
        return Ability("cold", str(error))
    return Ability("disk", f"CRIU {version}" + (", with the GPU's memory" if gpu else ""))


def maps_its_model(argv: Iterable[str]) -> bool:
    """Whether a server of this argv maps the model file instead of reading it (upstream's default)."""
    return values_of(list(argv)).get("--load-mode", "auto") in ("auto", "mmap", "mmap+mlock")


def machine(criu_version: str, *, gpu: bool) -> dict[str, str]:
    """What a process's memory depends on besides its release: it must be the same when it comes back."""
    return _cpu_and_kernel() | {"CRIU": criu_version, "GPU": cuda_checkpoint.hardware() if gpu else "none"}


@cache
def _cpu_and_kernel() -> dict[str, str]:
    cpu, kernel = cpu_here(), os.uname()
    return {
        "CPU": cpu.model,
        "CPU flags": digest_of(cpu.features)[:12],
        "kernel": f"{kernel.release} {kernel.version}",
        "format": FORMAT,
    }


# -- folders ------------------------------------------------------------------------------------------


def snapshots_folder(root: Path, stage: StageName) -> Path:
    return run_folder(root, stage) / "snapshots"


def folder_name(release: str, key: str | None, generation: str = "") -> str:
    """A restored server has the key it was snapshotted with: another key is another snapshot, as is a redeploy."""
    return f"{release}-{hashlib.sha256(f'{release} {key} {generation}'.encode()).hexdigest()[:8]}"


def begin(target: Path) -> Path:
    """A folder beside `target` for a snapshot that is being taken."""
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.parent.chmod(0o700)
    folder.mkdir(mode=0o700)
    return folder


def publish(folder: Path, target: Path, golden: Golden) -> None:
    """Put a folder in the place of whatever was there, its golden answers in it."""
    (folder / "golden.json").write_text(golden.to_json(), encoding="utf-8")
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def write_manifest(folder: Path, release: Release, machine: dict[str, str], port: int, output: Path) -> Manifest:
    """The manifest of the images in a folder, written into it."""
    images = [path for path in (folder / "images").iterdir() if path.suffix == ".img"]
    manifest = Manifest(
        id=secrets.token_hex(6),
        release=release.id,
        machine=machine,
        port=port,
        output=output,
        files=checksums(folder, images),
        size_bytes=sum(path.stat().st_size for path in images),
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


def usable(folder: Path, release: Release, machine: dict[str, str]) -> Manifest:
    """The manifest of a snapshot of this very release and machine, whole but for its pages. Raises NoSnapshot."""
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoSnapshot(f"the snapshot's manifest can't be read: {str(error).splitlines()[0]}") from error
    if manifest.release != release.id:
        raise NoSnapshot(f"the snapshot is of release {manifest.release}")
    for name in sorted(machine.keys() | manifest.machine.keys()):
        was, is_now = manifest.machine.get(name), machine.get(name)
        if was != is_now:
            raise NoSnapshot(f"the snapshot was taken with another {name}: {was}, here {is_now}")
    _check(folder, {name: sum for name, sum in manifest.files.items() if not _is_pages(name)})
    return manifest


def check_pages(folder: Path, manifest: Manifest) -> None:
    """Read every page again. Raises NoSnapshot: what was restored from them may not run."""
    _check(folder, {name: sum for name, sum in manifest.files.items() if _is_pages(name)})


def _is_pages(name: str) -> bool:
    return Path(name).name.startswith("pages-")


def _check(folder: Path, wanted: dict[str, str]) -> None:
    try:
        found = checksums(folder, [folder / name for name in wanted])
    except OSError as error:
        raise NoSnapshot(f"the snapshot can't be read: {error}") from error
    if damaged := sorted(name for name, sum in wanted.items() if found[name] != sum):
        raise NoSnapshot(f"the snapshot is damaged: {', '.join(damaged)}")


def load_golden(folder: Path) -> Golden | None:
    try:
        return Golden.from_json((folder / "golden.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sweep(folder: Path, keep: Set[str], *, half_taken: bool = False) -> None:
    """Remove every snapshot but the named ones, and with `half_taken` (none is being taken) unfinished ones."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in keep and (half_taken or not path.name.startswith(".")):
            log.info("removing the snapshot %s", path.name)
            shutil.rmtree(path, ignore_errors=True)
