"""The terminal: lines and tables. Knows nothing of releases, so that it is there at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def _nobody_reads(lines: Console) -> None:
    """A run goes on when nobody reads its lines any more, as when its worker was killed; rich would end it."""
    lines.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, lines.file.fileno())
    os.close(nowhere)


# Prefect's own lines are written by one, too
Console.on_broken_pipe = _nobody_reads  # type: ignore[method-assign, assignment]
console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150)


def show_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table in the terminal."""
    table = Table(*header, title=title, title_justify="left", box=None, header_style="dim", pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)
