"""A model of the Hub, `server.hub_model`: which files it stands for, by their digests, and how they come here.

    choice.py     which files of a repository llama-server would take
    remote.py     the Hub over HTTP
    copies.py     files that are on this machine already
    stage.py      the row of an upgrade

A repository's name stands for its files as of one commit. The first upgrade pins that in the store (`hub/`), and until
`llama-release hub update` every run of every worker takes the files of that commit: a repository that moves on, or
settings that name another of its quantizations, never change a release unseen.

Where the Hub can't be asked then, a cache on this machine says what the commit has. It may have less of it, so that pin
is provisional: the Hub is asked for that very commit again until it answers. When the settings stand for the same files
by its answer, the pin is completed; when they stand for others, those that were pinned go on being served, each run
says so, and `llama-release hub update` takes the others.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from tasks.hub import copies
from tasks.hub.choice import Chosen, HubFile, Pin, choose, is_offline
from tasks.hub.remote import Hub, Unreachable
from tasks.release import BadInput, ToolingError
from tasks.settings import ServerSettings, Settings
from tasks.store import Store, hold
from tasks.turns import held_in_turn

Progress = Callable[[int, int, str], None]
"""Called with (megabytes that are here, megabytes in all, what)."""
_MB = 1_000_000
_SPARE_BYTES = 100 * _MB
"""Left free on the disk: what else runs there needs some."""
_PATIENCE_S = 120.0
"""For who pins just now: that takes some answers of the Hub."""


def own_alias(hub_model: str) -> str:
    """The name that llama-server gives a model of the Hub that has no alias: the repository as it was named, with its
    quantization (b11434: common_params_model::get_name in common/common.h, server-context.cpp)."""
    return hub_model


@dataclass(frozen=True)
class Resolved:
    """What `server.hub_model` stands for: files with digests, and where on this machine each is, or will be."""

    wanted: ServerSettings
    pin: Pin
    chosen: Chosen
    folder: Path
    differs: str = ""
    """How the Hub's word on the pinned commit differs from the cache's, which is pinned."""

    @property
    def setting(self) -> str:
        assert self.wanted.hub_model
        return self.wanted.hub_model

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
        where = "" if self.pin.told_by_hub else ", as the cache here has it"
        differs = f"; {self.differs}" if self.differs else ""
        return f"{self.setting} is {names_of(self.chosen)} of commit {self.pin.commit[:12]}{where}{differs}"


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

    Where a cache told what is pinned, the Hub is asked for that commit: see the module. Nothing is downloaded and
    nothing is pinned. Raises BadInput for a repository or quantization that can't be had, ToolingError when the Hub
    can't be asked and no cache here has it, or the disk has no room for the files.
    """
    repo = _repo(settings)
    if repo is None:
        return None
    pin = store.hub_pin(repo, Pin)
    found = _pinned(settings, pin) if pin else _resolved(settings, _read(store, settings, repo))
    _refuse_in_vain(store, found)
    return found


def fetch(store: Store, settings: Settings, progress: Progress) -> tuple[Settings, Resolved]:
    """(the settings with the files of `server.hub_model`, which are here now; what it stands for). Pins the commit.

    Raises as `look`, and ToolingError when a download breaks off: it goes on from there the next time.
    """
    found = look(store, settings)
    if found is None:
        raise BadInput("server.hub_model is not set", todo="set it to user/repository:quant")
    found = _pin(store, settings, found)
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
    found = _resolved(settings, _hub(settings.server).listing(repo))
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
    there = _hub(found.wanted).listing(found.pin.repo)
    if there.commit == found.pin.commit:
        return found.differs
    return f"the repository is at {there.commit[:12]} by now, with {_difference(found, there) or 'the same files'}"


def pinning(store: Store, doing: str) -> AbstractContextManager[None]:
    """Hold the lock under which a repository is pinned, once whoever has it is done. Raises Taken."""
    return held_in_turn(store, "hub", {"name": doing}, patience_s=_PATIENCE_S)


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
    return Resolved(settings.server, pin, choose(pin, settings.server), folder)


def _pinned(settings: Settings, pin: Pin) -> Resolved:
    """What the settings stand for by a pin, which is completed with the Hub's word where a cache told it."""
    if pin.told_by_hub:
        return _resolved(settings, pin)
    try:
        whole = _hub(settings.server).listing(pin.repo, pin.commit)
    except Unreachable:
        return _resolved(settings, pin)
    except BadInput as problem:  # such as a commit that it has no longer
        return replace(_resolved(settings, pin), differs=f"the Hub does not say whether that is all: {problem.what}")
    try:
        found = _resolved(settings, pin)
    except BadInput:  # by the cache's word there is nothing that could have been served
        return _resolved(settings, whole)
    differs = _difference(found, whole)
    return replace(found, differs=f"by the Hub that commit has {differs}") if differs else _resolved(settings, whole)


def _pin(store: Store, settings: Settings, found: Resolved) -> Resolved:
    """Pin what was found, unless another process was first: then what its pin stands for."""
    repo = found.pin.repo
    if store.hub_pin(repo, Pin) == found.pin:
        return found
    with pinning(store, f"pinning {repo}"):
        pinned = store.hub_pin(repo, Pin)
        if pinned is None or _is_completed(pinned, found.pin):
            store.save_hub_pin(repo, found.pin)
            return found
    first = _resolved(settings, pinned)
    _refuse_in_vain(store, first)
    return first


def _is_completed(pinned: Pin, by: Pin) -> bool:
    return pinned.commit == by.commit and by.told_by_hub and not pinned.told_by_hub


def _difference(found: Resolved, there: Pin) -> str:
    """What the settings stand for by another listing, beside what was found; '' where that is the same."""
    try:
        chosen = choose(there, found.wanted)
    except BadInput as problem:
        return f"nothing that can be had ({problem.what}), where {names_of(found.chosen)} is pinned"
    same = chosen == found.chosen
    return "" if same else f"{names_of(chosen)}, where {names_of(found.chosen)} is pinned"


def names_of(chosen: Chosen) -> str:
    """Its files for people, each with its size and digest."""
    return ", ".join(f"{f.path} ({f.size_bytes / 1e9:.2f} GB, sha256 {f.sha256[:12]})" for f in chosen.files)


def _hub(server: ServerSettings) -> Hub:
    return Hub(offline=is_offline(server))


def _with(settings: Settings, found: Resolved) -> Settings:
    return settings.model_copy(update={"server": found.server(settings.server)})


def _read(store: Store, settings: Settings, repo: str) -> Pin:
    """The repository as the Hub has it now; where that can't be asked, as a cache on this machine has it, as
    llama-server does (b11434: common_download_get_hf_plan)."""
    try:
        return _hub(settings.server).listing(repo)
    except Unreachable as error:
        if (pin := copies.listing(store, repo, settings.server)) is None:
            raise Unreachable(
                f"{repo} is not on this machine, and the Hub can't be asked for it",
                evidence=error.evidence,
                todo=f"{error.todo}; or set server.model to a file that is here",
            ) from error
        return pin


def _refuse_in_vain(store: Store, found: Resolved) -> None:
    """Raises what a download would end with: terms that nobody accepted, no room on the disk."""
    elsewhere = [f for f in found.missing(store) if copies.of(store, found.pin.repo, f, found.wanted) is None]
    if elsewhere and found.pin.gated:
        _hub(found.wanted).refuse_gated(found.pin.repo)
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
        if copy := copies.of(store, found.pin.repo, file, found.wanted):
            copies.take(copy, path)
        else:
            _hub(found.wanted).download(found.pin, file, _part(path, file), path, tell)
        store.remember(path, file.sha256)


def _part(path: Path, file: HubFile) -> Path:
    """What there is of a download that is not done; by its digest, so that it is never gone on with as another's."""
    return path.with_name(f".{path.name}.{file.sha256[:16]}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def files_of(found: Resolved) -> Iterator[tuple[str, str]]:
    """(file in the repository, sha256), for the ledger."""
    yield from ((file.path, file.sha256) for file in found.chosen.files)
