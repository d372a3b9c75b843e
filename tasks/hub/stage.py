"""The row of an upgrade in which the files of `server.hub_model` come to this machine."""

from __future__ import annotations

from tasks import hub
from tasks.platforms import Platform
from tasks.settings import Settings
from tasks.stage import Row, stage

NAME = "model"


def served(platform: Platform, settings: Settings) -> Settings:
    """The settings with the files that servers are given; as they are where no repository is named."""
    return fetch(platform, settings) if settings.server.hub_model else settings


@stage(NAME, "model of the Hub")
def fetch(row: Row, platform: Platform, settings: Settings) -> Settings:
    """The settings with the files of `server.hub_model`, pinned and here. Raises as `hub.fetch`."""
    resolved, found = hub.fetch(platform.store, settings, row.progress)
    row.done(
        str(found),
        detail={"repo": found.pin.repo, "commit": found.pin.commit, "files": dict(hub.files_of(found))},
    )
    return resolved
