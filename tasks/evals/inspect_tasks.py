"""The items as an Inspect task: one question, one answer, our exact checks as the scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState, generate

from tasks.evals.items import PROTOCOL, Item
from tasks.evals.model import ItemAnswer, Outcome
from tasks.evals.scorer import is_correct

TRUNCATED = frozenset({"max_tokens", "model_length"})


def items_task(items: Sequence[Item], seed: int, finished: Callable[[ItemAnswer], None], max_tokens: int) -> Task:
    """The Inspect task of these items; `finished` is called with each scored answer as it comes."""
    samples = [Sample(id=item.id, input=item.prompt, metadata={"item": item.model_dump(mode="json")}) for item in items]
    return Task(
        name=f"evals-{max_tokens}",
        dataset=MemoryDataset(samples),
        solver=generate(),
        scorer=exact(finished),
        config=GenerateConfig(temperature=PROTOCOL.temperature, seed=seed, max_tokens=max_tokens),
    )


@scorer(metrics=[])
def exact(finished: Callable[[ItemAnswer], None]) -> Scorer:
    """Correct, wrong or truncated. Raises for any other ending: that is no answer of the model, but an error."""

    async def score(state: TaskState, target: Target) -> Score:
        item = Item.model_validate(state.metadata["item"])
        answer = judge(item, state.output.completion, str(state.output.stop_reason))
        usage = state.output.usage
        if usage:
            answer = answer.model_copy(
                update={
                    "prompt_tokens": usage.input_tokens + (usage.input_tokens_cache_read or 0),
                    "completion_tokens": usage.output_tokens,
                }
            )
        finished(answer.model_copy(update={"seconds": round(state.output.time or 0.0, 3)}))
        return Score(value=CORRECT if answer.outcome is Outcome.CORRECT else INCORRECT, answer=answer.text)

    return score


def judge(item: Item, text: str, stop_reason: str) -> ItemAnswer:
    """What this text is as an answer. Raises ValueError for a stop reason that is no end of an answer."""
    if stop_reason in TRUNCATED:
        return ItemAnswer(item=item.id, outcome=Outcome.TRUNCATED, text=text)
    if stop_reason != "stop":
        raise ValueError(f"the answer ended with {stop_reason}: {text[:200]}")
    right = is_correct(item.expected, text)
    return ItemAnswer(item=item.id, outcome=Outcome.CORRECT if right else Outcome.WRONG, text=text)
