"""The log of an activator: what it and its interpreter say, in files of bounded size, no line twice in a minute."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOG_BYTES = 5_000_000
"""Of one file; a day of a busy stage with a boot a minute says 1 MB."""
KEPT = 3
"""Earlier files, `activator.log.1` the latest of them."""
REPEAT_S = 60.0
MANY = 500
"""Different lines that are remembered: of more, the first ones are forgotten early."""


@dataclass
class Said:
    """A line that was said, and how often it was not said again."""

    record: logging.LogRecord
    at: float
    again: int = 0


class ActivatorLog(RotatingFileHandler):
    """Says a line once, and after a minute how often it came again. Standard error goes where it writes."""

    def __init__(self, path: Path, size: int = LOG_BYTES, repeat_s: float = REPEAT_S) -> None:
        self._said: dict[str, Said] = {}
        self._repeat_s = repeat_s
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, maxBytes=size, backupCount=KEPT, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        os.dup2(stream.fileno(), 2)
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        self.tell_repeats()
        error = record.exc_info[0] if record.exc_info else None
        text = f"{record.levelname} {record.getMessage()} {error.__name__ if error else ''}"
        if (said := self._said.get(text)) is not None:
            said.again += 1
            return
        self._said[text] = Said(record, time.monotonic())
        super().emit(record)

    def tell_repeats(self, *, all_of_them: bool = False) -> None:
        """Say of lines that were said more than a minute ago how often they came again."""
        late = time.monotonic() - self._repeat_s
        self.acquire()
        try:
            while self._said:
                text, said = next(iter(self._said.items()))
                if said.at > late and len(self._said) < MANY and not all_of_them:
                    return
                del self._said[text]
                if said.again:
                    super().emit(self._told(said))
        finally:
            self.release()

    def close(self) -> None:
        self.tell_repeats(all_of_them=True)
        super().close()

    def _told(self, said: Said) -> logging.LogRecord:
        again = logging.makeLogRecord(said.record.__dict__)
        times = f"{said.again} times more in {self._repeat_s:g} s"
        again.msg, again.args = f"{said.record.getMessage()} (said {times})", ()
        again.exc_info = again.exc_text = None
        again.created = time.time()
        return again
