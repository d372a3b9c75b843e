"""Where servers run: one small protocol."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tasks.release import BadInput, BootRecord, Build, Endpoint, Model, Recipe, Release, SourceTree, StageName, Wake
from tasks.settings import Settings
from tasks.store import Store

if TYPE_CHECKING:  # the store is opened without what serving takes
    from modal_app.warmup import Golden
    from tasks.faults import Fault

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what) while something long goes on."""


def unseen(_done: int, _total: int, _what: str) -> None:
    """The progress of what nobody looks at."""


class LastHour(Model):
    """A stage's requests and containers in the last hour, everybody's and ours, as a platform counts them."""

    requests: dict[int, int]
    """Status -> how many; refusals while a container started are among them."""
    started: int
    failed: int
    """Containers, of those that started, that ended with an error."""

    def __str__(self) -> str:
        told = ", ".join(f"{count} x {status}" for status, count in sorted(self.requests.items())) or "no requests"
        return f"in the last hour {told}; {self.started} containers started, {self.failed} failed"


class Sight(Model):
    """A stage as it is seen without a request that would wake its server or keep it awake."""

    servers: int
    """Serving processes or containers that are up."""
    starting: bool = False
    """A server comes up and does not answer yet, as far as the platform can tell."""
    in_flight: int | None = None
    """Requests under way; None where the platform can't tell."""
    answered: int | None = None
    """Requests of users that were answered since the proxy before the server began; None where there is none."""
    errors: int | None = None
    """Those of them that were answered with 5xx."""
    wakes: tuple[Wake, ...] = ()
    """What the first requests after idle windows got, oldest first."""
    aside: Endpoint | None = None
    """Where the server that is up can be asked without that counting as use; None where every request counts."""
    stays: bool = False
    """Whether an idle server is the same process when it comes back, with what users asked of it in its cache."""
    down: str = ""
    """Why nothing would answer a request; '' when something would, be it after bringing a server up."""
    gpu_used_mb: int | None = None
    gpu_total_mb: int | None = None
    last_hour: LastHour | None = None
    """What the platform itself counted; None where it counts nothing."""


class Platform(Protocol):
    """What the flows need of a place where llama-server is built and served."""

    name: str
    store: Store
    settings: Settings

    def build(self, source: SourceTree, recipe: Recipe, progress: Progress) -> Build:
        """The build of this source tree: made, or taken from the store. Raises ReleaseFailed when it won't compile."""

    def built(self, source: SourceTree, recipe: Recipe) -> Build | None:
        """The finished build that `build` would reuse, if there is one."""

    def avoids(self, recipe: Recipe) -> tuple[Fault, ...]:
        """The known faults (tasks/faults.toml) that a build of this recipe would have here, and is kept from."""

    def trial(self, release: Release, *, wait: bool = True) -> AbstractContextManager[Endpoint]:
        """A throw-away server of this release with a key of its own, gone on exit.

        Healthy on entry, or with `wait=False` only just started. Raises ReleaseFailed with the server's own
        words when it doesn't come up.
        """

    def said(self, trial: Endpoint) -> str:
        """What the server of a trial that is up has written to its log so far, as far as that is known here."""

    def inherits(self) -> tuple[str, ...]:
        """The names of this process's environment variables that servers see too, sorted."""

    def deploy(
        self,
        stage: StageName,
        release: Release,
        check: Callable[[Endpoint], object],
        *,
        generation: str = "",
        at_once: bool = False,
        progress: Progress = unseen,
    ) -> Endpoint:
        """The stage serves this release from now on. `check` runs against the new server before traffic moves,
        and what it raises leaves the stage as it was. Nothing happens when the stage serves it already, of this
        generation and with this API key: another generation is another server with a snapshot of its own. `at_once`:
        of a release that served before, without what only looks at it once more before traffic moves, and without
        waiting for what an earlier server still answers."""

    def check_keys(self) -> None:
        """Raises BadInput when a key or token that what is served asks for is not known here."""

    def serving(self, stage: StageName) -> tuple[str, str] | None:
        """(release id, generation) that the stage serves, with whatever key; None when nothing is known to serve."""

    def endpoint(self, stage: StageName) -> Endpoint:
        """Where the stage answers, with all that it asks for. Raises BadInput when it serves nothing, or a key is not
        known here."""

    def address(self, stage: StageName) -> str:
        """Where the stage answers; '' when it serves nothing."""

    def idle(self, stage: StageName) -> int:
        """Force the idle window; return how many serving processes are left (0 is the goal)."""

    def rest(self, stage: StageName, since: Sight) -> None:
        """Let the stage's server go idle at once if no user asked anything since then. Nothing where one can't tell."""

    def warm(self, stage: StageName, progress: Progress) -> str:
        """Have a snapshot for each kind of machine that the stage's servers may land on; what there is then, '' where
        all are of one kind. What was found before a process was killed is not looked for again."""

    def unforce(self, stage: StageName) -> str:
        """Undo what a killed process left forced upon a stage by `idle`; what was done, '' when there was nothing."""

    def foretells(self, stage: StageName) -> tuple[str, ...]:
        """What the next deployment to a stage changes for its clients, and costs besides: one sentence each."""

    @property
    def holds_requests(self) -> bool:
        """Whether a request waits for a server that comes up, and is not refused meanwhile."""

    def stop(self, stage: StageName) -> None:
        """The stage serves nothing from now on. Nothing happens when it does not."""

    def boots(self, stage: StageName) -> list[BootRecord]:
        """Boot records of the stage, oldest first."""

    def started(self, stage: StageName, since: datetime) -> int | None:
        """How many servers of the stage were started since then, as the platform itself counts them; None where it does
        not. It may come late: `boots` may know of more."""

    def version(self, stage: StageName) -> str:
        """What tells what is deployed to the stage from what was and will be; '' where nothing is."""

    def sight(self, stage: StageName) -> Sight:
        """The stage as it is seen without waking its server or keeping it awake."""

    def revive(self, stage: StageName) -> str:
        """Bring back what should run for the stage and was killed, not what somebody stopped; what was done, '' when
        there was nothing to do. Raises what keeps it from coming back."""

    def golden(self, stage: StageName, snapshot: str | None = None) -> Golden | None:
        """What the stage's server answered before its snapshot was taken; None when there is no snapshot. Where there
        are several, of the one that a boot record names, or that the latest boot has. Those of one deployment have the
        same nonce."""

    def logs(self, stage: StageName) -> Path:
        """The log of the stage's servers."""


def open_platform(settings: Settings) -> Platform:
    """The platform that the settings name."""
    # they need the protocol above
    if settings.platform == "modal":
        from tasks.platforms.modal import ModalPlatform

        return ModalPlatform(settings)
    from tasks.platforms.local import LocalPlatform

    return LocalPlatform(settings)


def open_store(settings: Settings) -> Store:
    """The store of the platform that the settings name, for what needs no servers: it opens ten times as fast.

    Raises what `open_platform` raises.
    """
    if settings.platform == "modal":
        return open_platform(settings).store
    refuse_open_host(settings)
    return Store(settings.store)


def refuse_open_host(settings: Settings) -> None:
    """Raises BadInput for a local host that other machines reach, where there is no API key."""
    if not _is_loopback(settings.local.host) and settings.api_key is None:
        raise BadInput(
            f"{settings.local.host} is reachable from other machines, and there is no API key",
            evidence=f"{settings.server.api_key_env} is not set",
            todo=f"set {settings.server.api_key_env}, or local.host = 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
