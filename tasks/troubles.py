"""What background loops ran into and outlived: each said once in the log, and kept for `doctor`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import httpx
from pydantic import Field

from modal_app.redaction import redact
from tasks.console import one_line
from tasks.release import Model, Problem, ToolingError, digest_of, now
from tasks.store import write_atomic

log = logging.getLogger(__name__)

OUTSIDE = (Problem, OSError, httpx.HTTPError)
"""What comes from outside: no traceback says more of it."""


class Trouble(Model):
    """What one loop ran into."""

    what: str
    """What the loop was at."""
    error: str
    since: datetime = Field(default_factory=now)
    over: bool = False
    """Whether it has worked again since."""


class Troubles:
    """Those of this process; on disk, under a store's root, the latest of each loop of any process."""

    def __init__(self, root: Path) -> None:
        self._folder = _folder(root)
        self._latest: dict[str, Trouble | None] = {}

    @contextmanager
    def outlived(self, what: str) -> Iterator[None]:
        """Whatever goes wrong in the block is noted, and raised no further. One block of a name at a time."""
        try:
            yield
        except Exception as error:
            self._note(what, error)
        else:
            self._is_well(what)

    def _note(self, what: str, error: Exception) -> None:
        told = error.what if isinstance(error, Problem) else str(error)
        said = one_line(redact(f"{type(error).__name__}: {told}"))[:300]
        known = self._known(what)
        if known is None or known.over or known.error != said:
            log.error("%s: %s", what, said, exc_info=None if isinstance(error, OUTSIDE) else error)
            self._keep(Trouble(what=what, error=said))

    def _is_well(self, what: str) -> None:
        known = self._known(what)
        if known is not None and not known.over:
            log.info("%s: well again", what)
            self._keep(known.model_copy(update={"over": True}))

    def _known(self, what: str) -> Trouble | None:
        if what not in self._latest:
            self._latest[what] = _load(self._path(what))  # what an earlier process left unfinished is ours to end
        return self._latest[what]

    def _keep(self, trouble: Trouble) -> None:
        self._latest[trouble.what] = trouble
        with suppress(ToolingError):  # a disk that takes nothing may be the very trouble
            write_atomic(self._path(trouble.what), trouble.model_dump_json() + "\n")

    def _path(self, what: str) -> Path:
        return self._folder / f"{digest_of(what)}.json"


def load_troubles(root: Path) -> list[Trouble]:
    """The latest trouble of each loop of this machine that had one, oldest first."""
    found = [_load(path) for path in _folder(root).glob("*.json")]
    return sorted((each for each in found if each), key=lambda each: each.since)


def _folder(root: Path) -> Path:
    return root / "run" / "troubles"


def _load(path: Path) -> Trouble | None:
    with suppress(OSError, ValueError):
        return Trouble.model_validate_json(path.read_text(encoding="utf-8"))
    return None
