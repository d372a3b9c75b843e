"""The process that asks: `python -m tasks.evals.ask`, told what to ask on stdin, answering in JSON lines on stdout.

A process of its own because Inspect takes the terminal, signals, the logging set-up and an event loop for itself
and allows one evaluation at a time in a process, while a Prefect worker thread must keep all of these. Other
people's Inspect tasks are loaded here and nowhere else.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from pydantic import Field

from tasks.evals.model import Item, ItemAnswer, Outcome
from tasks.release import Model, Problem

END = ""
"""The line that ends the answers to one request."""


class Request(Model):
    """What to ask, and where: one line. It goes through a pipe and is never written down."""

    base_url: str
    api_key: str
    model: str
    items: tuple[Item, ...]
    seed: int
    connections: int
    attempt_timeout_s: int
    folder: Path = Field(description="where the files of Inspect tasks are looked for")


def main() -> int:
    """Without arguments: for each request, one ItemAnswer a line as it comes, then END, until stdin ends.

    An item without an answer gets the outcome `errored`. With a folder and Inspect tasks as arguments: their items,
    as one ItemSet; a task that cannot be loaded is told on stderr, with exit code 2.
    """
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever Inspect prints is not an answer
    if sys.argv[1:]:
        from tasks.evals.inspect_tasks import listing

        try:
            lines.write(listing(sys.argv[2:], Path(sys.argv[1])).model_dump_json())
        except Problem as error:
            print(f"{error.what}\n{error.evidence}", file=sys.stderr)
            return error.exit_code
        return 0
    with tempfile.TemporaryDirectory(prefix="evals-") as logs:
        for line in sys.stdin:
            _evaluate(Request.model_validate_json(line), logs, lines)
            print(END, file=lines, flush=True)
    return 0


def _evaluate(request: Request, logs: str, lines: TextIO) -> None:
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import get_model

    from tasks.evals.inspect_tasks import Telling, chosen_task, items_task

    told: set[str] = set()

    def tell(answer: ItemAnswer) -> None:
        told.add(answer.item)
        print(answer.model_dump_json(), file=lines, flush=True)

    Telling.tell = staticmethod(tell)
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in request.items:
        groups.setdefault((item.task, item.family), []).append(item)
    tasks = [
        chosen_task(spec, request.folder, items) if spec else items_task(family, items, request.seed)
        for (spec, family), items in groups.items()
    ]
    model = get_model(
        f"openai-api/evals/{request.model}", base_url=f"{request.base_url}/v1", api_key=request.api_key, memoize=False,
        max_retries=0,  # of the OpenAI client; the parent decides about trying again
    )  # fmt: skip
    done = inspect_eval(
        tasks, model, display="none", log_dir=logs, log_format="json", log_level="error", log_realtime=False,
        fail_on_error=False, retry_on_error=0, max_retries=0, attempt_timeout=request.attempt_timeout_s,
        max_connections=request.connections, max_tasks=len(tasks), ctl_server=False, acp_server=False,
        notification=False,
    )  # fmt: skip
    why = next((log.error.message for log in done if log.error), "Inspect gave no answer and no reason")
    for item in request.items:
        if item.id not in told:
            tell(ItemAnswer(item=item.id, outcome=Outcome.ERRORED, error=why[:500]))


if __name__ == "__main__":
    sys.exit(main())
