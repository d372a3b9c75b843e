"""What a target's own source says of our settings and files, before anything is compiled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tasks import gguf_header
from tasks.flags.table import Table
from tasks.preflight.argv import wrong
from tasks.release import BadInput, SourceTree
from tasks.settings import ServerSettings, Settings
from tasks.sources import Sources
from tasks.upstream.treediff import defaults, models
from tasks.upstream.treediff.facts import Files, Kind
from tasks.upstream.treediff.flags import ARGUMENTS, declared

FEWEST = 50
"""Options that upstream has had at least, and architectures: what reads fewer cannot read this source, and says nothing
of it."""
VOCABULARY = "src/llama-vocab.cpp"
PROJECTORS = "tools/mtmd/clip-impl.h"
_PROJECTOR = re.compile(r'\{\s*PROJECTOR_TYPE_\w+\s*,\s*"([^"]+)"\s*\}')


def table_of(sources: Sources, source: SourceTree) -> Table | None:
    """The options that a source tree declares; None where it declares them in a way that is not known."""
    found = declared(_files(sources, source, ARGUMENTS, *defaults.HEADERS))
    served = [each.flag for each in found if each.served]
    return Table(served, source.upstream.tag) if len(served) >= FEWEST else None


def check(settings: Settings, source: SourceTree) -> None:
    """Raises BadInput that names each setting and file which this source's llama-server would refuse, or not know.

    Where it cannot be read the binary is asked, once it is there: see `argv.render`.
    """
    sources = Sources(settings.cache)
    table = table_of(sources, source)
    lines = wrong(settings.server, table) if table else []
    lines += unknown(settings.server, _files(sources, source, models.NAMES, VOCABULARY, PROJECTORS))
    if lines:
        raise BadInput(
            f"the settings can't be said to {source.upstream.tag}",
            evidence="\n".join(lines),
            todo="correct them; `llama-release plan` says in a second whether it is right then",
        )


def unknown(server: ServerSettings, tree: Files) -> Iterator[str]:
    """One line for each architecture, pre-tokenizer and projector of our files that a tree does not know."""
    facts = [*models.facts(tree)]
    architectures = {f.name for f in facts if f.kind is Kind.ARCHITECTURE and " " not in f.name}
    pre_tokenizers = {f.name for f in facts if f.kind is Kind.PRE_TOKENIZER}
    projectors = {name for _, text in tree.fitting(PROJECTORS) for name in _PROJECTOR.findall(text)}
    for path in filter(None, (server.model, server.draft_model)):
        yield from _unknown(path, "architecture", "general.architecture", architectures)
        if _value(path, "tokenizer.ggml.model") == "gpt2":  # others have none, or do without (llama-vocab.cpp)
            yield from _unknown(path, "pre-tokenizer", "tokenizer.ggml.pre", pre_tokenizers)
    if server.mmproj:
        for key in ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type"):
            yield from _unknown(server.mmproj, "kind of projector", key, projectors)


def _unknown(path: Path, what: str, key: str, known: set[str]) -> Iterator[str]:
    name = _value(path, key)
    if name and len(known) >= _FEWEST_OF[what] and name not in known:
        yield f"{path.name}: the {what} {name} is not known to this build's source ({key})"


_FEWEST_OF = {"architecture": FEWEST, "pre-tokenizer": 20, "kind of projector": 5}
"""Names that a source which can be read has at least."""


def _value(path: Path, key: str) -> str:
    return str(gguf_header.value_of(path, key))


def _files(sources: Sources, source: SourceTree, *globs: str) -> Files:
    paths = [path for glob in globs for path in sources.files(source.tree, glob)]
    return Files({path: sources.read(source.tree, path) for path in paths})
