"""A patch as a file that anybody makes again byte for byte from the same trees."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol

from tasks.patches.classify import Placed
from tasks.patches.series import header_of, read_patch
from tasks.process import Output
from tasks.release import PatchStatus, ToolingError, UpstreamRelease
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
    name, address = mail.get("Author", NOBODY), mail.get("Email", NOBODY)
    who = f"{name} <{address}> {_moment(mail.get('Date', ''))}"
    if release:
        message = _exported_on(message, release.tag)
    text = f"tree {tree}\nparent {parent}\nauthor {who}\ncommitter {who}\n\n{mail['Subject']}\n\n{message}\n"
    return git("hash-object", "-t", "commit", "-w", "--stdin", stdin=text).stdout.strip()


def _iso(date: str) -> datetime:
    return datetime.fromisoformat(re.sub(r" (?=[-+]\d+$)", "", date))


def _moment(date: str) -> str:
    """A date as git keeps it, of a mail or (as quilt and people write it) of ISO 8601; 1970 for what is neither."""
    for read in (parsedate_to_datetime, _iso):
        with suppress(TypeError, ValueError, OverflowError):
            at = read(date)
            at = at if at.tzinfo else at.replace(tzinfo=UTC)  # the same bytes wherever it is exported
            if (seconds := int(at.timestamp())) >= 0:
                return f"{seconds} {at.strftime('%z')[:5] or '+0000'}"
    return "0 +0000"


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


def rewritten(
    sources: Sources, placed: Sequence[Placed], upstream_tree: str, release: UpstreamRelease
) -> tuple[dict[Path, str], dict[Path, str]]:
    """(file -> its text as it stands on a release, file -> why it stays as it is) of a series.

    A patch that upstream has a part of stays whole: what it would lose is upstream's by our reading alone. So do those
    after it in the same files, which are made on the whole one.
    """
    texts: dict[Path, str] = {}
    kept: dict[Path, str] = {}
    whole: set[str] = set()
    tree = upstream_tree
    for one in placed:
        status, path, paths = one.result.status, one.patch.path, one.patch.paths
        if status is PatchStatus.PARTLY_UPSTREAMED:
            kept[path] = f"{status}, and what goes is yours to say (`patches edit`)"
            whole |= paths
        elif not status.built_with:
            kept[path] = str(status)
        elif paths & whole:
            kept[path] = f"{status}, on top of one that is {PatchStatus.PARTLY_UPSTREAMED}"
            whole |= paths
        else:
            texts[path] = export(sources.git, path, tree, one.tree, release)
        tree = one.tree
    return texts, kept


def refresh(
    sources: Sources, placed: list[Placed], upstream_tree: str, release: UpstreamRelease
) -> list[tuple[Path, str]]:
    """Write the patches that are built with as they stand on a release; (file, what happened to it) for each.

    Patches that are not built with, or only in part, stay as they are. The same trees give the same bytes, whoever
    writes them.
    """
    told = []
    texts, kept = rewritten(sources, placed, upstream_tree, release)
    for path in (one.patch.path for one in placed):
        if path in kept:
            told.append((path, f"left as it is: {kept[path]}"))
        elif texts[path].encode() == path.read_bytes():
            told.append((path, "the same already"))
        else:
            write_atomic(path, texts[path])
            told.append((path, f"exported on {release.tag}"))
    return told
