"""What this machine lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tasks.doctor import Check, Seen, note, warning
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.compile import toolchain
from tasks.settings import Settings

FAST = "HF_XET_HIGH_PERFORMANCE"
_TRUE = {"1", "ON", "YES", "TRUE"}  # huggingface_hub/constants.py
_WORK_BYTES = 2_000_000_000  # an estimate: a source tree, its objects, and what they are linked to


def checks(settings: Settings) -> Iterator[Check]:
    if settings.platform == "local":
        yield "toolchain", lambda: ", ".join(f"{k} {v}" for k, v in toolchain(settings.recipe).items())
        yield "snapshots", lambda: _snapshots(settings)
    yield "disk", lambda: disk(settings)
    yield "hf_xet", lambda: hf_xet(settings)


def _snapshots(settings: Settings) -> str | Seen:
    ability = LocalPlatform(settings).snapshots()
    return note(str(ability)) if ability.kind == "cold" else str(ability)


def disk(settings: Settings) -> str | Seen:
    """The disk has room for the next build and, where servers are snapshotted, for one more snapshot."""
    root = settings.store.absolute()
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    builds = [_size(folder) for folder in (root / "builds").glob("*")]
    model = settings.server.model
    snapshot = model.stat().st_size if settings.platform == "local" and model and model.is_file() else 0
    needed = _WORK_BYTES + max(builds, default=0) + snapshot
    said = f"{free / 1e9:.1f} GB free at {there}, the next build and snapshot take about {needed / 1e9:.1f} GB"
    return (
        said if free > needed else warning(said, f"free some, or set store to a larger disk; {settings.cache} may go")
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hf_xet(settings: Settings) -> str | Seen:
    """Weights that have to be downloaded are downloaded fast (guide, issue 7)."""
    if settings.platform == "modal" and settings.modal.weights:
        from modal_app.images import FETCHING  # Modal's SDK takes a second to load

        return f"{', '.join(settings.modal.weights)}: fetched on Modal with {' and '.join(FETCHING)}, in fast mode"
    files = (settings.server.model, settings.server.mmproj)
    missing = [path.name for path in files if path and not path.is_file()]
    if not missing:
        return "no weights have to be downloaded here"
    lacks = []
    try:
        version("hf_xet")
    except PackageNotFoundError:
        lacks.append("hf_xet is not installed")
    if os.environ.get(FAST, "").upper() not in _TRUE:
        lacks.append(f"{FAST} is not 1")
    wanted = f"{', '.join(missing)} must be downloaded"
    if not lacks:
        return f"{wanted}, with hf_xet {version('hf_xet')} in fast mode"
    return warning(
        f"{wanted}, and {' and '.join(lacks)}", f"`pip install 'huggingface_hub[hf_xet]'` and `export {FAST}=1`"
    )
