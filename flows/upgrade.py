"""The whole way from upstream to production."""

from __future__ import annotations

from prefect import State, flow
from prefect.runtime import flow_run

from flows.deployed import load
from flows.outcome import Outcome, ended, one_at_a_time
from flows.parameters import Tag
from flows.plan import NOTHING_NEWER, settled
from flows.required import required
from tasks import approval, build, contracts, evals, notify, patches, preflight, promote, proof, restore
from tasks.doctor import needs
from tasks.hub import stage as hub
from tasks.platforms import open_platform
from tasks.preflight import foreseen
from tasks.report import show_dossier
from tasks.upstream import stage as upstream

RESUMED_S = 15 * 60
"""Seconds that a run which a person has just answered waits for another to let go of the release lock."""


def _run_name() -> str:
    return f"upgrade to {flow_run.parameters.get('to') or 'the newest'}"


@flow(name="upgrade", flow_run_name=_run_name)
def upgrade(to: Tag | None = None, again: bool = False) -> State[Outcome]:
    """Bring production to a newer upstream release, when every proof holds and a person agrees.

    Args:
        to: the upstream build or stable release to go to, such as b11434 or v0.6.0; the newest eligible one when not
            given.
        again: verify anew what has been verified before.
    """
    settings = load()
    platform = open_platform(settings)
    store = platform.store
    if asked := approval.asked(store):  # a person was asked, and the run was suspended: it goes on where it was
        to, again = asked.tag, False
    with one_at_a_time(store, patience_s=RESUMED_S if asked else 0), notify.following(store, settings.notify):
        promote.recover(platform)
        if not asked:  # what a person has approved needs little of it, and goes on with what there is
            needs.require(settings, needs.UPGRADE)
        store.prune_builds(settings.keep_builds)
        production = store.pointer("production")
        promote.refuse_on_hold(production)
        approval.refuse(store, asked)

        settings = hub.served(platform, settings)
        platform = open_platform(settings)
        target, notes = upstream.read(platform, settings, to)
        if target is None:
            return ended(NOTHING_NEWER.kind, note=NOTHING_NEWER.note)
        source = patches.apply(platform, settings, target)
        foreseen.check(settings, source)
        built = build.make(platform, source, settings.recipe)
        source, built = proof.check(platform, settings, source, built, again)
        release = preflight.check(platform, settings, built, production.release, again)
        proof.record(platform, release, source)
        if there := settled(store, release, again):
            return ended(there.kind, there.release, there.note)

        contracts.check(platform, release, production.release, preflight.routes(platform, settings, built))
        promote.staging(platform, release)
        restore.check(platform, "staging", release, settings.restore)
        evals.check(platform, release, production.release, settings.evals)

        dossier = store.dossier(release, required())
        show_dossier(dossier)
        decision = approval.ask(platform, dossier, production, settings, notes)
        if decision.decision == "reject":
            return ended("rejected", release)
        promote.promote(platform, store.dossier(release, required()), decision, settings.retain)
        return ended("promoted", release)


if __name__ == "__main__":
    upgrade()
