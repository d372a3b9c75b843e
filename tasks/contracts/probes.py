"""The probes of the patch series: promises checked one by one, and what can be read off a build or its tree.

A patch names its probes in its trailer: `Proved-by: tools.named tools.named_unknown`. On a build without the patch
they must fail in the way that `shows_fault` tells, on one with it they must pass. A patch may have several such lines,
of promises, or each one of these (tasks/probes.py looks for them):

    log :: <regular expression>     the server writes such a line while it comes up and answers
    argv :: <flag> [<value>]        the binary takes it
    binary :: <text>                its files hold it: a string, or a symbol as the compiler mangles it
    cmake :: <option>=<default>     an option of upstream's CMakeLists.txt has this default
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.contracts import check_server
from tasks.contracts.promises import CONTRACTS, Contract
from tasks.contracts.trials import ORDER, trial_release
from tasks.platforms import Platform
from tasks.release import NOT_ASKED, BadInput, Release, Verdict, Verification

KINDS = {
    "log": "log :: <regular expression>",
    "argv": "argv :: --flag [value]",
    "binary": "binary :: <text>",
    "cmake": "cmake :: OPTION=DEFAULT",
}
_OPTION = re.compile(r"\w+=\S+")


def probes_of(trailer: str) -> tuple[str, ...]:
    """The probes of a patch's `Proved-by` lines, in their order. Raises BadInput for none, or for what is none."""
    found: list[str] = []
    for line in trailer.splitlines():
        kind, separator, what = line.partition(" :: ")
        found += [_checked(kind.strip(), what.strip())] if separator else _promises(line)
    if not found:
        raise BadInput("the patch names no probe", todo="add a trailer `Proved-by: <subject>.<promise> ...`")
    return tuple(dict.fromkeys(found))


def _checked(kind: str, what: str) -> str:
    if kind not in KINDS:
        raise BadInput(f"no kind of proof is called {kind!r}", evidence=f"there are {', '.join(KINDS)}")
    try:
        wrong = not what or (kind == "cmake" and not _OPTION.fullmatch(what))
        if kind == "log":
            re.compile(what)
        if kind == "argv":
            wrong = not shlex.split(what)[0].startswith("-")
    except (re.error, ValueError, IndexError) as error:
        raise BadInput(f"`{kind} :: {what}` can't be read", evidence=str(error), todo="correct the trailer") from error
    if wrong:
        raise BadInput(f"`{kind} :: {what}` is no such proof", todo=f"write it as {KINDS[kind]}")
    return f"{kind} :: {what}"


def _promises(line: str) -> tuple[str, ...]:
    names = tuple(line.split())
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
