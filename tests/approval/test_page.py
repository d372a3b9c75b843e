"""What a person reads before deciding, where the real page of a real run (tests/browser) does not show it."""

from __future__ import annotations

from pathlib import Path

import modal
import pytest

from tasks.approval.page import page
from tasks.platforms.modal.cost import Use
from tasks.release import Dossier, PatchResult, PatchStatus, Verdict, Verification
from tests.approval.asking import RELEASE, platform_on
from tests.platforms.modal_stand import fake_modal, platform_on_modal

SPENT = {"answers": 7, "tokens": 7, "seconds": 7, "money": 7}


def a_dossier(*found: Verification) -> Dossier:
    return Dossier(release=RELEASE, required=tuple(v.name for v in found), verifications=found)


def verified(name: str, verdict: Verdict = Verdict.PASSED, **evidence: object) -> Verification:
    return Verification(
        name=name, release=RELEASE.id, verdict=verdict, summary=f"{name} seen", promise="said", evidence=evidence
    )


def test_what_did_not_pass_comes_first_and_every_patch_has_its_evidence(tmp_path: Path) -> None:
    patch = PatchResult(file="0001-x.patch", title="x", status=PatchStatus.CLEAN, evidence="applies strictly")
    dossier = a_dossier(
        verified("contracts.chat.answers"),
        verified("evals", Verdict.INCONCLUSIVE, cost={"candidate": SPENT}),
        verified("patches", patches=[patch.model_dump(mode="json")]),
    )
    read = page(platform_on(tmp_path)[0], dossier, None, None)
    assert read.index("| evals | inconclusive |") < read.index("| contracts.chat | passed |")
    assert "| 0001-x.patch | clean | applies strictly |" in read
    assert "| chat.answers | passed | contracts.chat.answers seen | said |" in read
    assert "| candidate | 7 | 7 | 7 | 7 |" in read
    assert "### Cost" not in read


@pytest.mark.wire
def test_where_the_platform_costs_money_the_page_says_how_much(tmp_path: Path) -> None:
    with fake_modal(tmp_path):
        platform = platform_on_modal(tmp_path)
        used = Use(stage="staging", release=RELEASE.id, gpu="L40S", cpu=4, memory_mb=2048, since=0, until=60)
        uses = modal.Dict.from_name(f"{platform.settings.modal.app}-uses", create_if_missing=True)
        uses.put("container", used.model_dump_json())
        read = page(platform, a_dossier(), None, None)
        assert "### Cost" in read
        assert "| staging | 1 | 60 | 60 |" in read
