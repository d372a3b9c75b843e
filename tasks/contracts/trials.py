"""The trial servers that promises are checked on: a release, or what it is with a scripted model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.contracts import projector
from tasks.contracts.promises import Server
from tasks.contracts.scripted import Script, build, calls_a_tool, counts_or_skips, thinks_then_answers, width
from tasks.flags.table import known
from tasks.flags.words import split
from tasks.release import Release
from tasks.store import Store

ORDER: tuple[Server, ...] = ("model", "starting", "scripted", "calling", "counting", "seeing")
SCRIPTS: dict[Server, Callable[[], Script]] = {
    "scripted": thinks_then_answers,
    "calling": calls_a_tool,
    "counting": counts_or_skips,
    "seeing": thinks_then_answers,
}


def trial_release(store: Store, release: Release, server: Server, folder: Path) -> Release:
    """What the trial server of this kind runs: the release, or the release with a scripted model instead of its own.

    The model is made in `folder`. The one that sees has a projector too, whatever the release has.
    """
    if server not in SCRIPTS:
        return release
    script, sees = SCRIPTS[server](), server == "seeing"
    runs = with_model(store, release, build(script, folder / f"{server}.gguf", attends=sees))
    if not sees:
        return runs
    mmproj = store.put_file(projector.build(width(script), folder / "mmproj.gguf"))
    return runs.model_copy(
        update={"argv": (*runs.argv, "--mmproj", "{mmproj}"), "files": {**runs.files, "mmproj": mmproj}}
    )


OF_THE_MODEL = re.compile(
    r"--(?:mmproj|image|lora|control-vector|spec|draft|override-kv|override-tensor|rope|yarn|chat-template|grammar"
    r"|json-schema|lookup-cache|pooling|embedding|rerank|tensor-split|cpu-moe|n-cpu-moe|fit|lazy)"
)
"""Options that say something of the model itself, or of another file that belongs to it: by their first long name."""


def with_model(store: Store, release: Release, model: Path) -> Release:
    """The same release serving another model with that model's own chat template: for trials only."""
    groups = list(split(release.argv, known()))
    argv = (word for group in groups if not _is_of_the_model(group) for word in group)
    return release.model_copy(update={"argv": tuple(argv), "files": {"model": store.put_file(model)}})


def _is_of_the_model(group: Sequence[str]) -> bool:
    flag = known().find(group[0])
    names = (group[0], flag.main) if flag else (group[0],)
    placed = any("{" in word and "{model}" not in word for word in group[1:])
    return placed or any(OF_THE_MODEL.match(name) for name in names)
