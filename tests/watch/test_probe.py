"""When production is not to be woken by its own watch, and when nothing can be told from that."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasks.platforms import Sight
from tasks.platforms.local import LocalPlatform
from tasks.release import BootKind, Intent, now
from tasks.restore.cycle import Cycle
from tasks.settings import Settings, WatchSettings
from tasks.store import Store
from tasks.watch.probe import _judged, _unshared, not_now
from tasks.watch.series import Probe

AT = now()
IDLE = Sight(servers=0, in_flight=0)
SIX_HOURLY = WatchSettings(probes_per_day=4)


def test_it_is_woken_when_it_is_idle_stands_still_and_the_budget_allows(store: Store) -> None:
    platform = LocalPlatform(Settings(store=store.root))

    def refused(sight: Sight = IDLE, hours: float = 6, settings: WatchSettings = SIX_HOURLY) -> str:
        return not_now(platform, sight, AT - timedelta(hours=hours), settings, AT)

    assert refused() == ""
    assert not_now(platform, IDLE, None, SIX_HOURLY, AT) == ""
    assert refused(Sight(servers=1, in_flight=0)) == "production is up, and is left alone"
    assert refused(Sight(servers=0, in_flight=1)) == "production is up, and is left alone"
    assert refused(Sight(servers=0, down="it was killed")) == "nothing would answer: it was killed"
    assert refused(hours=5.9).startswith("the next probe is due at ")
    assert refused(settings=WatchSettings(probes_per_day=0)) == "watch.probes_per_day is 0"
    store.open_intent(Intent(stage="production", action="promote", before=None, after="r", dossier=None, by="ada"))
    assert refused() == "production is being moved"


@pytest.mark.parametrize(("status", "unclear"), [(None, False), (500, False), (401, True), (403, True)])
def test_that_we_are_refused_says_nothing_of_production(status: int | None, unclear: bool) -> None:
    cycle = Cycle(stage="production", boots=(), error="/completion: it did not work", status=status, tolerance=0.001)
    found = _judged(cycle, IDLE, IDLE)
    assert (bool(found.unclear), bool(found.fault), found.status) == (unclear, not unclear, None if unclear else status)


@pytest.mark.parametrize(
    ("after", "theirs"),
    [
        (Sight(servers=1, in_flight=0, answered=4), False),
        (Sight(servers=1, in_flight=0, answered=5), True),
        (Sight(servers=1, in_flight=1, answered=4), True),
    ],
)
def test_nothing_is_told_from_a_probe_during_which_others_asked(after: Sight, theirs: bool) -> None:
    before = Sight(servers=0, in_flight=0, answered=4)
    dead = Probe(kind=BootKind.CRASHED, fault="nothing answers")
    found = _unshared(dead, before, after)
    assert (bool(found.unclear), bool(found.fault)) == (theirs, not theirs)
