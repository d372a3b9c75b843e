"""One idle cycle of a stage: forced idle, nothing left running, a first request, and what came up to answer it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from modal_app.warmup import (
    TOLERANCE,
    Asked,
    Golden,
    NoAnswer,
    ask_again,
    differences,
    record,
    tolerance,
    wait_until_up,
)
from tasks.platforms import Platform
from tasks.release import BootKind, BootRecord, Latency, Model, Release, StageName, ToolingError
from tasks.restore.deaths import death, later, latest, since
from tasks.settings import RestoreSettings

RECORD_LIMIT_S = 10.0
"""How long a boot record may come after the first answer: Modal's containers write theirs while they serve."""
POLL_S = 0.1

_WORST_LAST = (BootKind.RESTORED, BootKind.CREATED, BootKind.COLD, BootKind.FELL_BACK, BootKind.CRASHED)


class NotIdle(ToolingError):
    """The idle window could not be forced."""


class Cycle(Model):
    """How a stage came back once, and the evidence."""

    stage: StageName
    boots: tuple[BootRecord, ...]
    error: str = ""
    """Why there was no answer, if there was none."""
    status: int | None = None
    """Of that error, where it is an HTTP answer of the server."""
    unclear: str = ""
    """Why nothing can be told from it, if nothing can."""
    nonce: Asked | None = None
    warm: Asked | None = None
    control: Asked | None = None
    tolerance: float
    differences: tuple[str, ...] = ()
    """One line for each golden answer that is another one now."""
    since: datetime | None = None
    """Of the last boot before it; what came up later is its own."""
    compared: bool = True
    """Whether the answers were held against golden ones: there may be none of this machine's."""

    def seen_again(self, boots: Sequence[BootRecord]) -> Cycle:
        """The cycle with all that is known by now of what came up in its time: until the server that answered."""
        until = latest(self.boots)
        if self.since is None or until is None:
            return self
        found = tuple(boot for boot in boots if self.since < boot.at <= until)
        return self.model_copy(update={"boots": found}) if found else self

    @property
    def kind(self) -> BootKind:
        """How it came up: the worst of what was recorded, and `crashed` when nothing answered."""
        return BootKind.CRASHED if self.error or not self.boots else worst(self.boots)

    @property
    def told(self) -> str:
        """The boot records in words."""
        return ", then ".join(f"{b.kind} ({b.reason})" if b.reason else b.kind for b in self.boots) or "no boot record"

    @property
    def latency(self) -> Latency | None:
        """What goes into the release's series; nothing when it did not answer."""
        if self.nonce is None or self.warm is None:
            return None
        return Latency(
            stage=self.stage,
            kind=self.kind,
            health_s=self.boots[-1].health_s if self.boots else None,
            after_idle_s=self.nonce.first_token_s,
            warm_s=self.warm.first_token_s,
            snapshot=self.boots[-1].snapshot if self.boots else None,
        )


def worst(boots: Sequence[BootRecord]) -> BootKind:
    """The worst kind of boot among these, of which there must be one."""
    return max((boot.kind for boot in boots), key=_WORST_LAST.index)


def recorded(platform: Platform, stage: StageName, release: Release) -> Golden:
    """What the stage's running server says now. Raises ToolingError when it says nothing."""
    endpoint = platform.endpoint(stage)
    known = platform.boots(stage)
    try:
        golden = record(
            endpoint.base_url, endpoint.api_key, vision="mmproj" in release.files, headers=endpoint.headers
        )  # fmt: skip
        up = platform.boots(stage)[-1:]
        return replace(golden, worker=up[0].worker if up else "")
    except NoAnswer as error:
        died = death(since(platform, stage, known))
        raise ToolingError(
            f"{stage} gives no answers to compare with{f': {died}' if died else ''}",
            evidence=str(error),
            todo=f"look at {platform.logs(stage)}",
        ) from error


def run(platform: Platform, stage: StageName, golden: Golden, settings: RestoreSettings) -> Cycle:
    """Force a stage idle and see how it comes back. Raises NotIdle when it does not go idle."""
    left = platform.idle(stage)
    if left:
        raise NotIdle(
            f"{stage} did not go idle",
            evidence=f"{left} serving processes are left",
            todo=f"look at {platform.logs(stage)}",
        )
    return wake(platform, stage, golden, settings)


def wake(platform: Platform, stage: StageName, golden: Golden, settings: RestoreSettings) -> Cycle:
    """See how a stage that is idle comes back."""
    known = platform.boots(stage)
    time.sleep(settings.wait_s)
    endpoint = platform.endpoint(stage)
    address, key = endpoint.base_url, endpoint.api_key
    patience_s = max(settings.answer_s, endpoint.start_s)
    to_ask = Comparison(golden)
    try:
        waited_s = wait_until_up(address, key, patience_s=patience_s, headers=endpoint.headers)
        to_ask = _comparison(platform, stage, golden, known)
        seen = ask_again(
            address, key, to_ask.golden, patience_s=patience_s, waited_s=waited_s, headers=endpoint.headers
        )
    except NoAnswer as error:
        boots = tuple(since(platform, stage, known))
        return Cycle(
            stage=stage, boots=boots, error=str(error), status=error.status, tolerance=tolerance(to_ask.golden),
            since=latest(known),
        )  # fmt: skip
    boots = tuple(later(platform.boots(stage), known))
    compared = to_ask.fits and not to_ask.unclear
    return Cycle(
        stage=stage, boots=boots, nonce=seen.nonce, warm=seen.warm, control=seen.control, unclear=to_ask.unclear,
        tolerance=tolerance(to_ask.golden) if compared else TOLERANCE, compared=compared,
        differences=tuple(differences(to_ask.golden, seen.answers)) if compared else (), since=latest(known),
    )  # fmt: skip


class Comparison(NamedTuple):
    """What a server that came up is asked, and what its answers may be held against."""

    golden: Golden
    fits: bool = True
    """Whether these are golden answers of its own kind of machine: another one gives other numbers."""
    unclear: str = ""


def _comparison(platform: Platform, stage: StageName, golden: Golden, known: Sequence[BootRecord]) -> Comparison:
    """The golden record that goes with what came up after the `known` boots.

    Modal has a snapshot for each worker type: the nonce is the deployment's, the answers are the snapshot's, and the
    one that was last heard of before the idle window may be another's. What was restored is held against its own. One
    that only this boot knows may be what a cold boot has just taken, whose nonce is there and proves nothing. What
    booted cold is on some machine and has no golden answers; it has the nonce if it took a snapshot, and else not.
    Where there are no snapshots, it is held against answers from its own kind of machine alone.
    """
    snapshots = platform.golden(stage) is not None
    boots = await_boots(platform, stage, known, RECORD_LIMIT_S) if snapshots or golden.worker else []
    if not snapshots:
        return Comparison(golden, fits=not golden.worker or golden.worker in [boot.worker for boot in boots[-1:]])
    before = {boot.snapshot for boot in known if boot.snapshot}
    named = boots[-1].snapshot if boots else None
    if not boots or not (named or before):  # the platform has one snapshot, or none
        return Comparison(golden)
    if boots[-1].kind is not BootKind.RESTORED:
        return Comparison(golden, fits=False)
    own = platform.golden(stage, named) if named and named in before else None
    if own is None:
        return Comparison(golden, False, f"restored from the snapshot {named}, of which no golden answers are known")
    return Comparison(own)


def await_boots(platform: Platform, stage: StageName, known: Sequence[BootRecord], limit_s: float) -> list[BootRecord]:
    """The boots of a stage after the `known` ones, waited for so long when none says how it came up in the end."""
    deadline = time.monotonic() + limit_s
    while not any(map(_came_up, boots := later(platform.boots(stage), known))) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return boots


def _came_up(boot: BootRecord) -> bool:
    return boot.health_s is not None or boot.kind is BootKind.CRASHED
