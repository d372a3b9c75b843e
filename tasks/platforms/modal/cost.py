"""What a release has cost on Modal: how long its containers were there, by stage, times the price table."""

from __future__ import annotations

import json
import time

import modal

from modal_app.deployment import gpus_of
from modal_app.settings import ModalSettings
from tasks.platforms.modal.account import told
from tasks.release import Build, Model


class Use(Model):
    """One container's time, as it told it: `until` is None while it runs, and when it was killed without a word."""

    stage: str
    release: str
    gpu: str | None
    cpu: float
    memory_mb: int
    since: float
    until: float | None


class Cost(Model):
    """What one stage of a release has cost."""

    stage: str
    containers: int
    seconds: float
    gpu_seconds: float
    usd: float
    open: int = 0
    """Containers that have not told their end; they are counted up to now, a killed one for too long."""


def uses(settings: ModalSettings) -> list[Use]:
    """What the containers of all stages and trials have told; Modal keeps it for a week."""
    with told("reading what containers were used"):
        kept = modal.Dict.from_name(
            f"{settings.app}-uses", environment_name=settings.environment, create_if_missing=True
        )
        return [Use.model_validate(json.loads(text)) for text in kept.values()]


def usd(settings: ModalSettings, seconds: float, gpu: str | None, cpu: float, memory_mb: int) -> float:
    """What a container costs in so many seconds, USD. A GPU that is not in the price table costs nothing here."""
    prices = settings.prices_usd_per_s
    cores, memory = cpu * prices.get("cpu_core", 0.0), memory_mb / 1024 * prices.get("memory_gib", 0.0)
    return seconds * (cores + memory + gpus_of(gpu) * prices.get((gpu or "").partition(":")[0], 0.0))


def is_priced(settings: ModalSettings) -> bool:
    """Whether the GPU that serves is in the price table; without one there is nothing to look up."""
    return not settings.gpu or settings.gpu.partition(":")[0] in settings.prices_usd_per_s


def costs(
    release_id: str, build: Build | None, found: list[Use], settings: ModalSettings, now: float | None = None
) -> list[Cost]:
    """The costs of a release by stage, its build first. A GPU that is not in the price table costs nothing here."""
    until = time.time() if now is None else now
    told_of = []
    if build is not None:
        price = usd(settings, build.seconds, None, settings.build_cpu, settings.build_memory_mb)
        told_of.append(Cost(stage="build", containers=1, seconds=build.seconds, gpu_seconds=0.0, usd=price))
    for stage in ("trial", "staging", "production"):
        mine = [use for use in found if (use.release, use.stage) == (release_id, stage)]
        spans = [(use, max(0.0, (use.until or until) - use.since)) for use in mine]
        if spans:
            told_of.append(
                Cost(
                    stage=stage,
                    containers=len(spans),
                    seconds=sum(span for _, span in spans),
                    gpu_seconds=sum(span for use, span in spans if use.gpu),
                    usd=sum(usd(settings, span, use.gpu, use.cpu, use.memory_mb) for use, span in spans),
                    open=sum(use.until is None for use in mine),
                )
            )
    return told_of
