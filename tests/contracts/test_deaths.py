"""Servers that die under the contracts, for real: one cause is one line, and it is told whose fault it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks import contracts
from tasks.contracts.judge import judge, kept, told
from tasks.contracts.probes import run_probe, shows_fault
from tasks.contracts.promises import CONTRACTS, DIED, verification
from tasks.contracts.trials import ORDER
from tasks.platforms.local import LocalPlatform
from tasks.release import (
    NOT_ASKED,
    SERVER_SAID,
    Problem,
    Release,
    ReleaseFailed,
    ToolingError,
    Verdict,
    Verification,
    by_cause,
    settle,
)
from tasks.release_page import open_promises
from tasks.report import dossier_markdown
from tests.platforms.conftest import platform_at
from tests.platforms.dying import dying

pytestmark = pytest.mark.real
ALL = len(CONTRACTS)


@pytest.fixture
def platform(tmp_path: Path) -> LocalPlatform:
    return platform_at(tmp_path / "store")


def silent(done: int, total: int, what: str) -> None:
    pass


def settled(found: Sequence[Verification]) -> Problem:
    with pytest.raises(Problem) as caught:
        settle(found)
    return caught.value


def recorded_as_kept(platform: LocalPlatform, production: Release) -> None:
    """What was seen of production on another day."""
    for contract in CONTRACTS.values():
        platform.store.record(
            verification(contract, production, Verdict.PASSED, "fine", evidence={}, basis=contracts.basis())
        )


def test_servers_that_do_not_come_up_are_one_message_with_their_signal_and_words(platform: LocalPlatform) -> None:
    release = dying(platform.store, "SEGV", "load")
    found = judge(contracts.run_all(platform, release, silent), None, [])
    assert [len(group) for group in by_cause(found)] == [ALL]
    died = f"llama-server of {release.label} ended before it could become healthy: killed by SIGSEGV"
    problem = settled(found)
    assert isinstance(problem, ReleaseFailed)
    assert problem.what == f"{ALL} contracts could not be asked: {died}"
    assert died not in problem.evidence and problem.evidence.startswith("loading the model")
    assert told(found, []) == (
        f"0 promises kept, 0 newly broken, 0 known shortcomings; {ALL} contracts could not be asked: {died}"
    )
    dossier = platform.store.dossier(release, ()).model_copy(update={"verifications": tuple(found)})
    assert dossier_markdown(dossier, "nothing").count("SIGSEGV") == 1
    assert [(row.name, row.summary) for row in open_promises(found)] == [(f"{ALL} promises", died)]


def test_the_promise_that_a_server_died_of_is_named_and_the_others_were_not_asked(platform: LocalPlatform) -> None:
    release = dying(platform.store, "ILL", "asked")
    began = time.monotonic()
    found = contracts.run_all(platform, release, silent)
    assert time.monotonic() - began < 20  # two seconds for each promise that is not asked would be a hundred
    killers = [v for v in found if DIED in v.evidence]
    lost = [v for v in found if NOT_ASKED in v.evidence]
    assert {v.evidence["server"] for v in killers} == set(ORDER) - {"starting"}
    assert all(v.seconds < 1.5 for v in killers)  # a refused connection is a death at once
    assert all(any("/completions" in e["path"] for e in v.evidence["exchanges"]) for v in killers)
    assert {v.summary for v in (*killers, *lost)} == {
        f"llama-server of {release.label} died while it was asked: killed by SIGILL"
    }
    assert all("loading the model" in v.evidence[SERVER_SAID] for v in (*killers, *lost))
    problem = settled(judge(found, None, []))
    names = [v.name for v in killers]
    died = f"{names[0]}, {names[1]} and {len(names) - 2} more: {killers[0].summary}"
    assert problem.what == f"{died}, and {len(lost)} more"
    assert str(problem).count("killed by SIGILL") == 2
    assert f"{len(lost)} contracts could not be asked for that reason" in problem.evidence


def test_what_a_server_dies_of_after_its_answer_is_told_of_the_promise_that_was_asked_last(
    platform: LocalPlatform,
) -> None:
    found = run_probe(platform, dying(platform.store, "ABRT", "answered"), "chat.usage")
    assert found.verdict is Verdict.FAILED
    assert found.evidence[DIED].endswith("killed by SIGABRT")
    assert "GGML_ASSERT(ctx->mem_buffer != NULL) failed" in found.evidence[SERVER_SAID]
    assert shows_fault(found)


def test_what_was_to_be_asked_of_a_server_that_never_came_up_shows_no_fault(platform: LocalPlatform) -> None:
    assert not shows_fault(run_probe(platform, dying(platform.store, "SEGV", "load"), "chat.usage"))


def test_a_server_that_somebody_killed_leaves_everything_unknown(platform: LocalPlatform) -> None:
    found = judge(contracts.run_all(platform, dying(platform.store, "KILL", "asked"), silent), None, [])
    assert not [v.name for v in found if SERVER_SAID in v.evidence and v.verdict is not Verdict.ERRORED]
    assert {kept(v) for v in found if SERVER_SAID in v.evidence} == {None}


@pytest.mark.parametrize("when", ["load", "asked"])
@pytest.mark.parametrize("known", [True, False], ids=["asked before", "never asked"])
def test_where_productions_build_dies_too_nothing_is_known_of_the_release(
    when: str, known: bool, platform: LocalPlatform
) -> None:
    production, release = (dying(platform.store, "SEGV", when, alias) for alias in ("old", "new"))
    if known:
        recorded_as_kept(platform, production)
    found, _, _ = contracts.weigh(platform, release, production, silent)
    dead = [v for v in found if SERVER_SAID in v.evidence]
    assert len(dead) > ALL / 2
    assert {v.verdict for v in dead} == {Verdict.ERRORED}
    assert all(production.label in v.summary and "not this release" in v.summary for v in dead)
    if when == "load":
        assert isinstance(settled(found), ToolingError)
        assert contracts.weigh(platform, release, production, silent)[2] is False  # it is asked again
    else:
        assert len(by_cause(dead)) == 2


def test_where_productions_build_lives_it_is_the_release(platform: LocalPlatform) -> None:
    production, release = dying(platform.store, alias="old"), dying(platform.store, "SEGV", "load", "new")
    recorded_as_kept(platform, production)
    found, theirs, _ = contracts.weigh(platform, release, production, silent)
    assert {v.verdict for v in found} == {Verdict.FAILED}
    assert {kept(v) for v in theirs} == {True}
    assert isinstance(settled(found), ReleaseFailed)
    assert {v.verdict for v in contracts.weigh(platform, release, production, silent)[0]} == {Verdict.FAILED}
