"""A patch as a file that anybody makes again byte for byte from the same trees."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol

from tasks.patches.classify import Placed
from tasks.patches.series import header_of, read_patch
from tasks.process import Output
from tasks.release import ToolingError, UpstreamRelease
from tasks.sources import Sources
from tasks.store import write_atomic

FORMAT = ("--zero-commit", "--full-index", "--no-signature", "--no-numbered", "--no-renames", "--binary")
NOBODY = "llama-release"
"""Who a diff without a header is from."""


class Git(Protocol):
    """Runs git in one repository."""

    def __call__(self, *argv: str | Path, stdin: str = "") -> Output: ...


def export(git: Git, patch: Path, parent_tree: str, tree: str, release: UpstreamRelease) -> str:
    """The text of the patch that makes `tree` of `parent_tree`, with the old one's author, date and message.

    Its Exported-on trailer names the release. Raises ToolingError when the result is not UTF-8.
    """
    parent = git("commit-tree", parent_tree, "-m", release.tag).stdout.strip()
    made = commit_like(git, patch, parent, tree, release)
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        git("format-patch", *FORMAT, "--quiet", "--output-directory", folder, "-1", made)
        (file,) = Path(folder).iterdir()
        try:
            return file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ToolingError(f"{patch.name} would not be UTF-8 text", evidence=str(error)) from error


def commit_like(git: Git, patch: Path, parent: str, tree: str, release: UpstreamRelease | None = None) -> str:
    """A commit of a tree with a patch file's author, date and message; a file that is no mail has its title alone."""
    text = patch.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
    with tempfile.TemporaryDirectory(prefix="mail-") as folder:
        body, rest = Path(folder) / "body", Path(folder) / "rest"
        said = git("mailinfo", "-b", "--encoding=UTF-8", body, rest, stdin=text).stdout
        message = body.read_text(encoding="utf-8").strip("\n")
    mail = dict(re.findall(r"^(Author|Email|Subject|Date): (.*)$", said, re.MULTILINE))
    if "Subject" not in mail:
        mail["Subject"] = read_patch(patch).title
        message = header_of(text).strip().removeprefix(mail["Subject"]).strip()
    at = parsedate_to_datetime(mail["Date"]) if "Date" in mail else datetime.fromtimestamp(0, UTC)
    name, address = mail.get("Author", NOBODY), mail.get("Email", NOBODY)
    who = f"{name} <{address}> {int(at.timestamp())} {at.strftime('%z') or '+0000'}"
    if release:
        message = _exported_on(message, release.tag)
    text = f"tree {tree}\nparent {parent}\nauthor {who}\ncommitter {who}\n\n{mail['Subject']}\n\n{message}\n"
    return git("hash-object", "-t", "commit", "-w", "--stdin", stdin=text).stdout.strip()


def keep_commits(sources: Sources, release: UpstreamRelease, upstream_tree: str, placed: Sequence[Placed]) -> str:
    """The series on a release as commits in the repository of the sources, one a patch, on upstream's own: their last.

    `refs/series/bN` names it, so that `git log`, `git range-diff` and `git format-patch` of that repository show what
    was built. The same series on the same release is the same commit.
    """
    known = sources.git("rev-parse", "--verify", "--quiet", f"refs/upstream/{release.tag}", check=False).stdout.strip()
    if sources.upstream_tree(release.build) != upstream_tree:
        known = ""
    parent = known or sources.git("commit-tree", upstream_tree, "-m", release.tag).stdout.strip()
    for one in placed:
        if one.result.status.built_with:
            parent = commit_like(sources.git, one.patch.path, parent, one.tree, release)
    sources.git("update-ref", f"refs/series/{release.tag}", parent)
    return parent


def _exported_on(message: str, tag: str) -> str:
    line = f"Exported-on: {tag}"
    if re.search(r"^Exported-on: .*$", message, re.MULTILINE):
        return re.sub(r"^Exported-on: .*$", line, message, flags=re.MULTILINE)
    trailers = re.fullmatch(r"[A-Z][A-Za-z-]+: .+", message.rsplit("\n", 1)[-1])
    return f"{message}\n{line}" if trailers else f"{message}\n\n{line}".lstrip("\n")


def refresh(
    sources: Sources, placed: list[Placed], upstream_tree: str, release: UpstreamRelease
) -> list[tuple[Path, str]]:
    """Write the patches that are built with as they stand on a release; (file, what happened to it) for each.

    Patches that are not built with stay as they are. The same trees give the same bytes, whoever writes them.
    """
    told = []
    tree = upstream_tree
    texts: dict[Path, str] = {}
    for one in placed:
        if one.result.status.built_with:
            texts[one.patch.path] = export(sources.git, one.patch.path, tree, one.tree, release)
        tree = one.tree
    for one in placed:
        path = one.patch.path
        new = texts.get(path)
        if new is None:
            told.append((path, f"left as it is: {one.result.status}"))
        elif new.encode() == path.read_bytes():
            told.append((path, "the same already"))
        else:
            write_atomic(path, new)
            told.append((path, f"exported on {release.tag}"))
    return told
