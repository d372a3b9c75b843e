"""The life of the patch series: rebased to each upstream release, proved there, retired by evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from tasks.patches import culprit
from tasks.patches.bases import TreeOf
from tasks.patches.classify import Notes, Placed, classify
from tasks.patches.export import keep_commits
from tasks.patches.series import PROOF, Patch, read_series, select
from tasks.platforms import Platform
from tasks.release import (
    BadInput,
    PatchResult,
    PatchStatus,
    Problem,
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
from tasks.upstream import Upstream, open_upstream
from tasks.upstream import tree_of as upstream_tree_of

__all__ = [
    "Patch",
    "Placed",
    "apply",
    "apply_series",
    "blame",
    "place_series",
    "read_series",
    "refuse_blocked",
    "refuse_unproved",
    "select",
    "tree_without",
]

UNHURRIED_S = 600.0
"""How long a series is judged on a build on the way to a culprit: what is not read in time would count as broken."""


def apply_series(
    sources: Sources,
    release: UpstreamRelease,
    archive: Path,
    folder: Path,
    upstream: Upstream | None = None,
    tell: culprit.Tell | None = None,
) -> SourceTree:
    """The source tree of a release with the series on it. With `tell`, what broke a patch is looked for (`blame`).

    The trees that patches were exported from come from `upstream` where it has them; without it, only those that
    were imported before. Raises ReleaseFailed, with a report, when a patch is blocked.
    """
    sha, upstream_tree = sources.add(release, archive)
    placed = place_series(sources, read_series(folder), release, upstream_tree, upstream)
    if upstream and tell:
        placed = blame(sources, placed, release, upstream, tell=tell)
    refuse_blocked(placed, release, folder)
    return _source_tree(sources, release, sha, upstream_tree, placed)


def tree_without(settings: Settings, source: SourceTree, *files: str) -> SourceTree:
    """The same source tree made without these patches, and without those that can't be made without one of them.

    Raises ToolingError when one of the others can't be decided on: with all of them it could.
    """
    sources = Sources(settings.cache)
    upstream = open_upstream(settings)
    patches = read_series(settings.patches)
    left = [patch.name for patch in patches if patch.name not in files]
    placed = place_series(sources, patches, source.upstream, source.upstream_tree, upstream, left)
    for one in (p.result for p in placed if p.result.status is PatchStatus.UNDECIDED):
        raise ToolingError(
            f"{one.file} is undecided without {', '.join(files)}", evidence=one.evidence, todo="try it again"
        )
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


def blame(
    sources: Sources,
    placed: Sequence[Placed],
    release: UpstreamRelease,
    upstream: Upstream,
    good: int | None = None,
    tell: culprit.Tell = lambda _: None,
) -> list[Placed]:
    """The series with the upstream build that broke its first blocked patch, where that can be found.

    `good` is the last build that all of it is known to fit; else it is the one that the patch was made on. It takes
    about a second an archive, and about ten of them; those that are not in the cache are fetched.
    """
    at = next((n for n, one in enumerate(placed) if one.result.status.blocked), None)
    if at is None or placed[at].patch.broken:
        return list(placed)
    one, patches = placed[at], [each.patch for each in placed[: at + 1]]

    def fits(tree: str, step: UpstreamRelease) -> bool:
        found = classify(
            sources, patches, step, tree, _tree_of(sources, upstream), _notes(None),
            series_s=UNHURRIED_S, patch_s=UNHURRIED_S,
        )  # fmt: skip
        return not found[-1].result.status.blocked

    detail = one.result.detail
    try:
        found = culprit.find(sources, upstream, fits, patches, one, release, good, tell)
        said = found.line if found else ""
        detail = "\n\n".join(filter(None, [found.section if found else "", detail]))
    except Problem as problem:
        said = f"which build broke it is not known: {problem.what}"
    evidence = "\n".join(filter(None, [one.result.evidence, said]))
    result = one.result.model_copy(update={"evidence": evidence, "detail": detail})
    return [*placed[:at], replace(one, result=result), *placed[at + 1 :]]


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
    """Raises BadInput for the first patch that says neither how it is proved nor why it can't be, or says it wrongly.

    Before the compile, which its proof comes after.
    """
    from tasks.contracts.probes import probes_of  # what only reads a series does without all that a proof takes

    by_name = {patch.name: patch.trailers for patch in read_series(folder)}
    for result in source.patches:
        trailers = by_name[result.file]
        if PROOF in trailers:
            probes_of(trailers[PROOF])
        elif result.status is not PatchStatus.NOT_APPLICABLE and "Waiver" not in trailers:
            raise BadInput(
                f"{result.file} has no proof",
                todo="add a trailer `Proved-by: <contract> ...`, or `Waiver: <who>: <why it can't be proved>`",
            )


def _words(result: PatchResult) -> str:
    return "in conflict" if result.status is PatchStatus.CONFLICT else str(result.status)


def _tree_of(sources: Sources, upstream: Upstream | None) -> TreeOf:
    def tree_of(build: int) -> str:
        if upstream:
            return upstream_tree_of(upstream, sources, build)
        if known := sources.upstream_tree(build):
            return known
        raise BadInput(f"the source of b{build} was never imported here")

    return tree_of


def _notes(upstream: Upstream | None) -> Notes:
    @cache
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
    source = apply_series(
        Sources(settings.cache), release, archive, settings.patches, upstream, lambda what: row.progress(2, 3, what)
    )
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
