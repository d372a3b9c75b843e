"""A release that production has or retains, through staging, idle windows and promotion again."""

from __future__ import annotations

from prefect import State, flow

from flows.deployed import load
from flows.outcome import Outcome, ended, one_at_a_time
from flows.parameters import ReleaseName, Words
from flows.required import required
from tasks import contracts, notify, promote, restore
from tasks import redeploy as redeploying
from tasks.doctor import needs
from tasks.platforms import open_platform
from tasks.release import BadInput, ReleaseFailed
from tasks.report import show_dossier


@flow(name="redeploy", flow_run_name="redeploy by {by}")
def redeploy(by: Words, reason: Words, release: ReleaseName | None = None) -> State[Outcome]:
    """Send a release that production has or retains through staging, idle windows and promotion again.

    For a new API key, a new base image, or a Modal runtime update. Who starts it approves it, under the dossier that
    comes of it: nobody else is asked, and a release that fails on the way is not promoted.

    Args:
        by: who does it.
        reason: why.
        release: a retained release, by its tag or its id; the one in production when not given.
    """
    settings = load()
    platform = open_platform(settings)
    store = platform.store
    with one_at_a_time(store), notify.following(store, settings.notify):
        left = store.redeploy()
        promote.recover(platform)
        if left and store.redeploy() is None:  # all that was left of it was to finish
            return ended("redeployed", store.get_release(left.release))
        needs.require(settings, needs.REDEPLOY)
        begun = redeploying.begin(platform, release, by, reason)
        chosen, production = store.get_release(begun.release), store.pointer("production")
        try:
            # recorded before, unless there are promises that it never was asked for; compared with nothing but itself
            contracts.check(platform, chosen, chosen.id)
            promote.staging(platform, chosen, begun.generation)
            restore.check(platform, "staging", chosen, settings.restore)
            dossier = store.dossier(chosen, required())
            show_dossier(dossier)
            approval = redeploying.approval(begun, dossier, production)
            promote.promote(platform, dossier, approval, settings.retain, "redeploy")
        except (ReleaseFailed, BadInput):
            store.close_redeploy()  # another try is another generation, and verified anew
            raise
        return ended("redeployed", chosen)
