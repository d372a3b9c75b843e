"""What git does to source trees for the series: apply strictly, merge three ways, compare."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.sources import Sources

NO_RENAMES = ("-c", "merge.renames=false")
"""A merge that followed a rename could land a hunk in a file that nobody named."""


@contextmanager
def scratch_index(sources: Sources) -> Iterator[Path]:
    """A path for an index that goes away."""
    with tempfile.TemporaryDirectory(prefix="index-", dir=sources.repo) as folder:
        yield Path(folder) / "index"


def apply_strictly(sources: Sources, patch: Path, tree: str) -> tuple[str | None, str]:
    """(the tree with the patch, what git said); None where a line of context is not as the patch says."""
    with scratch_index(sources) as index:
        sources.git("read-tree", tree, index=index)
        said = sources.git("apply", "--cached", "--whitespace=nowarn", patch.absolute(), index=index, check=False)
        return (None if said.code else sources.git("write-tree", index=index).stdout.strip()), said.text


@dataclass(frozen=True)
class Merge:
    """A three-way merge."""

    tree: str
    """The merged tree; with conflict markers in `conflicts`."""
    conflicts: tuple[str, ...]
    """Paths that git could not merge."""


def merge(sources: Sources, base: str, ours: str, theirs: str) -> Merge:
    """What changed from `base` to `theirs`, brought to `ours`; all are trees."""
    root = commit(sources, base)
    sides = [commit(sources, tree, root) for tree in (ours, theirs)]
    said = sources.git(*NO_RENAMES, "merge-tree", "--write-tree", "--name-only", "--no-messages", *sides, check=False)
    tree, *conflicts = said.stdout.strip().split("\n")
    if said.code not in (0, 1) or not re.fullmatch(r"[0-9a-f]{40,64}", tree):
        said = sources.git(*NO_RENAMES, "merge-tree", "--write-tree", *sides)
    return Merge(tree, tuple(filter(None, conflicts)))


def commit(sources: Sources, tree: str, *parents: str) -> str:
    """A commit of a tree that nothing points at."""
    return sources.git(
        "commit-tree", tree, *(word for p in parents for word in ("-p", p)), "-m", "merge"
    ).stdout.strip()


def diff(sources: Sources, old: str, new: str, context: int) -> str:
    """The diff of two trees."""
    options = ("-r", "-p", f"-U{context}", "--no-renames", "--no-color", "--no-ext-diff", "--full-index")
    return sources.git("diff-tree", *options, old, new).stdout


def text_of(sources: Sources, tree: str, path: str) -> str | None:
    """The text of a file of a tree; None where it has none."""
    said = sources.git("cat-file", "blob", f"{tree}:{path}", check=False)
    return None if said.code else said.stdout


def mentioning(sources: Sources, tree: str, words: list[str]) -> list[str]:
    """The paths of a tree whose text has one of these words, in one search of the whole tree."""
    if not words:
        return []
    patterns = [part for word in words for part in ("-e", word)]
    said = sources.git("grep", "-l", "-I", "-w", "-F", "--full-name", *patterns, tree, check=False)
    return [line.removeprefix(f"{tree}:") for line in said.stdout.splitlines()]


def lines_of(sources: Sources, tree: str, globs: list[str]) -> Iterator[tuple[str, int, str]]:
    """(path, line number, text) of every line of the files that match a glob, in one reading of the tree."""
    specs = [f":(glob){glob}" for glob in globs]
    said = sources.git("grep", "-I", "-n", "-z", "--full-name", "-e", "", tree, "--", *specs, check=False)
    for line in said.stdout.split("\n"):
        if line.count("\0") >= 2:
            path, number, text = line.split("\0", 2)
            yield path.removeprefix(f"{tree}:"), int(number), text
