"""Production back to a retained release, then a hold."""

from __future__ import annotations

from prefect import State, flow

from flows.deployed import load
from flows.outcome import Outcome, ended, one_at_a_time
from flows.parameters import ReleaseName, Words
from tasks import notify, promote
from tasks.platforms import open_platform


@flow(name="rollback", flow_run_name="rollback by {by}")
def rollback(by: Words, reason: Words, to: ReleaseName | None = None) -> State[Outcome]:
    """Put production back to a release that was retained, and hold it there until a person lifts the hold.

    Args:
        by: who does it.
        reason: why.
        to: a retained release, by its tag or its id; the latest one when not given.
    """
    settings = load()
    platform = open_platform(settings)
    with one_at_a_time(platform.store), notify.following(platform.store, settings.notify):
        promote.recover(platform)
        done = promote.rollback(platform, promote.meant(platform.store, to), by, reason, settings.retain)
        return ended("rolled_back", done.release)
