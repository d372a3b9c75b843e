"""The gate on real releases: b8672 in production, b11434 to replace it, and the other way round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import contracts
from tasks.contracts.judge import told
from tasks.contracts.trials import ORDER
from tasks.release import Build, Release, Verdict, Verification
from tasks.settings import Settings
from tasks.store import Store
from tests.contracts.conftest import release_of
from tests.contracts.test_real import SHORTCOMINGS
from tests.platforms.stand import Counting

pytestmark = pytest.mark.real
MENDED = {
    "auth.models", "edges.bytes", "errors.malformed_json", "errors.wrong_value", "messages.thinking_off",
    "reading.by_every_api", "reading.images_as_rendered", "reading.input_tokens", "responses.effort_none",
    "schemas.bad_grammar", "schemas.ref", "schemas.ref_to_itself", "stops.ignore_eos", "thinking.effort_none",
    "thinking.reasoning_budget", "tools.named", "tools.named_malformed", "tools.named_messages",
    "tools.named_responses", "tools.named_unknown", "tools.required", "tools.responses_required", "twins.apis_agree",
    "twins.responses_calls",
}  # fmt: skip
"""What b8672 does not keep and b11434 with its patches does."""


def verdicts(found: list[Verification], verdict: Verdict) -> set[str]:
    return {v.name.removeprefix("contracts.") for v in found if v.verdict is verdict}


@pytest.fixture(scope="session")
def old_build(build_at: Callable[[str], Build]) -> Build:
    """Of the session, and so made before a test's own store takes all builds that there are."""
    return build_at("b8672")


def test_nothing_is_newly_broken_by_an_upgrade_and_much_is_by_going_back(
    base: Settings, store_with: Store, build: Build, old_build: Build, smollm2: Path
) -> None:
    platform = Counting(base.model_copy(update={"store": store_with.root}))
    new, old = (release_of(platform, each, smollm2) for each in (build, old_build))

    def weigh(release: Release, production: Release | None) -> tuple[list[Verification], list[Verification], bool]:
        return contracts.weigh(platform, release, production, lambda *_: None)

    found, theirs, again = weigh(new, old)
    assert (again, platform.trials) == (False, 2 * len(ORDER))
    assert verdicts(found, Verdict.FAILED) | verdicts(found, Verdict.ERRORED) == set()
    assert {v.name.removeprefix("contracts.") for v in found if v.is_known} == SHORTCOMINGS
    assert verdicts(found, Verdict.INCONCLUSIVE) == set()
    assert verdicts(theirs, Verdict.INCONCLUSIVE) == SHORTCOMINGS | MENDED
    said = told(found, theirs)
    newly = len(MENDED)
    assert f"0 newly broken, {len(SHORTCOMINGS)} known shortcomings, {newly} newly kept (auth.models, " in said

    back, _, again = weigh(old, new)
    assert (again, platform.trials) == (True, 2 * len(ORDER))  # both are on record
    assert verdicts(back, Verdict.FAILED) == MENDED
    assert {v.verdict for v in contracts.weigh(platform, old, None, lambda *_: None)[0]} == {
        Verdict.PASSED,
        Verdict.INCONCLUSIVE,
    }
