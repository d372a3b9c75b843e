"""The eval gate: are the candidate's answers no worse than production's?"""

from tasks.evals.stage import NAME, check

__all__ = ["NAME", "check"]
