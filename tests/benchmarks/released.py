"""What most benchmarks measure on: the newest release of the store that the settings name, such as the demo's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.platforms.local import LocalPlatform
from tasks.release import Release
from tasks.settings import LocalSettings, Settings, load
from tasks.store import Store


class NoRelease(LookupError):
    """The store has none."""

    def __init__(self, store: Store) -> None:
        super().__init__(f"there is no release in {store.root}: run `make demo` first")


def newest(store: Store) -> Release:
    """Raises NoRelease."""
    if found := store.releases():
        return found[0]
    raise NoRelease(store)


def copy_build(known: Store, store: Store, digest: str) -> None:
    """Have a build of one store in another."""
    shutil.copytree(known.build_dir(digest), store.build_dir(digest), symlinks=True)


@contextmanager
def copied() -> Iterator[tuple[LocalPlatform, Release]]:
    """A platform of its own that has a copy of the newest release, and that release; its servers end with the block.

    Raises NoRelease.
    """
    settings = load()
    known = Store(settings.store)
    release = newest(known)
    with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder:
        local = LocalSettings(staging_port=0, production_port=0, idle_s=600)
        platform = LocalPlatform(Settings(store=Path(folder), cache=settings.cache, local=local))
        copy_build(known, platform.store, release.build)
        for ref in release.files.values():
            platform.store.put_file(known.file(ref))
        try:
            yield platform, release
        finally:
            platform.shut_down()
