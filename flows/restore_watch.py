"""Scheduled: how production comes back from idle and how fast it is; alerts, and what they start."""

from __future__ import annotations

from prefect import State, flow

from flows.outcome import Outcome, ended, if_free, one_at_a_time
from tasks import notify, promote, watch
from tasks.platforms import open_platform
from tasks.settings import load


@flow(name="restore-watch", flow_run_name="restore watch")
def restore_watch() -> State[Outcome]:
    """Look at production without keeping it awake, wake it within a budget when it is idle, and tell what got worse."""
    settings = load()
    platform = open_platform(settings)
    store = platform.store
    with one_at_a_time(store, "watch"), notify.following(store, settings.notify):
        with if_free(store) as busy:
            if not busy:
                promote.recover(platform)
        release = watch.in_production(store)
        if release is None:
            return ended("nothing_to_watch")
        watch.observe(platform, release)
        watch.probe(platform, release, settings.restore, settings.watch, busy)
        watch.judged(platform, release, settings.watch)
        return ended("watched", release)


if __name__ == "__main__":
    restore_watch()
