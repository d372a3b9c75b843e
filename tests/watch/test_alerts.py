"""Incidents are told once when they begin and once when they end, wherever the watch was killed."""

from __future__ import annotations

from datetime import datetime

import pytest

from tasks.notify import notice_of
from tasks.release import Hold, Intent, Release, StagePointer, UpstreamRelease
from tasks.settings import WatchSettings
from tasks.store import Store
from tasks.watch import remedy
from tasks.watch.alerts import ALERT, OVER, change, follow, load
from tasks.watch.judge import Finding, Kind

FINDING = Finding(kind="restores_fail", summary="3 of the last 5 returns from idle failed (fell_back)", in_a_row=2)


def release(alias: str = "a") -> Release:
    return Release(upstream=UpstreamRelease(build=11434), tree="t", build="b", argv=(), files={}, alias=alias)


def look(
    store: Store, *, wrong: bool = False, over: bool = False, of: Release | None = None, proven: bool = True
) -> None:
    def found(kind: Kind, _since: datetime | None) -> Finding | None:
        return FINDING if wrong and kind == FINDING.kind else None

    follow(store, of or release(), found, lambda *_: over, lambda *_: proven)


def told(store: Store) -> list[str]:
    return [event.kind for event in store.ledger()]


def test_an_incident_is_told_when_it_begins_and_when_it_ends_and_not_between(store: Store) -> None:
    for wrong, over, events in (
        (False, False, []),
        (True, False, [ALERT]),
        (True, False, [ALERT]),
        (False, True, [ALERT, OVER]),
        (False, False, [ALERT, OVER]),
        (True, False, [ALERT, OVER, ALERT]),
    ):
        look(store, wrong=wrong, over=over)
        assert told(store) == events


def test_killed_between_state_and_ledger_it_is_told_all_the_same(store: Store) -> None:
    look(store, wrong=True)
    (incident,) = load(store).incidents
    change(store, incidents=(incident.model_copy(update={"told": False}),))
    store.files.remove("ledger")
    look(store)
    assert told(store) == [ALERT]


def test_killed_after_the_ledger_it_is_not_told_again(store: Store) -> None:
    look(store, wrong=True)
    (incident,) = load(store).incidents
    change(store, incidents=(incident.model_copy(update={"told": False}),))
    look(store)
    assert told(store) == [ALERT]
    look(store, over=True)
    change(store, incidents=(incident.model_copy(update={"told": True, "ended": load(store).ended["restores_fail"]}),))
    look(store, wrong=False)
    assert told(store) == [ALERT, OVER]
    assert load(store).incidents == ()


def test_a_slow_time_is_remembered_with_the_release_that_was_slow(store: Store) -> None:
    slow = Finding(kind="slower", summary="first token after idle 3.00 s, its baseline 1.00 s")

    def found(kind: Kind, _since: datetime | None) -> Finding | None:
        return slow if kind == "slower" else None

    follow(store, release(), found, lambda *_: False, lambda *_: False)
    look(store, of=release("another"))
    (remembered,) = load(store).slow
    assert remembered.release == release().id != release("another").id


def test_an_incident_ends_when_another_release_is_in_production(store: Store) -> None:
    look(store, wrong=True)
    look(store, of=release("another"))
    assert told(store) == [ALERT, OVER]
    assert "production is b11434" in store.ledger()[-1].summary


def test_people_are_told_which_release_how_many_in_a_row_the_last_good_one_and_what_to_do(store: Store) -> None:
    look(store, wrong=True)
    look(store, over=True)
    alert, over = (notice_of(event, "b11434", list) for event in store.ledger())
    assert alert and over
    assert alert.title == "b11434: production does not come back well from idle"
    assert f"release {release().id}: 3 of the last 5" in alert.text
    assert "2 in a row; the last good one: none since it was promoted" in alert.text
    assert alert.command.startswith("llama-release redeploy --reason")
    assert over.title == "b11434: no longer so: production does not come back well from idle"


ACT = WatchSettings(act="rollback")


@pytest.fixture
def wrong(store: Store) -> Store:
    """A store with one open incident, and a retained release."""
    store.save_pointer(StagePointer(stage="production", release="r2", retained=("r1",)))
    look(store, wrong=True)
    return store


def test_an_incident_starts_what_the_settings_say_once(wrong: Store) -> None:
    assert remedy(wrong, WatchSettings(), "") is None
    found = remedy(wrong, ACT, "")
    assert found and (found.flow, found.by, found.reason) == ("rollback", "llama-release", FINDING.summary)
    assert remedy(wrong, ACT, "") is None
    assert [event.kind for event in wrong.ledger()] == [ALERT, "watch_acts"]


def test_nothing_is_started_on_hold_while_production_moves_or_without_a_way_back(wrong: Store) -> None:
    pointer = wrong.pointer("production")
    assert remedy(wrong, ACT, "an upgrade has the release lock") is None
    wrong.save_pointer(pointer.model_copy(update={"hold": Hold(reason="tool calls broke", by="carol")}))
    assert remedy(wrong, ACT, "") is None
    wrong.save_pointer(pointer.model_copy(update={"retained": ()}))
    assert remedy(wrong, ACT, "") is None
    wrong.save_pointer(pointer)
    wrong.open_intent(Intent(stage="production", action="promote", before="r1", after="r2", dossier=None, by="alice"))
    assert remedy(wrong, ACT, "") is None
    wrong.close_intent("production")
    assert remedy(wrong, ACT, "")


def test_nothing_is_started_for_what_only_clients_saw_until_our_own_probes_show_it(store: Store) -> None:
    store.save_pointer(StagePointer(stage="production", release="r2", retained=("r1",)))
    look(store, wrong=True, proven=False)
    assert told(store) == [ALERT]
    assert remedy(store, ACT, "") is None
    look(store, wrong=True)
    assert remedy(store, ACT, "")
    assert told(store) == [ALERT, "watch_acts"]
