"""What a run needs of the worker that started it, told in one error before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefect.runtime import deployment

from tasks import settings as ours
from tasks.release import BadInput
from tasks.settings import SETTINGS_FILE, Settings


def load() -> Settings:
    """The settings in force for this flow run.

    Raises BadInput for wrong ones, and when a worker started it without what production's servers are started with:
    a server without the key, or of no model, is no successor of the one that people use.
    """
    settings = ours.load()
    if deployment.id and (missing := list(lacking(settings))):
        raise BadInput(
            "the worker that started this run lacks what production is served with",
            evidence="\n".join(missing),
            todo=f"start it in the folder that holds {SETTINGS_FILE}, with the variables that all workers share; "
            "then run it again",
        )
    return settings


def lacking(settings: Settings) -> Iterator[str]:
    """What a worker of these settings lacks, one line each."""
    model = settings.server.model
    if model is None and settings.server.hub_model is None:
        there = "sets none" if Path(SETTINGS_FILE).is_file() else "is not here"
        yield f"no model: {Path(SETTINGS_FILE).absolute()} {there}, and LLAMA_RELEASE_SERVER__MODEL is not set"
    elif model and settings.platform == "local" and not model.is_file():
        yield f"no model: there is no file {model}"
    if settings.api_key is None:
        yield f"no API key: {settings.server.api_key_env} is not set"
