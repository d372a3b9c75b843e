"""The trial servers that promises are checked on: a release, or what it is with a scripted model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasks.contracts import projector
from tasks.contracts.promises import Server
from tasks.contracts.scripted import Script, build, calls_a_tool, counts_or_skips, thinks_then_answers, width
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


def with_model(store: Store, release: Release, model: Path) -> Release:
    """The same release serving another model with that model's own chat template: for trials only."""
    argv = list(release.argv)
    for flag in ("--mmproj", "--chat-template-file"):
        if flag in argv:
            at = argv.index(flag)
            del argv[at : at + 2]
    return release.model_copy(update={"argv": tuple(argv), "files": {"model": store.put_file(model)}})
