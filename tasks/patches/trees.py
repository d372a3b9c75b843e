"""What git does to source trees for the series: apply strictly, merge three ways, compare."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.release import ToolingError
from tasks.sources import Sources

NO_RENAMES = ("-c", "merge.renames=false", "-c", "merge.directoryRenames=false")
"""A merge that followed a rename of upstream's could land a hunk in a file that nobody named. Git 2.39 follows renames
of files all the same (its `ort` does not read the first option), but not those of folders."""
RENAMES = ("-c", "merge.renames=true", "-c", "merge.directoryRenames=false")


@contextmanager
def scratch_index(sources: Sources) -> Iterator[Path]:
    """A path for an index that goes away."""
    with tempfile.TemporaryDirectory(prefix="index-", dir=sources.repo) as folder:
        yield Path(folder) / "index"


@dataclass(frozen=True)
class Applied:
    """A diff that was put on a tree with every line of its context, at whatever lines they stand."""

    tree: str | None
    """The tree with it; None where a line of context is not as the diff says."""
    moved: bool
    """Whether a hunk stood at another line than it says."""
    said: str
    """What git said."""


def apply_strictly(sources: Sources, diff: str, tree: str, *options: str) -> Applied:
    """A diff on a tree: no fuzz, no reduced context."""
    with scratch_index(sources) as index:
        sources.git("read-tree", tree, index=index)
        words = ("apply", "--cached", "--whitespace=nowarn", "--verbose", *options, "-")
        said = sources.git(*words, index=index, stdin=diff, check=False)
        made = None if said.code else sources.git("write-tree", index=index).stdout.strip()
        return Applied(made, bool(re.search(r"^Hunk #\d+ succeeded at", said.text, re.MULTILINE)), said.text)


def with_texts(sources: Sources, tree: str, texts: Mapping[str, str]) -> str:
    """A tree with these files' texts instead of its own; a file keeps its mode."""
    with scratch_index(sources) as index:
        sources.git("read-tree", tree, index=index)
        rows = []
        for path, text in texts.items():
            known = sources.git("ls-files", "-s", "--", path, index=index).stdout.split()
            blob = sources.git("hash-object", "-w", "--stdin", stdin=text).stdout.strip()
            rows.append(f"{known[0] if known else '100644'} {blob}\t{path}\n")
        sources.git("update-index", "--index-info", index=index, stdin="".join(rows))
        return sources.git("write-tree", index=index).stdout.strip()


@dataclass(frozen=True)
class Merge:
    """A three-way merge."""

    tree: str
    """The merged tree; with conflict markers in `conflicts`."""
    conflicts: tuple[str, ...]
    """Paths that git could not merge."""


def merge(sources: Sources, base: str, ours: str, theirs: str, *, renames: bool = False, style: str = "merge") -> Merge:
    """What changed from `base` to `theirs`, brought to `ours`; all are trees. `renames` follows renamed files.

    `style` is git's merge.conflictStyle: `diff3` shows the base between the two sides.
    """
    options = (*(RENAMES if renames else NO_RENAMES), "-c", f"merge.conflictStyle={style}")
    root = commit(sources, base)
    sides = [commit(sources, tree, root) for tree in (ours, theirs)]
    said = sources.git(*options, "merge-tree", "--write-tree", "--name-only", "--no-messages", *sides, check=False)
    tree, *conflicts = said.stdout.strip().split("\n")
    if said.code not in (0, 1) or not re.fullmatch(r"[0-9a-f]{40,64}", tree):
        said = sources.git(*options, "merge-tree", "--write-tree", *sides)
    return Merge(tree, tuple(filter(None, conflicts)))


def merge_texts(sources: Sources, base: str, ours: str, theirs: str) -> tuple[str, int]:
    """(the merge of three texts, in how many places both sides changed the same lines)."""
    with tempfile.TemporaryDirectory(prefix="merge-", dir=sources.repo) as folder:
        files = [Path(folder) / name for name in ("ours", "base", "theirs")]
        for file, text in zip(files, (ours, base, theirs), strict=True):
            file.write_bytes(text.encode())
        said = sources.git("merge-file", "-p", "-q", *files, check=False, exact=True)
    if said.code > 127:  # it counts conflicts up to there; what is above is an error
        raise ToolingError("git can't merge a file", evidence=said.stderr[-500:])
    return said.stdout, said.code


def commit(sources: Sources, tree: str, *parents: str) -> str:
    """A commit of a tree that nothing points at."""
    return sources.git(
        "commit-tree", tree, *(word for p in parents for word in ("-p", p)), "-m", "merge"
    ).stdout.strip()


def diff(sources: Sources, old: str, new: str, context: int, *options: str) -> str:
    """The diff of two trees; `options` may be more of git's, and `--` with paths."""
    words = ("-r", "-p", f"-U{context}", "--binary", "--no-renames", "--no-color", "--no-ext-diff", "--full-index")
    paths = options[options.index("--") :] if "--" in options else ()
    more = options[: len(options) - len(paths)]
    return sources.git("diff-tree", *words, *more, old, new, *paths, exact=True).stdout


def text_of(sources: Sources, tree: str, path: str) -> str | None:
    """The text of a file of a tree; None where it has none."""
    said = sources.git("cat-file", "blob", f"{tree}:{path}", check=False, exact=True)
    return None if said.code else said.stdout


def blob_of(sources: Sources, tree: str, path: str) -> str:
    """The git blob id of a file of a tree; '' where it has none."""
    said = sources.git("rev-parse", "--verify", "--quiet", f"{tree}:{path}", check=False)
    return said.stdout.strip()


def files_of(sources: Sources, tree: str) -> frozenset[str]:
    """The paths of a tree."""
    names = sources.git("ls-tree", "-r", "-z", "--name-only", "--full-tree", tree).stdout.split("\0")
    return frozenset(filter(None, names))


def holding(
    sources: Sources, tree: str, texts: Sequence[str], folders: Sequence[str]
) -> dict[str, list[tuple[int, str]]]:
    """Path -> (line number, text) of the lines in these folders of a tree that hold the longest word of one of these.

    Words, since white space differs where code was aligned anew, and since git looks for fixed strings ten times as
    fast as for expressions.
    """
    patterns = [part for text in texts for part in ("-e", max(text.split(), key=len))]
    said = sources.git("grep", "-n", "-z", "-I", "-F", "--full-name", *patterns, tree, "--", *folders, check=False)
    found: dict[str, list[tuple[int, str]]] = {}
    for line in said.stdout.split("\n"):
        if line.count("\0") >= 2:
            path, number, text = line.split("\0", 2)
            found.setdefault(path.removeprefix(f"{tree}:"), []).append((int(number), text))
    return found


def mentioning(sources: Sources, tree: str, words: list[str], folders: Sequence[str]) -> list[str]:
    """The paths in these folders of a tree whose text has one of these words, in one search."""
    if not words:
        return []
    patterns = [part for word in words for part in ("-e", word)]
    said = sources.git("grep", "-l", "-I", "-w", "-F", "--full-name", *patterns, tree, "--", *folders, check=False)
    return [line.removeprefix(f"{tree}:") for line in said.stdout.splitlines()]


def lines_of(sources: Sources, tree: str, globs: list[str]) -> Iterator[tuple[str, int, str]]:
    """(path, line number, text) of every line of the files that match a glob, in one reading of the tree."""
    specs = [f":(glob){glob}" for glob in globs]
    said = sources.git("grep", "-I", "-n", "-z", "--full-name", "-e", "", tree, "--", *specs, check=False)
    for line in said.stdout.split("\n"):
        if line.count("\0") >= 2:
            path, number, text = line.split("\0", 2)
            yield path.removeprefix(f"{tree}:"), int(number), text
