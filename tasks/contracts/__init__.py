"""What a llama-server must do to be shipped: the promises, and the run that checks them all on trial servers.

    promises.py     what a contract is made of, and how one is checked
    trials.py       the servers that promises are checked on, most of them with a model whose weights are a script:
    scripted.py     that model, and projector.py what makes it see
    toolbox.py      what the promises about tools ask with
    judge.py        no new failure: what a promise that is not kept means, by what production does
    probes.py       promises as the proofs of patches

Every other module is one subject, and each of its promises one function.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from tasks.contracts import (
    auth,
    chat,
    errors,
    health,
    messages,
    metrics,
    models,
    responses,
    sampling,
    settings,
    slots,
    template,
    thinking,
    tools,
    vision,
)
from tasks.contracts.judge import judge, kept, told
from tasks.contracts.promises import CONTRACTS, Contract, Recorder, Server, clipped, verification, verify
from tasks.contracts.trials import ORDER, trial_release
from tasks.platforms import Platform, Progress
from tasks.release import Endpoint, Problem, Release, ReleaseFailed, Verdict, Verification
from tasks.report import Row, markdown_table, stage

SUBJECTS = (
    health, models, chat, sampling, auth, metrics, responses, messages, errors, settings, slots, template, thinking,
    tools, vision,
)  # fmt: skip


def required() -> tuple[str, ...]:
    """The names of all promises, sorted."""
    return tuple(sorted(CONTRACTS))


def basis() -> str:
    """12 hex characters over the contracts themselves: a verification made with others is stale."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".jinja"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def run_all(platform: Platform, release: Release, progress: Progress) -> list[Verification]:
    """Check every promise of a release; one verification for each, sorted by name: passed, or failed when not kept.

    Starts the trial servers of ORDER one after the other. A server that does not come up fails its promises; one that
    our tooling could not start leaves them errored. `progress` is told before each server and after each promise.
    """
    found: list[Verification] = []
    with tempfile.TemporaryDirectory(prefix="llama-release-") as folder:
        for server in ORDER:
            progress(len(found), len(CONTRACTS), f"starting the {server} server")
            runs = trial_release(platform.store, release, server, Path(folder))
            down = _down(found) if server == "starting" else None
            checks = (
                _not_checked(server, down, release)
                if down
                else check_server(server, platform.trial(runs, wait=server != "starting"), runs, subject=release)
            )
            for done in checks:
                found.append(done)
                progress(len(found), len(CONTRACTS), f"{done.name.removeprefix('contracts.')} {done.verdict}")
    return sorted(found, key=lambda v: v.name)


def check_server(
    server: Server,
    trial: AbstractContextManager[Endpoint],
    runs: Release,
    *,
    subject: Release,
    only: Iterable[Contract] | None = None,
) -> Iterator[Verification]:
    """Check the promises of one kind of server on one trial server, which runs `runs` on behalf of `subject`.

    `only` are those to check, instead of all.
    """
    contracts = _of(server) if only is None else list(only)
    checked: set[str] = set()
    try:
        with trial as endpoint, Recorder(endpoint) as client:
            for contract in contracts:
                done = verify(contract, client, runs, subject=subject, basis=basis())
                checked.add(contract.name)
                yield done
    except Problem as error:
        verdict = Verdict.FAILED if isinstance(error, ReleaseFailed) else Verdict.ERRORED
        summary = f"the {server} server did not come up: {error.what}".splitlines()[0]
        evidence = {"server_said": clipped(error.evidence, None)}
        for contract in contracts:
            if contract.name not in checked:
                yield verification(contract, subject, verdict, summary, evidence=evidence, basis=basis())


def _of(server: Server) -> list[Contract]:
    return [contract for contract in CONTRACTS.values() if contract.server == server]


def _down(found: list[Verification]) -> Verification | None:
    return next((v for v in found if "server_said" in v.evidence), None)


def _not_checked(server: Server, down: Verification, subject: Release) -> Iterator[Verification]:
    # A server that never comes up would only be polled until the time runs out.
    for contract in _of(server):
        yield verification(
            contract, subject, down.verdict, down.summary, evidence=down.evidence | {"server": server}, basis=basis()
        )


def weigh(
    platform: Platform, release: Release, production: Release | None, progress: Progress
) -> tuple[list[Verification], list[Verification], bool]:
    """(verifications of the release by what production does, those of production, whether nothing was asked now).

    All of them are recorded. What is on record of these very contracts is not asked again, of neither release;
    production is asked once, on trial servers of its own, if it never was.
    """
    theirs, asked = _measured(platform, production, progress) if production else ([], False)
    if asked:
        theirs = judge(theirs, None, [])
        _record(platform, [v for v in theirs if kept(v) is not None])  # what could not be asked is asked again
    found, asked_now = _measured(platform, release, progress)
    found = judge(found, production, theirs)
    _record(platform, found)
    return found, theirs, not asked_now


def _measured(platform: Platform, release: Release, progress: Progress) -> tuple[list[Verification], bool]:
    """(what is known of each promise of a release, whether it was asked for now)."""
    if found := platform.store.fresh(release.id, required(), basis()):
        return found, False
    return run_all(platform, release, progress), True


def _record(platform: Platform, found: Iterable[Verification]) -> None:
    for made in found:
        if platform.store.verification(made.release, made.name) != made:
            platform.store.record(made)


@stage("contracts", "contracts of {release.label}")
def check(row: Row, platform: Platform, release: Release, production: str | None) -> list[Verification]:
    """Every promise checked, judged by what production (a release's id) does, and recorded, or as recorded before.

    Raises ReleaseFailed when a promise is newly broken, ToolingError when one could not be checked.
    """
    serving = platform.store.get_release(production) if production else None
    found, theirs, again = weigh(platform, release, serving, row.progress)
    rows = [(v.name, v.verdict, v.summary, v.promise) for v in found]
    row.judged(
        found,
        told(found, theirs),
        markdown_table(("promise", "verdict", "what was seen", "promised"), rows),
        again=again,
    )
    return found
