"""The restore watch: how production comes back from idle and how fast it is, and what to do when that gets worse.

observe.py  what can be seen without waking production or keeping it awake
probe.py    production woken once, when it is idle anyway and the budget allows
series.py   what was seen, bounded, in the store
judge.py    what is wrong, from the series alone
alerts.py   incidents: told once when they begin and once when they end
plot.py     latency over time
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from statistics import median
from typing import Literal

from tasks import drill as drilling
from tasks.console import show_table
from tasks.platforms import Platform
from tasks.promote import AUTOMATIC
from tasks.release import BootKind, BootRecord, Event, Latency, Model, Release, now
from tasks.report import markdown_table
from tasks.settings import RestoreSettings, WatchSettings
from tasks.stage import Row, stage
from tasks.store import Store
from tasks.watch import alerts, judge, plot, series
from tasks.watch.alerts import Incident, change
from tasks.watch.judge import MEASURES
from tasks.watch.observe import came_back
from tasks.watch.observe import observe as seen_of
from tasks.watch.probe import not_now
from tasks.watch.probe import probe as probed
from tasks.watch.series import Look

SHOWN = 12
"""Idle cycles in the table."""


def in_production(store: Store) -> Release | None:
    """The release in production, or None when there is none."""
    pointer = store.pointer("production")
    return store.get_release(pointer.release) if pointer.release else None


@stage("observe", "look at production, {release.label}", ledger=False)
def observe(row: Row, platform: Platform, release: Release) -> None:
    """What there is to see of production goes into its series; nothing is woken or kept awake by it."""
    seen = seen_of(platform, release, platform.store.pointer("production").since)
    told = [_state(seen.looks[-1]), f"{len(judge.returns(seen))} returns from idle seen", machines(seen.boots)]
    row.done("; ".join(filter(None, told)))


def machines(boots: Sequence[BootRecord]) -> str:
    """How many kinds of machine came up, each with a snapshot of its own, and when a new one showed itself last; ''
    where there is one, or boot records name none."""
    created = [boot for boot in boots if boot.kind is BootKind.CREATED and boot.worker]
    taken = list({boot.worker: boot for boot in reversed(created)}.values())[::-1]  # each kind's first
    if len(taken) < 2:
        return ""
    last = taken[-1]
    took = f" in {last.health_s:.0f} s" if last.health_s is not None else ""
    return (
        f"{len(taken)} kinds of machine took a snapshot, the latest at {last.at:%Y-%m-%d %H:%M}: that start booted "
        f"whole{took} ({last.worker})"
    )


def _state(look: Look) -> str:
    told = [look.down or (f"{look.servers} up" if look.servers else "idle")]
    if look.in_flight is not None:
        told.append(f"{look.in_flight} requests under way")
    if look.answered is not None:
        told.append(f"{look.answered} answered, {look.errors} of them with an error")
    if look.last_hour:
        told.append(str(look.last_hour))
    if look.metrics:
        told.append(f"queue {look.metrics.get('requests_deferred', 0):g}")
        told.append(f"{look.metrics.get('tokens_predicted_total', 0):g} tokens generated")
    if look.gpu_total_mb and look.gpu_used_mb is not None:
        told.append(f"GPU memory {look.gpu_total_mb - look.gpu_used_mb} of {look.gpu_total_mb} MB free")
    return ", ".join(told)


@stage("probe", "wake production if that costs nobody anything", ledger=False)
def probe(
    row: Row, platform: Platform, release: Release, restore: RestoreSettings, settings: WatchSettings, busy: str
) -> None:
    """Wake production once and measure it, if it is idle, the budget allows, and nothing else (`busy`) goes on."""
    store, at, before = platform.store, now(), platform.sight("production")
    refused = busy or not_now(platform, before, alerts.load(store).probed_at, settings, at)
    if refused:
        row.done(f"not woken: {refused}")
        return
    change(store, probed_at=at)  # before it is woken: killed here, it costs no second one
    row.progress(0, 1, "waking production")
    made = probed(platform, release, series.load(store, release), before, restore).probes[-1]
    latest = store.latencies(release.id)[-1:]
    told = _told(latest[0]) if latest and latest[0].at >= at else "no latency"
    row.done("; ".join(filter(None, (str(made.kind), made.fault, made.unclear, told))))


@stage("judge", "how production of {release.label} fares", ledger=False)
def judged(row: Row, platform: Platform, release: Release, settings: WatchSettings) -> tuple[Incident, ...]:
    """The incidents that are open, after people were told of those that began or ended."""
    store = platform.store
    seen = came_back(platform, release, store.pointer("production").since)
    latencies = store.latencies(release.id)
    compared = judge.without(latencies, alerts.load(store).slow, release.id)
    open_now = alerts.follow(
        store,
        release,
        partial(judge.found, seen, compared, settings),
        partial(judge.over, seen, compared, settings),
        partial(judge.proven, seen, compared, settings),
    ).incidents
    if latencies:
        show_table(f"idle cycles of {release.label} (UTC)", _COLUMNS, map(_row, latencies[-SHOWN:]))
    summary = "; ".join(each.finding.summary for each in open_now) or f"all well; {_medians(compared, settings.slower)}"
    row.done(summary, _markdown(release, latencies, open_now))
    return open_now


@stage("revive", "bring production back if it was killed", ledger=False)
def revive(row: Row, platform: Platform) -> None:
    """What should run for production runs; what somebody stopped is left alone. Raises what keeps it from coming."""
    done = platform.revive("production")
    if done:
        release = platform.store.pointer("production").release
        platform.store.log(Event(kind="revived", release=release, stage="production", summary=done))
    row.done(done or "nothing was killed")


def drill(platform: Platform, settings: WatchSettings, busy: str) -> None:
    """Try the retained release when that is due and nothing else (`busy`) goes on. It holds no lock: a rollback that is
    asked for meanwhile need not wait."""
    store, at = platform.store, now()
    last = alerts.load(store).drilled_at
    due = settings.drill_days and (last is None or at - last >= timedelta(days=settings.drill_days))
    if due and not busy and store.pointer("production").retained:
        drilling.drill(platform)
        change(store, drilled_at=at)


class Remedy(Model):
    """A flow to be started, and its parameters."""

    flow: Literal["redeploy", "rollback"]
    by: str = AUTOMATIC
    reason: str


def remedy(store: Store, settings: WatchSettings, busy: str) -> Remedy | None:
    """What is to be started by the settings because of the open incidents, once an incident; or None.

    Only because of what our own probes show: whoever may send requests could else bring any release down.
    Not because nothing answers: what was killed is brought back (`revive`), what was stopped a person stopped.
    Nothing while production is on hold or being moved, another run is at work (`busy`), or a rollback has no target.
    """
    pointer, state = store.pointer("production"), alerts.load(store)
    fresh = [each for each in state.incidents if each.proven and not each.acted and each.finding.kind != "down"]
    if settings.act == "suggest" or not fresh or busy or pointer.hold or store.intent("production") or store.redeploy():
        return None
    if settings.act == "rollback" and not pointer.retained:
        return None
    found = Remedy(flow=settings.act, reason="; ".join(each.finding.summary for each in fresh))
    change(store, incidents=tuple(each.model_copy(update={"acted": True}) for each in state.incidents))
    store.log(
        Event(
            kind="watch_acts", release=pointer.release, stage="production",
            summary=f"the restore watch starts a {found.flow}: {found.reason}",
        )
    )  # fmt: skip
    return found


_COLUMNS = ("when", "stage", "came up as", "health", "first token after idle", "warm", "tokens/s")


def _row(each: Latency) -> tuple[object, ...]:
    health = "" if each.health_s is None else f"{each.health_s:.2f} s"
    return (
        f"{each.at:%Y-%m-%d %H:%M:%S}", each.stage, each.kind, health,
        f"{each.after_idle_s:.2f} s", f"{each.warm_s:.3f} s", f"{each.tokens_per_s:.1f}" if each.tokens_per_s else "",
    )  # fmt: skip


def _told(each: Latency) -> str:
    speed = f", {each.tokens_per_s:.1f} tokens/s" if each.tokens_per_s else ""
    return f"first token {each.after_idle_s:.2f} s after idle, {each.warm_s:.3f} s warm{speed}"


def _medians(latencies: list[Latency], ratio: float) -> str:
    """What is compared now, in words: nothing before there is a baseline."""
    baseline, latest = judge.split(judge.alike(latencies), None)
    if len(baseline) < judge.BASELINE:
        return (
            f"nothing is known of its speed yet: {len(baseline) + len(latest)} probes of "
            f"{judge.BASELINE + judge.LATEST} that it takes to tell slow from usual"
        )
    told = []
    for measure in MEASURES:
        before, last = judge.sides(latencies, None, measure, ratio)
        if before and last:
            told.append(f"{measure.name} {measure.shown(median(last))} ({measure.shown(median(before))})")
    return ", ".join(told)


def _markdown(release: Release, latencies: list[Latency], incidents: tuple[Incident, ...]) -> str:
    parts = []
    if incidents:
        rows = [
            (i.finding.kind, f"{i.began:%Y-%m-%d %H:%M}", i.finding.summary, alerts.COMMANDS[i.finding.kind])
            for i in incidents
        ]
        parts.append(markdown_table(("incident", "since", "what", "next"), rows))
    if latencies:
        image = base64.b64encode(plot.svg(release, latencies).encode()).decode()
        parts.append(f"![latency over time](data:image/svg+xml;base64,{image})")
        parts.append(markdown_table(_COLUMNS, map(_row, latencies[-SHOWN:])))
    return "\n\n".join(parts)
