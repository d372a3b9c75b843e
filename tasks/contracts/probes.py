"""The probes of the patch series: promises checked one by one, to see whether a patch is needed and whether it works.

A patch names its probes in its trailer: `Proved-by: tools.named tools.named_unknown`. On a build without the patch
they must fail in the way that `shows_fault` tells, on one with it they must pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.contracts import check_server
from tasks.contracts.promises import CONTRACTS, Contract
from tasks.contracts.trials import ORDER, trial_release
from tasks.platforms import Platform
from tasks.release import NOT_ASKED, BadInput, Release, Verdict, Verification


def probes_of(trailer: str) -> tuple[str, ...]:
    """The probes that a `Proved-by` trailer names, in its order. Raises BadInput for none, or for one unknown."""
    names = tuple(trailer.split())
    if not names:
        raise BadInput("the patch names no probe", todo="add a trailer `Proved-by: <subject>.<promise> ...`")
    for name in names:
        _contract(name)
    return names


def run_probes(platform: Platform, release: Release, names: Sequence[str]) -> dict[str, Verification]:
    """Probe -> its verification on a trial server of this release, in the order of `names`.

    One server is started for all probes that need the same kind of it; nothing is recorded. Raises BadInput for a
    name that no promise has.
    """
    wanted = [_contract(name) for name in names]
    found: dict[str, Verification] = {}
    with tempfile.TemporaryDirectory(prefix="llama-release-") as folder:
        for server in ORDER:
            some = [contract for contract in wanted if contract.server == server]
            if not some:
                continue
            runs = trial_release(platform.store, release, server, Path(folder))
            trial = platform.trial(runs, wait=server != "starting")
            for done in check_server(server, trial, runs, subject=release, only=some):
                found[done.name.removeprefix("contracts.")] = done
    return {name: found[name] for name in names}


def run_probe(platform: Platform, release: Release, name: str) -> Verification:
    """The verification of one promise, `<subject>.<promise>`, on a trial server of this release.

    Raises BadInput for a name that no promise has.
    """
    return run_probes(platform, release, [name])[name]


def shows_fault(verification: Verification) -> bool:
    """Whether a running server broke the promise, be it by dying of it.

    One that did not come up, or died before, says nothing of what a patch mends.
    """
    return verification.verdict is Verdict.FAILED and NOT_ASKED not in verification.evidence


def _contract(name: str) -> Contract:
    contract = CONTRACTS.get(f"contracts.{name}")
    if contract is None:
        subject = name.split(".")[0]
        known = sorted(full.removeprefix("contracts.") for full in CONTRACTS)
        near = [one for one in known if one.startswith(f"{subject}.")]
        raise BadInput(
            f"no promise is called {name!r}",
            evidence=f"there are {', '.join(near or known)}",
            todo="correct the patch's Proved-by trailer",
        )
    return contract
