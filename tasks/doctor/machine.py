"""What this machine lacks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from tasks.doctor import Check, Seen, needs, note, warning
from tasks.doctor.room import disk
from tasks.platforms.local import LocalPlatform
from tasks.settings import Settings

FAST = "HF_XET_HIGH_PERFORMANCE"
_TRUE = {"1", "ON", "YES", "TRUE"}  # huggingface_hub/constants.py


def checks(settings: Settings) -> Iterator[Check]:
    if settings.platform == "local":
        yield from needs.checks(settings)
        yield "snapshots", lambda: _snapshots(settings)
    else:
        yield "disk", lambda: disk(settings)
    yield "hf_xet", lambda: hf_xet(settings)


def _snapshots(settings: Settings) -> str | Seen:
    ability = LocalPlatform(settings).snapshots()
    return note(str(ability)) if ability.kind == "cold" else str(ability)


def hf_xet(settings: Settings) -> str | Seen:
    """Weights that have to be downloaded are downloaded fast (guide, issue 7)."""
    if settings.platform == "modal" and settings.modal.weights:
        from modal_app.images import FETCHING  # Modal's SDK takes a second to load

        return f"{', '.join(settings.modal.weights)}: fetched on Modal with {' and '.join(FETCHING)}, in fast mode"
    if settings.server.hub_model:
        return f"{settings.server.hub_model}: fetched by the upgrade itself, which goes on where it broke off"
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
