"""Take a patch out of the series, with the evidence where people look later: the commit and the ledger."""

from __future__ import annotations

import re
from pathlib import Path

from tasks.patches.series import SERIES
from tasks.process import run
from tasks.release import BadInput, Event, PatchResult, PatchStatus, ToolingError, UpstreamRelease
from tasks.store import Store, write_atomic

GIT_TIMEOUT_S = 60


def proved_gone(store: Store, file: str, release: UpstreamRelease) -> PatchResult | None:
    """The patch's result, when its probes passed on a build without it at the last proof of this release."""
    for event in reversed(store.ledger()):
        if event.kind == "stage.proof" and event.detail.get("upstream") == release.tag:
            found = (PatchResult.model_validate(p) for p in event.detail.get("patches", []))
            return next((p for p in found if p.file == file and p.passed_without), None)
    return None


def retire(store: Store, folder: Path, result: PatchResult, release: UpstreamRelease) -> str:
    """Remove a patch from the series and commit just that; what happened, in one line.

    Raises BadInput when the patch is still needed on this release, or when no build without it passed its probes;
    ToolingError when git won't take the commit.
    """
    proved = proved_gone(store, result.file, release)
    if proved is None:
        by_text = result.status in (PatchStatus.UPSTREAMED, PatchStatus.OBSOLETE)
        raise BadInput(
            f"{result.file} is {result.status} on {release.tag}"
            + (" by its text alone: no build without it was asked" if by_text else ", so it stays"),
            evidence=result.evidence,
            todo=f"`llama-release upgrade --to {release.tag}` proves it; `llama-release patches drop` needs no proof"
            if by_text
            else "a patch goes when upstream has it (upstreamed) or its probe passes without it (obsolete)",
        )
    result = proved
    series = folder / SERIES
    lines = series.read_text(encoding="utf-8").splitlines(keepends=True)
    write_atomic(series, "".join(line for line in lines if line.split("#")[0].strip() != result.file))
    (folder / result.file).unlink(missing_ok=True)
    told = f"retired {result.file}: {result.status} on {release.tag}"
    where = _commit(folder, result, release)
    store.log(
        Event(
            kind="patches.retired",
            summary=told,
            detail={"patch": result.model_dump(mode="json"), "upstream": release.tag, "commit": where},
        )
    )
    return f"{told}; {f'commit {where[:9]}' if where else f'not committed: {folder} is not under version control'}"


def message(result: PatchResult, release: UpstreamRelease) -> str:
    """What the commit says."""
    return f"Retire {result.file}: {result.status} on {release.tag}\n\n{result.title}\n\n{result.evidence}\n"


def _commit(folder: Path, result: PatchResult, release: UpstreamRelease) -> str:
    """The commit (sha) that removes the patch, and nothing else; '' where git does not hold the series."""
    tracked = run(
        ["git", "-C", folder, "ls-files", "-z", "--", SERIES, result.file], timeout_s=GIT_TIMEOUT_S, check=False
    )
    paths = [path for path in tracked.stdout.split("\0") if path]
    if tracked.code or not paths:
        return ""
    said = run(
        ["git", "-C", folder, "commit", "--quiet", "--only", "--file=-", "--", *paths],
        timeout_s=GIT_TIMEOUT_S,
        stdin=message(result, release),
        check=False,
    )
    if said.code:
        raise ToolingError(
            f"{result.file} is out of the series, but git did not commit that",
            evidence=said.text[-500:],
            todo=f"commit {' and '.join(paths)} of {folder} yourself",
        )
    sha = run(["git", "-C", folder, "rev-parse", "HEAD"], timeout_s=GIT_TIMEOUT_S).stdout.strip()
    return sha if re.fullmatch(r"[0-9a-f]{40,64}", sha) else ""
