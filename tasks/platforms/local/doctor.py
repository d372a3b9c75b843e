"""What `doctor` asks of a stage on this machine. Nothing is changed or started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from tasks.platforms.local import LocalPlatform
from tasks.release import BadInput, StageName, ToolingError
from tasks.settings import Settings


def checks(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    """(stage, a function that gives the evidence that it is well or raises a Problem)."""
    platform = LocalPlatform(settings)
    for stage in get_args(StageName):
        yield stage, lambda stage=stage: stage_check(platform, stage)  # type: ignore[misc]


def stage_check(platform: LocalPlatform, stage: StageName) -> str:
    """The stage serves what its pointer says, with servers that know the key of today.

    Raises ToolingError when it serves something else, BadInput when the key is another one now.
    """
    pointer, serving = platform.store.pointer(stage), platform.serving(stage)
    served = serving[0] if serving else None
    if served != pointer.release:
        raise ToolingError(
            f"{stage} serves {served or 'nothing'}, its pointer says {pointer.release or 'nothing'}",
            evidence=f"{'an' if platform.status(stage) else 'no'} activator of {stage} runs",
            todo="`llama-release start` brings it back to its pointer",
        )
    if served is None:
        return "serves nothing, as its pointer says"
    if not platform.knows_key(stage):
        raise BadInput(
            f"the API key is newer than the servers of {stage}",
            evidence=f"{platform.settings.server.api_key_env} here is not the key that they were started with",
            todo="`llama-release redeploy --reason 'new API key'` puts servers with the new key in their place",
        )
    return f"{served} at {platform.endpoint(stage).base_url}"
