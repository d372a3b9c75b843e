"""No new failure: what a promise that is not kept means for a release, by what production does.

A promise that `must` be kept is failed when it is not. Any other one is failed when production keeps it: it is newly
broken. What production does not keep either is known: a shortcoming that users live with already is no reason against
a release. It passes, and is told with what is known of it upstream (Contract.known). Without a production there is
nothing to compare with: inconclusive, for a person to decide.

A server that does not come up, or dies, fails what it was to be asked. Unless production's build can't be asked the
same here and now: then it is the machine, or the compiler that both were built by, and nothing is known of the release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.contracts.promises import CONTRACTS, DIED
from tasks.release import NOT_ASKED, SERVER_SAID, UNMET, Release, Verdict, Verification, by_cause, headlines


def kept(verification: Verification) -> bool | None:
    """Whether a promise was kept; None when it could not be asked: the server was not there, or our tooling broke."""
    if UNMET in verification.evidence and SERVER_SAID not in verification.evidence:
        return False
    return True if verification.verdict is Verdict.PASSED else None


def judge(
    found: Sequence[Verification], production: Release | None, theirs: Sequence[Verification]
) -> list[Verification]:
    """The verifications of a release with their verdicts, given those of production for the same promises.

    Judging again, against another production, starts from what was seen and not from the verdict of before.
    """
    by_name = {v.name: v for v in theirs}
    return [_compared(v, production, by_name) for v in found]


def _compared(found: Verification, production: Release | None, theirs: Mapping[str, Verification]) -> Verification:
    if SERVER_SAID in found.evidence:
        return _blamed(found, production, theirs.get(found.name))
    return _judged(found, production, theirs) if kept(found) is False else found


def _blamed(found: Verification, production: Release | None, before: Verification | None) -> Verification:
    """Whose fault it is that the release's server is not there."""
    verdict = Verdict(found.evidence.get("at_fault", found.verdict))
    seen = str(found.evidence.get(NOT_ASKED) or found.evidence.get(DIED) or found.summary)
    if verdict is not Verdict.FAILED or production is None or before is None or kept(before) is not None:
        return _with(found, verdict, seen, {})
    told = {"production": {"release": production.label, "kept": None, "saw": before.summary}}
    same = f"{seen}; nor can production's build be asked here, so it is not this release: {before.summary}"
    return _with(found, Verdict.ERRORED, same, told)


def _judged(found: Verification, production: Release | None, theirs: Mapping[str, Verification]) -> Verification:
    contract, seen = CONTRACTS[found.name], str(found.evidence[UNMET])
    known = f"; known: {contract.known}" if contract.known else ""
    before = theirs.get(found.name)
    theirs_kept = kept(before) if before else None
    if contract.must:
        return _with(found, Verdict.FAILED, seen, {})
    if production is None:
        return _with(found, Verdict.INCONCLUSIVE, f"not kept, with no production to compare: {seen}{known}", {})
    saw = before.evidence.get(UNMET, before.summary) if before else "nothing"
    told = {"production": {"release": production.label, "kept": theirs_kept, "saw": saw}}
    if theirs_kept is None:
        return _with(
            found, Verdict.ERRORED, f"{production.label} could not be asked whether it keeps this: {seen}", told
        )
    if theirs_kept:
        return _with(found, Verdict.FAILED, f"newly broken, {production.label} keeps it: {seen}", told)
    return _with(found, Verdict.PASSED, f"known, {production.label} does not keep it either: {seen}{known}", told)


def _with(found: Verification, verdict: Verdict, summary: str, told: Mapping[str, Any]) -> Verification:
    evidence = {name: value for name, value in found.evidence.items() if name != "production"} | dict(told)
    return found.model_copy(update={"verdict": verdict, "summary": summary, "evidence": evidence})


def newly_kept(found: Sequence[Verification], theirs: Sequence[Verification]) -> list[str]:
    """The promises that the release keeps and production does not."""
    broken = {v.name for v in theirs if kept(v) is False}
    return [v.name for v in found if kept(v) and v.name in broken]


def told(found: Sequence[Verification], theirs: Sequence[Verification]) -> str:
    """One line for a person: `58 promises kept, 0 newly broken, 2 known shortcomings`."""
    lost = [group for group in by_cause(found) if SERVER_SAID in group[0].evidence]
    lost.sort(key=lambda group: NOT_ASKED in group[0].evidence)
    asked = [v for v in found if SERVER_SAID not in v.evidence]
    known = [v for v in asked if v.is_known]
    left = [v for v in asked if v.verdict is Verdict.INCONCLUSIVE]
    broken = [v for v in asked if v.verdict is Verdict.FAILED]
    must = sum(CONTRACTS[v.name].must for v in broken)
    parts = [
        f"{sum(kept(v) is True for v in found)} promises kept",
        f"{len(broken) - must} newly broken",
        f"{len(known)} known shortcoming{'' if len(known) == 1 else 's'}",
    ]
    if must:
        parts.insert(2, f"{must} broken that must hold")
    if left:
        parts.append(f"{len(left)} not kept, with no production to compare")
    if errored := [v for v in asked if v.verdict is Verdict.ERRORED]:
        parts.append(f"{len(errored)} errored")
    if newly := newly_kept(found, theirs):
        parts.append(f"{len(newly)} newly kept ({', '.join(name.removeprefix('contracts.') for name in newly)})")
    return "; ".join([", ".join(parts), *headlines(lost)])


def named(group: Sequence[Verification]) -> str:
    """What a group of `by_cause` is called in a table: a promise's name, or how many there are."""
    return group[0].name if len(group) == 1 else f"{len(group)} promises"


def promised(group: Sequence[Verification]) -> str:
    """The promise of a group of `by_cause`, or the names of all of its promises."""
    return group[0].promise if len(group) == 1 else ", ".join(v.name.removeprefix("contracts.") for v in group)
