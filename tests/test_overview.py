"""What `status` shows, of stores as they are after every kind of trouble."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.overview import Overview, as_json, overview, rows
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.control import Deployment, run_folder, save_deployment
from tasks.release import (
    BootKind,
    BootRecord,
    Hold,
    Intent,
    Release,
    Request,
    StagePointer,
    ToolingError,
    UpstreamRelease,
    now,
)
from tasks.settings import Settings
from tasks.store import Store, timed_name, write_atomic
from tasks.troubles import Troubles
from tasks.watch import alerts, series
from tasks.watch.judge import Finding


def a_release(build: int) -> Release:
    return Release(upstream=UpstreamRelease(build=build), tree="t", build="d", argv=(), files={}, alias="a")


NEW, OLD = a_release(11434), a_release(11401)


@pytest.fixture
def platform(store: Store) -> LocalPlatform:
    """Production has NEW and retains OLD; nothing runs."""
    for release in (NEW, OLD):
        store.save_release(release)
    store.save_pointer(StagePointer(stage="production", release=NEW.id, since=now(), retained=(OLD.id,)))
    save_deployment(store.root, "production", Deployment(release=NEW.id, port=8080))
    return LocalPlatform(Settings(store=store.root))


def said(seen: Overview) -> str:
    return "\n".join(f"{about}: {text}" for about, text in rows(seen))


def test_what_serves_where_since_when_and_what_is_retained(platform: LocalPlatform) -> None:
    boot = BootRecord(stage="production", release=NEW.id, kind=BootKind.RESTORED, health_s=0.314)
    write_atomic(run_folder(platform.store.root, "production") / "boots" / timed_name(boot.at), boot.model_dump_json())
    seen = overview(platform)
    told = said(seen)
    assert f"production: {NEW.label} since " in told
    assert ": its activator does not run, at http://127.0.0.1:8080" in told
    assert ": last boot: restored in 0.31 s, " in told
    assert f": retained: {OLD.label}" in told
    assert "staging: empty\nwatch: has not looked yet" in told
    assert seen.notes == ()
    production, staging = as_json(seen)
    assert (production["stage"], production["release"], production["retained"]) == ("production", NEW.id, [OLD.id])
    assert (production["address"], production["label"]) == ("http://127.0.0.1:8080", NEW.label)
    assert (staging["release"], staging["state"]) == (None, "it was stopped")
    assert "waiting" in production and "waiting" not in staging


def test_a_hold_a_question_and_who_is_at_work(platform: LocalPlatform) -> None:
    store = platform.store
    hold = Hold(reason="tool calls broke", by="carol")
    store.save_pointer(StagePointer(stage="production", release=OLD.id, since=now(), hold=hold))
    asked = Request(
        run="r-1", name="upgrade to b11434", api_url="", link="http://page/runs/1", suspended=True, tag="b11434",
        release=NEW.id, dossier="d", required=(), expected=None, asked_at=now() - timedelta(hours=3),
        expires_at=now() + timedelta(hours=1),
    )  # fmt: skip
    store.save_request(asked)
    store.save_request(asked.model_copy(update={"run": "r-2", "name": "another", "state": "answered", "dossier": "e"}))
    with store.lock("release", holder={"name": "upgrade to b11435"}):
        told = said(overview(platform))
    assert "by carol: tool calls broke" in told
    assert f"waits: upgrade to b11434 for a person to decide on b11434 ({NEW.id})" in told
    assert "3:00:00 ago, until" in told and "http://page/runs/1" in told
    assert "another" not in told
    assert 'at work: release: {"' in told and "upgrade to b11435" in told
    assert "at work" not in said(overview(platform))


def test_what_is_wrong_is_a_line_each(platform: LocalPlatform) -> None:
    store = platform.store
    store.open_intent(Intent(stage="production", action="promote", before=OLD.id, after=NEW.id, dossier=None, by="ada"))
    with Troubles(store.root).outlived("looking after questions"):
        raise ToolingError("the Prefect server is gone")
    finding = Finding(kind="slower", summary="first token after idle is 2.1 times its baseline")
    alerts.change(store, incidents=(alerts.Incident(finding=finding, release=NEW.id),))
    (store.root / "ledger").mkdir(exist_ok=True)
    (store.root / "ledger/20261130T010203.000000Z-0a.json").write_text("{")
    told = said(overview(platform))
    assert f"note: a promote of production to {NEW.id} was left open" in told
    assert "note: looking after questions: ToolingError: the Prefect server is gone" in told
    assert "note: ledger/20261130T010203.000000Z-0a.json can't be read" in told
    assert "watch: since " in told and "2.1 times its baseline" in told


def test_the_watch_that_found_nothing_says_when_it_looked(platform: LocalPlatform) -> None:
    series.save(platform.store, series.Series(release=NEW.id, looks=(series.Look(servers=0),)))
    assert "watch: nothing wrong, last looked " in said(overview(platform))


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_text() if path.exists() else None
    path.write_text("{")
    yield
    path.unlink() if kept is None else path.write_text(kept)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (f"releases/{NEW.id}.json", f"production: {NEW.id} since "),
        (f"releases/{OLD.id}.json", f"retained: {OLD.id}"),
        ("requests/x.json", "note: who waits: not known, requests/x.json in the store is not a readable Request"),
        ("watch.json", "watch: not known"),
        ("run/production/boots/2.json", "note: boots of production: not known, "),
        ("run/production/deployment.json", "note: address of production: not known, "),
    ],
)
def test_what_is_damaged_is_said_in_its_place_and_the_rest_is_shown(
    platform: LocalPlatform, file: str, told: str
) -> None:
    with damaged(platform.store.root / file):
        seen = said(overview(platform))
    assert told in seen
    assert "since " in seen and "staging: empty" in seen
