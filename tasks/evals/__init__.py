"""The eval gate: are the candidate's answers no worse than the baseline's?"""

from tasks.evals.collect import answers, item_set
from tasks.evals.compare import NAME, basis, gate, table
from tasks.evals.model import Answers, ItemAnswer, Outcome
from tasks.evals.stage import check

__all__ = ["NAME", "Answers", "ItemAnswer", "Outcome", "answers", "basis", "check", "gate", "item_set", "table"]
