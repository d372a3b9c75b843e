"""What is known of a deployed app, and done to it: through Modal's public SDK where it can, else its command."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import get_args

import modal
from modal.exception import AuthError, Error, NotFoundError
from modal.types import ServerStats
from pydantic import Field

from modal_app.deployment import Deployment
from modal_app.settings import ModalSettings
from tasks.platforms import LastHour, Progress
from tasks.platforms.modal.account import COMMAND_LIMIT_S, command, told
from tasks.release import Model, Problem, StageName, ToolingError

SERVER = "Llama"
"""The class in modal_app/app.py."""
POLL_S = 0.5
SETTLE_S = 20.0
"""How long Modal may take to act upon the containers of an earlier version, and upon a stop."""
STATS_DAYS = timedelta(days=6)
"""Modal tells of 7 days at most (modal 1.6.4, `Server.stats`)."""
LOG_LINES = 400
SAID_LINES = 5000
"""How many of a trial's lines are read: a server that comes up and answers once writes some hundreds."""
OURS = re.compile(r'\{"(?:argv|boot|draining_s|gpu_memory_mb|not_recorded)": ')
"""The lines that modal_app.server writes into the log of the server."""


@dataclass(frozen=True)
class Container:
    """A running container."""

    id: str
    started_at: datetime | None


def version(settings: ModalSettings, name: str) -> int | None:
    """The version that is deployed under a name, or None when none is."""
    with told(f"looking {name} up"):
        try:
            found = modal.App.lookup(name, environment_name=settings.environment).info(refresh=True).lifecycle
        except NotFoundError:
            return None
    return found.version if found.state.name == "DEPLOYED" else None


def url(settings: ModalSettings, name: str) -> str | None:
    """Where an app's server answers, or None when it is not deployed."""
    with told(f"looking the address of {name} up"):
        try:
            found = modal.Server.from_name(name, SERVER, environment_name=settings.environment).get_url()
        except NotFoundError:
            return None
    return str(found).rstrip("/") if found else None


def tokens_for(settings: ModalSettings, address: str) -> dict[str, str]:
    """The headers that Modal's proxy asks for, for a request to an address that was given by hand.

    {} where they are not set, and for any address but our own stages', as far as Modal tells those just now: they are
    secrets, and whoever has an account answers below modal.run.
    """
    if not settings.proxy_tokens:
        return {}
    try:
        ours = {url(settings, settings.stage_app(stage)) for stage in get_args(StageName)}
    except Problem:
        return {}
    return settings.proxy_tokens if address.rstrip("/").removesuffix("/v1") in ours else {}


def containers(settings: ModalSettings, name: str) -> list[Container]:
    """The running containers of an app; none when it is not deployed."""
    with told(f"looking {name} up"):
        try:
            app_id = modal.App.lookup(name, environment_name=settings.environment).app_id
        except NotFoundError:
            return []
    said = command(
        "container", "list", "--app-id", str(app_id), "--json",
        environment=settings.environment, limit_s=COMMAND_LIMIT_S,
    ).stdout  # fmt: skip
    return [
        Container(each["container_id"], _moment(each["start_time"]))
        for each in json.loads(said)
        if each["app_id"] == app_id
    ]


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None  # "Pending"


def stop_container(container: str) -> None:
    """End a container; nothing happens when it has ended."""
    try:
        command("container", "stop", container, "--yes", limit_s=COMMAND_LIMIT_S)
    except ToolingError as error:
        if "already stopped" not in error.evidence:
            raise


def stop(settings: ModalSettings, name: str) -> None:
    """Stop an app and its containers for good; nothing happens when it does not run."""
    if version(settings, name) is None:
        return
    command("app", "stop", name, "--yes", environment=settings.environment, limit_s=COMMAND_LIMIT_S)


def drain(settings: ModalSettings, name: str, old: set[str], progress: Progress, grace_s: float) -> str:
    """Wait until the containers of an earlier version have answered what they were asked, and are gone; what is to be
    said of it, '' when nothing is. Raises nothing: what is new serves by now, whatever becomes of these.

    Modal tells them to end once the new version is up, and answers may go on for `grace_s`. One that is there after all
    of that (users saw them stay until they were idle) is stopped, which cancels what it still answers: `modal container
    stop --graceful` is for Functions alone (modal 1.6.4, cli/container.py).
    """
    began, limit_s, stopped, unseen = time.monotonic(), SETTLE_S + grace_s, set[str](), ""
    left = old
    while left and (waited_s := time.monotonic() - began) <= limit_s + SETTLE_S:
        try:
            left, unseen = {each.id for each in containers(settings, name)} & old, ""
            for container in left - stopped if waited_s > limit_s else ():
                stop_container(container)
                stopped.add(container)
        except Problem as error:
            unseen = error.what
        if left:
            grace = f"{waited_s:.0f} s of at most {grace_s:.0f} s"
            progress(
                len(old) - len(left), len(old), f"the earlier container ends its answers, {grace}; the new one answers"
            )
            time.sleep(POLL_S)
    said = []
    if stopped:
        said.append(f"stopped after {limit_s:.0f} s with what it still answered: {', '.join(sorted(stopped))}")
    if left:
        said.append(
            f"not seen to end, and may answer as well: {', '.join(sorted(left))}" + (f" ({unseen})" if unseen else "")
        )
    return "; ".join(said)


class Scaling(Model):
    """What decides how long Modal keeps containers that have nothing to do."""

    min_containers: int = 0
    buffer_containers: int = 0
    scaledown_window: int = Field(default=2, description="seconds")


NO_SPARE = Scaling()
"""No container that has nothing to do is kept."""


def scaling(settings: ModalSettings, name: str) -> Scaling | None:
    """What is in force for a deployed app's server, overrides included; None when it is not deployed."""
    with told(f"asking how {name} is scaled"):
        try:
            found = modal.Server.from_name(name, SERVER, environment_name=settings.environment).autoscaler.settings()
        except NotFoundError:
            return None
    known = {field: getattr(found, field) for field in Scaling.model_fields}
    return Scaling.model_validate({field: value for field, value in known.items() if value is not None})


def scale(settings: ModalSettings, name: str, wanted: Scaling) -> None:
    """Have a deployed app's server scaled so, until its next deploy."""
    server = modal.Server.from_name(name, SERVER, environment_name=settings.environment)
    with told(f"changing how {name} is scaled"):
        server.autoscaler.update(**wanted.model_dump())


def _stats(settings: ModalSettings, name: str, since: datetime | None) -> ServerStats | None:
    """What Modal counted of an app's server since then, by default in the last hour; None when it is not deployed, or
    Modal does not tell just now, or for a time that begins so long ago.

    The SDK calls these numbers best effort: they may be late, or not there at all (modal 1.6.4, `App.stats`).
    """
    if since and datetime.now(UTC) - since > STATS_DAYS:
        return None
    with told(f"asking for the numbers of {name}"):
        try:
            server = modal.Server.from_name(name, SERVER, environment_name=settings.environment)
            found: ServerStats = server.stats(since=since)
        except AuthError:
            raise
        except Error:
            return None
    return found


def started(settings: ModalSettings, name: str, since: datetime) -> int | None:
    """How many containers of an app's server Modal started since then; None when it does not tell."""
    found = _stats(settings, name, since)
    return found.container_started_count if found else None


def last_hour(settings: ModalSettings, name: str) -> LastHour | None:
    """What Modal counted of an app's server in the last hour; None when it does not tell."""
    found = _stats(settings, name, None)
    if found is None:
        return None
    return LastHour(
        requests=found.request_count_by_status_code, started=found.container_started_count,
        failed=found.container_error_count,
    )  # fmt: skip


def boots(deployment: Deployment) -> dict[str, str]:
    """The boot records of a deployment's app."""
    return boots_of(deployment.settings, deployment.name)


def boots_of(settings: ModalSettings, name: str) -> dict[str, str]:
    """Key -> boot record as JSON of an app; a key begins with the time."""
    with told(f"reading the boot records of {name}"):
        kept = modal.Dict.from_name(f"{name}-boots", environment_name=settings.environment, create_if_missing=True)
        return dict(kept.items())


def said(settings: ModalSettings, name: str) -> str:
    """What an app's server has written to its log, line by line as it wrote it; '' when there is no app."""
    lines = logs(settings, name, "--tail", str(SAID_LINES)).splitlines(keepends=True)
    return "".join(line for line in lines if not OURS.match(line))


def logs(settings: ModalSettings, name: str, *options: str) -> str:
    """The last lines of an app's log, each with its time; '' when there is no app. `options` are the command's own,
    instead of these.
    """
    if version(settings, name) is None:
        return ""
    return command(
        "app", "logs", name, *(options or ("--tail", str(LOG_LINES), "--timestamps")),
        environment=settings.environment, limit_s=COMMAND_LIMIT_S,
    ).stdout  # fmt: skip


# What the log of a container says of how it ended, most telling first.
SIGNS = (
    ("out of memory", r"out of memory|OOM|exit(ed)?( with)?( code)?:? 137|cudaErrorMemoryAllocation"),
    ("crashed (segmentation fault)", r"exit(ed)?( with)?( code)?:? 139|ended with -11|[Ss]egmentation fault"),
    ("restore failed, started without a snapshot", r"exit(ed)?( with)?( code)?:? 222|restore failed; retrying"),
    ("fell back", r'"kind": "fell_back"'),
    ("restored", r'"kind": "restored"'),
    ("snapshot created", r'"kind": "created"'),
)


def classified(text: str) -> str:
    """What a log tells of how containers fared, one sign a line with its latest line; '' when it tells nothing."""
    found = []
    for sign, pattern in SIGNS:
        lines = [line for line in text.splitlines() if re.search(pattern, line)]
        if lines:
            found.append(f"{sign}, {len(lines)} times, last: {lines[-1].strip()[:200]}")
    return "\n".join(found) or "\n".join(text.splitlines()[-8:])
