"""Release cycles on the fake Modal, with workers of several kinds, restores that fail, versions that do not pass, and
processes that are killed in a forced idle window, under the traffic of clients.

What must be nothing at the end: an unverified release in production, a failed restore called restored, a cycle that is
called a fault because of where it landed, a 5xx or a cut stream of a client in a move, an override that was left.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from tasks.contracts import scripted
from tasks.platforms.modal import apps, warming
from tasks.release import BootKind, Endpoint, Release, ReleaseFailed, StageName, Verdict
from tasks.restore.cycle import run
from tasks.restore.judge import fault
from tasks.restore.sequential import Tally, decide
from tasks.settings import RestoreSettings
from tests.benchmarks.released import copied
from tests.fakes.modal import Worker
from tests.platforms.modal_stand import ModalStand, clients_of, modal_stand_in, say

CYCLES = 200
FAILURE_RATE = 0.1
REFUSED, KILLED = 0.25, 0.25
"""The share of cycles in which the new version does not pass, and in which a process is killed in an idle window."""
WORKERS = (Worker(weight=0.6), Worker(region="us-west-2", weight=0.3), Worker(region="eu-west-1", weight=0.1))
MIXES = ((0.5, 0.5), (0.8, 0.2), (0.95, 0.05), (0.5, 0.3, 0.2), (0.8, 0.15, 0.05))
VERDICT_MIXES = (*MIXES, (0.9, 0.05, 0.05))
START_USD = 28 * 0.000665
"""Of an L40S with its cores and memory: 20 s to the first token, and 8 s around."""
ARGV = (
    "--model", "{model}", "--ctx-size", "8192", "--parallel", "2", "--load-mode", "none", "--metrics", "--jinja",
    "--threads", "1", "--no-warmup",
)  # fmt: skip
WRONG = ("unverified in production", "false restored", "false faults", "client errors", "overrides left")


def main(cycles: int = CYCLES) -> Iterator[str]:
    """What came of so many release cycles, a line now and then and the sums."""
    with copied() as (local, release), tempfile.TemporaryDirectory(prefix="llama-release-modal-") as folder:
        build = local.store.build(release.build)
        assert build, "it was copied"
        model = scripted.build(scripted.thinks_then_answers(3), Path(folder) / "scripted.gguf")
        with modal_stand_in(Path(folder) / "fake", local.settings, build, model, ARGV) as stand:
            stand.fake.lifecycle.workers, stand.fake.lifecycle.failure_rate = WORKERS, FAILURE_RATE
            yield from released(stand, cycles, random.Random(2026))


def released(stand: ModalStand, cycles: int, chance: random.Random) -> Iterator[str]:
    seen: Counter[str] = Counter()
    served = (stand.first, "g-1")
    stand.platform.deploy("production", served[0], say, generation=served[1])
    for number in range(cycles):
        candidate = (stand.second if number % 2 else stand.first, f"g{number}")
        stand.platform.deploy("staging", candidate[0], say, generation=candidate[1])
        _restore(stand, seen)
        if chance.random() < KILLED:
            _killed(stand, "staging" if chance.random() < 0.5 else "production")
        passes = chance.random() >= REFUSED
        say(stand.platform.endpoint("production"))  # what a client of a sleeping one gets is a start, and no move
        with clients_of(stand.platform.endpoint("production")) as wrong:
            served = _move(stand, served, candidate, passes=passes)
        seen["client errors"] += len(wrong)
        seen["unverified in production"] += stand.platform.serving("production") != (served[0].id, served[1])
        seen["unverified in production"] += say(stand.platform.endpoint("production")) != served[0].alias
        seen["moves" if passes else "refusals"] += 1
        seen["overrides left"] += sum(_left(stand, each) for each in get_args(StageName))
        if number % 10 == 9 or number == cycles - 1:
            yield f"{number + 1} cycles: {', '.join(f'{count} {what}' for what, count in sorted(seen.items()))}"
    bad = {what: seen[what] for what in WRONG if seen[what]}
    yield f"all as it must be: 0 {', 0 '.join(WRONG)}" if not bad else f"WRONG: {bad}"


def _restore(stand: ModalStand, seen: Counter[str]) -> None:
    """An idle cycle of staging, held against what the fake itself knows of its containers."""
    golden = stand.platform.golden("staging")
    assert golden, "staging has a snapshot"
    before = {each.task_id for each in stand.fake.containers.all()}
    cycle = run(stand.platform, "staging", golden, RestoreSettings(wait_s=0))
    started = [each for each in stand.fake.containers.all() if each.task_id not in before]
    died = [each for each in started if each.exit_code in (222, 139, 128, 137) and not each.stopping]
    seen[f"cycles {cycle.kind}"] += 1
    lied = bool(died) or any(not each.snapshot for each in started)
    seen["false restored"] += cycle.kind is BootKind.RESTORED and lied
    seen["false faults"] += fault(cycle) is not None


def _killed(stand: ModalStand, stage: StageName) -> None:
    """What a process leaves that is killed while it forces an idle window, and what the next one makes of it."""
    window = stand.platform._no_spare_containers(stage)
    window.__enter__()
    stand.platform.unforce(stage)


def _move(
    stand: ModalStand, served: tuple[Release, str], candidate: tuple[Release, str], *, passes: bool
) -> tuple[Release, str]:
    """What production has to serve after it."""

    def check(at: Endpoint) -> None:
        say(at)
        if not passes:
            raise ReleaseFailed("refused")

    try:
        stand.platform.deploy("production", candidate[0], check, generation=candidate[1])
    except ReleaseFailed:
        return served
    return candidate


def _left(stand: ModalStand, stage: StageName) -> bool:
    settings = stand.platform.settings.modal
    return apps.scaling(settings, settings.stage_app(stage)) != apps.Scaling(scaledown_window=settings.idle_s)


def starts() -> Iterator[str]:
    """How many cold starts find all kinds of workers, by simulation; a price is of L40S, 20 s a start."""
    rounds, chance = 4000, random.Random(2026)
    yield f"{'shares':22}{'rare':>6}{'starts':>8}{'95 %':>6}{'all found':>11}{'USD':>7}"
    for mix in MIXES:
        for rare in (0.2, 0.1):
            found = [_warmed(mix, rare, chance) for _ in range(rounds)]
            counts = sorted(count for count, _ in found)
            mean, most = sum(counts) / rounds, counts[int(0.95 * rounds)]
            whole = sum(len(kinds) == len(mix) for _, kinds in found) / rounds
            shares = " / ".join(f"{100 * share:.0f}" for share in mix)
            yield f"{shares:22}{rare:6}{mean:8.1f}{most:6}{whole:11.3f}{START_USD * mean:7.2f}"


def _warmed(mix: tuple[float, ...], rare: float, chance: random.Random) -> tuple[int, set[int]]:
    """(cold starts after the first boot, kinds found) of one release, as `ModalPlatform.warm` goes about it."""
    known, quiet, count = {chance.choices(range(len(mix)), mix)[0]}, 0, 0
    while quiet < warming.enough(rare) and count < 40:
        landed = chance.choices(range(len(mix)), mix)[0]
        quiet = quiet + 1 if landed in known else 0
        known.add(landed)
        count += 1
    return count, known


def verdicts() -> Iterator[str]:
    """What the restore verdict makes of snapshots that come back so often, by simulation: after the kinds of workers
    were looked for, each cycle lands by chance, a kind that was missed takes its snapshot, a failed restore is told."""
    rounds, chance, settings = 4000, random.Random(2026), RestoreSettings()
    yield f"{'shares':14}{'restored':>9}{'passed':>9}{'failed':>9}{'open':>9}{'starts':>8}{'USD':>7}"
    for mix in VERDICT_MIXES:
        for rate in (0.99, 0.9, 0.7):
            ends: Counter[Verdict | None] = Counter()
            starts_made = 0
            for _ in range(rounds):
                verdict, count = _judged(mix, rate, settings, chance)
                ends[verdict] += 1
                starts_made += count
            shares, mean = " / ".join(f"{100 * share:.0f}" for share in mix), starts_made / rounds
            told = [ends[each] / rounds for each in (Verdict.PASSED, Verdict.FAILED, None)]
            yield (
                f"{shares:14}{rate:9}"
                + "".join(f"{each:9.4f}" for each in told)
                + (f"{mean:8.1f}{START_USD * mean:7.2f}")
            )


def _judged(
    mix: tuple[float, ...], rate: float, settings: RestoreSettings, chance: random.Random
) -> tuple[Verdict | None, int]:
    """(the verdict on one release, None where it stays undecided; starts, with those that looked for kinds)."""
    count, known = _warmed(mix, 0.2, chance)
    tally = Tally(0)
    while (verdict := decide(tally, settings)) is None and tally.cycles < settings.cycles_max:
        landed, count = chance.choices(range(len(mix)), mix)[0], count + 1
        if landed not in known:
            known.add(landed)
            tally = tally._replace(created=tally.created + (tally.restored > 0))
        elif chance.random() < rate:
            tally = tally._replace(restored=tally.restored + 1)
        else:
            tally = tally._replace(failed=tally.failed + 1)
    return verdict, count
