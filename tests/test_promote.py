"""Moves of production on the local platform: real servers, two releases of one build that differ in their alias."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks import promote as promoting
from tasks import restore
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.snapshot import snapshots_folder
from tasks.preflight import bundle
from tasks.promote import back_now, back_to, check_serving, lift_hold, recover, seized, serve_pointer, swap, to_staging
from tasks.release import (
    Approval,
    BadInput,
    Build,
    Dossier,
    Hold,
    Intent,
    Promotion,
    Release,
    ReleaseFailed,
    StageName,
    StagePointer,
    ToolingError,
    Verdict,
    Verification,
)
from tasks.settings import LocalSettings, RestoreSettings, ServerSettings, Settings
from tasks.store import Store

pytestmark = pytest.mark.real


@pytest.fixture
def platform(store_with: Store, base: Settings) -> Iterator[LocalPlatform]:
    local = LocalSettings(staging_port=0, production_port=0, start_timeout_s=60)
    settings = Settings(store=store_with.root, cache=base.cache, local=local, restore=RestoreSettings(accept_cold=True))
    made = LocalPlatform(settings)
    yield made
    made.stop("production")
    made.stop("staging")


def release_called(platform: LocalPlatform, build: Build, model: Path, alias: str) -> Release:
    server = ServerSettings(model=model, alias=alias, ctx_per_slot=512, slots=1, threads=1)
    release, _ = bundle(platform.store, build, server)
    platform.store.save_release(release)
    return release


@pytest.fixture
def one(platform: LocalPlatform, build: Build, scripted_model: Path) -> Release:
    return release_called(platform, build, scripted_model, "one")


@pytest.fixture
def two(platform: LocalPlatform, build: Build, scripted_model: Path) -> Release:
    return release_called(platform, build, scripted_model, "two")


def dossier_of(release: Release, verdict: Verdict = Verdict.PASSED, names: tuple[str, ...] = ("a",)) -> Dossier:
    seen = tuple(Verification(name=n, release=release.id, verdict=verdict, summary="s") for n in names)
    return Dossier(release=release, required=("a",), verifications=seen)


def approved(dossier: Dossier, expected: str | None, version: int = 0) -> Approval:
    return Approval(
        release=dossier.release.id, dossier=dossier.digest, expected=expected, version=version, decision="approve",
        approver="alice",
    )  # fmt: skip


def promote(platform: LocalPlatform, release: Release, expected: str | None) -> None:
    dossier = dossier_of(release)
    swap(platform, dossier, approved(dossier, expected, platform.store.pointer("production").version), retain=2)


def served(platform: LocalPlatform) -> str:
    for alias in platform.store.releases():
        try:
            check_serving(platform.endpoint("production"), alias)
            return alias.alias
        except ReleaseFailed:
            continue
    raise AssertionError("production answers as none of the releases")


def test_a_promotion_moves_pointer_and_traffic_and_retains_the_earlier(
    platform: LocalPlatform, one: Release, two: Release
) -> None:
    promote(platform, one, None)
    assert served(platform) == "one"
    promote(platform, two, one.id)
    pointer = platform.store.pointer("production")
    assert (pointer.release, pointer.retained) == (two.id, (one.id,))
    assert served(platform) == "two"
    assert platform.store.intent("production") is None


def test_what_the_approval_was_not_given_for_is_refused_and_nothing_moves(
    platform: LocalPlatform, one: Release, two: Release
) -> None:
    promote(platform, one, None)
    dossier = dossier_of(two)
    good = approved(dossier, one.id, version=1)
    changed = {
        "production moved": good.model_copy(update={"expected": None}),
        "dossier changed": good.model_copy(update={"dossier": "000000000000"}),
        "no approval": good.model_copy(update={"decision": "reject"}),
        "no approval of": good.model_copy(update={"release": one.id}),
    }
    for words, approval in changed.items():
        with pytest.raises(BadInput, match=words):
            swap(platform, dossier, approval, retain=2)
    platform.store.save_pointer(
        platform.store.pointer("production").model_copy(update={"hold": Hold(reason="broken tools", by="carol")})
    )
    with pytest.raises(BadInput, match="on hold"):
        swap(platform, dossier, good, retain=2)
    lift_hold(platform.store, "carol")
    with pytest.raises(BadInput, match="production moved"):  # it is as it was, but for a hold that came and went
        swap(platform, dossier, good, retain=2)
    assert platform.store.pointer("production").release == one.id
    assert served(platform) == "one"


def test_an_approval_is_used_up_by_the_promotion_that_it_allowed(
    platform: LocalPlatform, one: Release, two: Release
) -> None:
    promote(platform, one, None)
    dossier = dossier_of(two)
    approval = approved(dossier, one.id, version=1)
    swap(platform, dossier, approval, retain=2)
    back_to(platform, None, "carol", "tool calls broke", retain=2)
    lift_hold(platform.store, "carol")
    with pytest.raises(BadInput, match="production moved since the approval was given"):
        swap(platform, dossier, approval, retain=2)
    assert served(platform) == "one"


@pytest.mark.parametrize(
    ("verdict", "names"),
    [(Verdict.FAILED, ("a",)), (Verdict.ERRORED, ("a",)), (Verdict.PASSED, ())],
    ids=["failed", "errored", "missing"],
)
def test_no_approval_helps_a_release_with_a_failed_errored_or_missing_verification(
    platform: LocalPlatform, one: Release, verdict: Verdict, names: tuple[str, ...]
) -> None:
    dossier = dossier_of(one, verdict, names)
    with pytest.raises(ReleaseFailed, match="may not be promoted"):
        swap(platform, dossier, approved(dossier, None), retain=2)
    assert platform.store.pointer("production").release is None


def test_a_release_whose_binary_was_replaced_is_refused(platform: LocalPlatform, one: Release) -> None:
    binary = platform.store.build_dir(one.build) / "llama-server"
    binary.unlink()
    binary.write_text("#!/bin/sh\n")
    with pytest.raises(ToolingError, match="is not whole in the store"):
        promote(platform, one, None)


def test_a_server_that_does_not_come_up_leaves_the_old_one_in_production(
    platform: LocalPlatform, one: Release, two: Release
) -> None:
    promote(platform, one, None)
    wrong = two.model_copy(update={"argv": (*two.argv, "--no-such-flag")})
    platform.store.save_release(wrong)
    with pytest.raises(BadInput, match="no-such-flag"):
        promote(platform, wrong, one.id)
    assert platform.store.pointer("production").release == one.id
    assert platform.store.intent("production") is None
    assert served(platform) == "one"


def test_production_that_does_not_verify_after_the_move_goes_back_by_itself_and_holds(
    platform: LocalPlatform, one: Release, two: Release
) -> None:
    promote(platform, one, None)
    broken = two.model_copy(update={"files": {"model": two.files["model"].model_copy(update={"name": "gone.gguf"})}})
    store = platform.store
    os.link(store.file(two.files["model"]), store.file(broken.files["model"]))
    store.save_release(broken)
    promote(platform, broken, one.id)
    # As if killed right after the pointer moved, and what it serves from broke meanwhile.
    store.open_intent(
        Intent(stage="production", action="promote", before=one.id, after=broken.id, dossier=None, by="alice")
    )
    store.file(broken.files["model"]).unlink()
    pid = platform.boots("production")[-1].pid
    assert pid
    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ReleaseFailed, match="did not verify in production: production is back on"):
        recover(platform)
    pointer = store.pointer("production")
    assert pointer.release == one.id
    assert pointer.hold
    assert served(platform) == "one"
    assert store.intent("production") is None
    assert [event.kind for event in store.ledger()[-2:]] == ["rolled_back", "rollback_proof"]
    assert store.ledger()[-1].detail["verdict"] == "passed"


def test_killed_on_the_way_back_the_next_run_goes_the_rest_of_it(platform: LocalPlatform, one: Release) -> None:
    promote(platform, one, None)
    platform.store.open_intent(
        Intent(
            stage="production", action="promote", before=one.id, after="f" * 12, dossier=None, by="alice",
            failed="it does not answer\n  evidence: none",
        )
    )  # fmt: skip
    assert "went back from ffffffffffff" in recover(platform)
    assert [event.kind for event in platform.store.ledger()[-2:]] == ["rolled_back", "rollback_proof"]
    hold = platform.store.pointer("production").hold
    assert hold and hold.reason == "ffffffffffff did not verify after the move: it does not answer"
    assert (served(platform), platform.store.intent("production")) == ("one", None)


def test_an_intent_left_before_the_pointer_moved_is_undone(platform: LocalPlatform, one: Release, two: Release) -> None:
    promote(platform, one, None)
    platform.store.open_intent(
        Intent(stage="production", action="promote", before=one.id, after=two.id, dossier=None, by="alice")
    )
    platform.deploy("production", two, lambda _: None)
    assert served(platform) == "two"
    assert "undid" in recover(platform)
    assert served(platform) == "one"
    assert recover(platform) == ""


def test_a_redeploy_of_the_same_release_that_was_left_open_is_told_by_its_generation(
    platform: LocalPlatform, one: Release
) -> None:
    promote(platform, one, None)
    store, pointer = platform.store, platform.store.pointer("production")
    left = Intent(
        stage="production", action="redeploy", before=one.id, after=one.id, generation="2", dossier=None, by="carol"
    )
    store.open_intent(left)
    platform.deploy("production", one, lambda _: None, generation="2")
    assert "undid" in recover(platform)
    assert platform.serving("production") == (one.id, "")
    store.open_intent(left)
    store.save_pointer(pointer.model_copy(update={"generations": {one.id: "2"}}))
    assert "finished" in recover(platform)
    assert platform.serving("production") == (one.id, "2")
    assert [event.kind for event in store.ledger()][-2:] == ["move_undone", "redeployed"]
    assert served(platform) == "one"


def test_what_was_verified_of_an_earlier_server_on_staging_is_forgotten_when_another_takes_its_place(
    platform: LocalPlatform, one: Release
) -> None:
    def restored_after(generation: str | None) -> bool:
        platform.store.record(
            Verification(name=restore.NAME, release=one.id, verdict=Verdict.PASSED, summary="came back")
        )
        to_staging(platform, one, generation)
        return platform.store.verification(one.id, restore.NAME) is not None

    assert [restored_after(each) for each in (None, None, "2", None)] == [False, True, False, True]
    assert platform.serving("staging") == (one.id, "2")


def test_the_first_promotion_undone_leaves_nothing_serving(platform: LocalPlatform, one: Release) -> None:
    platform.store.open_intent(
        Intent(stage="production", action="promote", before=None, after=one.id, dossier=None, by="alice")
    )
    platform.deploy("production", one, lambda _: None)
    assert "undid" in recover(platform)
    assert platform.status("production") is None
    assert platform.store.pointer("production") == StagePointer(stage="production")


def test_after_a_stop_the_pointer_is_served_again_at_the_same_address(platform: LocalPlatform, one: Release) -> None:
    assert serve_pointer(platform, "production") is None
    promote(platform, one, None)
    before = platform.endpoint("production").base_url
    platform.stop("production")
    assert platform.status("production") is None
    served_at = serve_pointer(platform, "production")
    assert served_at
    assert served_at.base_url == before
    assert served(platform) == "one"


class Damaging(LocalPlatform):
    """Damages the snapshots of a stage while it is idle."""

    def idle(self, stage: StageName) -> int:
        left = super().idle(stage)
        for manifest in snapshots_folder(self.store.root, stage).glob("[!.]*/manifest.json"):
            manifest.write_text("")
        return left


def test_a_rollback_whose_proof_fails_stands_and_says_so(platform: LocalPlatform, one: Release, two: Release) -> None:
    if (ability := platform.snapshots()).kind == "cold":
        pytest.skip(f"no snapshots here: {ability.why}")
    promote(platform, one, None)
    promote(platform, two, one.id)
    done = back_to(Damaging(platform.settings), None, "carol", "why", retain=2)
    assert done.proof.startswith("idle window failed: fell_back in ")
    event = platform.store.ledger()[-1]
    assert (event.kind, event.detail["verdict"]) == ("rollback_proof", "failed")
    assert "llama-release redeploy" in event.detail["todo"]
    assert platform.store.pointer("production").release == one.id
    assert platform.store.intent("production") is None
    assert served(platform) == "one"


def test_rollback_goes_to_a_retained_release_only(platform: LocalPlatform, one: Release, two: Release) -> None:
    with pytest.raises(BadInput, match="cannot go back"):
        back_to(platform, None, "carol", "why", retain=2)
    promote(platform, one, None)
    promote(platform, two, one.id)
    with pytest.raises(BadInput, match=f"retained: {one.id}"):
        back_to(platform, "ffffffffffff", "carol", "why", retain=2)
    back_to(platform, None, "carol", "tool calls broke", retain=2)
    assert served(platform) == "one"
    pointer = platform.store.pointer("production")
    assert pointer.hold
    assert pointer.hold.reason == "tool calls broke"
    assert pointer.retained == (two.id,)
    with pytest.raises(BadInput, match=r"rolled back already[\s\S]*carol[\s\S]*--to"):
        back_to(platform, None, "dora", "once more", retain=2)
    assert served(platform) == "one"


def now_back(platform: LocalPlatform, to: str | None = None) -> tuple[Promotion, list[str]]:
    """A rollback at once, and what was told meanwhile."""
    told: list[str] = []
    return back_now(platform, to, "carol", "it burns", 2, told.append), told


STUCK = """
import sys, time
from pathlib import Path
from tasks.platforms.local import LocalPlatform
from tasks.promote import production_lock
from tasks.release import Intent
from tasks.settings import LocalSettings, Settings
root, before, after = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
local = LocalSettings(staging_port=0, production_port=0, start_timeout_s=60)
platform = LocalPlatform(Settings(store=root, local=local))
with production_lock(platform.store):
    left = Intent(stage="production", action="promote", before=before, after=after, dossier=None, by="alice")
    platform.store.open_intent(left)
    def check(endpoint):
        print("moving", flush=True)
        time.sleep(600)
    platform.deploy("production", platform.store.get_release(after), check)
"""


def test_at_once_a_promotion_that_is_under_way_is_killed_and_taken_back(
    platform: LocalPlatform, one: Release, two: Release
) -> None:
    promote(platform, one, None)
    platform.deploy("staging", two, lambda _: None)  # as it does before it is promoted
    store = platform.store
    with (
        subprocess.Popen(
            [sys.executable, "-c", STUCK, store.root, one.id, two.id], stdout=subprocess.PIPE, text=True
        ) as stuck,
        ExitStack() as end,
    ):
        end.callback(stuck.kill)  # whose end is waited for
        assert stuck.stdout
        assert stuck.stdout.readline() == "moving\n"
        done, told = now_back(platform)
        assert stuck.wait(10) == -signal.SIGKILL
    assert [str(stuck.pid) in line for line in told] == [True]
    assert (done.release.id, served(platform)) == (one.id, "one")
    hold = store.pointer("production").hold
    assert hold and hold.reason == "it burns"
    assert store.intent("production") is None
    assert recover(platform) == ""
    promoting = dossier_of(two)
    with pytest.raises(BadInput, match="on hold"):
        swap(platform, promoting, approved(promoting, one.id, version=1), retain=2)


def test_at_once_a_promotion_that_died_after_the_pointer_moved_is_taken_back_and_another_rollback_is_finished(
    platform: LocalPlatform, one: Release, two: Release
) -> None:
    promote(platform, one, None)
    promote(platform, two, one.id)
    store, pointer = platform.store, platform.store.pointer("production")
    left = Intent(stage="production", action="promote", before=one.id, after=two.id, dossier=None, by="alice")
    store.open_intent(left)
    assert now_back(platform)[0].release.id == one.id
    store.save_pointer(pointer)
    store.open_intent(left.model_copy(update={"action": "rollback", "before": two.id, "after": one.id}))
    assert now_back(platform)[0].release.id == one.id
    assert (served(platform), store.intent("production")) == ("one", None)


def test_at_once_neither_a_damaged_ledger_nor_a_damaged_intent_nor_the_release_lock_is_in_the_way(
    platform: LocalPlatform, one: Release, two: Release
) -> None:
    promote(platform, one, None)
    promote(platform, two, one.id)
    store = platform.store
    first = sorted((store.root / "ledger").iterdir())[0]
    first.write_bytes(first.read_bytes()[:20] + b"\xff")
    (store.root / "stages" / "production.intent.json").write_text("{")
    with store.lock("release", holder={"name": "an upgrade"}):
        done, told = now_back(platform)
    assert (done.release.id, served(platform)) == (one.id, "one")
    assert ["production.intent.json" in line for line in told] == [True]
    assert store.ledger()[-1].kind == "rolled_back"
    assert store.ledger()[0].summary.startswith(f"ledger/{first.name} can't be read")
    (store.root / "ledger").rename(store.root / "kept")
    (store.root / "ledger").write_text("no folder")
    done, _ = now_back(platform, two.id)
    assert (done.release.id, served(platform)) == (two.id, "two")
    assert "the ledger could not be told" in done.proof
    (store.root / "ledger").unlink()
    (store.root / "kept").rename(store.root / "ledger")
    assert "finished the rollback" in recover(platform)
    assert [e.release for e in store.ledger() if e.kind == "rolled_back"] == [one.id, two.id]


def test_two_rollbacks_at_once_go_back_once(platform: LocalPlatform, one: Release, two: Release) -> None:
    """Whoever comes second is told, and goes no further back than the first."""
    promote(platform, one, None)
    promote(platform, two, one.id)
    seen = platform.store.pointer("production")
    now_back(platform)
    with pytest.MonkeyPatch.context() as patch:  # it looked before the first one moved
        looks = iter([seen])
        real = platform.store.pointer
        patch.setattr(platform.store, "pointer", lambda stage: next(looks, None) or real(stage))
        with pytest.raises(BadInput, match="on hold"):
            now_back(platform)
    with pytest.raises(BadInput, match="--to"):
        now_back(platform)
    # the first one was killed by the second before it had told the ledger
    platform.store.save_pointer(seen)
    at = platform.store.pointer("production")
    now_back(platform)
    left = Intent(stage="production", action="rollback", before=two.id, after=one.id, dossier=None, by="carol")
    platform.store.open_intent(left)
    with pytest.MonkeyPatch.context() as patch:
        looks = iter([at])
        patch.setattr(platform.store, "pointer", lambda stage: next(looks, None) or real(stage))
        assert now_back(platform)[0].release.id == one.id
    assert platform.store.intent("production") is None
    assert served(platform) == "one"


def test_who_moves_production_elsewhere_is_waited_for_and_named_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "lock_holder", lambda *_: None)  # on another machine
    told: list[str] = []
    with store.lock("production", holder={"name": "theirs"}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(promoting, "SEIZE_LIMIT_S", 1.0)
        with pytest.raises(ToolingError, match="theirs"), seized(store, told.append):
            raise AssertionError("two have it")
    assert ["theirs" in line and line.endswith("; waiting for it") for line in told] == [True]
    with seized(store, told.append):
        pass
    assert len(told) == 1
