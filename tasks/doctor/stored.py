"""What the store has, lacks, or left undone."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import get_args

from tasks.doctor import Check, Seen, note, warning
from tasks.notify import Outbox, Undelivered, send_test
from tasks.platforms import Platform
from tasks.platforms.local.compile import check_version
from tasks.release import BadInput, BootKind, Problem, ReleaseFailed, StageName, ToolingError, now
from tasks.runbook import explain
from tasks.settings import PROBES_TO_KNOW, NotifySettings, Settings, WatchSettings
from tasks.store import DAMAGED, Store
from tasks.troubles import load_troubles

RECENT = timedelta(days=90)
"""Whose promotions say how long a release stays in production: some days with many are no rule."""
FORGOTTEN_AFTER = timedelta(days=7)
"""So long a trouble that is over is worth a line."""


def checks(platform: Platform, settings: Settings) -> Iterator[Check]:
    """The checks of a store; of one on a Volume those that start no container, and none where there is no Volume."""
    store, here = platform.store, platform.name == "local"
    if not here and not _has_volume(platform):
        return
    if here:
        yield "builds", lambda: builds(store)
        yield "binaries", lambda: binaries(store)
    yield "stages", lambda: stages(store, here)
    if here:
        yield "crashes", lambda: crashes(platform)
    yield "intents", lambda: intents(store)
    yield "loops", lambda: loops(store)
    if here:
        yield "locks", lambda: locks(store)
    yield "ledger", lambda: ledger(store)
    yield "outbox", lambda: outbox(store, settings)
    yield "speed", lambda: speed(store, settings.watch)


def _has_volume(platform: Platform) -> bool:
    from tasks.platforms.modal import ModalPlatform  # Modal's SDK takes a second to load
    from tasks.platforms.modal.doctor import has_volume

    try:
        return isinstance(platform, ModalPlatform) and has_volume(platform)
    except Problem:
        return False  # the checks of the account say why


def builds(store: Store) -> str | Seen:
    """Every build has the files that its manifest names, as they were made."""
    found = store.builds()
    damaged = {build.digest: names for build in found if (names := store.damaged(build))}
    if damaged:
        told = "; ".join(f"{digest}: {', '.join(names)}" for digest, names in damaged.items())
        return warning(f"damaged: {told}", "nothing by hand: what needs one makes it anew; `llama-release upgrade`")
    return f"{len(found)} whole" if found else note("none yet: the first upgrade makes one")


def binaries(store: Store) -> str | Seen:
    """Every binary says that it is of the tag and the source that its manifest tells (guide, issue 6)."""
    found = store.builds()
    for build in found:
        try:
            check_version(store.ask(build, "--version"), build.source)
        except (ReleaseFailed, ToolingError) as error:
            raise ReleaseFailed(
                f"the binary of build {build.digest} is not {build.tag}",
                evidence=error.evidence or error.what,
                todo=f"`llama-release rebuild {build.digest}`, then `llama-release upgrade --to {build.tag}`",
            ) from error
    return ", ".join(build.tag for build in found) or note("none yet")


def stages(store: Store, here: bool) -> str | Seen:
    """What each stage serves is whole, and what it retains can be gone back to."""
    told = []
    for stage in get_args(StageName):
        pointer = store.pointer(stage)
        if pointer.release and (lost := _lost(store, pointer.release, here)):
            raise ToolingError(
                f"{stage} serves {pointer.release}, which is not whole in the store",
                evidence=", ".join(lost),
                todo="restore the files from a backup, or `llama-release upgrade`",
            )
        for old in pointer.retained:
            if lost := _lost(store, old, here):
                return warning(f"{stage} cannot go back to {old}: {', '.join(lost)}", "restore it, or retain a new one")
        told.append(f"{stage} {pointer.release or 'empty'}")
        if pointer.hold:
            reason = f"{pointer.hold.by}: {pointer.hold.reason}"
            since = f"{pointer.hold.at:%Y-%m-%d %H:%M} UTC"
            return note(f"{stage} is on hold since {since}, {reason}", "`llama-release hold lift`")
    return ", ".join(told)


def crashes(platform: Platform) -> str | Seen:
    """The server of no stage died since its release was put there, as far as the boot records tell."""
    for stage in get_args(StageName):
        pointer = platform.store.pointer(stage)
        mine = [boot for boot in platform.boots(stage) if boot.release == pointer.release]
        died = [
            boot for boot in mine if boot.kind is BootKind.CRASHED and (not pointer.since or boot.at > pointer.since)
        ]
        if died:
            known = explain(died[-1].reason.splitlines())
            return warning(
                f"{stage}: {len(died)} of {len(mine)} boots crashed, the latest at {died[-1].at:%Y-%m-%d %H:%M} UTC: "
                f"{died[-1].reason}" + (f". {known[0].row.cause}" if known else ""),
                known[0].row.fix if known else f"read {platform.logs(stage)}",
            )
    return "none on record"


def _lost(store: Store, release_id: str, here: bool) -> list[str]:
    release = store.release(release_id)
    if release is None:
        return [f"releases/{release_id}.json"]
    if here:
        return store.lost(release)
    return [] if store.build(release.build) else [f"build {release.build}"]


def intents(store: Store) -> str | Seen:
    """No move of a stage was left half done."""
    for stage in get_args(StageName):
        if intent := store.intent(stage):
            since = f"{intent.at:%Y-%m-%d %H:%M} UTC"
            return warning(
                f"a {intent.action} of {stage} to {intent.after} by {intent.by} is open since {since}",
                "the next upgrade, rollback or redeploy finishes or undoes it, if none is under way now",
            )
    return "none open"


def ledger(store: Store) -> str | Seen:
    """Every event of the ledger can be read. What can't stops nobody; it is missing from the history, though."""
    events = store.ledger()
    if damaged := [event for event in events if event.kind == DAMAGED]:
        return warning(
            "; ".join(event.summary for event in damaged[:3]) + (f" and {len(damaged) - 3} more" * (len(damaged) > 3)),
            "put the files back from a backup of the store, or remove them",
        )
    return f"{len(events)} events"


def loops(store: Store) -> str | Seen:
    """What runs in the background here met no trouble: an activator, whoever looks after open questions."""
    recent = [each for each in load_troubles(store.root) if not each.over or now() - each.since < FORGOTTEN_AFTER]
    told = "; ".join(f"{each.what}, {each.since:%Y-%m-%d %H:%M} UTC: {each.error}" for each in recent)
    if any(not each.over for each in recent):
        return warning(told, "mend what it names; nothing has to be started again")
    return note(f"{told} (well again since)") if recent else "well"


def locks(store: Store) -> str | Seen:
    """Who holds a lock just now, but for the activators, which hold theirs as long as a stage is served."""
    holders = [f"{name}: {words or 'it has not said who it is'}" for name, words in store.holders().items()]
    return note(f"held by {'; '.join(holders)}", "wait for it") if holders else "none held"


def slack(settings: NotifySettings) -> str | Seen:
    """Slack takes a message, and a change of it."""
    try:
        changed = send_test(settings)
    except Undelivered as error:
        raise ToolingError("Slack took no test message", evidence=str(error), todo="mend [notify]") from error
    if not changed:
        return warning("Slack takes messages, but no change of them", "each that happens again will be a new message")
    return f"a test message was sent to {settings.slack_channel} and changed"


def outbox(store: Store, settings: Settings) -> str | Seen:
    """People were told of what happened."""
    box = store.load_outbox(Outbox)
    if box is None:
        return "nothing was to be told yet"
    if late := [entry for entry in box.waiting if entry.why]:
        return warning(f"{len(late)} messages are waiting: {late[-1].why}", "mend [notify]; the next run sends them")
    waiting = [event for _, event in store.events(after=box.after)]
    if settings.notify.slack_channel and not os.environ.get(settings.notify.slack_token_env):
        raise BadInput(
            "Slack is to be told, and there is no token",
            evidence=f"{settings.notify.slack_token_env} is not set",
            todo=f"`export {settings.notify.slack_token_env}=xoxb-...`",
        )
    return f"{len(waiting)} events are to be told by the next run" if waiting else "all told"


def speed(store: Store, settings: WatchSettings) -> str | Seen:
    """Releases stay in production for as long as the restore watch needs to tell whether one has become slower."""
    if not settings.probes_per_day:
        return note("watch.probes_per_day is 0: nobody looks whether production becomes slower")
    needed = f"{PROBES_TO_KNOW} probes, {settings.days_to_know:.1f} days at {settings.probes_per_day} a day"
    moved = [event.at for event in store.ledger() if event.kind == "promoted" and event.at > now() - RECENT]
    days = (moved[-1] - moved[0]) / timedelta(days=1) if moved else 0.0
    if days < settings.days_to_know or (stays := days / (len(moved) - 1)) >= settings.days_to_know:
        return f"known of a release after {needed}"
    return warning(
        f"it takes {needed} to know how fast a release is, and one stays in production for {stays:.1f} days: "
        "none is ever found to have become slower",
        f"set watch.probes_per_day to {math.ceil(PROBES_TO_KNOW / max(stays, 0.1))} or more",
    )
