"""Scheduled: how production comes back from idle and how fast it is; alerts, and what they start."""

from __future__ import annotations

from typing import Any

from prefect import Flow, State, flow
from prefect.deployments import run_deployment
from prefect.runtime import deployment

from flows.deployed import load
from flows.outcome import Outcome, ended, if_free, one_at_a_time
from flows.redeploy import redeploy
from flows.rollback import rollback
from tasks import approval, notify, promote, watch
from tasks.platforms import open_platform
from tasks.watch import Remedy

FLOWS: dict[str, Flow[..., Any]] = {"redeploy": redeploy, "rollback": rollback}


@flow(name="restore-watch", flow_run_name="restore watch")
def restore_watch() -> State[Outcome]:
    """Look at production without keeping it awake, wake it within a budget when it is idle, and tell what got worse.

    What touches stages waits for nobody: while another run is at work (it holds the release lock) it is left out.
    """
    settings = load()
    platform = open_platform(settings)
    store = platform.store
    with one_at_a_time(store, "watch"):
        with notify.following(store, settings.notify):
            with if_free(store) as busy:
                if not busy:
                    promote.recover(platform)
                    approval.attend(platform, settings)
            release = watch.in_production(store)
            if release is None:
                return ended("nothing_to_watch")
            watch.observe(platform, release)
            watch.probe(platform, release, settings.restore, settings.watch, busy)
            watch.judged(platform, release, settings.watch)
            watch.drill(platform, settings.watch, busy)
            with if_free(store) as busy:
                if not busy:
                    watch.revive(platform)
                remedy = watch.remedy(store, settings.watch, busy)
        if remedy:
            _start(remedy)
        return ended("watched", release)


def _start(remedy: Remedy) -> None:
    """Through the deployment of the flow where this run belongs to one, else here. Raises what the flow raises."""
    parameters = remedy.model_dump(include={"by", "reason"})
    if deployment.id:
        run_deployment(f"{remedy.flow}/{deployment.name}", parameters=parameters, timeout=0, as_subflow=False)
    else:
        FLOWS[remedy.flow](**parameters)


if __name__ == "__main__":
    restore_watch()
