"""How this fake's Modal behaves where Modal's guides leave room, or its users saw more than one thing.

Each line says where it is from: [servers] https://modal.com/docs/guide/servers, [deploying]
https://modal.com/docs/guide/managing-deployments, [snapshots] https://modal.com/docs/guide/memory-snapshots, [sdk] the
docstrings of modal 1.6.4, [users] reports of Modal's users, November 2026. None was run on Modal itself.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from tasks.platforms.modal.conformance import Conformance, kinds_of


@dataclass(frozen=True)
class Worker:
    """A kind of machine that containers land on. What is snapshotted on one is restored on no other [snapshots]."""

    region: str = "us-east-1"
    driver: str = "570.86.15"
    weight: float = 1.0
    """Its share of the starts, beside those of the others."""


@dataclass
class Lifecycle:
    """The parameters of the fake."""

    workers: tuple[Worker, ...] = (Worker(),)
    """Two or three for one GPU type [users]. Each has a snapshot of its own, taken by its first container."""
    coming: list[Worker] = field(default_factory=list)
    """Where the next containers land, before chance decides."""
    failing: list[int] = field(default_factory=list)
    """The exit codes of the next restores. 222: the SDK saw it fail, and Modal starts the container again without a
    snapshot [sdk]. 139, 128, 137: it was killed; the next one boots whole and takes a new snapshot [users]."""
    unlogged: int = 0
    """How many of the next restores that fail leave no line in the log: what Modal writes of a container's end is
    nowhere promised [users]."""
    log_lag_s: float = 0.0
    """How late Modal's own lines come into the log: logs are collected apart from what runs [users]."""
    failure_rate: float = 0.0
    """The share of other restores that fail, with one of these codes by chance."""
    exit_grace: bool = True
    """Whether `exit_grace_period` is honoured when a container is told to end [sdk]. Off: it is killed after EXIT_S."""
    holds: bool = False
    """Whether a request that finds no container waits for one. Off: it gets a 503, and starts one [servers]."""
    between: float = 0.5
    """The share of refusals that are a 502, a 504 or a reset, while a container comes up [users]."""
    proxy_token: tuple[str, str] = ("wk-fake", "ws-fake")
    """What a server that is not `unauthenticated` is asked with, in the headers Modal-Key and Modal-Secret."""
    blocks_down: int | None = None
    """What the store of a volume's blocks answers instead of keeping or giving them: a status, or 0 for nothing at all
    [users]."""
    seed: int = 0

    replaces_old: bool = True
    """A container of an earlier version is told to end once one of the new version is ready [deploying]. Off: it stays
    until it is idle, and is asked as well [users]."""
    asks_old: float = 0.0
    """The share of requests that a container of an earlier version gets while one of the new version is up [users]."""

    @classmethod
    def of(cls, found: Conformance, seed: int = 0) -> Lifecycle:
        """As an account's conformance run found its Modal."""
        weights = Counter(start.snapshot for start in found.starts if start.snapshot in kinds_of(found.starts))
        codes = Counter(code for start in found.starts for code in start.refused)
        restores = [start for start in found.starts if start.kind != "created"]
        items = {item.name: item.as_assumed for item in found.items}
        return cls(
            workers=tuple(Worker(region=kind, weight=count) for kind, count in weights.items()) or (Worker(),),
            failure_rate=sum(start.kind != "restored" for start in restores) / max(1, len(restores)),
            holds=not codes or "held" in codes,
            between=1 - codes["503"] / max(1, codes.total()),
            replaces_old=items.get("replacement") is not False,
            seed=seed,
        )

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def next_worker(self) -> Worker:
        """Where the next container lands."""
        if self.coming:
            return self.coming.pop(0)
        return self._random.choices(self.workers, [each.weight for each in self.workers])[0]

    def next_refusal(self) -> int:
        """What a request gets while no container is ready: a status, or 0 for a reset."""
        return self._random.choice((502, 504, 0)) if self._random.random() < self.between else 503

    def asks_earlier(self) -> bool:
        """Whether the next request goes to a container of an earlier version, where one is up."""
        return self._random.random() < self.asks_old

    def next_restore(self) -> int:
        """The exit code of the next restore; 0 when it succeeds."""
        if self.failing:
            return self.failing.pop(0)
        return self._random.choice((222, 139, 128, 137)) if self._random.random() < self.failure_rate else 0
