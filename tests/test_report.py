"""What a run tells, when nobody listens."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
from prefect import flow, get_client
from prefect.client.schemas.objects import Artifact

from tasks import build as building
from tasks.platforms import Platform
from tasks.platforms.local import LocalPlatform
from tasks.release import ReleaseFailed, Verdict, Verification
from tasks.settings import Settings
from tasks.stage import Row, patiently, stage
from tasks.store import Store
from tests.test_release import a_build, seen


def test_a_run_goes_on_when_whoever_read_its_lines_is_gone() -> None:
    script = (
        "import logging, sys; from prefect.logging.handlers import PrefectConsoleHandler\n"
        "from tasks.console import console\n"
        "console.print('one'); logger = logging.getLogger('a'); logger.addHandler(PrefectConsoleHandler())\n"
        "sys.stdin.readline(); logger.error('two'); console.print('three'); logger.error('four'); sys.exit(7)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        assert run.stdin and run.stdout
        assert run.stdout.readline() == b"one\n"
        run.stdout.close()
        run.stdin.close()
        assert run.wait() == 7


def test_what_prefect_is_told_waits_until_its_server_is_there_again() -> None:
    away = [httpx.ConnectError("refused"), httpx.ReadError("reset")]

    def tell(text: str) -> str:
        if away:
            raise away.pop()
        return text

    assert patiently(tell)("told") == "told"
    away.append(httpx.ConnectError("refused"))
    with pytest.raises(httpx.ConnectError):
        patiently(tell, limit_s=-1)("told")


@stage("look", "look at it")
def look(row: Row, _platform: Platform, found: list[Verification]) -> None:
    row.judged(found, "seen with a-secret-of-somebody", "| a-secret-of-somebody |")


@stage("idle", "do nothing")
def say_nothing(_row: Row, _platform: Platform) -> None:
    """Forget to close the row."""


def artifacts() -> list[Artifact]:
    with get_client(sync_client=True) as client:
        return client.read_artifacts()


@pytest.mark.wire
@pytest.mark.usefixtures("page")
def test_a_row_has_the_worst_verdict_and_no_secret_and_a_failed_one_stops_the_flow(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-secret-of-somebody")
    platform = LocalPlatform(Settings(store=store.root))
    verdicts = (Verdict.PASSED, Verdict.ERRORED, Verdict.FAILED, Verdict.INCONCLUSIVE)

    @flow(name="looking")
    def looking() -> None:
        look(platform, [seen(verdict, verdict) for verdict in verdicts])

    with pytest.raises(ReleaseFailed, match="failed failed"):
        looking()
    (event,) = store.ledger()
    assert (event.detail["verdict"], event.summary) == ("failed", "seen with [SOME_TOKEN]")
    (shown,) = [each for each in artifacts() if each.key == "look"]
    assert "a-secret-of-somebody" not in f"{shown.data} {shown.description}"


@pytest.mark.wire
@pytest.mark.usefixtures("page")
def test_a_stage_that_does_not_say_what_it_did_is_our_mistake(store: Store) -> None:
    platform = LocalPlatform(Settings(store=store.root))
    with pytest.raises(RuntimeError, match="the stage idle returned without saying what it did"):
        flow(name="idling")(lambda: say_nothing(platform))()


def test_a_build_says_which_known_faults_it_was_kept_from() -> None:
    assert building.avoided(a_build()) == []
    (fault,) = building.avoided(a_build(avoids=("criu-amx",)))
    assert fault.id == "criu-amx"
