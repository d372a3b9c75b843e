"""What a client only sees as no answer, told as the death of the server that its stage has on record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from tasks.platforms import Platform
from tasks.release import BootKind, BootRecord, Problem, Release, ReleaseFailed, StageName, ToolingError, Verdict
from tasks.runbook import NOT_THE_BUILDS

RECORD_LIMIT_S = 1.0
"""How long the record of a crash may come after the broken connection: the activator looks every half second."""
POLL_S = 0.05


def death(boots: Sequence[BootRecord]) -> str:
    """How the last server that crashed among these boots ended, as a sentence; '' when none did."""
    reason = next((boot.reason for boot in reversed(boots) if boot.kind is BootKind.CRASHED), None)
    if reason is None:
        return ""
    return f"the server {reason}" if reason.startswith("did not come up") else f"the server died: {reason}"


def verdict_of(death: str) -> Verdict:
    """`errored` for SIGKILL, which no program does to itself (the kernel when memory is short, or somebody), and for
    what kept a server from coming up through no fault of its build."""
    return Verdict.ERRORED if "SIGKILL" in death or NOT_THE_BUILDS in death else Verdict.FAILED


def later(boots: Sequence[BootRecord], known: Sequence[BootRecord]) -> list[BootRecord]:
    """The boots that came after all that were known.

    By what they are and when, and never by their number: a platform may learn late of a server that died (Modal's log
    comes after the boot record of the one that took its place), and forget what nobody asked for in a week.
    """
    last = latest(known)
    return [boot for boot in boots if last is None or boot.at > last]


def latest(boots: Sequence[BootRecord]) -> datetime | None:
    """When the last of these was; None of none."""
    return max((boot.at for boot in boots), default=None)


def since(platform: Platform, stage: StageName, known: Sequence[BootRecord]) -> list[BootRecord]:
    """The boots of a stage after the `known` ones, with the crash that may be recorded in a moment."""
    deadline = time.monotonic() + RECORD_LIMIT_S
    while not death(boots := later(platform.boots(stage), known)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return boots


@contextmanager
def naming_deaths(platform: Platform, stage: StageName, release: Release) -> Iterator[None]:
    """Raise what fails inside because this release's server died on a stage as that death, caused by it.

    ReleaseFailed, or ToolingError for SIGKILL. What says itself that a server did not come up is raised as it is.
    """
    known = platform.boots(stage)
    try:
        yield
    except Problem as error:
        found = death([boot for boot in since(platform, stage, known) if boot.release == release.id])
        if not found or "did not come up" in found:
            raise
        kind = ToolingError if verdict_of(found) is Verdict.ERRORED else ReleaseFailed
        raise kind(
            f"{release.label} on {stage}: {found.partition('; kernel: ')[0]}",
            evidence="\n".join(filter(None, (found, error.what))),
            todo=f"read {platform.logs(stage)}; `llama-release explain` knows what its signal can mean",
        ) from error
