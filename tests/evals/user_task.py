"""An Inspect task as a user writes one: nothing of ours in it."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Spain": "Madrid", "Egypt": "Cairo", "Greece": "Athens",
    "Peru": "Lima", "Norway": "Oslo", "Portugal": "Lisbon", "Austria": "Vienna",
}  # fmt: skip


@task
def capitals() -> Task:
    return Task(
        dataset=[
            Sample(input=f"What is the capital of {country}?", target=capital, metadata={"template": f"group {n % 3}"})
            for n, (country, capital) in enumerate(CAPITALS.items())
        ],
        solver=generate(),
        scorer=includes(),
        config=GenerateConfig(temperature=0, max_tokens=24),
    )
