"""What `doctor` asks of this machine and of a stage on it. Nothing is changed; the self-test has its own server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from modal_app import wall
from tasks.doctor import Check, Seen, note
from tasks.faults import Fault
from tasks.hardware import hardware_here
from tasks.platforms.local import LocalPlatform, diagnosis, server
from tasks.process import ENDS_WITH_PARENT
from tasks.release import BadInput, StageName, ToolingError
from tasks.settings import Settings


def checks(settings: Settings) -> Iterator[Check]:
    """(stage, a function that gives the evidence that it is well or raises a Problem), after what the kernel lacks."""
    platform = LocalPlatform(settings)
    if not ENDS_WITH_PARENT:
        yield "kernel", kernel
    yield "wall", lambda: wall_here(platform)
    yield "known faults", lambda: known_faults(platform)
    yield "self test", lambda: self_test(platform)
    for stage in get_args(StageName):
        yield stage, lambda stage=stage: stage_check(platform, stage)  # type: ignore[misc]


def kernel() -> str | Seen:
    """Where no child can be tied to its parent's life, a person has to know which processes may be left."""
    return note(
        "an activator that is killed (`kill -9`) leaves its llama-server running: only Linux ends it",
        "end one that is left by hand, or use `llama-release stop`, which leaves none",
    )


def wall_here(platform: LocalPlatform) -> str | Seen:
    """What keeps upstream's code from secrets and the network on this machine, where it is built, asked and served."""
    if why := wall.standing(False):
        return note(
            "upstream's code gets no secret in its environment, but no wall can stand here: it reads what this user "
            f"may read, and has the network ({why})",
            "run it as a user who has nothing else, or allow user namespaces",
        )
    places = ", ".join(str(place) for place in [*wall.hidden(), platform.store.root])
    stands = (
        f"upstream's code gets no secret in its environment, and sees nothing of {places}; no network where it is "
        "built or asked what it is"
    )
    if (served := platform.snapshots()).kind == "cold":
        return f"{stands}; a stage's server is kept from those files, too"
    return note(
        f"{stands}; a stage's server is not behind the wall: nothing brings it back there ({served})",
        'run it as a user who has nothing else, or boot cold behind the wall with `local.snapshots = "off"`',
    )


def known_faults(platform: LocalPlatform) -> str | Seen:
    """Which known faults a build would have on this machine: it is kept from them, and that may cost something."""
    here = hardware_here()
    found = platform.avoids(platform.settings.recipe)
    if not found:
        return f"none that is known of {here.compiler} on {here.cpu.model or 'this CPU'}"
    told = "".join(f"\n{_said(fault)}" for fault in found)
    costs = [fault.costs for fault in found if fault.is_avoided]
    lost = f"builds are kept from it, which costs: {max(costs, key=len)}" if costs else found[0].avoid.advice
    return note(f"{here.compiler} on {here.cpu.model or 'this CPU'}: known faults strike:{told}", lost)


def _said(fault: Fault) -> str:
    return f"{fault.title} ({fault.source.split(';')[0]})" + ("" if fault.is_avoided else ": nothing avoids it")


def self_test(platform: LocalPlatform) -> str | Seen:
    """Production's build still counts rightly on this machine, whose CPU, kernel or driver may have changed since.

    Raises ToolingError when it does not, or was made for another CPU.
    """
    store = platform.store
    pointer = store.pointer("production")
    release = store.release(pointer.release) if pointer.release else None
    if release is None or (build := store.build(release.build)) is None:
        return "there is no build in production to try"
    argv = server.command(store, release)
    seen = diagnosis.tried(Path(argv[0]), build.recipe, platform.settings)
    if not seen.ok:
        before = "passed its self-test when it was built, and fails it now" if build.selftest else "fails its self-test"
        raise ToolingError(
            f"production's {build.tag} {before}: {seen.summary}",
            evidence=seen.words or build.selftest or "it was made before there was a self-test",
            todo="what changed since: the CPU, the kernel, the driver? `llama-release rebuild` has it compiled anew",
        )
    return f"{build.tag}: {seen.summary}"


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
