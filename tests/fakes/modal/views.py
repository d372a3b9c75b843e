"""A container's own view of a volume: what it writes is there for others once it is committed, and theirs for it once
it reloads. Files are hard links, so a view costs nothing; the last writer of a file wins."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

Identity = tuple[int, int, int]
FOLDER: Identity = (0, 0, 0)


class View:
    def __init__(self, volume: Path, folder: Path) -> None:
        """Makes `folder` what the volume is now."""
        self.volume, self.folder = volume, folder
        folder.mkdir(parents=True)
        self._committed: Mapping[str, Identity] = {}
        self.reload()

    def commit(self) -> None:
        carry(self.folder, self.volume, self._committed)
        self._committed = contents(self.folder)

    def reload(self) -> None:
        """What was not committed is, as on Modal."""
        self.commit()
        carry(self.volume, self.folder, self._committed)
        self._committed = contents(self.folder)


def contents(folder: Path) -> Mapping[str, Identity]:
    """What tells a file from another one, by its path below the folder; a folder comes before what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        identity = FOLDER if stat.S_ISDIR(state.st_mode) else (state.st_ino, state.st_mtime_ns, state.st_size)
        found[str(path.relative_to(folder))] = identity
    return found


def carry(source: Path, target: Path, before: Mapping[str, Identity]) -> None:
    """Does in `target` what was done in `source` since `before`."""
    now = contents(source)
    for name, identity in now.items():
        place = target / name
        if identity == FOLDER:
            place.mkdir(parents=True, exist_ok=True)
        elif before.get(name) != identity and not (os.path.lexists(place) and place.lstat().st_ino == identity[0]):
            part = place.with_name(f".{place.name}.part")
            os.link(source / name, part, follow_symlinks=False)
            part.replace(place)
    for name in sorted(before.keys() - now.keys(), reverse=True):
        with contextlib.suppress(OSError):  # gone here too, or a folder where somebody else has put something
            (target / name).rmdir() if before[name] == FOLDER else (target / name).unlink()
