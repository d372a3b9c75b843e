"""What a plan tells, of what it knows."""

from __future__ import annotations

from flows.plan import Plan
from tasks.release import Hold, UpstreamRelease, Verdict

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
