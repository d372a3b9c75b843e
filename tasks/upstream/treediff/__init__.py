"""What changed upstream, read from its two trees themselves: no network, no build, no words about it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from pydantic import Field

from tasks.release import Model, ToolingError
from tasks.sources import Sources, fits
from tasks.upstream.ours import Ours
from tasks.upstream.risk import Risk
from tasks.upstream.treediff import flags, trees
from tasks.upstream.treediff.compare import Side, TreeChange, compare, patched
from tasks.upstream.treediff.facts import Kind
from tasks.upstream.treediff.judge import Judge
from tasks.upstream.treediff.trees import Tree

_NAME = 60
"""Characters of a name; what is longer is a sentence."""
_WITNESSES = 3
_MANY = 20
"""Upstream has had more flags, and more routes, than that in all trees that can be built (b8672 on)."""


class TreeDiff(Model):
    """Everything that differs between two of upstream's trees, as far as we can read it."""

    old: str = Field(description="git tree")
    new: str = Field(description="git tree")
    changes: tuple[TreeChange, ...] = Field(default=(), description="the riskiest first")
    unknown: tuple[str, ...] = Field(default=(), description="what can't be told, since an archive left it out")
    problem: str = Field(default="", description="why the trees could not be had: then nothing is known")
    seconds: float = Field(default=0.0, ge=0)

    def of(self, *risks: Risk) -> tuple[TreeChange, ...]:
        return tuple(change for change in self.changes if change.risk in risks)


def read(sources: Sources, old: str, new: str, used: Ours) -> TreeDiff:
    """What differs between two git trees of the sources, judged by what we use."""
    began = time.monotonic()
    before, after = trees.read(sources, old, new)
    here, there = Side(before), Side(after)
    _check_found(here, there)
    judge = Judge(
        used,
        parameters=flags.parameters(here.listed, before.files) | flags.parameters(there.listed, after.files),
        backends=_other_backends((before, after), used),
        old_flags=frozenset(here.by_flag),
        options=frozenset(name for side in (here, there) for kind, name in side.facts if kind is Kind.OPTION),
    )
    return TreeDiff(
        old=old,
        new=new,
        changes=tuple(judge.judged([*compare(here, there), *patched(before, after, used.files)])),
        unknown=tuple(_unknown(before, after)),
        seconds=time.monotonic() - began,
    )


def _check_found(here: Side, there: Side) -> None:
    """Raises ToolingError when one tree has none of what the other one has many of."""
    for what, sizes in (
        ("flags", [len(side.by_flag) for side in (here, there)]),
        ("routes", [sum(kind is Kind.ROUTE for kind, _ in side.facts) for side in (here, there)]),
    ):
        if min(sizes) == 0 and max(sizes) >= _MANY:
            raise ToolingError(
                f"no {what} are found in one of the trees",
                evidence=f"{sizes[0]} in the old one, {sizes[1]} in the new one",
                todo="upstream writes them in another way now: teach tasks/upstream/treediff",
            )


def _other_backends(both: tuple[Tree, Tree], used: Ours) -> frozenset[str]:
    """How options of the backends begin that our recipe does not build."""
    folders = {m[1] for tree in both for path in tree.blobs if (m := re.match(r"ggml/src/ggml-(\w+)/", path))}
    built = {"cpu", used.backend}
    return frozenset(f"GGML_{name.upper()}_" for name in folders - built)


def _unknown(old: Tree, new: Tree) -> list[str]:
    """The folders of which an archive has a part only, one line each."""
    found = []
    for name, lean, whole in (("old", old, new), ("new", new, old)):
        left_out = [path for path in whole.blobs if lean.lacks(path)]
        read = sorted({_group(path) for path in left_out if any(fits(path, glob) for glob in trees.READ)})
        found += [f"{group}: not in the {name} archive" for group in read]
    return found


def _group(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/*.{name.rpartition('.')[2]}" if folder != "tools/server" else path


def explain(found: TreeDiff, titles: Mapping[str, str]) -> TreeDiff:
    """The same, each change with those of upstream's own that name it; `titles`: title -> how it is called."""
    return found.model_copy(update={"changes": tuple(_explained(change, titles) for change in found.changes)})


def _explained(change: TreeChange, titles: Mapping[str, str]) -> TreeChange:
    names = {name for name in (*change.name.split(", "), change.now, *change.fields) if re.search(r"[-_/]\w{3}", name)}
    spoken = [re.compile(rf"(?<![\w-]){re.escape(name.lstrip('-'))}(?![\w-])") for name in names if len(name) < _NAME]
    told = [name for title, name in titles.items() if any(word.search(title) for word in spoken)]
    return change.model_copy(update={"explained": tuple(told[:_WITNESSES])})
