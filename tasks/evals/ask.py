"""The process that asks: `python -m tasks.evals.ask` with a request on stdin and JSON lines on stdout.

A process of its own because Inspect takes the terminal, signals, the logging set-up and an event loop for itself
and allows one evaluation at a time in a process, while a Prefect worker thread must keep all of these.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TextIO

from tasks.evals.items import Item
from tasks.evals.model import ItemAnswer, Outcome
from tasks.release import Model

KEY_VARIABLE = "EVALS_API_KEY"
"""Inspect's provider `openai-api/evals/...` takes the key from here."""


class Request(Model):
    """What to ask, and where. Holds no key."""

    base_url: str
    model: str
    items: tuple[Item, ...]
    seed: int
    connections: int
    attempt_timeout_s: int


def main() -> int:
    """Ask every item once and write one ItemAnswer a line; an item without an answer gets the outcome `errored`."""
    request = Request.model_validate_json(sys.stdin.read())
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever Inspect prints is not an answer
    with tempfile.TemporaryDirectory(prefix="evals-") as folder:
        _evaluate(request, folder, lines)
    return 0


def _evaluate(request: Request, folder: str, lines: TextIO) -> None:
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import get_model

    from tasks.evals.inspect_tasks import items_task

    told: set[str] = set()

    def finished(answer: ItemAnswer) -> None:
        told.add(answer.item)
        lines.write(answer.model_dump_json() + "\n")
        lines.flush()

    # each item carries its own max_tokens, which Inspect takes for a whole task: one task for each value
    tasks = [
        items_task([i for i in request.items if i.max_tokens == limit], request.seed, finished, limit)
        for limit in sorted({i.max_tokens for i in request.items})
    ]
    model = get_model(
        f"openai-api/evals/{request.model}", base_url=f"{request.base_url}/v1", api_key=os.environ[KEY_VARIABLE],
        max_retries=0,  # of the OpenAI client; the parent decides about trying again
    )  # fmt: skip
    logs = inspect_eval(
        tasks, model, display="none", log_dir=folder, log_format="json", log_level="error", log_realtime=False,
        fail_on_error=False, retry_on_error=0, max_retries=0, attempt_timeout=request.attempt_timeout_s,
        max_connections=request.connections, max_tasks=1, ctl_server=False, acp_server=False, notification=False,
    )  # fmt: skip
    why = {
        str(sample.id): sample.error.message for log in logs for sample in log.samples or [] if sample.error is not None
    }
    general = next((log.error.message for log in logs if log.error), "Inspect gave no answer and no reason")
    for item in request.items:
        if item.id not in told:
            finished(ItemAnswer(item=item.id, outcome=Outcome.ERRORED, error=why.get(item.id, general)[:500]))


if __name__ == "__main__":
    sys.exit(main())
