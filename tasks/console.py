"""The terminal: lines and tables. Knows nothing of releases, so that it is there at once."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text


def _nobody_reads(lines: Console) -> None:
    """A run goes on when nobody reads its lines any more, as when its worker was killed; rich would end it."""
    lines.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, lines.file.fileno())
    os.close(nowhere)


def visible(text: str) -> str:
    """The text as it may be shown anywhere: what a terminal obeys, what can't be seen and what turns the direction of
    writing is spelled out (`\\x1b`, `\\u202e`). Line breaks and tabs stay, other spaces are plain ones.
    """
    if text.isprintable():
        return text
    return "".join(map(_spelled, text.replace("\r\n", "\n")))


def _spelled(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    # str.isprintable() is false for all of Unicode's categories C and Z but for the ASCII space
    return " " if unicodedata.category(character) == "Zs" else character.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """`visible`, in one line: it can't begin another that says something else."""
    return " ".join(visible(text).split())


def styled(text: str, style: str) -> Text:
    """A text in a style: what is not to be shown as it is."""
    return Text(visible(text), style)


class Terminal(Console):
    """A console on which a str is text, whatever is in it: no markup, no emoji, nothing that the terminal obeys."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


# Prefect's own lines are written by one, too
Console.on_broken_pipe = _nobody_reads  # type: ignore[method-assign, assignment]
console = Terminal(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150)


def show_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table in the terminal. A cell is text, or what `styled` gives."""
    table = Table(*header, title=one_line(title), title_justify="left", box=None, header_style="dim", pad_edge=False)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    console.print(table)


def two_columns(rows: Iterable[tuple[str, str]]) -> Table:
    """What each row is about, and its text, which is wrapped and never cut, in a terminal of any width."""
    table = Table("", "", box=None, show_header=False, pad_edge=False)
    table.columns[0].no_wrap, table.columns[1].overflow = True, "fold"
    for about, text in rows:
        table.add_row(styled(about, "bold"), one_line(text))
    return table


def show_live(made: Callable[[], Table], every_s: float) -> NoReturn:
    """Show a table again and again in its place, until the process is told to end."""
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(made(), refresh=True)
            time.sleep(every_s)


def user_name() -> str:
    """Who sits at the terminal: the user's number where it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError until Python 3.12
        return str(os.getuid())


def print_json(value: object) -> None:
    """Print JSON for another program, in ASCII: a terminal shows it as text too."""
    print(json.dumps(value, indent=1))
