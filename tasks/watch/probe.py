"""Production woken once, when it is idle anyway and the budget allows: what its next user would meet."""

from __future__ import annotations

from datetime import datetime, timedelta

from modal_app.warmup import AGENT, NoAnswer
from tasks.endpoint import Client
from tasks.platforms import Platform, Sight
from tasks.release import BootKind, Endpoint, Release, ToolingError, Verdict
from tasks.restore.cycle import Cycle, recorded, wake
from tasks.restore.deaths import later
from tasks.restore.judge import REFUSED, fault
from tasks.settings import RestoreSettings, WatchSettings
from tasks.watch.observe import look
from tasks.watch.series import Probe, Series, golden, keep_golden, save

TOKENS = 32
DAY = timedelta(days=1)


def not_now(platform: Platform, sight: Sight, probed_at: datetime | None, settings: WatchSettings, at: datetime) -> str:
    """Why production is not to be woken; '' when it may be."""
    if settings.probes_per_day == 0:
        return "watch.probes_per_day is 0"
    if sight.down:
        return f"nothing would answer: {sight.down}"
    if sight.servers or sight.in_flight:
        return "production is up, and is left alone"
    if platform.store.intent("production"):
        return "production is being moved"
    due = probed_at + DAY / settings.probes_per_day if probed_at else at
    return f"the next probe is due at {due:%Y-%m-%d %H:%M} UTC" if due > at else ""


def probe(platform: Platform, release: Release, series: Series, before: Sight, settings: RestoreSettings) -> Series:
    """Wake production and see how it came back; the latency goes into the release's series, unless users came too.

    `before`: how it was seen idle. After idle and warm are measured apart. The server may go idle again at once where
    no user came since then.
    """
    store = platform.store
    known = platform.golden("production") or golden(store, release)
    if known is None:
        found = _unshared(_learn(platform, release), before, platform.sight("production"))
    else:
        cycle = wake(platform, "production", known, settings)
        speed = _tokens_per_s(platform.endpoint("production")) if not cycle.error else None
        after = platform.sight("production")
        found = _unshared(_judged(cycle, before, after), before, after)
        if cycle.latency and not found.unclear:
            store.add_latency(release.id, cycle.latency.model_copy(update={"tokens_per_s": speed}))
    seen = look(platform.sight("production"), platform.endpoint("production") if not found.fault else None)
    platform.rest("production", before)
    return save(store, series.model_copy(update={"probes": (*series.probes, found), "looks": (*series.looks, seen)}))


def _learn(platform: Platform, release: Release) -> Probe:
    """The first time there is nothing to compare with and no nonce to ask for: what it says now is kept for later."""
    known = platform.boots("production")
    try:
        keep_golden(platform.store, release, recorded(platform, "production", release))
    except ToolingError as error:
        cause, told = error.__cause__, f"{error.what}: {error.evidence}"
        status = cause.status if isinstance(cause, NoAnswer) else None
        if status in REFUSED:
            return Probe(kind=BootKind.COLD, unclear=told)
        return Probe(kind=BootKind.CRASHED, fault=told, status=status)
    boots = later(platform.boots("production"), known)
    return Probe(
        kind=boots[-1].kind if boots else BootKind.COLD,
        boot_at=boots[-1].at if boots else None,
        unclear="the first one only learned what it says",
    )


def _unshared(found: Probe, before: Sight, after: Sight) -> Probe:
    """A probe, of which nothing can be told when others asked meanwhile: whatever it saw may have been their doing."""
    if after.answered == before.answered and not after.in_flight:
        return found
    return found.model_copy(update={"fault": "", "unclear": found.unclear or "others asked meanwhile"})


def _judged(cycle: Cycle, before: Sight, after: Sight) -> Probe:
    boot_at = cycle.boots[-1].at if cycle.boots else None
    found = fault(cycle)
    if found is None:
        return Probe(kind=cycle.kind, boot_at=boot_at)
    # the server may have been up before us, where none can tell who asks: nothing to blame it for
    gone = cycle.nonce is not None and not cycle.nonce.found
    shared = before.stays or after.answered is None
    if found.verdict is Verdict.ERRORED or (gone and shared and not cycle.differences):
        return Probe(kind=cycle.kind, boot_at=boot_at, unclear=found.summary)
    return Probe(kind=cycle.kind, boot_at=boot_at, fault=found.summary, status=cycle.status)


def _tokens_per_s(endpoint: Endpoint) -> float | None:
    """Tokens that one request gets a second from a warm server; None when it does not tell."""
    body = {"prompt": "Once upon a time", "n_predict": TOKENS, "ignore_eos": True, "temperature": 0.0}
    try:
        with Client(endpoint) as client:
            answer = client.post("/completion", body, headers={"User-Agent": AGENT})
        return float(answer.body["timings"]["predicted_per_second"])
    except (ToolingError, KeyError, TypeError, ValueError):
        return None
