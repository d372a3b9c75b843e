"""Production back to a retained release at once: for when something burns, and whatever else is broken.

No Prefect, no release lock, no ledger is needed for it, and no run is waited for. Ledger and Slack are told afterwards.
"""

from __future__ import annotations

import time

from flows.outcome import Outcome
from tasks import promote
from tasks.console import console, one_line, print_json
from tasks.platforms import open_platform
from tasks.release import BadInput
from tasks.settings import Settings, load
from tasks.store import Store

PROVE = "`llama-release watch` looks whether it comes back from an idle window"


def roll_back(by: str, reason: str, to: str | None, as_json: bool) -> None:
    """Do it and say what was done. Raises what `promote.meant` and `promote.back_now` raise."""
    if not (by.strip() and reason.strip()):
        raise BadInput("a rollback has a person and a reason", todo="give --reason and --by")
    console.stderr = as_json
    settings, began = load(), time.monotonic()
    platform = open_platform(settings)
    done = promote.back_now(platform, promote.meant(platform.store, to), by, reason, settings.retain, _tell)
    _tell(f"{done.release.label} answers at {platform.endpoint('production').base_url}, by {by}: {reason}")
    _tell(f"{time.monotonic() - began:.1f} s; on hold until `llama-release hold lift`; {PROVE}")
    if done.proof:
        _tell(done.proof)
    if as_json:
        outcome = Outcome(kind="rolled_back", release=done.release, note=done.proof)
        print_json(outcome.model_dump(mode="json"))
    _tell_people(platform.store, settings)


def _tell(line: str) -> None:
    console.print(" ", one_line(line), soft_wrap=True)


def _tell_people(store: Store, settings: Settings) -> None:
    """What the ledger got, as far as people can be reached: the next flow tells the rest."""
    from tasks import notify  # Slack's client takes its time to load, and production answers by now

    with notify.following(store, settings.notify):
        pass
