"""One idle cycle of a stage: forced idle, nothing left running, a first request, and what came up to answer it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from modal_app.warmup import Asked, Golden, NoAnswer, ask_again, differences, record, tolerance, wait_until_up
from tasks.platforms import Platform
from tasks.release import BootKind, BootRecord, Latency, Model, Release, StageName, ToolingError
from tasks.restore.deaths import death, since
from tasks.settings import RestoreSettings

RECORD_LIMIT_S = 10.0
"""How long a boot record may come after the first answer: Modal's containers write theirs while they serve."""
POLL_S = 0.1

_WORST_LAST = (BootKind.RESTORED, BootKind.CREATED, BootKind.COLD, BootKind.FELL_BACK, BootKind.CRASHED)


class Cycle(Model):
    """How a stage came back once, and the evidence."""

    stage: StageName
    boots: tuple[BootRecord, ...]
    error: str = ""
    """Why there was no answer, if there was none."""
    nonce: Asked | None = None
    warm: Asked | None = None
    control: Asked | None = None
    tolerance: float
    differences: tuple[str, ...] = ()
    """One line for each golden answer that is another one now."""

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
    known = len(platform.boots(stage))
    try:
        return record(endpoint.base_url, endpoint.api_key, vision="mmproj" in release.files)
    except NoAnswer as error:
        died = death(since(platform, stage, known))
        raise ToolingError(
            f"{stage} gives no answers to compare with{f': {died}' if died else ''}",
            evidence=str(error),
            todo=f"look at {platform.logs(stage)}",
        ) from error


def run(platform: Platform, stage: StageName, golden: Golden, settings: RestoreSettings) -> Cycle:
    """Force a stage idle and see how it comes back. Raises ToolingError when it does not go idle."""
    left = platform.idle(stage)
    if left:
        raise ToolingError(
            f"{stage} did not go idle",
            evidence=f"{left} serving processes are left",
            todo=f"look at {platform.logs(stage)}",
        )
    return wake(platform, stage, golden, settings)


def wake(platform: Platform, stage: StageName, golden: Golden, settings: RestoreSettings) -> Cycle:
    """See how a stage that is idle comes back."""
    known = len(platform.boots(stage))
    time.sleep(settings.wait_s)
    endpoint = platform.endpoint(stage)
    address, key = endpoint.base_url, endpoint.api_key
    try:
        waited_s = wait_until_up(address, key, patience_s=settings.answer_s)
        if platform.golden(stage):
            golden = _golden_of_what_came(platform, stage, known) or golden
        seen = ask_again(address, key, golden, patience_s=settings.answer_s, waited_s=waited_s)
    except NoAnswer as error:
        boots = tuple(since(platform, stage, known))
        return Cycle(stage=stage, boots=boots, error=str(error), tolerance=tolerance(golden))
    return Cycle(
        stage=stage, boots=tuple(platform.boots(stage)[known:]), nonce=seen.nonce, warm=seen.warm,
        control=seen.control, tolerance=tolerance(golden), differences=tuple(differences(golden, seen.answers)),
    )  # fmt: skip


def _golden_of_what_came(platform: Platform, stage: StageName, known: int) -> Golden | None:
    """What the snapshot that this boot names says, when earlier boots knew it; None when they did not.

    Modal has a snapshot for each worker type, each with its own nonce, so the one that was last heard of before the
    idle window may be another's. One that only this boot knows may be what a cold boot has just taken: its nonce is
    there, and proves nothing.
    """
    boots = await_boots(platform, stage, known, RECORD_LIMIT_S)
    named = boots[-1].snapshot if boots else None
    if not named or named not in {boot.snapshot for boot in platform.boots(stage)[:known]}:
        return None
    return platform.golden(stage, named)


def await_boots(platform: Platform, stage: StageName, known: int, limit_s: float) -> list[BootRecord]:
    """The boots of a stage after the first `known`, waited for so long when there are none."""
    deadline = time.monotonic() + limit_s
    while not (boots := platform.boots(stage)[known:]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return boots
