"""What changed upstream between two builds, for people who only want to know."""

from __future__ import annotations

from tasks.console import console, print_json, show_table
from tasks.release import BadInput, ToolingError
from tasks.settings import load
from tasks.upstream import find, notes, open_upstream
from tasks.upstream.between import between
from tasks.upstream.notes import Assessment
from tasks.upstream.treediff import page


def show(low: str, high: str | None, as_json: bool, as_markdown: bool, everything: bool) -> None:
    """Print what changed after build `low`, up to and with `high` or the newest eligible one.

    Raises BadInput for builds that upstream does not have, or in the wrong order, ToolingError when their trees can't
    be had.
    """
    settings = load()
    source = open_upstream(settings)
    releases = source.releases()
    first, last = find(releases, low), find(releases, high) if high else source.newest()
    if last is None or last.build <= first.build:
        if high:
            raise BadInput(f"{last} is not newer than {first}", todo="name the older build first")
        raise BadInput(f"nothing eligible is newer than {first}", todo="see upstream.min_age_days and upstream.deny")
    with console.status(f"reading the source of {first} and {last}"):
        found = between(source, settings, first.build, last)
    if found.compared is None:
        raise _unread(found)
    if as_json:
        print_json(found.model_dump(mode="json"))
    elif as_markdown:
        print(notes.digest(found))
    elif everything:
        show_table(found.summary, page.HEADER, map(page.row, found.compared.changes))
    else:
        notes.show(found)


def _unread(found: Assessment) -> ToolingError:
    return ToolingError(
        f"b{found.low} and b{found.high} can't be compared",
        evidence=found.trees.problem if found.trees else "",
        todo="check the network and upstream's settings, then run it again: what is fetched is kept",
    )
