"""A full build against a rebuild of the neighbouring upstream release, and the reuse of an identical build."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.patches import apply_series, tree_without
from tasks.platforms.local.compile import build
from tasks.release import Build, SourceTree
from tasks.settings import Settings, load
from tasks.sources import Sources
from tasks.store import Store
from tasks.upstream import find, open_upstream

OLDER, NEWER = "b11401", "b11434"


def source_of(settings: Settings, tag: str) -> SourceTree:
    upstream = open_upstream(settings)
    release = find(upstream.releases(), tag)
    return apply_series(Sources(settings.cache), release, upstream.fetch(release), settings.patches, upstream)


def main() -> Iterator[str]:
    """Lines of the report. Compiles llama-server twice from nothing: about ten minutes on two cores."""
    settings = load()
    sources = {tag: source_of(settings, tag) for tag in (OLDER, NEWER)}
    with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder:
        fresh = settings.model_copy(update={"store": Path(folder) / "store", "cache": Path(folder) / "cache"})
        fresh.cache.mkdir()
        (fresh.cache / "sources.git").symlink_to((settings.cache / "sources.git").absolute())

        def timed(source: SourceTree) -> tuple[float, Build]:
            start = time.monotonic()
            made = build(source, settings.recipe, Store(fresh.store), fresh, lambda *_: None)
            return time.monotonic() - start, made

        full, older = timed(sources[OLDER])
        yield f"full build of {OLDER}: {full:.0f} s, {older.objects} objects"
        built_with = [p.file for p in sources[OLDER].patches if p.status.built_with]
        second, without = timed(tree_without(settings, sources[OLDER], *built_with))
        yield (
            f"then {OLDER} without its patches, the second build of a proof: {second:.0f} s, {without.cache_hits} of "
            f"{without.objects} from cache, ratio to the first {second / full:.2f}"
        )
        near, newer = timed(sources[NEWER])
        yield (
            f"then {NEWER} with the compiler cache: {near:.0f} s, {newer.cache_hits} of {newer.objects} from cache, "
            f"ratio to full {near / full:.2f}"
        )
        again, _ = timed(sources[NEWER])
        yield f"then {NEWER} again, reused by digest: {again:.2f} s, ratio to full {again / full:.4f}"
        Store(fresh.store).build_dir(newer.digest).joinpath("manifest.json").unlink()
        same, remade = timed(sources[NEWER])
        yield (
            f"then {NEWER} compiled again, same source: {same:.0f} s, {remade.cache_hits} of {remade.objects} "
            f"from cache, ratio to full {same / full:.2f}"
        )
