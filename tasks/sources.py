"""Upstream source as git trees in one bare repository: imported from archives, exported to compile."""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from modal_app.archives import UNREADABLE, Wanted, unpack
from modal_app.child import environment
from tasks.process import Output, run
from tasks.release import ToolingError, UpstreamRelease
from tasks.store import sha256_of, write_atomic

GIT_TIMEOUT_S = 300
WHOLE = "README.md"
"""Upstream's tree has had it at its top from the start. An archive without it was thinned out by its packager."""
SOURCE_FOLDER = "llama.cpp"
"""The folder of an sdist or a wheel that holds upstream's tree; in a tarball of upstream's own it is the top one."""

_AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (
        ("NAME", "llama-release"),
        ("EMAIL", "llama-release@localhost"),
        ("DATE", "2000-01-01T00:00:00Z"),
    )
}


class Sources:
    """A bare git repository of upstream trees."""

    def __init__(self, cache: Path) -> None:
        self.repo = (cache / "sources.git").absolute()
        self.until = math.inf
        """Of time.monotonic(): a git that runs then is ended."""
        if not (self.repo / "HEAD").exists():
            self.repo.mkdir(parents=True, exist_ok=True)
            run(["git", "init", "--quiet", "--bare", self.repo], timeout_s=GIT_TIMEOUT_S)

    def git(
        self,
        *argv: str | Path,
        index: Path | None = None,
        work_tree: Path | None = None,
        stdin: str = "",
        check: bool = True,
        exact: bool = False,
    ) -> Output:
        """Run git on this repository, away from the user's and the system's git settings.

        Raises TimedOut when it runs past GIT_TIMEOUT_S or `until`, ToolingError as `run` does.
        """
        env = environment() | {
            "GIT_DIR": str(self.repo),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            **_AUTHOR,
        }
        if index:
            env["GIT_INDEX_FILE"] = str(index)
        if work_tree:
            env["GIT_WORK_TREE"] = str(work_tree)
        words = ["git", "-c", "core.autocrlf=false", "-c", "core.safecrlf=false", *argv]
        left = max(0.0, min(GIT_TIMEOUT_S, self.until - time.monotonic()))
        return run(words, timeout_s=left, cwd=work_tree or self.repo, env=env, stdin=stdin, check=check, exact=exact)

    def add(self, release: UpstreamRelease, archive: Path) -> tuple[str, str]:
        """Import an archive once; return (sha256 of the archive, git tree hash of upstream's source in it)."""
        sha = sha256_of(archive)
        seen = self.repo / "archives" / f"{sha}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):  # a cache: what can't be read is made again
            tree = str(json.loads(seen.read_text(encoding="utf-8"))["tree"])
            if self.git("cat-file", "-e", f"{tree}^{{tree}}", check=False).code == 0:
                return sha, tree
        tree = self.tree_of(archive)
        self.keep(f"refs/upstream/{release.tag}", tree, f"upstream {release.tag}, archive sha256 {sha}")
        write_atomic(seen, json.dumps({"tree": tree, "build": release.build}))
        return sha, tree

    def tree_of(self, archive: Path, wanted: Wanted = lambda _: True) -> str:
        """The git tree hash of upstream's source in an archive, or of the `wanted` part of it.

        Raises ToolingError when it can't be unpacked.
        """
        with tempfile.TemporaryDirectory(prefix="import-", dir=self.repo) as temporary:
            folder = Path(temporary)
            source = _unpack(archive, folder, wanted)
            index = folder / "index"
            self.git("add", "--all", "--force", ".", index=index, work_tree=source)
            return self.git("write-tree", index=index).stdout.strip()

    def upstream_tree(self, build: int) -> str | None:
        """The tree of a build that was imported before."""
        said = self.git("rev-parse", "--verify", "--quiet", f"refs/upstream/b{build}^{{tree}}", check=False)
        return said.stdout.strip() or None

    def upstream_trees(self) -> dict[int, str]:
        """Build -> tree of every build that was imported, oldest first."""
        said = self.git("for-each-ref", "--format=%(refname:lstrip=2) %(tree)", "refs/upstream").stdout
        rows = (line.split() for line in said.splitlines())
        return dict(sorted((int(tag[1:]), tree) for tag, tree in rows if re.fullmatch(r"b\d+", tag)))

    def keep(self, ref: str, tree: str, message: str) -> None:
        """Point a ref at a tree, so that git never collects it."""
        commit = self.git("commit-tree", tree, "-m", message).stdout.strip()
        self.git("update-ref", ref, commit)

    def export(self, tree: str, folder: Path) -> None:
        """Write a tree's files into an empty folder."""
        index = folder.with_name(folder.name + ".index")
        index.unlink(missing_ok=True)
        folder.mkdir(parents=True)
        self.git("read-tree", tree, index=index)
        self.git("checkout-index", "--all", f"--prefix={folder}/", index=index, work_tree=folder)
        index.unlink()

    def files(self, tree: str, pattern: str) -> list[str]:
        """Paths in a tree that match a glob; `**/` crosses any number of folders, none too."""
        names = self.git("ls-tree", "-r", "--name-only", "--full-tree", tree).stdout.splitlines()
        return [name for name in names if fits(name, pattern)]

    def blobs(self, tree: str) -> dict[str, str]:
        """Path -> git object of each file of a tree."""
        lines = self.git("ls-tree", "-r", "-z", "--full-tree", tree).stdout.split("\0")
        entries = (line.partition("\t") for line in lines if line.startswith("100"))  # no links, no submodules
        return {path: about.split()[2] for about, _, path in entries}

    def texts(self, objects: Iterable[str]) -> dict[str, str]:
        """Object -> its text, of many at once."""
        wanted = list(dict.fromkeys(objects))
        # an object that can't be there: the line that says so parts one text from the next, whatever is in them
        mark = secrets.token_hex(20)
        said = self.git("cat-file", "--batch", stdin="".join(f"{each}\n{mark}\n" for each in wanted)).stdout
        parts = said.split(f"\n{mark} missing\n")
        return {each: part.partition("\n")[2] for each, part in zip(wanted, parts, strict=False)}

    def read(self, tree: str, path: str) -> str:
        """The text of one file of a tree."""
        return self.git("cat-file", "blob", f"{tree}:{path}").stdout


def fits(path: str, glob: str) -> bool:
    """Whether a path matches a glob in which `**/` crosses any number of folders, none too."""
    return bool(_pattern(glob).fullmatch(path))


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(parts.get(p) or re.escape(p) for p in re.split(r"(\*\*/|\*|\?)", glob)))


def _unpack(archive: Path, folder: Path, wanted: Wanted) -> Path:
    try:
        unpack(archive, folder, lambda name: name.endswith("/CMakeLists.txt") or wanted(name))
    except UNREADABLE as error:
        raise ToolingError(
            f"the archive {archive.name} cannot be unpacked",
            evidence=str(error),
            todo=f"delete {archive.parent} and run it again",
        ) from error
    packed, plain = folder.glob(f"*/{SOURCE_FOLDER}/CMakeLists.txt"), folder.glob("*/CMakeLists.txt")
    found = list(packed) or list(plain)
    if len(found) != 1:
        raise ToolingError(f"the archive {archive.name} holds no {SOURCE_FOLDER} source tree")
    source = found[0].parent
    for path in source.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(source.resolve()):
            raise ToolingError(
                f"the archive {archive.name} has a link that leaves its source tree",
                evidence=f"{path.relative_to(source)} -> {path.readlink()}",
                todo="do not build it; tell upstream",
            )
    git = source / ".git"  # a folder, or in wheels made from a submodule a file that points nowhere
    if git.is_dir():
        shutil.rmtree(git)
    git.unlink(missing_ok=True)
    return source
