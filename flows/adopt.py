"""Taking over a server that somebody runs by hand: one file, and what a person needs to know of it."""

from __future__ import annotations

import shlex
from pathlib import Path

from modal_app import child
from tasks.adoption.adopt import Adopted, adopt, argv, theirs, write
from tasks.adoption.read import Source, read_source
from tasks.console import console, one_line, print_json, show_table, styled
from tasks.flags.table import known
from tasks.settings import SETTINGS_FILE


def take_over(source: Source, force: bool, as_json: bool) -> None:
    """Write llama-release.toml here from what runs there, and say what it came from.

    Raises BadInput that names all that can't be taken over, and for a file that would change without `force`.
    """
    here = Path.cwd()
    launch = read_source(source, child.everything(), here)  # a compose file may name any variable
    adopted = adopt(launch, known(), here)
    if as_json:
        written = write(adopted, force)
        return print_json(_record(adopted, written))
    _show_pairs(adopted)
    _show_notes(adopted)
    written = write(adopted, force)
    said = f"wrote {SETTINGS_FILE}" if written else f"{SETTINGS_FILE} says this already: nothing is changed"
    console.print(styled(said, "bold"))
    for variable, where in adopted.settled.exports:
        console.print(f"  export {variable}=...    what {one_line(where)} has: no file holds it", soft_wrap=True)
    console.print("  llama-release plan      says what a first release would do")


def _show_pairs(adopted: Adopted) -> None:
    rows = (
        (one_line(pair.theirs), one_line(pair.ours), styled(pair.difference, "yellow" if pair.theirs else "dim"))
        for pair in adopted.pairs
    )
    show_table("what llama-server is told", ("today", "by llama-release", "difference"), rows)


def _show_notes(adopted: Adopted) -> None:
    for note in adopted.settled.notes:
        console.print(" ", styled("note", "cyan"), one_line(note), soft_wrap=True)
    for path in adopted.missing:
        console.print(" ", styled("warn", "yellow"), f"{one_line(str(path))} is not there", soft_wrap=True)
    for path in adopted.unseen:
        console.print(
            " ", styled("warn", "yellow"), f"{one_line(str(path))} can't be seen by this user", soft_wrap=True
        )


def _record(adopted: Adopted, written: bool) -> dict[str, object]:
    """The same for another program."""
    settled = adopted.settled
    return {
        "file": str(adopted.path),
        "written": written,
        "server": settled.server,
        "local": settled.section("local"),
        "from": {f"{line.section}.{line.key}": line.comment for line in settled.lines},
        "flags_from": [{"words": list(each.words), "from": each.comment} for each in settled.free],
        "theirs": theirs(settled.launch),
        "argv": list(argv(settled)),
        "argv_line": shlex.join(argv(settled)),
        "pairs": [{"theirs": p.theirs, "ours": p.ours, "difference": p.difference} for p in adopted.pairs],
        "notes": list(settled.notes),
        "missing": list(map(str, adopted.missing)),
        "unseen": list(map(str, adopted.unseen)),
        "export": [variable for variable, _ in settled.exports],
    }
