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
from tasks.restore.sequential import Tally, decide, percent
from tasks.settings import RestoreSettings

UNTOLD_MAX = 2
"""Attempts at an idle cycle of which nothing can be told, that may be made up for by others. Were it any number, a
snapshot of which every other restore ends in a SIGKILL would pass by being asked again."""
REFUSED = (401, 403, 429)
"""What a server answers because of who asks."""


class Judgement(NamedTuple):
    verdict: Verdict
    summary: str


def judge(cycles: Sequence[Cycle], settings: RestoreSettings, untold: Sequence[str] = ()) -> Judgement:
    """What a release's idle cycles, in their order, say of it. One that is wrong by itself decides; else the test.

    `failed` only when the test decides against it: what it leaves undecided is `inconclusive`. `untold`: what is known
    of further attempts of which nothing could be told, this run's and earlier ones'; too many are `inconclusive`.
    """
    found = _of_the_cycles(cycles, settings)
    if not untold:
        return found
    said = f"attempts that told nothing: {len(untold)} ({untold[-1]})"
    if found.verdict is not Verdict.FAILED and len(untold) > UNTOLD_MAX:
        return Judgement(Verdict.INCONCLUSIVE, f"{said}; the others: {found.summary}")
    return Judgement(found.verdict, f"{found.summary}; {said}")


def _of_the_cycles(cycles: Sequence[Cycle], settings: RestoreSettings) -> Judgement:
    for number, cycle in enumerate(cycles, 1):
        if found := fault(cycle):
            return Judgement(found.verdict, f"cycle {number}: {found.summary}")
    if not cycles:
        return Judgement(Verdict.INCONCLUSIVE, "no idle cycle told anything")
    count = counted(cycles)
    if not count:
        return Judgement(
            Verdict.INCONCLUSIVE, f"{len(cycles)} cycles, and each created a snapshot; {latencies(cycles)}"
        )
    if _are_cold(count) and len(count) >= settings.cold_cycles:
        compared = sum(cycle.compared for cycle in count)
        verdict = Verdict.PASSED if settings.accept_cold and compared else Verdict.INCONCLUSIVE
        words = f"{len(count)} of {len(count)} cold, there is no snapshot here; {_same(compared, len(count))}"
        return Judgement(verdict, f"{words}; {latencies(count)}")
    return _by_the_test(cycles, settings)


def fault(cycle: Cycle) -> Judgement | None:
    """What is wrong with a cycle whatever the others were: it crashed, it lied, or it answers differently."""
    if not cycle.boots and not cycle.error:
        return Judgement(Verdict.ERRORED, "a request was answered after the idle window, and no boot was recorded")
    if died := death(cycle.boots):
        came = ", then ".join(boot.kind for boot in cycle.boots)
        return Judgement(verdict_of(died), f"{died} (boots: {came})")
    if cycle.status in REFUSED:
        return Judgement(Verdict.ERRORED, f"we were refused, which says nothing of the server: {cycle.error}")
    if cycle.kind is BootKind.CRASHED:
        return Judgement(Verdict.FAILED, f"crashed: {'; '.join(filter(None, (cycle.told, cycle.error)))}")
    if cycle.unclear:
        return Judgement(Verdict.ERRORED, cycle.unclear)
    assert cycle.nonce and cycle.warm and cycle.control, "there was an answer"
    held = f"{cycle.nonce.cached_tokens} of {cycle.nonce.nonce_tokens} tokens"
    if not cycle.warm.found or cycle.control.found:
        what = "found" if cycle.control.found else "not found"
        which = "a nonce that nobody planted" if cycle.control.found else "a nonce planted a moment before"
        return Judgement(Verdict.ERRORED, f"nothing can be told from this server's cache: {which} was {what}")
    if cycle.kind is BootKind.RESTORED and not cycle.nonce.found:
        return Judgement(Verdict.FAILED, f"recorded as restored, but the nonce is gone: the server had {held}")
    # whoever took a snapshot has the nonce as well, where all snapshots of a deployment have the same; it is the last
    # of several containers that answers
    if cycle.nonce.found and cycle.boots[-1].kind not in (BootKind.RESTORED, BootKind.CREATED):
        return Judgement(Verdict.ERRORED, f"recorded as {cycle.told}, but the nonce is there: the server had {held}")
    if cycle.tolerance > LOUD:
        return Judgement(
            Verdict.ERRORED, f"asked twice, answers were {cycle.tolerance / 2:.2g} apart before the idle window"
        )
    if cycle.differences:
        return Judgement(Verdict.FAILED, f"{cycle.kind}, and it answers differently: {cycle.differences[0]}")
    return None


def counted(cycles: Sequence[Cycle]) -> list[Cycle]:
    """The cycles that count: not those at the beginning that created a snapshot. Later ones may be failed restores,
    see tasks/restore/sequential.py."""
    return list(dropwhile(lambda cycle: cycle.kind is BootKind.CREATED, cycles))


def unfinished(cycles: Sequence[Cycle], settings: RestoreSettings) -> bool:
    """Whether another cycle is to be run: not after one that decides by itself."""
    count = counted(cycles)
    if (cycles and fault(cycles[-1])) or len(cycles) - len(count) > settings.created_max:
        return False
    if _are_cold(count):
        return len(count) < settings.cold_cycles
    return len(count) < settings.cycles_max and decide(_tally(count), settings) is None


def _are_cold(count: Sequence[Cycle]) -> bool:
    return bool(count) and all(cycle.kind is BootKind.COLD for cycle in count)


def _same(compared: int, all_: int) -> str:
    if not compared:
        return "no answers were compared: each was of another kind of machine than those of before"
    return "same answers" if compared == all_ else f"same answers in the {compared} that were compared"


def _tally(count: Sequence[Cycle]) -> Tally:
    restored = sum(cycle.kind is BootKind.RESTORED for cycle in count)
    created = sum(cycle.kind is BootKind.CREATED for cycle in count)
    return Tally(restored, len(count) - restored - created, created)


def latencies(cycles: Sequence[Cycle]) -> str:
    """The medians of the two series: after idle (of restores, where there are any), and warm."""
    seen = [cycle.latency for cycle in cycles if cycle.latency]
    restored = [each for each in seen if each.kind is BootKind.RESTORED]
    idle, warm = median(each.after_idle_s for each in restored or seen), median(each.warm_s for each in seen)
    return f"first token {idle:.2f} s after idle, {warm:.2f} s warm"


def _by_the_test(cycles: Sequence[Cycle], settings: RestoreSettings) -> Judgement:
    count = counted(cycles)
    tally = _tally(count)
    verdict = decide(tally, settings) or Verdict.INCONCLUSIVE
    good, bad = percent(settings.good), percent(settings.bad)
    meaning = {
        Verdict.PASSED: f"rather {good} than {bad} come back",
        Verdict.FAILED: f"rather {bad} than {good} come back",
    }.get(verdict, f"too few cycles to tell {good} from {bad}")
    others = [f"cycle {n} {c.told}" for n, c in enumerate(cycles, 1) if c.kind is not BootKind.RESTORED]
    if tally.created:
        others.append("a new snapshot may be a failed restore, and is none in its favour")
    share = f"{tally.restored} of {tally.cycles} restored: {meaning}"
    return Judgement(verdict, "; ".join([share, *others, "same answers", latencies(count)]))
