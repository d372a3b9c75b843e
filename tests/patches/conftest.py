"""Synthetic upstream trees in a real git repository, and patches that git itself exported from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import tasks.patches
from tasks.patches import Placed, read_series
from tasks.patches.classify import classify
from tasks.patches.export import FORMAT
from tasks.patches.trees import commit, scratch_index
from tasks.release import BadInput, Change, UpstreamRelease
from tasks.sources import Sources
from tasks.upstream import history

Files = Mapping[str, str] | Mapping[str, bytes]


def tree_of(sources: Sources, files: Files) -> str:
    """A git tree with these files."""
    with scratch_index(sources) as index:
        rows = []
        for path, text in files.items():
            raw = index.with_name("raw")
            raw.write_bytes(text if isinstance(text, bytes) else text.encode())
            blob = sources.git("hash-object", "-w", "--no-filters", raw).stdout.strip()
            rows.append(f"100644 {blob}\t{path}\n")
        sources.git("update-index", "--index-info", index=index, stdin="".join(rows))
        return sources.git("write-tree", index=index).stdout.strip()


@dataclass
class World:
    """Upstream releases that a test makes up, and a folder with a series."""

    root: Path
    sources: Sources
    trees: dict[int, str] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.root / "patches"

    def upstream(self, build: int, files: Files) -> str:
        self.trees[build] = tree_of(self.sources, files)
        return self.trees[build]

    def patch(self, old: int | str, new: Files, name: str = "0001-x.patch", *trailers: str) -> Path:
        """Export what makes `new` of an upstream release (or of a tree), and put it at the end of the series."""
        base = self.trees[old] if isinstance(old, int) else old
        made = commit(self.sources, tree_of(self.sources, new), commit(self.sources, base))
        text = self.sources.git("format-patch", *FORMAT, "--stdout", "-1", made).stdout
        said = [f"Exported-on: b{old}"] if isinstance(old, int) else []
        text = text.replace("[PATCH] merge\n", "[PATCH] make it better\n\n" + "\n".join([*said, *trailers]) + "\n", 1)
        return self.put(name, text)

    def put(self, name: str, text: str) -> Path:
        self.folder.mkdir(exist_ok=True)
        self.names = [*self.names, name] if name not in self.names else self.names
        (self.folder / "series").write_text("".join(f"{n}\n" for n in self.names))
        (self.folder / name).write_bytes(text.encode())
        return self.folder / name

    def known(self, build: int) -> str:
        if build not in self.trees:
            raise BadInput(f"upstream has no release b{build} here")
        return self.trees[build]

    def place(self, build: int) -> list[Placed]:
        release = UpstreamRelease(build=build)
        return classify(
            self.sources,
            read_series(self.folder),
            release,
            self.trees[build],
            self.known,
            lambda low, high: history.between(self.changes, low, high),
        )

    def one(self, build: int) -> Placed:
        (placed,) = self.place(build)
        return placed


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests finds a culprit late."""
    monkeypatch.setattr(tasks.patches, "BLAME_S", 600.0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, Sources(tmp_path / "cache"))
