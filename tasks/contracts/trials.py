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

ORDER: tuple[Server, ...] = ("model", "starting", "scripted", "set", "calling", "counting", "seeing")
SCRIPTS: dict[Server, Callable[[], Script]] = {
    "scripted": thinks_then_answers,
    "set": thinks_then_answers,
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
    if server != "set":  # what a promise asks of thoughts and tools is told in its requests
        runs = runs.model_copy(update={"argv": _without(runs.argv, OF_THINKING)})
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


OF_THINKING = re.compile(r"--(?:reasoning|skip-chat-parsing|no-jinja)")
"""Options that say whether a model thinks, and what becomes of its thoughts and calls."""


def with_model(store: Store, release: Release, model: Path) -> Release:
    """The same release serving another model with that model's own chat template: for trials only."""
    argv = _without(release.argv, OF_THE_MODEL)
    return release.model_copy(update={"argv": argv, "files": {"model": store.put_file(model)}})


def _without(argv: Sequence[str], left_out: re.Pattern[str]) -> tuple[str, ...]:
    """An argv without the options that a pattern names, and without those that name other files than the model."""
    kept = (group for group in split(argv, known()) if not _names(group, left_out))
    return tuple(word for group in kept for word in group)


def _names(group: Sequence[str], left_out: re.Pattern[str]) -> bool:
    flag = known().find(group[0])
    names = (group[0], flag.main) if flag else (group[0],)
    return any(left_out.match(name) for name in names) or any(
        "{" in word and "{model}" not in word for word in group[1:]
    )
