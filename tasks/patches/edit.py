"""A patch in a person's hands: a work folder that is a git repository, until it is exported or given up.

    <store>/edit/state.json      which patch, on which release
    <store>/edit/original.patch  the patch as it was
    <store>/edit/tree/           the release with the earlier patches, and this one merged in as git cherry-pick does

The folder appears whole or not at all, and the patch file is replaced before the folder goes: each command can be
killed and given again.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from modal_app.child import environment
from tasks.patches.classify import Placed
from tasks.patches.export import commit_like, export
from tasks.patches.series import read_patch
from tasks.process import Output, run
from tasks.release import BadInput, Model, ReleaseFailed, ToolingError, UpstreamRelease
from tasks.sources import GIT_TIMEOUT_S, Sources
from tasks.store import write_atomic

MARKER = re.compile(r"^(?:<{7} |>{7} |\|{7} )")


class State(Model):
    """An edit that is under way."""

    patch: Path
    release: UpstreamRelease
    start: str
    """The tree that the patch is to be made from."""


@dataclass(frozen=True)
class Edit:
    """The work folder of an edit."""

    folder: Path
    state: State

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def unsettled(self) -> list[str]:
        """`path:line` of every conflict marker that is left in a file which differs from the start."""
        names = self.git("diff", "--name-only", "--no-renames", "-z", self.state.start).stdout.split("\0")
        found = []
        for path in (self.tree / name for name in sorted(set(names)) if name):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
            found += [f"{path}:{n}" for n, line in enumerate(lines, 1) if MARKER.match(line)]
        return found

    def git(self, *argv: str | Path, stdin: str = "", check: bool = True) -> Output:
        """Run git in the work folder, away from the user's settings."""
        env = environment() | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_EDITOR": "true"}
        return run(["git", *argv], timeout_s=GIT_TIMEOUT_S, cwd=self.tree, env=env, stdin=stdin, check=check)


def under_way(store: Path) -> Edit | None:
    """The edit that was begun here, if any."""
    state = store / "edit" / "state.json"
    if not state.exists():
        return None
    try:
        return Edit(store / "edit", State.model_validate_json(state.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ToolingError(f"{state} is not readable", evidence=str(error)[:300], todo="remove that folder") from error


def begin(store: Path, sources: Sources, placed: Placed, start: str, release: UpstreamRelease) -> Edit:
    """The work folder for a patch on a release; `start` is the tree that it is to be made from.

    The same edit again is the folder as it stands. Raises BadInput when another edit is under way, or when the file is
    no patch.
    """
    state = State(patch=placed.patch.path.absolute(), release=release, start=start)
    if known := under_way(store):
        if (known.state.patch, known.state.release.build) == (state.patch, release.build):
            return known
        raise BadInput(
            f"an edit of {known.state.patch.name} on {known.state.release.tag} is under way",
            evidence=str(known.tree),
            todo="finish it with `llama-release patches edit --continue`, or drop it with --abort",
        )
    if placed.patch.broken:
        raise BadInput(
            f"{placed.patch.name} is no patch: {placed.patch.broken}", todo="restore the file, or export it again"
        )
    new = store / "edit.new"
    shutil.rmtree(new, ignore_errors=True)
    (new / "tree").mkdir(parents=True)
    _fill(Edit(new, state), sources, placed)
    write_atomic(new / "state.json", state.model_dump_json(indent=1))
    os.replace(new, store / "edit")
    return Edit(store / "edit", state)


def _fill(edit: Edit, sources: Sources, placed: Placed) -> None:
    shutil.copyfile(edit.state.patch, edit.folder / "original.patch")
    edit.git("init", "--quiet", "--initial-branch", edit.state.release.tag)
    (edit.tree / ".git" / "objects" / "info" / "alternates").write_text(f"{sources.repo / 'objects'}\n")
    for name, value in {
        "user.name": "llama-release", "user.email": "llama-release@localhost",
        "core.autocrlf": "false", "merge.renames": "false", "merge.conflictStyle": "diff3",
        "gc.auto": "0", "advice.detachedHead": "false",
    }.items():  # fmt: skip
        edit.git("config", name, value)
    message = f"{edit.state.release.tag} with the earlier patches of the series"
    head = sources.git("commit-tree", edit.state.start, "-m", message).stdout.strip()
    edit.git("reset", "--quiet", "--hard", head)
    if placed.base:
        root = sources.git("commit-tree", placed.base.tree, "-m", f"b{placed.base.build}").stdout.strip()
        patched = commit_like(sources.git, placed.patch.path, root, placed.base.patched)
        edit.git("cherry-pick", patched, check=False)  # a conflict is what the person is here for
    elif placed.result.status.built_with:
        edit.git("read-tree", "--reset", "-u", placed.tree)  # never a plain apply: it may take another function


def finish(store: Path) -> tuple[Edit, str]:
    """Write the patch as the person made it and remove the work folder; (the edit, the patch's new text).

    Raises BadInput when no edit is under way or nothing is left of the patch, ReleaseFailed for conflict markers.
    """
    edit = _must(store)
    if markers := edit.unsettled:
        raise ReleaseFailed(
            f"{len(markers)} conflict markers are left",
            evidence="\n".join(markers[:10]),
            todo="settle them, then `llama-release patches edit --continue`",
        )
    _stage(edit)
    tree = edit.git("write-tree").stdout.strip()
    if tree == edit.state.start:
        raise BadInput(
            f"nothing is left of {edit.state.patch.name}: the tree is upstream's",
            evidence=str(edit.tree),
            todo="make the change there; or --abort, and retire the patch if upstream has it",
        )
    text = export(edit.git, edit.folder / "original.patch", edit.state.start, tree, edit.state.release)
    write_atomic(edit.state.patch, text)
    _remove(edit)
    return edit, text


def _stage(edit: Edit) -> None:
    """Take what changed in files that git knows, and the new files that the patch makes or a person has added.

    Never what else lies about: a build, an editor's or merge tool's copies would all be exported.
    """
    edit.git("add", "--update")
    for file in read_patch(edit.folder / "original.patch").files:
        if file.old is None and file.new and (edit.tree / file.new).is_file():
            edit.git("add", "--force", "--", file.new)


def stray(edit: Edit) -> list[str]:
    """The files in the work folder that are not part of the patch: `git add` makes them one."""
    return [name for name in edit.git("ls-files", "--others", "-z").stdout.split("\0") if name][:20]


def abort(store: Path) -> Edit:
    """Remove the work folder; the patch stays as it was. Raises BadInput when no edit is under way."""
    edit = _must(store)
    _remove(edit)
    return edit


def _must(store: Path) -> Edit:
    if edit := under_way(store):
        return edit
    raise BadInput("no edit is under way", todo="begin one with `llama-release patches edit FILE --to bN`")


def _remove(edit: Edit) -> None:
    old = edit.folder.with_name("edit.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(edit.folder, old)
    shutil.rmtree(old, ignore_errors=True)
