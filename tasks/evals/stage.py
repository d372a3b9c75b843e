"""The eval gate as one stage of a flow."""

from __future__ import annotations

from tasks.evals.collect import answers, item_set
from tasks.evals.compare import NAME, basis, gate, table
from tasks.evals.model import Answers
from tasks.platforms import Platform
from tasks.release import Release, ReleaseFailed, ToolingError, Verification
from tasks.report import Row, stage
from tasks.settings import Settings


@stage(NAME, "evals of {release.label}")
def check(row: Row, platform: Platform, release: Release, production: str | None, settings: Settings) -> Verification:
    """Ask the candidate, and production's release where its answers are not stored; record and return the verdict.

    Raises ReleaseFailed when the candidate is worse or doesn't come up, ToolingError when answers are missing or the
    baseline can't be asked. `production`: the id of the release to compare with, None for the first release ever.
    """
    wanted = basis(production, item_set(settings).digest, settings)
    found = platform.store.fresh(release.id, (NAME,), wanted)
    again = bool(found)
    if not found:
        candidate = answers(platform, release, settings, row.progress)
        found = [gate(candidate, _baseline(platform, production, settings, row), settings)]
        platform.store.record(found[0])
    (made,) = found
    row.judged(found, made.summary, table(made), again=again, detail={"tokens": made.evidence["tokens"]})
    return made


def _baseline(platform: Platform, production: str | None, settings: Settings, row: Row) -> Answers | None:
    if production is None:
        return None
    release = platform.store.get_release(production)
    try:
        return answers(platform, release, settings, row.progress)
    except ReleaseFailed as error:
        raise ToolingError(
            f"the baseline {release.label} could not be asked",
            evidence=str(error),
            todo="see why production's own binary does not come up in a trial; the candidate is not to blame",
        ) from error
