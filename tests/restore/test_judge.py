"""The verdict on idle cycles, and what counts as the same answer."""

from __future__ import annotations

import re

import pytest

from modal_app.warmup import (
    LOUD,
    TOLERANCE,
    Answer,
    Asked,
    Golden,
    Token,
    differences,
    tolerance,
    tolerances,
)
from tasks.release import BootKind, BootRecord, Verdict
from tasks.restore.cycle import Cycle
from tasks.restore.judge import counted, fault, judge, unfinished
from tasks.settings import RestoreSettings

RESTORED, CREATED, COLD = BootKind.RESTORED, BootKind.CREATED, BootKind.COLD
FELL_BACK, CRASHED = BootKind.FELL_BACK, BootKind.CRASHED
SETTINGS = RestoreSettings(created_max=2)


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


@pytest.mark.parametrize(
    ("kinds", "verdict", "words"),
    [
        ([RESTORED] * 10, Verdict.PASSED, r"^10 of 10 restored: rather 99% than 70% come back; same an.*; .* 0.50 s"),
        ([RESTORED] * 9, Verdict.INCONCLUSIVE, "^9 of 9 restored: too few cycles to tell 99% from 70%"),
        (
            [RESTORED] * 5 + [FELL_BACK],
            Verdict.INCONCLUSIVE,
            r"5 of 6 restored: too few .*; cycle 6 fell_back \(a r",
        ),
        ([FELL_BACK] + [RESTORED] * 20, Verdict.PASSED, "20 of 21 restored: rather 99% than 70% .*cycle 1 fell_back"),
        ([FELL_BACK] * 2, Verdict.FAILED, "^0 of 2 restored: rather 70% than 99% come back; cycle 1 fell_back"),
        ([RESTORED, COLD, RESTORED, FELL_BACK], Verdict.FAILED, "2 of 4 restored: rather 70% .*cycle 2 cold"),
        ([CREATED, CREATED] + [RESTORED] * 10, Verdict.PASSED, "10 of 10 restored"),
        ([CREATED] * 3, Verdict.INCONCLUSIVE, "3 cycles, and each created a snapshot"),
        ([RESTORED, CREATED] * 5, Verdict.FAILED, "5 of 10 restored: rather 70% .*; cycle 2 created.*a new snapshot"),
        ([RESTORED] * 5 + [CREATED] + [RESTORED] * 5, Verdict.INCONCLUSIVE, "10 of 11 restored: .*; cycle 6 created;"),
        ([RESTORED] * 3 + [CREATED] * 2, Verdict.INCONCLUSIVE, "3 of 5 restored: too few cycles"),
        ([RESTORED, CRASHED], Verdict.FAILED, "cycle 2: the server died: a reason"),
        ([COLD] * 5, Verdict.INCONCLUSIVE, "5 of 5 cold, there is no snapshot here"),
    ],
)
def test_the_test_of_two_rates_decides_and_what_was_no_restore_names_itself(
    kinds: list[BootKind], verdict: Verdict, words: str
) -> None:
    cycles = [cycle(kind, "" if kind in (RESTORED, CREATED) else "a reason") for kind in kinds]
    found = judge(cycles, SETTINGS)
    assert found.verdict is verdict
    assert re.search(words, found.summary), found.summary


def test_where_nothing_could_be_compared_nothing_is_said_to_be_the_same() -> None:
    settings = RestoreSettings(accept_cold=True)
    of_others = [cycle(COLD, compared=False)] * 5
    verdict, summary = judge(of_others, settings)
    assert verdict is Verdict.INCONCLUSIVE and "no answers were compared" in summary and "same answers" not in summary
    verdict, summary = judge([cycle(COLD), *of_others[1:]], settings)
    assert verdict is Verdict.PASSED and "same answers in the 1 that were compared" in summary


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
        (
            cycle(RESTORED, nonce=None, warm=None, control=None, error="/completion: 401", status=401),
            Verdict.ERRORED,
            "we were refused, which says nothing of the server: /completion: 401",
        ),
        (
            cycle(RESTORED, nonce=asked(False), unclear="restored from the snapshot ta-9, of which no"),
            Verdict.ERRORED,
            "restored from the snapshot ta-9, of which no",
        ),
    ],
)
def test_a_cycle_that_is_wrong_by_itself_decides_and_ends_the_probe(wrong: Cycle, verdict: Verdict, words: str) -> None:
    cycles = [cycle(RESTORED), wrong]
    assert not unfinished(cycles, SETTINGS)
    found = judge(cycles, SETTINGS)
    assert found.verdict is verdict
    assert re.search(words, found.summary), found.summary
    assert found.summary.startswith("cycle 2: ")


def test_cycles_are_run_until_the_test_decides_or_there_are_too_many() -> None:
    restored, fell_back, cold = cycle(RESTORED), cycle(FELL_BACK), cycle(COLD)
    assert unfinished([], SETTINGS)
    assert unfinished([restored] * 9, SETTINGS)
    assert not unfinished([restored] * 10, SETTINGS)
    assert unfinished([fell_back], SETTINGS)
    assert not unfinished([fell_back] * 2, SETTINGS)
    bound = SETTINGS.model_copy(update={"cycles_max": 12})
    assert unfinished([fell_back, *[restored] * 10], bound)
    assert not unfinished([fell_back, *[restored] * 11], bound)
    assert judge([fell_back, *[restored] * 11], bound).verdict is Verdict.INCONCLUSIVE
    assert unfinished([cold] * 4, SETTINGS)
    assert not unfinished([cold] * 5, SETTINGS)


def test_a_snapshot_that_is_created_at_the_beginning_tells_nothing_of_restores_and_is_bounded() -> None:
    created, restored = cycle(CREATED), cycle(RESTORED)
    assert unfinished([created, *[restored] * 9], SETTINGS)
    assert not unfinished([created, *[restored] * 10], SETTINGS)
    assert unfinished([created] * 2, SETTINGS)
    assert not unfinished([created] * 3, SETTINGS)
    assert counted([created, restored, created]) == [restored, created]
    after_a_failure = cycle(CREATED, boots=(boot(FELL_BACK), boot(CREATED)), nonce=asked(False))
    assert counted([after_a_failure]) == [after_a_failure]
    assert judge([after_a_failure] * 2, SETTINGS).verdict is Verdict.FAILED


def test_later_a_new_snapshot_speaks_against_a_pass_and_against_the_release_when_there_are_too_many() -> None:
    """Of one GPU type there are three kinds of machine at most: two more than the first may take theirs at any time."""
    created, restored = cycle(CREATED), cycle(RESTORED)
    assert unfinished([*[restored] * 9, created, *[restored] * 10], SETTINGS)
    assert not unfinished([*[restored] * 9, created, *[restored] * 11], SETTINGS)
    assert judge([*[restored] * 9, created, *[restored] * 11], SETTINGS).verdict is Verdict.PASSED
    for created_ones, verdict in ((2, Verdict.INCONCLUSIVE), (3, Verdict.INCONCLUSIVE), (4, Verdict.FAILED)):
        assert judge([restored, *[created] * created_ones], SETTINGS).verdict is verdict
    alone = SETTINGS.model_copy(update={"worker_types": 1})
    assert judge([restored, *[created] * 2], alone).verdict is Verdict.FAILED


def test_attempts_that_told_nothing_are_shown_and_too_many_of_them_are_no_pass() -> None:
    restored = [cycle(RESTORED)] * 10
    few = judge(restored, SETTINGS, ["killed by SIGKILL"] * 2)
    assert few.verdict is Verdict.PASSED
    assert few.summary.endswith("warm; attempts that told nothing: 2 (killed by SIGKILL)")
    many = judge(restored, SETTINGS, ["killed by SIGKILL"] * 3)
    assert many.verdict is Verdict.INCONCLUSIVE
    assert many.summary.startswith("attempts that told nothing: 3 (killed by SIGKILL); the others: 10 of 10 restored")
    assert judge([], SETTINGS, ["killed by SIGKILL"] * 3).verdict is Verdict.INCONCLUSIVE
    assert judge([cycle(FELL_BACK)] * 2, SETTINGS, ["killed by SIGKILL"] * 3).verdict is Verdict.FAILED


def test_the_two_series_are_kept_apart() -> None:
    latency = cycle(RESTORED).latency
    assert latency is not None
    assert (latency.after_idle_s, latency.warm_s, latency.health_s) == (0.5, 0.1, 0.4)
    assert cycle(CRASHED, boots=(), nonce=None, error="503").latency is None


# -- the same answer ----------------------------------------------------------------------------------


def answer(*tokens: tuple[int, dict[int, float]]) -> Answer:
    return Answer("The sea", False, tuple(Token(said, tuple(top.items())) for said, top in tokens))


BASE = answer((1, {1: -0.1, 2: -2.5}), (3, {3: -0.5, 4: -1.0}))


def golden(*others: Answer) -> Golden:
    return Golden(nonce=(1,), tail=(2,), repeats=((BASE,), *((each,) for each in others or (BASE,))))


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
    noisy = golden(answer((1, {1: -0.15, 2: -2.5}), (3, {3: -0.5, 4: -1.0})))
    assert tolerance(noisy) == pytest.approx(0.1)
    assert not list(differences(noisy, (answer((1, {1: -0.19, 2: -2.5}), (3, {3: -0.5, 4: -1.0})),)))
    assert list(differences(noisy, (answer((1, {1: -0.21, 2: -2.5}), (3, {3: -0.5, 4: -1.0})),)))


def test_the_tolerance_is_of_the_two_askings_that_are_furthest_apart_and_never_below_its_floor() -> None:
    low, high = (answer((1, {1: p, 2: -2.5}), (3, {3: -0.5, 4: -1.0})) for p in (-0.08, -0.15))
    assert tolerance(golden(BASE, low, BASE, high)) == pytest.approx(0.14)
    assert tolerance(golden(BASE, BASE, BASE, BASE)) == TOLERANCE
    assert tolerance(Golden((1,), (2,), ((BASE,),))) == TOLERANCE


def test_a_prompt_is_held_against_its_own_noise() -> None:
    """An image, say, of which no two askings are alike, and a text that is always the same."""
    noisy = answer((1, {1: -0.3, 2: -2.5}), (3, {3: -0.5, 4: -1.0}))
    both = Golden((1,), (2,), ((BASE, BASE), (BASE, noisy)))
    assert list(tolerances(both)) == pytest.approx([TOLERANCE, 0.4])
    assert len(list(differences(both, (noisy, noisy)))) == 1


def test_the_tolerance_of_a_server_whose_answer_just_ended_can_be_written_and_read() -> None:
    cut = golden(answer((1, {1: -0.1, 2: -2.5})))
    assert tolerance(cut) > LOUD
    kept = cycle(RESTORED, tolerance=tolerance(cut))
    assert Cycle.model_validate_json(kept.model_dump_json()) == kept


def test_at_a_tie_either_token_is_the_same_answer_and_the_rest_is_not_compared() -> None:
    tied = {1: -0.7, 2: -0.7}
    before, after = answer((1, tied), (3, {3: -0.1})), answer((2, tied), (9, {9: -0.1}))
    assert not list(differences(Golden((1,), (2,), ((before,),)), (after,)))


def test_nothing_is_infinitely_unlikely() -> None:
    before = answer((1, {1: 0.0, 2: -3.4e38}))
    assert not list(differences(Golden((1,), (2,), ((before,),)), (answer((1, {1: 0.0, 2: -87.0})),)))


@pytest.mark.parametrize("kinds", [(FELL_BACK, RESTORED), (RESTORED, FELL_BACK), (RESTORED, FELL_BACK, RESTORED)])
def test_a_cycle_is_as_bad_as_its_worst_boot(kinds: tuple[BootKind, ...]) -> None:
    several = cycle(RESTORED, boots=tuple(map(boot, kinds)), nonce=asked(False))
    assert several.kind is FELL_BACK
    assert judge([several] * 5, SETTINGS).verdict is Verdict.FAILED
