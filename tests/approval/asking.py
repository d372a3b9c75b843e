"""A flow that only asks: what every flow with an approval does around its question."""

from __future__ import annotations

from pathlib import Path

from prefect import State, flow

from flows.outcome import Outcome, ended, one_at_a_time
from tasks import approval
from tasks.platforms.local import LocalPlatform
from tasks.release import Dossier, Release, StagePointer, Verdict
from tasks.settings import ApprovalSettings, LocalSettings, Settings
from tasks.store import Store
from tests.test_release import a_release, seen

RELEASE = a_release()
OTHER = a_release(alias="other")
ENTRYPOINT = "tests.approval.asking.asking"


def a_dossier(store: Store, release: Release = RELEASE, verdict: Verdict = Verdict.PASSED) -> Dossier:
    """A dossier of one verification, recorded, of a release that staging serves."""
    store.save_release(release)
    store.save_pointer(StagePointer(stage="staging", release=release.id))
    store.record(seen("a", verdict).model_copy(update={"release": release.id}))
    return store.dossier(release, ("a",))


def platform_on(root: Path, **approval_settings: int) -> tuple[LocalPlatform, Settings]:
    settings = Settings(
        store=root,
        local=LocalSettings(staging_port=0, production_port=0),
        approval=ApprovalSettings(**approval_settings),
    )
    return LocalPlatform(settings), settings


@flow(name="asking")
def asking(root: str, alias: str = "m", timeout_s: int = 600) -> State[Outcome]:
    """Ask about the release with this alias, as `upgrade` does."""
    platform, settings = platform_on(Path(root), timeout_s=timeout_s)
    store, release = platform.store, a_release(alias=alias)
    asked = approval.asked(store)
    with one_at_a_time(store, patience_s=60 if asked else 0):
        approval.refuse(store, asked)
        if other := approval.waiting(store, release):
            return ended("waiting", release, other.run)
        dossier = store.dossier(release, ("a",)) if asked else a_dossier(store, release)
        decision = approval.ask(platform, dossier, store.pointer("production"), settings)
        return ended("promoted" if decision.decision == "approve" else "rejected", release)
