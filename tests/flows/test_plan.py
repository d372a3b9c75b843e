"""What a plan tells, of what it knows."""

from __future__ import annotations

from flows.plan import Plan, restore_of
from tasks import restore
from tasks.release import Hold, Release, UpstreamRelease, Verdict, Verification
from tasks.settings import RestoreSettings
from tasks.store import Store

TARGET = UpstreamRelease(build=11434)


def a_plan(**known: object) -> dict[str, str]:
    given = {"production": "b11401 (abc)", "hold": None, "newer": ("b11434",), "target": TARGET, **known}
    return dict(Plan.model_validate(given).rows)


def test_a_hold_is_told_beside_what_production_has() -> None:
    assert a_plan()["production"] == "b11401 (abc)"
    assert a_plan(hold=Hold(reason="slow", by="ann"))["production"] == "b11401 (abc), on hold: slow"
    assert a_plan(production=None)["production"] == "empty"


def test_what_the_machine_lacks_is_told_and_nothing_where_servers_are_elsewhere() -> None:
    assert a_plan(machine="no compiler [c++]")["machine"] == "no compiler [c++]"
    assert "machine" not in a_plan()


def test_a_plan_that_stops_says_why_and_promises_nothing() -> None:
    assert a_plan(problem="0001 is in conflict")["stops"] == "0001 is in conflict"
    assert not {"build", "verify", "approval"} & set(a_plan(problem="0001 is in conflict"))
    assert list(a_plan(target=None)) == ["production", "upstream"]


def test_what_is_left_to_verify_is_counted_and_a_person_is_always_asked() -> None:
    told = a_plan(build="d1", recorded={"evals": Verdict.PASSED}, to_verify=("restore", "staging"))
    assert (told["build"], told["verify"]) == ("d1 is there", "2 to do; recorded: 1 passed")
    assert told["approval"] == "a person is asked before production moves"


def test_the_idle_cycles_of_a_restore_verdict_that_does_not_stand_are_told(store: Store) -> None:
    release, settings = Release(upstream=TARGET, tree="t", build="b", argv=(), files={}, alias="a"), RestoreSettings()
    made = Verification(
        name=restore.NAME, release=release.id, verdict=Verdict.PASSED, promise="p", summary="10 of 10 restored",
        basis=restore.basis(settings), seconds=1,
    )  # fmt: skip
    told = restore_of(store, release, settings)
    assert told == restore_of(store, None, settings)
    assert told.startswith("10 idle cycles at least to pass")
    assert "; up to 5 more at the beginning that create a snapshot; where there is none, 5 cycles" in told
    store.record(made)
    assert restore_of(store, release, settings) == ""
    assert restore_of(store, release, RestoreSettings(good=0.98)).startswith("10 idle cycles at least")
    store.record(made.model_copy(update={"verdict": Verdict.ERRORED}))
    assert restore_of(store, release, settings) == told
