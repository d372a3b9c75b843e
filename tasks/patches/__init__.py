"""The life of the patch series: rebased to each upstream release, proved there, retired by evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.patches.bases import TreeOf
from tasks.patches.classify import Notes, Placed, classify
from tasks.patches.export import keep_commits
from tasks.patches.series import Patch, read_series, select
from tasks.platforms import Platform
from tasks.release import (
    BadInput,
    PatchResult,
    PatchStatus,
    ReleaseFailed,
    ReleaseNotes,
    SourceTree,
    ToolingError,
    UpstreamRelease,
)
from tasks.report import fenced, markdown, markdown_table
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.stage import Row, stage
from tasks.upstream import Upstream, find, open_upstream

__all__ = [
    "Patch",
    "Placed",
    "apply",
    "apply_series",
    "place_series",
    "read_series",
    "refuse_blocked",
    "refuse_unproved",
    "select",
    "tree_without",
]


def apply_series(
    sources: Sources,
    release: UpstreamRelease,
    archive: Path,
    folder: Path,
    upstream: Upstream | None = None,
) -> SourceTree:
    """The source tree of a release with the series on it.

    The trees that patches were exported from come from `upstream` where it has them; without it, only those that
    were imported before. Raises ReleaseFailed, with a report, when a patch is blocked.
    """
    sha, upstream_tree = sources.add(release, archive)
    placed = place_series(sources, read_series(folder), release, upstream_tree, upstream)
    refuse_blocked(placed, release, folder)
    return _source_tree(sources, release, sha, upstream_tree, placed)


def tree_without(settings: Settings, source: SourceTree, *files: str) -> SourceTree:
    """The same source tree made without these patches, and without those that can't be made without one of them."""
    sources = Sources(settings.cache)
    upstream = open_upstream(settings)
    patches = read_series(settings.patches)
    left = [patch.name for patch in patches if patch.name not in files]
    placed = place_series(sources, patches, source.upstream, source.upstream_tree, upstream, left)
    return _source_tree(sources, source.upstream, source.archive_sha256, source.upstream_tree, placed)


def _source_tree(
    sources: Sources, release: UpstreamRelease, archive_sha256: str, upstream_tree: str, placed: Sequence[Placed]
) -> SourceTree:
    tree = placed[-1].tree if placed else upstream_tree
    keep_commits(sources, release, upstream_tree, placed)
    if tree != upstream_tree:
        sources.keep(f"refs/trees/{tree}", tree, f"{release.tag} with {len(placed)} patches")
    return SourceTree(
        upstream=release,
        archive_sha256=archive_sha256,
        upstream_tree=upstream_tree,
        tree=tree,
        patches=tuple(p.result for p in placed),
    )


def place_series(
    sources: Sources,
    patches: list[Patch],
    release: UpstreamRelease,
    upstream_tree: str,
    upstream: Upstream | None = None,
    chosen: Sequence[str] | None = None,
) -> list[Placed]:
    """Every patch of the series on a release, whatever became of it; or those `chosen` by name, in that order.

    Raises ToolingError when git fails.
    """
    tree_of, notes = _tree_of(sources, upstream), _notes(upstream)
    return classify(sources, patches, release, upstream_tree, tree_of, notes, chosen=chosen)


def refuse_blocked(placed: Sequence[Placed], release: UpstreamRelease, folder: Path) -> None:
    """Raises ReleaseFailed for the first patch that nobody may build with, with all that is known of it."""
    for found in (p.result for p in placed if p.result.status.blocked):
        edit = f"`llama-release patches edit {found.file} --to {release.tag}`"
        mend = "restore the file or export it again" if found.status is PatchStatus.BROKEN else edit
        raise ReleaseFailed(
            f"{found.file} ({found.title}) is {_words(found)} on {release}",
            evidence="\n".join(filter(None, [found.evidence, found.detail])),
            todo=f"{mend}, or take it out of {folder / 'series'}",
        )


def refuse_unproved(source: SourceTree, folder: Path) -> None:
    """Raises BadInput for the first patch that says neither how it is proved nor why it can't be.

    Before the compile, which its proof comes after.
    """
    by_name = {patch.name: patch.trailers for patch in read_series(folder)}
    for result in source.patches:
        if result.status is not PatchStatus.NOT_APPLICABLE and not by_name[result.file].keys() & {
            "Proved-by",
            "Waiver",
        }:
            raise BadInput(
                f"{result.file} has no proof",
                todo="add a trailer `Proved-by: <contract> ...`, or `Waiver: <who>: <why it can't be proved>`",
            )


def _words(result: PatchResult) -> str:
    return "in conflict" if result.status is PatchStatus.CONFLICT else str(result.status)


def _tree_of(sources: Sources, upstream: Upstream | None) -> TreeOf:
    def tree_of(build: int) -> str:
        if known := sources.upstream_tree(build):
            return known
        if upstream is None:
            raise BadInput(f"the source of b{build} was never imported here")
        release = find(upstream.releases(), f"b{build}")
        return sources.add(release, upstream.fetch(release))[1]

    return tree_of


def _notes(upstream: Upstream | None) -> Notes:
    def notes(low: int, high: int) -> ReleaseNotes:
        if upstream is None:
            raise ToolingError("release notes are read only where upstream is")
        return upstream.changes(low, high)

    return notes


@stage("patches", "patch {release}")
def apply(
    row: Row,
    platform: Platform,  # noqa: ARG001 - every stage has one
    settings: Settings,
    release: UpstreamRelease,
) -> SourceTree:
    """The release's source with the patch series on it. Raises ReleaseFailed when a patch is blocked."""
    row.progress(0, 3, f"fetching the source of {release.tag}")
    upstream = open_upstream(settings)
    archive = upstream.fetch(release)
    row.progress(1, 3, "importing it")
    source = apply_series(Sources(settings.cache), release, archive, settings.patches, upstream)
    refuse_unproved(source, settings.patches)
    told = [f"{p.file.removesuffix('.patch')} {p.status}" for p in source.patches] or ["no patches"]
    row.done(
        f"{', '.join(told)}; source tree {source.tree[:9]}",
        markdown_table(
            ("patch", "title", "status", "evidence"), [(p.file, p.title, p.status, p.evidence) for p in source.patches]
        )
        + "".join(f"\n\n{markdown(p.file)}, rebased:\n{fenced(p.detail, 'diff')}" for p in source.patches if p.detail)
        + f"\n\narchive sha256 `{source.archive_sha256}`\n\n"
        + f"upstream tree `{source.upstream_tree}`, with patches `{source.tree}`",
        detail={
            "patches": [p.model_dump(mode="json") for p in source.patches],
            "archive_sha256": source.archive_sha256,
        },
    )
    return source
