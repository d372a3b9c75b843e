"""A model of the Hub, `server.hub_model`: which files it stands for, by their digests, and how they come here.

    choice.py     which files of a repository llama-server would take
    remote.py     the Hub over HTTP
    copies.py     files that are on this machine already
    stage.py      the row of an upgrade

A repository's name stands for its files as of one commit. The first upgrade pins that in the store (`hub/`), and until
`llama-release hub update` every run of every worker takes the files of that commit: a repository that moves on, or
settings that name another of its quantizations, never change a release unseen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.hub import copies
from tasks.hub.choice import Chosen, HubFile, Pin, choose
from tasks.hub.remote import Hub, Unreachable
from tasks.release import BadInput, ToolingError
from tasks.settings import ServerSettings, Settings
from tasks.store import Store, hold

Progress = Callable[[int, int, str], None]
"""Called with (megabytes that are here, megabytes in all, what)."""
_MB = 1_000_000
_SPARE_BYTES = 100 * _MB
"""Left free on the disk: what else runs there needs some."""


def own_alias(hub_model: str) -> str:
    """The name that llama-server gives a model of the Hub that has no alias: the repository as it was named, with its
    quantization (b11434: common_params_model::get_name in common/common.h, server-context.cpp)."""
    return hub_model


@dataclass(frozen=True)
class Resolved:
    """What `server.hub_model` stands for: files with digests, and where on this machine each is, or will be."""

    setting: str
    pin: Pin
    chosen: Chosen
    folder: Path

    def path(self, file: HubFile) -> Path:
        return self.folder / PurePosixPath(file.path)

    def missing(self, store: Store) -> list[HubFile]:
        """What of it is not here. A file that is here counts as long as its content is what the Hub says: it is read
        once, and remembered."""
        return [file for file in self.chosen.files if not is_file(store, self.path(file), file)]

    def server(self, server: ServerSettings) -> ServerSettings:
        """The settings with the files in the place of the repository."""
        more = {name: self.path(file) for name, file in self.chosen.beside.items()}
        model = self.path(self.chosen.model[0])
        return server.model_copy(update={"hub_model": None, "model": model, **more})

    def __str__(self) -> str:
        names = ", ".join(f"{f.path} ({f.size_bytes / 1e9:.2f} GB, sha256 {f.sha256[:12]})" for f in self.chosen.files)
        where = "" if self.pin.told_by_hub else ", as the cache here has it"
        return f"{self.setting} is {names} of commit {self.pin.commit[:12]}{where}"


def known(store: Store, settings: Settings) -> Settings:
    """The settings with the files of `server.hub_model`, when it is pinned and they are all here; else as they are.

    Nothing is asked of the network. Raises BadInput for a quantization that the pinned commit does not have.
    """
    repo = _repo(settings)
    if repo is None or (pin := store.hub_pin(repo, Pin)) is None:
        return settings
    found = _resolved(settings, pin)
    return settings if found.missing(store) else _with(settings, found)


def look(store: Store, settings: Settings) -> Resolved | None:
    """What `server.hub_model` stands for: as it is pinned, else as the Hub has it now; None where it is not set.

    Nothing is downloaded and nothing is pinned. Raises BadInput for a repository or quantization that can't be had,
    ToolingError when the Hub can't be asked and no cache here has it, or the disk has no room for the files.
    """
    repo = _repo(settings)
    if repo is None:
        return None
    found = _resolved(settings, store.hub_pin(repo, Pin) or _read(store, repo))
    _refuse_in_vain(store, found)
    return found


def fetch(store: Store, settings: Settings, progress: Progress) -> tuple[Settings, Resolved]:
    """(the settings with the files of `server.hub_model`, which are here now; what it stands for). Pins the commit.

    Raises as `look`, and ToolingError when a download breaks off: it goes on from there the next time.
    """
    found = look(store, settings)
    if found is None:
        raise BadInput("server.hub_model is not set", todo="set it to user/repository:quant")
    if store.hub_pin(found.pin.repo, Pin) is None:
        store.save_hub_pin(found.pin.repo, found.pin)
    total = sum(file.size_bytes for file in found.chosen.files)
    before = 0
    for file in found.chosen.files:

        def tell(done: int, before: int = before, file: HubFile = file) -> None:
            progress((before + done) // _MB, max(1, total // _MB), f"MB, fetching {file.path}")

        _have(store, found, file, tell)
        before += file.size_bytes
    return _with(settings, found), found


def update(store: Store, settings: Settings) -> tuple[Resolved | None, Resolved]:
    """Pin the repository as the Hub has it now; (what the setting stood for, what it stands for from now on).

    Raises BadInput and ToolingError as `look`; then the pin is as it was.
    """
    repo = _repo(settings)
    if repo is None:
        raise BadInput("server.hub_model is not set", todo="set it to user/repository:quant")
    pinned = store.hub_pin(repo, Pin)
    found = _resolved(settings, Hub().listing(repo))
    store.save_hub_pin(repo, found.pin)
    try:
        before = _resolved(settings, pinned) if pinned else None
    except BadInput:  # such as a quantization that only the new commit has
        before = None
    return before, found


def moved_on(store: Store, found: Resolved) -> str:
    """How the Hub differs by now from what is pinned; '' where it does not, or nothing is pinned.

    Raises ToolingError when it can't be asked, BadInput when it has no such repository any more.
    """
    if store.hub_pin(found.pin.repo, Pin) is None:
        return ""
    there = Hub().listing(found.pin.repo)
    if there.commit == found.pin.commit:
        return ""
    digests = {file.path: file.sha256 for file in there.files}
    changed = [file.path for file in found.chosen.files if digests.get(file.path) != file.sha256]
    return f"the repository is at {there.commit[:12]} by now, " + (
        f"with another {', '.join(changed)}" if changed else "with the same files"
    )


def is_file(store: Store, path: Path, file: HubFile) -> bool:
    """Whether this is that file: its content is read once and remembered while it is unchanged."""
    try:
        return path.stat().st_size == file.size_bytes and store.content_of(path) == file.sha256
    except OSError:
        return False


def _repo(settings: Settings) -> str | None:
    return settings.server.hub_model.partition(":")[0] if settings.server.hub_model else None


def _resolved(settings: Settings, pin: Pin) -> Resolved:
    assert settings.server.hub_model
    folder = settings.cache.absolute() / "hub" / pin.repo / pin.commit
    return Resolved(settings.server.hub_model, pin, choose(pin, settings.server), folder)


def _with(settings: Settings, found: Resolved) -> Settings:
    return settings.model_copy(update={"server": found.server(settings.server)})


def _read(store: Store, repo: str) -> Pin:
    """The repository as the Hub has it now; where that can't be asked, as a cache on this machine has it, as
    llama-server does (b11434: common_download_get_hf_plan)."""
    try:
        return Hub().listing(repo)
    except Unreachable as error:
        if (pin := copies.listing(store, repo)) is None:
            raise Unreachable(
                f"{repo} is not on this machine, and the Hub can't be asked for it",
                evidence=error.evidence,
                todo=f"{error.todo}; or set server.model to a file that is here",
            ) from error
        return pin


def _refuse_in_vain(store: Store, found: Resolved) -> None:
    """Raises what a download would end with: terms that nobody accepted, no room on the disk."""
    elsewhere = [f for f in found.missing(store) if copies.of(store, found.pin.repo, f) is None]
    if elsewhere and found.pin.gated:
        Hub().refuse_gated(found.pin.repo)
    needed = sum(file.size_bytes - _size(_part(found.path(file), file)) for file in elsewhere)
    above = next(folder for folder in found.folder.parents if folder.exists())
    if needed and (free := shutil.disk_usage(above).free) < needed + _SPARE_BYTES:
        raise ToolingError(
            f"the disk has no room for {found.setting}",
            evidence=f"{needed / 1e9:.1f} GB are to be downloaded to {above}, {free / 1e9:.1f} GB are free",
            todo="free some, or set `cache` to a larger disk; what was downloaded is kept",
        )


def _have(store: Store, found: Resolved, file: HubFile, tell: Callable[[int], None]) -> None:
    """The file is in its place: as it was, from another place on this machine, or from the Hub. One process at a time
    has it made, and the others wait and find it."""
    path = found.path(file)
    if is_file(store, path, file):
        return
    with hold(path.with_name(f".{path.name}.lock"), holder={"doing": f"downloading {path.name}"}, wait=True):
        if is_file(store, path, file):
            return
        if copy := copies.of(store, found.pin.repo, file):
            copies.take(copy, path)
        else:
            Hub().download(found.pin, file, _part(path, file), path, tell)
        store.remember(path, file.sha256)


def _part(path: Path, file: HubFile) -> Path:
    """What there is of a download that is not done; by its digest, so that it is never gone on with as another's."""
    return path.with_name(f".{path.name}.{file.sha256[:16]}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def files_of(found: Resolved) -> Iterator[tuple[str, str]]:
    """(file in the repository, sha256), for the ledger."""
    yield from ((file.path, file.sha256) for file in found.chosen.files)
