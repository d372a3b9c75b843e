"""A release's answers to the items: kept in the store, asked of a trial server where they are missing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import tasks
from modal_app.child import HUGGING_FACE, PYTHON, TLS, environment
from tasks.endpoint import Client
from tasks.endpoint.listening import nobody_listens
from tasks.evals.ask import END, Request
from tasks.evals.model import Item, ItemAnswer, ItemSet, Outcome
from tasks.platforms import Progress
from tasks.process import die_with_parent, run
from tasks.release import BadInput, Endpoint, ToolingError
from tasks.settings import EvalSettings

ATTEMPTS = 3
"""How often an item without an answer is asked in one run."""
ATTEMPT_TIMEOUT_S = 300
LISTING_S = 600
RECOVERY_S = 10.0
"""How long a server that gave no answer has to become healthy again before the rest is given up."""


class Unanswered(Exception):
    """Items are left without an answer, each for the reason that its `error` tells."""

    def __init__(self, answers: Sequence[ItemAnswer]) -> None:
        super().__init__(f"{len(answers)} items have no answer: {answers[0].error}")
        self.answers = tuple(answers)


class Book(Mapping[str, ItemAnswer]):
    """Answers by item, in a file of one JSON line an answer that only ever grows.

    A line that a killed writer left unfinished is dropped, one that cannot be read counts as not answered. `errored` is
    no answer and is not kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, ItemAnswer] = {}
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        for line in whole.splitlines():
            with suppress(ValueError):
                answer = ItemAnswer.model_validate_json(line)
                self._found[answer.item] = answer
        self._length = len(whole) + 1 if whole else 0

    def keep(self, answer: ItemAnswer) -> None:
        """Add an answer; it is on the disk when this returns. Raises ToolingError when the disk won't take it."""
        line = answer.model_dump_json().encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
                file.truncate(self._length)
                file.seek(self._length)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ToolingError(f"could not write {self.path}", evidence=str(error), todo="free space") from error
        self._length += len(line)
        self._found[answer.item] = answer

    def __getitem__(self, item: str) -> ItemAnswer:
        return self._found[item]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Asking:
    """The process that asks, started at the first question and used for all of them; a context manager."""

    def __init__(self, settings: EvalSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Asking:
        self._folder = tempfile.TemporaryDirectory(prefix="evals-")
        self._log = Path(self._folder.name) / "stderr"
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()
        self._folder.cleanup()

    def ask(self, endpoint: Endpoint, model: str, items: Sequence[Item], book: Book, progress: Progress) -> None:
        """Ask these items and keep each answer as it comes.

        An item whose request failed is asked again, up to ATTEMPTS times while the server is healthy. Raises
        Unanswered with what is still without an answer, at once when the server has ended; ToolingError when the
        asking process itself breaks.
        """
        left, last = list(items), time.monotonic()
        failed: list[ItemAnswer] = []
        for attempt in range(ATTEMPTS):
            if not left or (attempt and not _healthy(endpoint)):
                break
            failed = []
            with closing(self._answers(endpoint, model, left)) as answers:
                for answer in answers:
                    if answer.outcome is Outcome.ERRORED:
                        failed.append(answer)
                        if nobody_listens(endpoint):
                            self._stop()  # the rest would be refused one by one, two seconds each in Inspect
                            raise Unanswered(failed)
                        continue
                    now = time.monotonic()
                    book.keep(answer.model_copy(update={"wall_s": round(now - last, 3)}))
                    last = now
                    progress(len(book), 0, answer.item)
            left = [item for item in left if item.id not in book]
        if left:
            raise Unanswered(failed)

    def _answers(self, endpoint: Endpoint, model: str, items: Sequence[Item]) -> Generator[ItemAnswer, None, None]:
        request = Request(
            base_url=endpoint.base_url.rstrip("/"), api_key=endpoint.api_key or "none", model=model,
            items=tuple(items), seed=self._settings.seed, connections=self._settings.max_connections,
            attempt_timeout_s=ATTEMPT_TIMEOUT_S, folder=Path.cwd(),
        )  # fmt: skip
        process = self._process = self._process or self._start()
        assert process.stdin and process.stdout
        # how long the slowest way may take: nothing is answered, each request runs out of time
        watchdog = threading.Timer(60 + ATTEMPT_TIMEOUT_S * (1 + len(items) // request.connections), process.kill)
        watchdog.start()
        try:
            print(request.model_dump_json(), file=process.stdin, flush=True)
            while line := process.stdout.readline():
                if line.strip() == END:
                    return
                yield ItemAnswer.model_validate_json(line)
            raise self._broken()
        except (BrokenPipeError, ValueError) as error:
            raise self._broken(str(error)) from error
        finally:
            watchdog.cancel()

    def _start(self) -> subprocess.Popen[str]:
        with open(self._log, "w") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "tasks.evals.ask"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                text=True, cwd=self._folder.name, env=_environment(self._folder.name), preexec_fn=die_with_parent,
            )  # fmt: skip

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process and process.stdin and process.stdout:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def _broken(self, why: str = "") -> ToolingError:
        self._stop()
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-1500:]
        return ToolingError(
            "the process that asks the eval items ended", evidence=f"{why}\n{tail}",
            todo="run it again: answers that were given are kept",
        )  # fmt: skip


def others(settings: EvalSettings) -> ItemSet:
    """The items of the Inspect tasks that the settings name. Raises BadInput for one that cannot be loaded."""
    if not settings.tasks:
        return ItemSet(items=())
    with tempfile.TemporaryDirectory(prefix="evals-") as folder:
        done = run(
            [sys.executable, "-m", "tasks.evals.ask", Path.cwd(), *settings.tasks], timeout_s=LISTING_S,
            cwd=Path(folder), env=_environment(folder), check=False,
        )  # fmt: skip
    if done.code:
        raise BadInput(
            "an Inspect task in evals.tasks cannot be loaded",
            evidence=done.stderr[-1500:],
            todo="write path/to/file.py@task or package/module@task in evals.tasks",
        )
    return ItemSet.model_validate_json(done.stdout)


def _healthy(endpoint: Endpoint) -> bool:
    if nobody_listens(endpoint):  # it ended: its trial tells how
        return False
    try:
        with Client(endpoint) as client:
            client.wait_healthy(RECOVERY_S, every_s=1.0)
    except ToolingError:
        return False
    return True


def _environment(folder: str) -> dict[str, str]:
    """Nothing that would change Inspect's ways or lead requests through a proxy; its files go to `folder`.

    What other people's tasks have downloaded from Hugging Face stays where it is, and they have its token.
    """
    own = environment(PYTHON, HUGGING_FACE, TLS)
    own.setdefault("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
    homes = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), folder)
    source = str(Path(tasks.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return {**own, **homes, "PYTHONPATH": path, "DO_NOT_TRACK": "1"}
