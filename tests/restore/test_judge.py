"""The verdict on idle cycles, and what counts as the same answer."""

from __future__ import annotations

import re

import pytest

from modal_app.warmup import Answer, Asked, Golden, Token, differences, tolerance
from tasks.release import BootKind, BootRecord, Verdict
from tasks.restore.cycle import Cycle
from tasks.restore.judge import counted, fault, judge, unfinished, wilson
from tasks.settings import RestoreSettings

RESTORED, CREATED, COLD = BootKind.RESTORED, BootKind.CREATED, BootKind.COLD
FELL_BACK, CRASHED = BootKind.FELL_BACK, BootKind.CRASHED
FIVE = RestoreSettings(created_max=2)


def boot(kind: BootKind, reason: str = "") -> BootRecord:
    return BootRecord(stage="staging", release="r1", kind=kind, reason=reason, health_s=0.4)


def asked(found: bool, first_token_s: float = 0.1) -> Asked:
    return Asked(nonce_tokens=100, cached_tokens=96 if found else 1, first_token_s=first_token_s)


def cycle(kind: BootKind, reason: str = "", **other: object) -> Cycle:
    """A cycle that came up so, with the evidence that goes with it."""
    sound = {
        "stage": "staging", "boots": (boot(kind, reason),), "nonce": asked(kind is RESTORED, 0.5),
        "warm": asked(True), "control": asked(False), "tolerance": 0.001,
    }  # fmt: skip
    return Cycle.model_validate(sound | other)


def test_a_nonce_that_all_snapshots_of_a_deployment_have_is_found_where_one_was_taken_or_restored_at_last() -> None:
    assert fault(cycle(CREATED, nonce=asked(True))) is None
    one_after_another = cycle(FELL_BACK, boots=(boot(FELL_BACK, "the restore failed"), boot(RESTORED)))
    assert fault(one_after_another.model_copy(update={"nonce": asked(True)})) is None
    assert one_after_another.kind is FELL_BACK


def test_wilson_is_the_interval_of_the_textbook() -> None:
    assert wilson(5, 5) == pytest.approx((0.5655, 1.0), abs=1e-4)
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize(
    ("kinds", "verdict", "words"),
    [
        (
            [RESTORED] * 5,
            Verdict.PASSED,
            r"5 of 5 restored \(Wilson 0.57-1.00, required 0.50\); same answers; .* 0.50 s",
        ),
        ([RESTORED] * 4 + [FELL_BACK], Verdict.INCONCLUSIVE, r"4 of 5 restored .*; cycle 5 fell_back \(a reason\)"),
        ([RESTORED, COLD, RESTORED, RESTORED, RESTORED], Verdict.INCONCLUSIVE, "cycle 2 cold"),
        ([RESTORED, CREATED, RESTORED, RESTORED, RESTORED], Verdict.INCONCLUSIVE, "4 of 5 .*cycle 2 created"),
        ([FELL_BACK] * 5, Verdict.FAILED, r"0 of 5 restored \(Wilson 0.00-0.43"),
        ([CREATED, CREATED] + [RESTORED] * 5, Verdict.PASSED, "5 of 5 restored"),
        ([CREATED] * 3, Verdict.INCONCLUSIVE, "3 cycles, and each created a snapshot"),
        ([RESTORED, CRASHED], Verdict.FAILED, "cycle 2: the server died: a reason"),
        ([COLD] * 5, Verdict.INCONCLUSIVE, "5 of 5 cold, there is no snapshot here"),
    ],
)
def test_the_share_of_restores_decides_and_what_was_none_names_itself(
    kinds: list[BootKind], verdict: Verdict, words: str
) -> None:
    cycles = [cycle(kind, "" if kind in (RESTORED, CREATED) else "a reason") for kind in kinds]
    found = judge(cycles, FIVE)
    assert found.verdict is verdict
    assert re.search(words, found.summary), found.summary


def test_cold_boots_are_good_enough_where_settings_say_so_and_only_where_all_are_cold() -> None:
    settings = RestoreSettings(accept_cold=True)
    assert judge([cycle(COLD)] * 5, settings).verdict is Verdict.PASSED
    assert judge([cycle(COLD)] * 4 + [cycle(FELL_BACK)], settings).verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("wrong", "verdict", "words"),
    [
        (cycle(RESTORED, nonce=asked(False)), Verdict.FAILED, "recorded as restored, but the nonce is gone"),
        (cycle(COLD, nonce=asked(True)), Verdict.ERRORED, "recorded as cold, but the nonce is there"),
        (cycle(RESTORED, control=asked(True)), Verdict.ERRORED, "a nonce that nobody planted was found"),
        (cycle(RESTORED, warm=asked(False)), Verdict.ERRORED, "planted a moment before was not found"),
        (cycle(RESTORED, differences=("'The': 1.2 apart",)), Verdict.FAILED, "answers differently: 'The': 1.2 apart"),
        (cycle(COLD, differences=("'The': 1.2 apart",)), Verdict.FAILED, "cold, and it answers differently"),
        (cycle(RESTORED, tolerance=2.4), Verdict.ERRORED, "answers were 1.2 apart before"),
        (
            cycle(RESTORED, boots=(boot(CRASHED, "killed"), boot(COLD))),
            Verdict.FAILED,
            r"the server died: killed \(boots: crashed, then cold\)",
        ),
        (
            cycle(RESTORED, boots=(boot(RESTORED), boot(CRASHED, "killed by SIGILL")), error="/completion: 502"),
            Verdict.FAILED,
            r"the server died: killed by SIGILL \(boots: restored, then crashed\)$",
        ),
        (
            cycle(RESTORED, boots=(boot(CRASHED, "killed by SIGKILL"),), error="/completion: 502"),
            Verdict.ERRORED,
            "the server died: killed by SIGKILL",
        ),
        (
            cycle(RESTORED, boots=(boot(CRASHED, "did not come up: it ended"),), error="503"),
            Verdict.FAILED,
            "the server did not come up: it ended",
        ),
        (cycle(RESTORED, boots=()), Verdict.ERRORED, "no boot was recorded"),
        (
            cycle(RESTORED, boots=(), nonce=None, warm=None, control=None, error="503"),
            Verdict.FAILED,
            "crashed: no boot record; 503",
        ),
    ],
)
def test_a_cycle_that_is_wrong_by_itself_decides_and_ends_the_probe(wrong: Cycle, verdict: Verdict, words: str) -> None:
    cycles = [cycle(RESTORED), wrong]
    assert not unfinished(cycles, FIVE)
    found = judge(cycles, FIVE)
    assert found.verdict is verdict
    assert re.search(words, found.summary), found.summary
    assert found.summary.startswith("cycle 2: ")


def test_cycles_are_run_until_enough_count_or_too_many_created() -> None:
    created, restored = cycle(CREATED), cycle(RESTORED)
    assert unfinished([], FIVE)
    assert unfinished([created, created], FIVE)
    assert not unfinished([created] * 3, FIVE)
    assert unfinished([created, created, *[restored] * 4], FIVE)
    assert not unfinished([created, *[restored] * 5], FIVE)
    assert counted([created, restored, created]) == [restored, created]


def test_the_two_series_are_kept_apart() -> None:
    latency = cycle(RESTORED).latency
    assert latency is not None
    assert (latency.after_idle_s, latency.warm_s, latency.health_s) == (0.5, 0.1, 0.4)
    assert cycle(CRASHED, boots=(), nonce=None, error="503").latency is None


# -- the same answer ----------------------------------------------------------------------------------


def answer(*tokens: tuple[int, dict[int, float]]) -> Answer:
    return Answer("The sea", False, tuple(Token(said, tuple(top.items())) for said, top in tokens))


BASE = answer((1, {1: -0.1, 2: -2.5}), (3, {3: -0.5, 4: -1.0}))


def golden(second: Answer = BASE) -> Golden:
    return Golden(nonce=(1,), tail=(2,), first=(BASE,), second=(second,))


@pytest.mark.parametrize(
    ("after", "same"),
    [
        (BASE, True),
        (answer((1, {1: -0.1005, 2: -2.5}), (3, {3: -0.5, 4: -1.0})), True),
        (answer((1, {1: -0.11, 2: -2.5}), (3, {3: -0.5, 4: -1.0})), False),
        (answer((1, {1: -0.1, 2: -2.5}), (4, {3: -0.5, 4: -1.0})), False),  # the less likely token
        (answer((1, {1: -0.1, 5: -2.5}), (3, {3: -0.5, 4: -1.0})), True),  # two equals at the end of the list
        (answer((1, {1: -0.1, 5: -1.5}), (3, {3: -0.5, 4: -1.0})), False),  # one that was not that likely
        (answer((1, {1: -0.1, 2: -2.5})), False),  # it just ends
    ],
)
def test_answers_are_the_same_within_the_tolerance(after: Answer, same: bool) -> None:
    assert (not list(differences(golden(), (after,)))) is same


def test_the_tolerance_is_twice_what_was_seen_before_the_snapshot() -> None:
    noisy = golden(second=answer((1, {1: -0.15, 2: -2.5}), (3, {3: -0.5, 4: -1.0})))
    assert tolerance(noisy) == pytest.approx(0.1)
    assert not list(differences(noisy, (answer((1, {1: -0.19, 2: -2.5}), (3, {3: -0.5, 4: -1.0})),)))
    assert list(differences(noisy, (answer((1, {1: -0.21, 2: -2.5}), (3, {3: -0.5, 4: -1.0})),)))


def test_at_a_tie_either_token_is_the_same_answer_and_the_rest_is_not_compared() -> None:
    tied = {1: -0.7, 2: -0.7}
    before, after = answer((1, tied), (3, {3: -0.1})), answer((2, tied), (9, {9: -0.1}))
    assert not list(differences(Golden((1,), (2,), (before,), (before,)), (after,)))


def test_nothing_is_infinitely_unlikely() -> None:
    before = answer((1, {1: 0.0, 2: -3.4e38}))
    assert not list(differences(Golden((1,), (2,), (before,), (before,)), (answer((1, {1: 0.0, 2: -87.0})),)))


@pytest.mark.parametrize("kinds", [(FELL_BACK, RESTORED), (RESTORED, FELL_BACK), (RESTORED, FELL_BACK, RESTORED)])
def test_a_cycle_is_as_bad_as_its_worst_boot(kinds: tuple[BootKind, ...]) -> None:
    several = cycle(RESTORED, boots=tuple(map(boot, kinds)), nonce=asked(False))
    assert several.kind is FELL_BACK
    assert judge([several] * 5, FIVE).verdict is Verdict.FAILED
