"""What a change of upstream's could do to us."""

from __future__ import annotations

from enum import StrEnum


class Risk(StrEnum):
    """What a change could do, the worst last."""

    NONE = "none"
    """Nothing that was right before works otherwise, or it is of a backend or a program that we don't use."""
    TOUCHES_US = "touches us"
    """It is about something that we use, and takes nothing away."""
    MAY_BREAK = "may break"
    """Something works otherwise, in nothing that we are known to use."""
    MAY_BREAK_US = "may break us"
    """Something that we use works otherwise."""

    @property
    def rank(self) -> int:
        return list(Risk).index(self)
