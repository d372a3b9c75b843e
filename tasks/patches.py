"""Apply the patch series to an upstream tree, strictly, and say what became of every patch."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tasks.platforms import Platform
from tasks.release import BadInput, PatchResult, PatchStatus, ReleaseFailed, SourceTree, UpstreamRelease
from tasks.report import Row, markdown_table, stage
from tasks.settings import Settings
from tasks.upstream import open_upstream
from tasks.upstream.sources import Sources


@dataclass(frozen=True)
class Patch:
    """One file of the series."""

    path: Path
    title: str
    trailers: dict[str, str]


def read_series(folder: Path) -> list[Patch]:
    """The patches that `series` names, in order. Raises BadInput when one is missing or is no mail-format patch."""
    series = folder / "series"
    if not series.exists():
        raise BadInput(f"there is no patch series at {series}", todo="set `patches` to the folder that holds it")
    names = [line.split("#")[0].strip() for line in series.read_text().splitlines()]
    return [_read(folder, name) for name in names if name]


def _read(folder: Path, name: str) -> Patch:
    path = folder / name
    if path.parent != folder or not path.is_file():
        raise BadInput(
            f"the series names {name}, which is not a file in {folder}", todo="add the file or remove the line"
        )
    header = path.read_text(encoding="utf-8", errors="replace").split("\ndiff --git ", 1)[0].split("\n---\n", 1)[0]
    subject = re.search(r"^Subject: (?:\[PATCH[^\]]*\] )?(.+(?:\n[ \t].+)*)", header, re.MULTILINE)
    trailers = dict(re.findall(r"^([A-Z][A-Za-z-]+): (.+)$", header.split("\n\n", 1)[-1], re.MULTILINE))
    title = re.sub(r"\s+", " ", subject[1]) if subject else name
    return Patch(path, title, trailers)


def apply_series(sources: Sources, release: UpstreamRelease, archive: Path, folder: Path) -> SourceTree:
    """The source tree of a release with the series on it.

    A patch is obsolete when the line named by its Evidence trailer stands in upstream's own code; else it must
    apply with all its context, every line of it. Raises ReleaseFailed when one does neither.
    """
    sha, upstream_tree = sources.add(release, archive)
    tree = upstream_tree
    results: list[PatchResult] = []
    for patch in read_series(folder):
        result, tree = _place(sources, patch, upstream_tree, tree)
        results.append(result)
    bad = [r for r in results if r.status in (PatchStatus.CONFLICT, PatchStatus.BROKEN)]
    if bad:
        raise ReleaseFailed(
            f"{bad[0].file} ({bad[0].title}) is in {bad[0].status} on {release}",
            evidence=bad[0].evidence,
            todo=f"rebase the patch by hand on {release.tag}, or take it out of {folder / 'series'}",
        )
    if tree != upstream_tree:
        sources.keep(f"refs/trees/{tree}", tree, f"{release.tag} with {len(results)} patches")
    return SourceTree(
        upstream=release, archive_sha256=sha, upstream_tree=upstream_tree, tree=tree, patches=tuple(results)
    )


def _place(sources: Sources, patch: Patch, upstream_tree: str, tree: str) -> tuple[PatchResult, str]:
    def result(status: PatchStatus, evidence: str) -> PatchResult:
        return PatchResult(file=patch.path.name, title=patch.title, status=status, evidence=evidence)

    if found := upstream_evidence(sources, patch, upstream_tree):
        since = f", fixed upstream in {patch.trailers['Fixed-in']}" if "Fixed-in" in patch.trailers else ""
        return result(PatchStatus.OBSOLETE, f"upstream's own code has it: {found}{since}"), tree
    with tempfile.TemporaryDirectory(prefix="apply-", dir=sources.repo) as temporary:
        index = Path(temporary) / "index"
        sources.git("read-tree", tree, index=index)
        applied = sources.git(
            "apply", "--cached", "--whitespace=nowarn", patch.path.absolute(), index=index, check=False
        )
        if applied.code:
            words = applied.text[:1500]
            broken = "corrupt patch" in words or "No valid patches" in words or "unrecognized input" in words
            return result(PatchStatus.BROKEN if broken else PatchStatus.CONFLICT, words), tree
        new = sources.git("write-tree", index=index).stdout.strip()
    changed = sources.git("diff-tree", "-r", "--stat", tree, new).stdout.strip().splitlines()
    return result(PatchStatus.CLEAN, changed[-1].strip() if changed else "changes nothing"), new


def upstream_evidence(sources: Sources, patch: Patch, tree: str) -> str:
    """`path:line: text` of the upstream line that the patch's Evidence trailer names, or ''."""
    trailer = patch.trailers.get("Evidence", "")
    if " :: " not in trailer:
        return ""
    globs, pattern = trailer.split(" :: ", 1)
    for glob in globs.split():
        for path in sources.files(tree, glob):
            for number, line in enumerate(sources.read(tree, path).splitlines(), 1):
                if re.search(pattern, line):
                    return f"{path}:{number}: {line.strip()}"
    return ""


@stage("patches", "patch {release}")
def apply(row: Row, platform: Platform, settings: Settings, release: UpstreamRelease) -> SourceTree:
    """The release's source with the patch series on it. Raises ReleaseFailed on a conflict."""
    row.progress(0, 3, f"fetching the source of {release.tag}")
    archive = open_upstream(settings).fetch(release)
    row.progress(1, 3, "importing it")
    source = apply_series(Sources(settings.cache), release, archive, settings.patches)
    told = [f"{p.file.removesuffix('.patch')} {p.status}" for p in source.patches] or ["no patches"]
    row.done(
        f"{', '.join(told)}; source tree {source.tree[:9]}",
        markdown_table(
            ("patch", "title", "status", "evidence"), [(p.file, p.title, p.status, p.evidence) for p in source.patches]
        )
        + f"\n\narchive sha256 `{source.archive_sha256}`\n\n"
        + f"upstream tree `{source.upstream_tree}`, with patches `{source.tree}`",
        detail={
            "patches": [p.model_dump(mode="json") for p in source.patches],
            "archive_sha256": source.archive_sha256,
        },
    )
    return source
