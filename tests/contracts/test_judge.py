"""No new failure: what a promise that is not kept comes to, by what production does. No server."""

from __future__ import annotations

import pytest

from tasks.contracts.judge import judge, kept, newly_kept, told
from tasks.contracts.promises import CONTRACTS, verification
from tasks.release import Release, UpstreamRelease, Verdict, Verification
from tests.contracts.breakages import BROKEN, LIVE
from tests.contracts.broken_kinds import KINDS
from tests.contracts.test_gate import MENDED
from tests.contracts.test_real import SHORTCOMINGS

SEEN_ELSEWHERE = {"health.loading", "health.never_early", LIVE} | {
    name.removeprefix("contracts.") for name in CONTRACTS if ".effects." in name
}
"""Promises that are broken on servers of their own, in test_real and test_effects."""
MUST, KNOWN, PLAIN = "contracts.auth.no_key", "contracts.errors.unknown_model", "contracts.chat.finish_stop"


def release(build: int) -> Release:
    return Release(upstream=UpstreamRelease(build=build), tree="t", build="b", argv=(), files={}, alias="m")


OLD, NEW = release(1), release(2)


def seen(name: str, kept: bool | None, of: Release = NEW) -> Verification:
    """What a run of the contracts found; None for a server that did not come up."""
    verdict = Verdict.PASSED if kept else Verdict.FAILED
    evidence = {"unmet": "it is not so"} if kept is False else {"server_said": "no"} if kept is None else {}
    return verification(CONTRACTS[name], of, verdict, "it is not so", evidence=evidence, basis="0")


def judged(name: str, kept: bool | None, theirs: bool | None, production: Release | None = OLD) -> Verification:
    (found,) = judge([seen(name, kept)], production, [seen(name, theirs, OLD)] if production else [])
    return found


@pytest.mark.parametrize(
    ("name", "kept", "theirs", "verdict", "says"),
    [
        (PLAIN, True, True, "passed", ""),
        (PLAIN, True, False, "passed", ""),
        (PLAIN, False, True, "failed", "newly broken, b1"),
        (PLAIN, False, False, "passed", "does not keep it either: it is not so"),
        (PLAIN, False, None, "errored", "could not be asked"),
        (KNOWN, False, True, "failed", "newly broken"),  # that it is known does not make it less new
        (KNOWN, False, False, "passed", "known: with one model"),
        (MUST, False, True, "failed", "it is not so"),
        (MUST, False, False, "failed", "it is not so"),
        (PLAIN, None, True, "failed", "it is not so"),  # a server that does not come up is no matter of comparison
        (PLAIN, None, False, "failed", "it is not so"),
    ],
)
def test_a_promise_is_judged_by_what_production_does(
    name: str, kept: bool | None, theirs: bool | None, verdict: str, says: str
) -> None:
    found = judged(name, kept, theirs)
    assert found.verdict == verdict
    assert says in found.summary


def test_without_production_only_what_must_hold_is_failed() -> None:
    assert judged(MUST, False, None, None).verdict is Verdict.FAILED
    assert judged(PLAIN, False, None, None).verdict is Verdict.INCONCLUSIVE


def test_judging_again_by_another_production_forgets_the_verdict_of_before() -> None:
    first = judged(PLAIN, False, False)
    (again,) = judge([first], OLD, [seen(PLAIN, True, OLD)])
    assert (first.verdict, again.verdict) == (Verdict.PASSED, Verdict.FAILED)
    assert (first.is_known, again.is_known, kept(first)) == (True, False, False)
    assert judge([again], OLD, [seen(PLAIN, False, OLD)]) == [first]


def test_the_line_for_a_person_counts_what_is_kept_new_known_and_unknown() -> None:
    names = [MUST, KNOWN, PLAIN, "contracts.chat.usage"]
    theirs = [seen(MUST, True, OLD), seen(KNOWN, False, OLD), seen(PLAIN, False, OLD), seen(names[3], False, OLD)]
    found = judge([seen(MUST, True), seen(KNOWN, False), seen(PLAIN, False), seen(names[3], True)], OLD, theirs)
    assert newly_kept(found, theirs) == ["contracts.chat.usage"]
    assert told(found, theirs) == ("2 promises kept, 0 newly broken, 2 known shortcomings, 1 newly kept (chat.usage)")
    worse = judge([seen(MUST, False), seen(KNOWN, True), seen(PLAIN, False)], OLD, [seen(PLAIN, True, OLD)])
    assert told(worse, []) == ("1 promises kept, 1 newly broken, 1 broken that must hold, 0 known shortcomings")


def test_every_promise_is_seen_to_be_broken_by_a_server_or_by_an_upstream_build() -> None:
    names = {name.removeprefix("contracts.") for name in CONTRACTS}
    broken = {name for _, _, changed in BROKEN for name in changed} | MENDED | SHORTCOMINGS | SEEN_ELSEWHERE
    assert broken <= names
    related = {subject for each in KINDS for subject in each.caught_by}
    assert {name for name in names - broken if name.split(".")[0] not in related} == set()


def test_the_broken_kinds_are_many_and_each_is_told_from_the_others() -> None:
    assert len({each.what for each in KINDS}) == len(KINDS) >= 180
    assert {each.kind[0] for each in KINDS} == set("ABCDEFGHK")
