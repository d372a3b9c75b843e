"""The verdict on a release's idle cycles: were they restores, on evidence, and did the server stay what it was?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile
from statistics import median
from typing import NamedTuple

from modal_app.warmup import LOUD
from tasks.release import BootKind, Verdict
from tasks.restore.cycle import Cycle
from tasks.restore.deaths import death, verdict_of
from tasks.settings import RestoreSettings

CONFIDENCE = 0.95


class Judgement(NamedTuple):
    verdict: Verdict
    summary: str


def judge(cycles: Sequence[Cycle], settings: RestoreSettings) -> Judgement:
    """What a release's idle cycles, in their order, say of it. One that is wrong by itself decides; else the share."""
    for number, cycle in enumerate(cycles, 1):
        if found := fault(cycle):
            return Judgement(found.verdict, f"cycle {number}: {found.summary}")
    count = counted(cycles)
    if len(count) < settings.cycles:
        return Judgement(
            Verdict.INCONCLUSIVE, f"{len(cycles)} cycles, and each created a snapshot; {latencies(cycles)}"
        )
    numbers = f"same answers; {latencies(count)}"
    if all(cycle.kind is BootKind.COLD for cycle in count):
        verdict = Verdict.PASSED if settings.accept_cold else Verdict.INCONCLUSIVE
        return Judgement(verdict, f"{len(count)} of {len(count)} cold, there is no snapshot here; {numbers}")
    return _by_share(cycles, numbers, settings.required)


def fault(cycle: Cycle) -> Judgement | None:
    """What is wrong with a cycle whatever the others were: it crashed, it lied, or it answers differently."""
    if not cycle.boots and not cycle.error:
        return Judgement(Verdict.ERRORED, "a request was answered after the idle window, and no boot was recorded")
    if died := death(cycle.boots):
        came = ", then ".join(boot.kind for boot in cycle.boots)
        return Judgement(verdict_of(died), f"{died} (boots: {came})")
    if cycle.kind is BootKind.CRASHED:
        return Judgement(Verdict.FAILED, f"crashed: {'; '.join(filter(None, (cycle.told, cycle.error)))}")
    assert cycle.nonce and cycle.warm and cycle.control, "there was an answer"
    held = f"{cycle.nonce.cached_tokens} of {cycle.nonce.nonce_tokens} tokens"
    if not cycle.warm.found or cycle.control.found:
        what = "found" if cycle.control.found else "not found"
        which = "a nonce that nobody planted" if cycle.control.found else "a nonce planted a moment before"
        return Judgement(Verdict.ERRORED, f"nothing can be told from this server's cache: {which} was {what}")
    if cycle.kind is BootKind.RESTORED and not cycle.nonce.found:
        return Judgement(Verdict.FAILED, f"recorded as restored, but the nonce is gone: the server had {held}")
    # who took a snapshot has the nonce as well, where all snapshots of a deployment have the same
    have_it = {BootKind.RESTORED, BootKind.CREATED}
    if cycle.nonce.found and not have_it.intersection(boot.kind for boot in cycle.boots):
        return Judgement(Verdict.ERRORED, f"recorded as {cycle.told}, but the nonce is there: the server had {held}")
    if cycle.tolerance > LOUD:
        return Judgement(
            Verdict.ERRORED, f"asked twice, answers were {cycle.tolerance / 2:.2g} apart before the idle window"
        )
    if cycle.differences:
        return Judgement(Verdict.FAILED, f"{cycle.kind}, and it answers differently: {cycle.differences[0]}")
    return None


def counted(cycles: Sequence[Cycle]) -> Sequence[Cycle]:
    """The cycles without those at the beginning that created a snapshot."""
    return list(dropwhile(lambda cycle: cycle.kind is BootKind.CREATED, cycles))


def unfinished(cycles: Sequence[Cycle], settings: RestoreSettings) -> bool:
    """Whether another cycle is to be run: not after one that decides by itself."""
    if cycles and fault(cycles[-1]):
        return False
    count = len(counted(cycles))
    return count < settings.cycles and len(cycles) - count <= settings.created_max


def latencies(cycles: Sequence[Cycle]) -> str:
    """The medians of the two series: after idle (of restores, where there are any), and warm."""
    seen = [cycle.latency for cycle in cycles if cycle.latency]
    restored = [each for each in seen if each.kind is BootKind.RESTORED]
    idle, warm = median(each.after_idle_s for each in restored or seen), median(each.warm_s for each in seen)
    return f"first token {idle:.2f} s after idle, {warm:.2f} s warm"


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95% Wilson interval of a share."""
    from scipy.stats import binomtest  # it takes a second to load

    interval = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _by_share(cycles: Sequence[Cycle], numbers: str, required: float) -> Judgement:
    count = counted(cycles)
    kinds = [cycle.kind for cycle in count]
    restored = kinds.count(BootKind.RESTORED)
    low, high = wilson(restored, len(count))
    first = len(cycles) - len(count) + 1
    others = [f"cycle {n} {c.told}" for n, c in enumerate(count, first) if c.kind is not BootKind.RESTORED]
    share = f"{restored} of {len(count)} restored (Wilson {low:.2f}-{high:.2f}, required {required:.2f})"
    verdict = Verdict.PASSED if low >= required else Verdict.FAILED if high < required else Verdict.INCONCLUSIVE
    return Judgement(verdict, "; ".join([share, *others, numbers]))
