"""Staging is probed while a person thinks: real servers, an idle window that is played."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from tasks import restore
from tasks.approval import attend
from tasks.platforms.local import LocalPlatform
from tasks.release import BootKind, Endpoint, Release, Request, StagePointer, Verdict, Verification, now
from tasks.settings import ApprovalSettings, RestoreSettings, Settings
from tasks.store import Store
from tests.approval.test_standing import NOWHERE
from tests.restore.conftest import Played

pytestmark = pytest.mark.real

RESTORE = RestoreSettings(bad=0.04, cold_cycles=1, wait_s=0, accept_cold=True)


@pytest.fixture(scope="module")
def server(local: LocalPlatform, scripted: Release) -> Iterator[Endpoint]:
    with local.trial(scripted) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def different(local: LocalPlatform, one_weight_off: Release) -> Iterator[Endpoint]:
    with local.trial(one_weight_off) as endpoint:
        yield endpoint


def asked(store: Store, release: Release) -> Request:
    """An open question about a release that came back well an hour ago."""
    store.save_release(release)
    store.save_pointer(StagePointer(stage="staging", release=release.id))
    store.record(
        Verification(
            name=restore.NAME, release=release.id, verdict=Verdict.PASSED, summary="s", evidence={"cycles": []}
        )
    )
    dossier = store.dossier(release, (restore.NAME,))
    at = now() - timedelta(hours=1)
    return store.save_request(
        Request(
            run="00000000-0000-4000-8000-000000000002", name="upgrade", api_url=NOWHERE, link="", suspended=True,
            tag=release.upstream.tag, release=release.id, dossier=dossier.digest, required=dossier.required,
            expected=None, asked_at=at, expires_at=at + timedelta(hours=24),
        )
    )  # fmt: skip


def settings(store: Store) -> Settings:
    return Settings(store=store.root, restore=RESTORE, approval=ApprovalSettings(probe_s=600))


def test_staging_that_comes_back_leaves_its_evidence_and_the_question_open(
    store: Store, server: Endpoint, scripted: Release
) -> None:
    request = asked(store, scripted)
    platform = Played(store, server, server, (BootKind.RESTORED,))
    attend(platform, settings(store))
    attend(platform, settings(store))
    (probed,) = store.ledger()
    assert (probed.kind, probed.detail["verdict"]) == ("staging_probed", Verdict.PASSED), probed
    assert probed.detail["cycle"]["boots"][0]["kind"] == "restored"
    assert [r.state for r in store.requests()] == ["open"]
    assert store.dossier(scripted, (restore.NAME,)).digest == request.dossier


def test_staging_that_answers_differently_fails_the_dossier_and_withdraws_the_question(
    store: Store, server: Endpoint, different: Endpoint, scripted: Release
) -> None:
    asked(store, scripted)
    attend(Played(store, server, different, (BootKind.COLD,)), settings(store))
    assert [e.kind for e in store.ledger()] == ["staging_probed", "approval_withdrawn"]
    (closed,) = store.requests()
    assert closed.state == "withdrawn"
    assert "staging failed: cold, and it answers differently" in closed.reason
    (blocker,) = store.dossier(scripted, (restore.NAME,)).blockers
    assert "while a person was thinking" in blocker


def test_staging_that_cannot_be_probed_is_our_trouble_and_withdraws_nothing(
    store: Store, server: Endpoint, scripted: Release
) -> None:
    asked(store, scripted)
    attend(replace(Played(store, server, server, (BootKind.COLD,)), left=1), settings(store))
    (probed,) = store.ledger()
    assert probed.detail["verdict"] == Verdict.ERRORED
    assert "did not go idle" in probed.summary
    assert [r.state for r in store.requests()] == ["open"]
