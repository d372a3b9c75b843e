"""Does a stage that has clients come back from an idle window? By its boot records, and by what answers then."""

from __future__ import annotations

from collections.abc import Callable

from tasks.platforms import Platform
from tasks.release import BootKind, BootRecord, Problem, ReleaseFailed, StageName, Verdict
from tasks.restore.cycle import RECORD_LIMIT_S, await_boots, worst
from tasks.restore.deaths import death, since, verdict_of
from tasks.restore.judge import Judgement
from tasks.settings import RestoreSettings


def comes_back(
    platform: Platform, stage: StageName, answers: Callable[[], object], settings: RestoreSettings
) -> Judgement:
    """Force a stage idle, ask it with `answers` (which raises a Problem when it is not right), and judge what came up.

    Nothing is lost: requests that are under way are waited for, and one that comes in waits for the boot. Clients
    share slots, cache and batches with us, so no nonce is planted and no golden answers are compared, as on staging.
    Never raises a Problem.
    """
    boots: list[BootRecord] = []
    for _ in range(settings.created_max + 1):
        known = platform.boots(stage)
        try:
            left = platform.idle(stage)
            answers()
        except Problem as error:
            if died := death(since(platform, stage, known)):
                return Judgement(verdict_of(died), died)
            verdict = Verdict.FAILED if isinstance(error, ReleaseFailed) else Verdict.ERRORED
            return Judgement(verdict, "; ".join(filter(None, (error.what, error.evidence))))
        boots = await_boots(platform, stage, known, 0.0 if left else RECORD_LIMIT_S)
        if not boots and left:
            return Judgement(Verdict.INCONCLUSIVE, "its clients keep it busy: it never was idle")
        if not boots:
            return Judgement(Verdict.ERRORED, "a request was answered after the idle window, and no boot was recorded")
        if worst(boots) is not BootKind.CREATED:
            break
    return Judgement(_verdict(worst(boots), settings), ", then ".join(_told(boot) for boot in boots))


def _verdict(kind: BootKind, settings: RestoreSettings) -> Verdict:
    if kind is BootKind.RESTORED or (kind is BootKind.COLD and settings.accept_cold):
        return Verdict.PASSED
    return Verdict.FAILED if kind in (BootKind.FELL_BACK, BootKind.CRASHED) else Verdict.INCONCLUSIVE


def _told(boot: BootRecord) -> str:
    seconds = f" in {boot.health_s:.2f} s" if boot.health_s is not None else ""
    return f"{boot.kind}{seconds} ({boot.reason})" if boot.reason else f"{boot.kind}{seconds}"
