"""What can be seen of production without waking it and without keeping it awake."""

from __future__ import annotations

from datetime import datetime

from prometheus_client.parser import text_string_to_metric_families

from modal_app.warmup import AGENT
from tasks.endpoint import Client
from tasks.platforms import Platform, Sight
from tasks.release import Endpoint, Release, ToolingError
from tasks.watch.series import Look, Series, load, save

METRICS_LIMIT_S = 10.0
NAMES = (
    "requests_processing", "requests_deferred", "prompt_tokens_total", "prompt_seconds_total",
    "tokens_predicted_total", "tokens_predicted_seconds_total",
)  # fmt: skip
"""What is kept of llama-server's /metrics, without `llamacpp:`: the queue, and tokens with the time they took."""


def observe(platform: Platform, release: Release, since: datetime | None) -> Series:
    """The series with what there is to see now. `since`: when the release came into production."""
    sight = platform.sight("production")
    series = came_back(platform, release, since)
    return save(platform.store, series.model_copy(update={"looks": (*series.looks, look(sight, sight.aside))}))


def came_back(platform: Platform, release: Release, since: datetime | None) -> Series:
    """The series with every boot and every first request after idle that is known by now."""
    series = load(platform.store, release)
    boots = {boot.at: boot for boot in (*series.boots, *platform.boots("production"))}
    retried = {boot.retry_of for boot in boots.values() if boot.retry_of}  # told apart before the retry was up
    boots = {at: boot for at, boot in boots.items() if boot.task not in retried}
    wakes = {wake.at: wake for wake in (*series.wakes, *platform.sight("production").wakes)}
    update = {
        "boots": tuple(b for at, b in sorted(boots.items()) if b.release == release.id and (not since or at >= since)),
        "wakes": tuple(w for at, w in sorted(wakes.items()) if w.release == release.id and (not since or at >= since)),
    }
    return save(platform.store, series.model_copy(update=update))


def look(sight: Sight, at: Endpoint | None) -> Look:
    """What was seen, with the numbers of the server that may be asked `at` an address."""
    seen = sight.model_dump(
        include={"servers", "in_flight", "answered", "errors", "down", "gpu_used_mb", "gpu_total_mb", "last_hour"}
    )
    return Look(**seen, metrics=metrics(at) if at else {})


def metrics(endpoint: Endpoint) -> dict[str, float]:
    """NAME -> value of a server's /metrics; empty when it does not tell: it may be on its way to idle."""
    try:
        with Client(endpoint, timeout_s=METRICS_LIMIT_S) as client:
            answer = client.request("GET", "/metrics", headers={"User-Agent": AGENT})
    except ToolingError:
        return {}
    if answer.status != 200:
        return {}
    found = {
        sample.name.removeprefix("llamacpp:"): sample.value
        for family in text_string_to_metric_families(str(answer.body))
        for sample in family.samples
    }
    return {name: found[name] for name in NAMES if name in found}
