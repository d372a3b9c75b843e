"""What a llama-server must do to be shipped: the promises, and the run that checks them all on trial servers.

    promises.py     what a contract is made of, and how one is checked
    trials.py       the servers that promises are checked on, most of them with a model whose weights are a script:
    scripted.py     that model, and projector.py what makes it see
    toolbox.py      what the promises about tools ask with
    conversations.py, sayings.py   one conversation as each API wants it, and what each says, in one shape
    wire.py         an exchange over HTTP as it is spelled
    rendering.py    what jinja2 makes of a chat template, in a process of its own
    judge.py        no new failure: what a promise that is not kept means, by what production does
    probes.py       promises as the proofs of patches

Every other module is one subject, and each of its promises one function. From twins on they are relations: two ways of
asking that must agree, whatever is asked, so that they see faults which nobody listed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tasks.behaviour import digest_of_code
from tasks.contracts import (
    auth,
    chance,
    chat,
    edges,
    effects,
    errors,
    health,
    messages,
    metrics,
    models,
    reading,
    responses,
    sampling,
    schemas,
    settings,
    slots,
    state,
    stops,
    template,
    thinking,
    tokens,
    tools,
    twins,
    vision,
)
from tasks.contracts.judge import judge, kept, named, promised, told
from tasks.contracts.promises import (
    CONTRACTS,
    DIED,
    REFUSED,
    Contract,
    Recorder,
    Routes,
    Server,
    ended_by,
    verification,
    verify,
)
from tasks.contracts.trials import ORDER, trial_release
from tasks.platforms import Platform, Progress
from tasks.release import (
    NOT_ASKED,
    SERVER_SAID,
    Endpoint,
    Problem,
    Release,
    ReleaseFailed,
    ToolingError,
    Verification,
    by_cause,
)
from tasks.report import markdown_table
from tasks.stage import Row, stage

SUBJECTS = (
    health, models, chat, sampling, auth, metrics, responses, messages, errors, settings, effects, slots, template,
    thinking, tools, vision, twins, stops, reading, state, chance, schemas, tokens, edges,
)  # fmt: skip


def required() -> tuple[str, ...]:
    """The names of all promises, sorted."""
    return tuple(sorted(CONTRACTS))


def basis() -> str:
    """12 hex characters over the contracts and the client that asks: a verification made with others is stale."""
    here = Path(__file__).parent
    return digest_of_code(here, here.parent / "endpoint")


def run_all(platform: Platform, release: Release, progress: Progress, routes: Routes = ()) -> list[Verification]:
    """Check every promise of a release; one verification for each, sorted by name: passed, or failed when not kept.

    Starts the trial servers of ORDER one after the other. A server that does not come up, or dies, fails what it was
    to be asked; one that our tooling could not start leaves it errored. `progress` is told before each server and
    after each promise; `routes` are those that its source registers.
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
                else check_server(
                    server, platform.trial(runs, wait=server != "starting"), runs, subject=release, routes=routes
                )
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
    routes: Routes = (),
) -> Iterator[Verification]:
    """Check the promises of one kind of server on one trial server, which runs `runs` on behalf of `subject`.

    `only` are those to check, instead of all. When the server dies, that is told of the promise that it was asked just
    then; the others were not asked, for that one reason (NOT_ASKED).
    """
    contracts = _of(server) if only is None else list(only)
    asked: list[str] = []
    latest: Verification | None = None
    try:
        with trial as endpoint, Recorder(endpoint, routes=routes) as client:
            for contract in contracts:
                done = verify(contract, client, runs, subject=subject, basis=basis())
                if done.evidence.get(DIED) == REFUSED:
                    raise _gone(runs)  # the trial says how, where its platform can tell
                # told one behind: what the server dies of after its answer is the promise that was asked last
                if latest is not None:
                    yield latest
                asked.append(contract.name)
                latest = done
                if DIED in done.evidence:
                    raise _gone(runs)
    except Problem as error:
        if latest and len(asked) == len(contracts) and DIED not in latest.evidence and isinstance(error, ToolingError):
            yield latest  # everything was answered, and then something of ours broke
            return
        for contract in contracts:
            if contract.name in asked[:-1]:
                continue
            died = latest if contract.name in asked else None
            yield ended_by(contract, died, error, runs=runs, subject=subject, basis=basis())
    else:
        if latest is not None:
            yield latest


def _gone(runs: Release) -> ReleaseFailed:
    return ReleaseFailed(f"llama-server of {runs.label} died while it was asked")


def _of(server: Server) -> list[Contract]:
    return [contract for contract in CONTRACTS.values() if contract.server == server]


def _down(found: list[Verification]) -> Verification | None:
    return next((v for v in found if NOT_ASKED in v.evidence), None)


def _not_checked(server: Server, down: Verification, subject: Release) -> Iterator[Verification]:
    # A server that never comes up would only be polled until the time runs out.
    for contract in _of(server):
        yield verification(
            contract, subject, down.verdict, down.summary, evidence=down.evidence | {"server": server}, basis=basis()
        )


def look_here(platform: Platform, production: Release, found: Sequence[Verification]) -> list[Verification]:
    """What production's build could not be asked here and now either, of what the candidate's servers died of.

    What is on record of production was seen on another day, perhaps by another compiler or on another machine: a
    build that dies on this one tells of the machine as long as production's build does, too. A trial server of
    production is started for each kind that the candidate's died on, and asked the promise that it died of; one that
    came up and lives says nothing more, and is not recorded.
    """
    theirs: list[Verification] = []
    with tempfile.TemporaryDirectory(prefix="llama-release-") as folder:
        for server in ORDER:
            lost = [v for v in found if v.evidence.get("server") == server and v.evidence.get("at_fault") == "failed"]
            if not lost:
                continue
            if server == "starting" and (known := _down(theirs)):
                theirs += _not_checked(server, known, production)
                continue
            only = [CONTRACTS[v.name] for v in lost if DIED in v.evidence] or [CONTRACTS[lost[0].name]]
            runs = trial_release(platform.store, production, server, Path(folder))
            trial = platform.trial(runs, wait=server != "starting")
            asked = check_server(server, trial, runs, subject=production, only=only)
            if down := next((v for v in asked if SERVER_SAID in v.evidence), None):
                shown = {NOT_ASKED: down.summary, SERVER_SAID: down.evidence[SERVER_SAID]}
                theirs += [
                    verification(
                        CONTRACTS[v.name], production, down.verdict, down.summary, evidence=shown, basis=basis()
                    )
                    for v in lost
                ]
    return theirs


def weigh(
    platform: Platform, release: Release, production: Release | None, progress: Progress, routes: Routes = ()
) -> tuple[list[Verification], list[Verification], bool]:
    """(verifications of the release by what production does, those of production, whether nothing was asked now).

    All of them are recorded. What is on record of these very contracts is not asked again, of neither release;
    production is asked once, on trial servers of its own, if it never was.
    """
    theirs, asked = _measured(platform, production, progress) if production else ([], False)
    if asked:
        theirs = judge(theirs, None, [])
        _record(platform, [v for v in theirs if kept(v) is not None])  # what could not be asked is asked again
    found, asked_now = _measured(platform, release, progress, routes)
    if production and asked_now and not asked:
        here = {v.name: v for v in look_here(platform, production, found)}
        theirs = [here.get(v.name, v) for v in theirs]
    found = judge(found, production, theirs)
    _record(platform, found)
    return found, theirs, not asked_now


def _measured(
    platform: Platform, release: Release, progress: Progress, routes: Routes = ()
) -> tuple[list[Verification], bool]:
    """(what is known of each promise of a release, whether it was asked for now)."""
    if found := platform.store.fresh(release.id, required(), basis()):
        return found, False
    return run_all(platform, release, progress, routes), True


def _record(platform: Platform, found: Iterable[Verification]) -> None:
    for made in found:
        if platform.store.verification(made.release, made.name) != made:
            platform.store.record(made)


@stage("contracts", "contracts of {release.label}")
def check(
    row: Row, platform: Platform, release: Release, production: str | None, routes: Routes = ()
) -> list[Verification]:
    """Every promise checked, judged by what production (a release's id) does, and recorded, or as recorded before.

    `routes` are those that the release's source registers.

    Raises ReleaseFailed when a promise is newly broken, ToolingError when one could not be checked.
    """
    serving = platform.store.get_release(production) if production else None
    found, theirs, again = weigh(platform, release, serving, row.progress, routes)
    rows = [(named(group), group[0].verdict, group[0].summary, promised(group)) for group in by_cause(found)]
    row.judged(
        found,
        told(found, theirs),
        markdown_table(("promise", "verdict", "what was seen", "promised"), rows),
        again=again,
    )
    return found
