"""What a release answered to the items."""

from __future__ import annotations

from enum import StrEnum

from tasks.release import Model


class Outcome(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"
    TRUNCATED = "truncated"
    """Cut off at max_tokens: counts as wrong, whatever stands in it."""
    ERRORED = "errored"
    """There was no answer: the request failed. Never counted as wrong."""


class ItemAnswer(Model):
    """One answer."""

    item: str
    outcome: Outcome
    text: str = ""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class Answers(Model):
    """All answers of one release to one set, in the order of the items."""

    release: str
    set_digest: str
    seed: int
    count: int
    answers: tuple[ItemAnswer, ...]
    seconds: float = 0.0
    """Wall time of all asking, over every run that it took."""

    def having(self, outcome: Outcome) -> tuple[ItemAnswer, ...]:
        return tuple(a for a in self.answers if a.outcome is outcome)

    @property
    def complete(self) -> bool:
        return len(self.answers) == self.count and not self.having(Outcome.ERRORED)

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return sum(a.prompt_tokens + a.completion_tokens for a in self.answers)
