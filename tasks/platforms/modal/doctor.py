"""What `doctor` asks of a Modal account. Nothing is created, changed or started."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import get_args

import modal

from modal_app.server import KEY
from tasks.platforms.modal import ModalPlatform, apps, conformance, cost
from tasks.platforms.modal.account import COMMAND_LIMIT_S, command, told
from tasks.release import BadInput, StageName, ToolingError
from tasks.settings import Settings


def checks(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    """(what is checked, a function that gives the evidence that it is well or raises a Problem), most basic first."""
    platform = ModalPlatform(settings)
    yield "account", _account
    yield "environment", lambda: _environment(settings)
    yield "images", lambda: _images(settings)
    yield "store", lambda: _store(platform)
    yield "secret", lambda: _secret(settings)
    yield "who may wake it", lambda: _who_may_wake(platform)
    for stage in get_args(StageName):
        yield stage, lambda stage=stage: _stage(platform, stage)  # type: ignore[misc]
    yield "conformance", lambda: _conformance(platform)
    yield "trials", lambda: _trials(settings)


def _account() -> str:
    """The workspace that the token belongs to."""
    said = command("token", "info", limit_s=COMMAND_LIMIT_S).stdout
    return ", ".join(line.strip() for line in said.splitlines() if line.strip())


def _environment(settings: Settings) -> str:
    wanted = settings.modal.environment
    found = json.loads(command("environment", "list", "--json", limit_s=COMMAND_LIMIT_S).stdout)
    names = [str(each["name"]) for each in found]
    if wanted and wanted not in names:
        raise BadInput(
            f"there is no Modal environment {wanted}",
            evidence=f"there are: {', '.join(names)}",
            todo=f"set modal.environment, or `modal environment create {wanted}`",
        )
    return wanted or f"the profile's own, one of {', '.join(names)}"


def _images(settings: Settings) -> str:
    try:
        return f"CUDA {settings.modal.cuda}, both pinned by digest"
    except ValueError as error:
        raise BadInput("the two images do not fit", evidence=str(error), todo="pin a pair of one release") from error


def has_volume(platform: ModalPlatform) -> bool:
    """Whether there is a store: to read it would create it."""
    name = platform.settings.modal.app
    with told(f"looking the Volume {name} up"):
        try:
            modal.Volume.from_name(name, environment_name=platform.settings.modal.environment).hydrate()
        except modal.exception.NotFoundError:
            return False
    return True


def _store(platform: ModalPlatform) -> str:
    name = platform.settings.modal.app
    if not has_volume(platform):
        return f"no Volume {name} yet: the first upgrade creates it"
    return f"Volume {name}: {len(platform.store.releases())} releases, {len(platform.store.builds())} builds"


def _secret(settings: Settings) -> str:
    """The Secret has the key, and this machine has one too. That they are the same only a request can show."""
    name = settings.modal.secret
    with told(f"looking the Secret {name} up"):
        secret = modal.Secret.from_name(name, environment_name=settings.modal.environment, required_keys=[KEY])
        created = secret.info().created_at
    if settings.api_key is None:
        raise BadInput(
            "the API key is not known here",
            evidence=f"{settings.server.api_key_env} is not set",
            todo=f"set it to the key in the Secret {name}",
        )
    return f"Secret {name} of {created:%Y-%m-%d %H:%M}, and {settings.server.api_key_env} is set"


def _who_may_wake(platform: ModalPlatform) -> str:
    """Whether a request of a stranger starts a server, and what that costs."""
    settings = platform.settings.modal
    if has_volume(platform):
        is_open = [stage for stage in get_args(StageName) if platform.opens(stage)]
    else:
        is_open = [*get_args(StageName)] if settings.open else []
    if not is_open:
        return f"whoever has a proxy token; one is set here ({', '.join(platform.proxy_headers)})"
    price = cost.usd(settings, 24 * 3600.0, settings.gpu or None, settings.server_cpu, settings.server_memory_mb)
    each = f"{price:.0f} USD a day" if cost.is_priced(settings) else f"at a price that is not known ({settings.gpu})"
    most = settings.max_containers
    many = f"up to {most} of them (modal.max_containers)" if most else "as many as are asked for (no max_containers)"
    said = (
        f"{' and '.join(is_open)}: anybody. One request every {settings.idle_s} s, such as a scanner's or a scrape of "
        f"/metrics, keeps a {settings.gpu or 'CPU'} up, {each}; many at once start {many}"
    )
    if settings.open is False:
        raise BadInput(
            "modal.open is false, and what is deployed is open",
            evidence=said,
            todo="`llama-release redeploy --reason 'proxy tokens'` closes it; clients need their token before that",
        )
    return said


def _stage(platform: ModalPlatform, stage: StageName) -> str:
    """The stage serves what its pointer says, from a snapshot that knows the key of today."""
    name = platform.settings.modal.stage_app(stage)
    if not has_volume(platform):
        return "nothing was ever deployed"
    deployed = platform.deployed(stage)
    pointer = platform.store.pointer(stage)
    served = deployed.release if deployed else None
    if served != pointer.release:
        raise ToolingError(
            f"{stage} serves {served or 'nothing that we deployed'}, its pointer says {pointer.release or 'nothing'}",
            evidence=f"app {name} version {apps.version(platform.settings.modal, name)}",
            todo="`llama-release start` brings it back to its pointer",
        )
    if deployed is None:
        return "serves nothing, as its pointer says"
    if platform.settings.api_key and deployed.key != platform.key_mark:
        raise BadInput(
            f"the API key is newer than the snapshot of {stage}",
            evidence=f"app {name} version {deployed.version} was deployed with another key, which it keeps",
            todo="`llama-release redeploy --reason 'new API key'` makes a snapshot that knows the new one",
        )
    if found := platform.forced(stage):
        raise ToolingError(
            f"{stage} lets its containers go at once: an idle window was forced, and its end was never asked for",
            evidence=f"app {name}: scaledown_window {apps.NO_SPARE.scaledown_window} s; it was "
            f"{found.scaledown_window} s when forced/{stage}.json was written",
            todo="nothing while a run is at its idle windows; else any flow puts it back (`llama-release watch`)",
        )
    return f"{deployed.release}, app {name} version {deployed.version}"


def _conformance(platform: ModalPlatform) -> str:
    """What a run of `conformance` found, and how long ago; none is no fault."""
    found = conformance.load(platform.store) if has_volume(platform) else None
    return (
        conformance.told_age(found)
        if found
        else "never run: `llama-release conformance` holds what Modal does " + ("here against what is assumed")
    )


def _trials(settings: Settings) -> str:
    env = settings.modal.environment
    listed = json.loads(command("app", "list", "--json", environment=env, limit_s=COMMAND_LIMIT_S).stdout)
    ours = (settings.modal.stage_app("trial"), settings.modal.stage_app("conformance"))
    left = [
        each["description"] for each in listed if each["state"] == "deployed" and each["description"].startswith(ours)
    ]
    if left:
        raise ToolingError(
            f"{len(left)} trials were left over by flows that were killed",
            evidence=", ".join(left),
            todo="; ".join(f"`modal app stop {name} --yes`" for name in left) + " unless an upgrade runs just now",
        )
    return "none left over"
