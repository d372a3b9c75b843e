"""`llama-release doctor`: one line a check, with what was seen, and what to do where it is not well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.compile import toolchain
from tasks.platforms.local.doctor import stage_check
from tasks.release import Model, Problem, StageName
from tasks.settings import Settings

Check = tuple[str, Callable[[], str]]
"""(what is checked, a function that gives the evidence that it is well or raises a Problem)."""


class Finding(Model):
    """What one check came to."""

    check: str
    well: bool
    evidence: str
    todo: str = ""
    exit_code: int = 0


def examine(settings: Settings) -> Iterator[Finding]:
    """Each check of the platform that the settings name, as it is made. Nothing is changed by it."""
    for name, look in checks_of(settings):
        try:
            yield Finding(check=name, well=True, evidence=look())
        except Problem as problem:
            evidence = f"{problem.what}: {problem.evidence}" if problem.evidence else problem.what
            yield Finding(check=name, well=False, evidence=evidence, todo=problem.todo, exit_code=problem.exit_code)


def checks_of(settings: Settings) -> Iterator[Check]:
    """The checks of a platform, most basic first."""
    if settings.platform == "modal":
        from tasks.platforms.modal.doctor import checks  # Modal's SDK takes a second to load

        yield from checks(settings)
    else:
        yield "toolchain", lambda: ", ".join(f"{k} {v}" for k, v in toolchain(settings.recipe).items())
        yield "snapshots", lambda: str(LocalPlatform(settings).snapshots())
        for stage in get_args(StageName):
            yield stage, lambda stage=stage: stage_check(LocalPlatform(settings), stage)  # type: ignore[misc]
