"""What a target's own source says of our settings, before anything is compiled."""

from __future__ import annotations

from tasks.flags.table import Table
from tasks.preflight.argv import wrong
from tasks.release import BadInput, SourceTree
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.upstream.treediff import defaults
from tasks.upstream.treediff.facts import Files
from tasks.upstream.treediff.flags import ARGUMENTS, declared

FEWEST = 50
"""Options that upstream has had at least: what reads fewer cannot read this source, and says nothing of it."""


def table_of(sources: Sources, source: SourceTree) -> Table | None:
    """The options that a source tree declares; None where it declares them in a way that is not known."""
    paths = [path for glob in (ARGUMENTS, *defaults.HEADERS) for path in sources.files(source.tree, glob)]
    found = declared(Files({path: sources.read(source.tree, path) for path in paths}))
    served = [each.flag for each in found if each.served]
    return Table(served, source.upstream.tag) if len(served) >= FEWEST else None


def check(settings: Settings, source: SourceTree) -> None:
    """Raises BadInput that names each setting which this source's llama-server would refuse or not understand.

    Where its options cannot be read the binary is asked, once it is there: see `argv.render`.
    """
    table = table_of(Sources(settings.cache), source)
    if table is not None and (lines := wrong(settings.server, table)):
        raise BadInput(
            f"the settings can't be said to {table.source}",
            evidence="\n".join(lines),
            todo="correct them; `llama-release plan` says in a second whether it is right then",
        )
