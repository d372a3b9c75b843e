"""What can be wrong, each thing found by one small function that changes nothing.

machine.py         what this machine lacks, all of it
needs.py           what a release needs from it: also asked before one begins
tools.py           programs, each tried
packages.py        what they are called on this system
room.py            disk and memory
configuration.py   settings, model and argv against the binary, before anything is loaded
stored.py          what the store has, lacks, or left undone
live.py            a running server, asked as its clients ask it
modal_calls.py     blocking Modal calls in async code
gguf_header.py     what a model file says of itself

What Modal's side needs is in tasks/platforms/modal/doctor.py. flows/doctor.py makes the checks; tasks/runbook.py names
them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from tasks.release import Model


class Severity(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Good to know; nothing has to be done."""
    WARNING = "warning"
    """It works, or will until it is needed."""
    ERROR = "error"
    """It does not work: the check raised a Problem."""


class Seen(Model):
    """What a check found that is neither well nor a Problem."""

    severity: Severity
    evidence: str
    todo: str = ""


Check = tuple[str, Callable[[], str | Seen]]
"""(name, a function that gives the evidence that it is well, or what it saw; it raises a Problem for an error)."""


def note(evidence: str, todo: str = "") -> Seen:
    return Seen(severity=Severity.NOTE, evidence=evidence, todo=todo)


def warning(evidence: str, todo: str) -> Seen:
    return Seen(severity=Severity.WARNING, evidence=evidence, todo=todo)
