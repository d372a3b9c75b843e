"""One idle cycle of a stage: forced idle, nothing left running, a first request, and what came up to answer it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from modal_app.warmup import Answer, Asked, Golden, NoAnswer, Token, ask_again, record
from tasks.platforms import Platform
from tasks.release import BootKind, BootRecord, Latency, Model, Release, StageName, ToolingError
from tasks.settings import RestoreSettings

TOLERANCE = 1e-3
"""By how much (nats) a log-probability may always differ."""
LOUD = 0.5
"""A server whose answers differ by more than this (nats) with nothing in between can't be compared with itself."""
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
        )


def worst(boots: Sequence[BootRecord]) -> BootKind:
    """The worst kind of boot among these, of which there must be one."""
    return max((boot.kind for boot in boots), key=_WORST_LAST.index)


def recorded(platform: Platform, stage: StageName, release: Release) -> Golden:
    """What the stage's running server says now. Raises ToolingError when it says nothing."""
    endpoint = platform.endpoint(stage)
    try:
        return record(endpoint.base_url, endpoint.api_key, vision="mmproj" in release.files)
    except NoAnswer as error:
        raise ToolingError(
            f"{stage} gives no answers to compare with", evidence=str(error), todo=f"look at {platform.logs(stage)}"
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
    allowed = tolerance(golden)
    try:
        seen = ask_again(endpoint.base_url, endpoint.api_key, golden, patience_s=settings.answer_s)
    except NoAnswer as error:
        return Cycle(stage=stage, boots=tuple(platform.boots(stage)[known:]), error=str(error), tolerance=allowed)
    return Cycle(
        stage=stage, boots=tuple(platform.boots(stage)[known:]), nonce=seen.nonce, warm=seen.warm,
        control=seen.control, tolerance=allowed, differences=tuple(differences(golden, seen.answers)),
    )  # fmt: skip


def tolerance(golden: Golden) -> float:
    """By how much (nats) log-probabilities may differ: twice what they did between two askings."""
    return max(TOLERANCE, 2 * max(map(_apart, golden.first, golden.second)))


def differences(golden: Golden, answers: tuple[Answer, ...]) -> Iterator[str]:
    """One line for each answer that is not the golden one, within the tolerance."""
    allowed = tolerance(golden)
    for before, after in zip(golden.first, answers, strict=True):
        if (apart := _apart(before, after)) > allowed:
            tokens = [[token.id for token in answer.tokens] for answer in (before, after)]
            said = "the same tokens" if tokens[0] == tokens[1] else f"tokens {tokens[1]}, golden {tokens[0]}"
            yield f"{before.prompt[:40]!r}: log-probabilities {apart:.2g} apart, tolerance {allowed:.2g}; {said}"


def _apart(a: Answer, b: Answer) -> float:
    """The largest difference of two answers' log-probabilities, as far as they say the same.

    Where they part, how much less likely the other's token was: at a tie, nothing. Infinite when one just ends.
    """
    largest = 0.0
    for mine, other in zip(a.tokens, b.tokens, strict=False):
        largest = max(largest, *(_gap(mine, other, token) for token, _ in (*mine.top, *other.top)))
        if mine.id != other.id:
            return max(largest, *(abs(_log(t, mine.id) - _log(t, other.id)) for t in (mine, other)))
    return largest if len(a.tokens) == len(b.tokens) else math.inf


def _gap(a: Token, b: Token, token: int) -> float:
    return abs(_log(a, token) - _log(b, token))


def _log(place: Token, token: int) -> float:
    """The log-probability of a token in a place; of one that is not among the most likely, that of the last of them.
    Below -50 (e^-50) there is nothing to tell apart: a server writes the logarithm of nothing as -3e38."""
    top = dict(place.top)
    return max(-50.0, top.get(token, min(top.values())))
