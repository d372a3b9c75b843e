"""Scheduled: the patch series on the newest upstream, long before anybody upgrades to it."""

from __future__ import annotations

from prefect import State, flow

from flows.deployed import load
from flows.outcome import Outcome, ended, one_at_a_time
from tasks import notify
from tasks.patches import watch
from tasks.platforms import open_platform


@flow(name="patches-watch", flow_run_name="patches watch")
def patches_watch() -> State[Outcome]:
    """Bring the series to the newest upstream release, build nothing, and tell on the day that a patch breaks."""
    settings = load()
    platform = open_platform(settings)
    with one_at_a_time(platform.store, "patches-watch"), notify.following(platform.store, settings.notify):
        broken = [one.patch.name for one in watch.look(platform, settings) if one.result.status.blocked]
        return ended("watched", note=f"broken: {', '.join(broken)}" if broken else "")


if __name__ == "__main__":
    patches_watch()
