"""The probe against real servers that came back, did not, or pretend to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import httpx
import pytest

from modal_app.warmup import SLOT, Golden, record
from tasks import restore
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.snapshot import snapshots_folder
from tasks.release import (
    BootKind,
    BootRecord,
    Build,
    Endpoint,
    Release,
    StageName,
    ToolingError,
    Verdict,
    Verification,
)
from tasks.restore import NAME, basis, probe
from tasks.settings import RestoreSettings, Settings
from tasks.store import Store
from tests.platforms.conftest import platform_at, stand_of
from tests.platforms.stand import Stand
from tests.restore.conftest import Played

pytestmark = pytest.mark.real

RESTORED, COLD = BootKind.RESTORED, BootKind.COLD
ONE = RestoreSettings(bad=0.04, cold_cycles=1, wait_s=0, accept_cold=True)


@pytest.fixture
def server(local: LocalPlatform, scripted: Release) -> Iterator[Endpoint]:
    with local.trial(scripted) as endpoint:
        yield endpoint


@pytest.fixture
def other(local: LocalPlatform, scripted: Release) -> Iterator[Endpoint]:
    """A server of the same release that booted cold."""
    with local.trial(scripted) as endpoint:
        yield endpoint


def golden_of(endpoint: Endpoint) -> Golden:
    return record(endpoint.base_url, endpoint.api_key, vision=False)


def probed(platform: Played | LocalPlatform, release: Release, settings: RestoreSettings = ONE) -> Verification:
    return probe(platform, "staging", release, settings, lambda *_: None)


def test_the_process_that_was_warmed_up_passes(store: Store, server: Endpoint, scripted: Release) -> None:
    found = probed(Restoring(store, server, server, (RESTORED,), golden_of(server)), scripted)
    assert (found.verdict, found.name, found.basis) == (Verdict.PASSED, NAME, basis(ONE))
    assert found.summary.startswith("2 of 2 restored: rather 99% than 4% come back; same answers; first token ")
    cycle, _ = found.evidence["cycles"]
    assert cycle["nonce"]["cached_tokens"] > 100 > cycle["control"]["cached_tokens"]
    latency, _ = store.latencies(scripted.id)
    assert (latency.kind, latency.after_idle_s) == (RESTORED, cycle["nonce"]["first_token_s"])


def test_a_cold_boot_that_is_recorded_as_restored_is_found_out(
    store: Store, server: Endpoint, other: Endpoint, scripted: Release
) -> None:
    found = probed(Played(store, server, other, (RESTORED,), golden_of(server)), scripted)
    assert found.verdict is Verdict.FAILED
    assert found.summary.startswith("cycle 1: recorded as restored, but the nonce is gone: the server had 0 of ")


def test_a_restored_server_with_one_weight_changed_answers_differently(
    store: Store, server: Endpoint, local: LocalPlatform, scripted: Release, one_weight_off: Release
) -> None:
    golden = golden_of(server)
    with local.trial(one_weight_off) as changed:
        plant(changed, golden)
        found = probed(Played(store, server, changed, (RESTORED,), golden), scripted)
    assert found.verdict is Verdict.FAILED
    assert found.summary.startswith("cycle 1: restored, and it answers differently: 'The capital of France is': log-")
    (cycle,) = found.evidence["cycles"]
    assert len(cycle["differences"]) == 1


def plant(endpoint: Endpoint, golden: Golden) -> None:
    """Let a server know a nonce as if it had been there."""
    body = {"prompt": golden.nonce, "n_predict": 0, "id_slot": SLOT, "cache_prompt": True}
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    httpx.post(f"{endpoint.base_url}/completion", json=body, headers=headers, trust_env=False).raise_for_status()


@pytest.mark.parametrize("accept_cold", [True, False])
def test_without_snapshots_a_cold_boot_with_the_same_answers_is_accepted_where_settings_say_so(
    store: Store, server: Endpoint, other: Endpoint, scripted: Release, accept_cold: bool
) -> None:
    settings = ONE.model_copy(update={"accept_cold": accept_cold})
    found = probed(Played(store, server, other, (COLD,)), scripted, settings)
    assert found.verdict is (Verdict.PASSED if accept_cold else Verdict.INCONCLUSIVE)
    assert found.summary.startswith("1 of 1 cold, there is no snapshot here; same answers; first token ")


def test_a_process_that_was_never_stopped_is_no_cold_boot(store: Store, server: Endpoint, scripted: Release) -> None:
    found = probed(Played(store, server, server, (COLD,)), scripted)
    assert (found.verdict, found.summary[:46]) == (Verdict.ERRORED, "cycle 1: recorded as cold, but the nonce is th")


def test_a_server_that_does_not_come_back_crashed(store: Store, server: Endpoint, scripted: Release) -> None:
    gone = Endpoint(base_url="http://127.0.0.1:1")
    settings = ONE.model_copy(update={"answer_s": 0.1})
    found = probed(Played(store, server, gone, (), golden_of(server)), scripted, settings)
    assert found.verdict is Verdict.FAILED
    assert "cycle 1: crashed: no boot record; http://127.0.0.1:1: ConnectError" in found.summary
    assert len(found.evidence["cycles"]) == 1
    assert store.latencies(scripted.id) == []


def test_a_restored_server_that_hangs_is_waited_for_only_so_long(
    store: Store, server: Endpoint, scripted: Release
) -> None:
    settings = ONE.model_copy(update={"answer_s": 0.3})
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        hung = Endpoint(base_url=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        found = probed(Played(store, server, hung, (RESTORED,), golden_of(server)), scripted, settings)
    assert found.verdict is Verdict.FAILED
    assert "crashed: restored" in found.summary and "ReadTimeout" in found.summary


def test_a_stage_that_does_not_go_idle_tells_nothing(store: Store, server: Endpoint, scripted: Release) -> None:
    with pytest.raises(ToolingError, match="staging did not go idle"):
        probed(Played(store, server, server, (RESTORED,), golden_of(server), left=1), scripted)


def test_a_server_without_a_word_can_not_be_compared(store: Store, scripted: Release) -> None:
    gone = Endpoint(base_url="http://127.0.0.1:1")
    with pytest.raises(ToolingError, match="gives no answers to compare with"):
        probed(Played(store, gone, gone, (COLD,)), scripted)


# -- real snapshots -----------------------------------------------------------------------------------


class Lying(LocalPlatform):
    """Says of every boot that it was a restore."""

    def boots(self, stage: StageName) -> list[BootRecord]:
        return [boot.model_copy(update={"kind": RESTORED}) for boot in super().boots(stage)]


@pytest.fixture(scope="module")
def snapshots(
    base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory, scripted: Release, local: LocalPlatform
) -> Iterator[Stand]:
    platform = platform_at(tmp_path_factory.mktemp("store"), idle_s=600, snapshots="auto")
    if (ability := platform.snapshots()).kind == "cold":
        pytest.skip(f"no snapshots here: {ability.why}")
    with stand_of(platform, base, build, local.store.file(scripted.files["model"])) as made:
        made.serve(made.first)
        yield made


def damage(stand: Stand) -> None:
    """Cut off the largest file of the one snapshot."""
    images = snapshots_folder(stand.platform.store.root, "staging").glob("[!.]*/images/*")
    largest = max(images, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def test_snapshots_that_restore_pass(snapshots: Stand) -> None:
    settings = RestoreSettings(bad=0.3, bad_passes=0.1, wait_s=0)
    found = probed(snapshots.platform, snapshots.first, settings)
    assert (found.verdict, found.summary[:47]) == (Verdict.PASSED, "3 of 3 restored: rather 99% than 30% come back;")
    assert [latency.kind for latency in snapshots.platform.store.latencies(snapshots.first.id)] == [RESTORED] * 3


def test_a_damaged_snapshot_falls_back_and_names_itself(snapshots: Stand) -> None:
    damage(snapshots)
    found = probed(snapshots.platform, snapshots.first, ONE.model_copy(update={"cycles_max": 1}))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.summary.startswith("0 of 1 restored: too few cycles to tell 99% from 4%; cycle 1 fell_back (")


def test_a_fall_back_that_is_recorded_as_a_restore_is_no_restore(snapshots: Stand) -> None:
    damage(snapshots)
    found = probed(Lying(snapshots.platform.settings), snapshots.first, ONE)
    assert found.verdict is Verdict.ERRORED
    assert found.summary.startswith("cycle 1: restored from ")
    assert found.summary.endswith(", of which no golden answers are known")


# -- a run that was killed ----------------------------------------------------------------------------


class Restoring(Played):
    """It comes back from its snapshot each time."""

    def idle(self, stage: StageName) -> int:
        assert self.known
        plant(self.after, self.known)
        return super().idle(stage)


class Killed(BaseException):
    """What no code of ours catches, as SIGKILL."""


def killed_after(cycles: int, platform: Played, release: Release, settings: RestoreSettings) -> None:
    """A probe whose process ends when it has made so many cycles."""

    def progress(_done: int, _most: int, kinds: str) -> None:
        if kinds.count(RESTORED) == cycles:
            raise Killed

    with pytest.raises(Killed):
        probe(platform, "staging", release, settings, progress)


FOUR = RestoreSettings(bad=0.36, wait_s=0)
"""Four restores in a row pass."""


def test_a_killed_probe_goes_on_where_it_was(store: Store, server: Endpoint, scripted: Release) -> None:
    platform = Restoring(store, server, server, (RESTORED,), golden_of(server))
    killed_after(1, platform, scripted, FOUR)
    killed_after(3, platform, scripted, FOUR)
    found = probed(platform, scripted, FOUR)
    assert (found.verdict, len(found.evidence["cycles"])) == (Verdict.PASSED, 4)
    assert found.summary.startswith("4 of 4 restored: rather 99% than 36% come back")
    assert found.summary.endswith("(3 cycles were made by an earlier run)")
    assert len(platform.records) == len(store.latencies(scripted.id)) == 4


def test_cycles_of_other_rules_or_of_a_server_that_was_replaced_are_not_gone_on_with(
    store: Store, server: Endpoint, scripted: Release
) -> None:
    platform = Restoring(store, server, server, (RESTORED,), golden_of(server))
    killed_after(3, platform, scripted, FOUR)
    other = probed(platform, scripted, FOUR.model_copy(update={"bad": 0.3, "bad_passes": 0.1}))
    assert [len(other.evidence["cycles"]), "earlier run" in other.summary] == [3, False]
    store.forget_cycles(scripted.id)
    assert "earlier run" not in probed(platform, scripted, FOUR).summary


def test_cycles_of_a_snapshot_that_was_taken_anew_are_not_gone_on_with(
    store: Store, server: Endpoint, scripted: Release
) -> None:
    class Named(Restoring):
        taken = "one"

        def boots(self, stage: StageName) -> list[BootRecord]:
            return [boot.model_copy(update={"snapshot": self.taken}) for boot in super().boots(stage)]

    created = BootRecord(stage="staging", release="r1", kind=BootKind.CREATED)
    platform = Named(store, server, server, (RESTORED,), golden_of(server), records=[created])
    killed_after(1, platform, scripted, FOUR)
    killed_after(3, platform, scripted, FOUR)
    platform.taken = "another"
    found = probed(platform, scripted, FOUR)
    assert (found.verdict, "earlier run" in found.summary) == (Verdict.PASSED, False), found.summary


def test_an_attempt_that_a_run_was_killed_in_is_shown(store: Store, server: Endpoint, scripted: Release) -> None:
    class KilledWhileIdle(Restoring):
        kills = 1

        def idle(self, stage: StageName) -> int:
            self.kills -= 1
            if self.kills == 0:
                raise Killed
            return super().idle(stage)

    platform = KilledWhileIdle(store, server, server, (RESTORED,), golden_of(server))
    with pytest.raises(Killed):
        probed(platform, scripted, FOUR)
    found = probed(platform, scripted, FOUR)
    assert found.verdict is Verdict.PASSED
    assert found.summary.endswith("; attempts that told nothing: 1 (the run that made it was killed)")


def test_a_snapshot_of_which_half_of_the_returns_tell_nothing_does_not_pass_by_being_asked_again(
    store: Store, server: Endpoint, scripted: Release
) -> None:
    class Wavering(Restoring):
        turn = 0

        def idle(self, stage: StageName) -> int:
            self.turn += 1
            self.kinds = (RESTORED,) if self.turn % 2 else ()
            return super().idle(stage)

    platform = Wavering(store, server, server, (RESTORED,), golden_of(server))
    found = [probed(platform, scripted, FOUR) for _ in range(3)]
    assert [each.verdict for each in found] == [Verdict.ERRORED, Verdict.ERRORED, Verdict.INCONCLUSIVE]
    assert found[-1].summary.startswith("attempts that told nothing: 3 (a request was answered after the idle window")
    assert [len(each.evidence["cycles"]) for each in found] == [2, 4, 6]


def test_a_cycle_of_which_nothing_can_be_told_does_not_count(store: Store, server: Endpoint, scripted: Release) -> None:
    platform = Restoring(store, server, server, (RESTORED,), golden_of(server))
    killed_after(2, platform, scripted, FOUR)
    platform.kinds = ()
    assert probed(platform, scripted, FOUR).verdict is Verdict.ERRORED
    platform.kinds = (RESTORED,)
    found = probed(platform, scripted, FOUR)
    assert (found.verdict, len(found.evidence["cycles"])) == (Verdict.PASSED, 5)
    assert "4 of 4 restored" in found.summary and "attempts that told nothing: 1 (a request was ans" in found.summary


def test_the_snapshot_that_it_came_back_from_is_the_one_that_it_is_compared_with(
    store: Store, server: Endpoint, other: Endpoint, scripted: Release
) -> None:
    """On Modal each worker type has a snapshot and a nonce of its own: which one it is, is known once it is up."""
    theirs, ours = golden_of(other), golden_of(server)
    booted = BootRecord(stage="staging", release="r1", kind=BootKind.CREATED, snapshot="theirs")

    class OfAnotherType(Restoring):
        """`theirs` was heard of last; what comes back is of `kinds`, and calls its snapshot `ours`."""

        def golden(self, _stage: StageName, snapshot: str | None = None) -> Golden | None:
            return ours if snapshot == "ours" else theirs

        def boots(self, _stage: StageName) -> list[BootRecord]:
            after = [each.model_copy(update={"snapshot": "ours"}) for each in self.records[len(before) :]]
            return [*before, *after]

    before = [booted.model_copy(update={"snapshot": "ours"}), booted]
    found = probed(OfAnotherType(store, server, server, (RESTORED,), ours, records=[*before]), scripted)
    assert found.verdict is Verdict.PASSED, found.summary
    store.forget_cycles(scripted.id)
    before = [booted, booted]  # nobody knew it before: what came up may have booted cold and just taken it
    found = probed(OfAnotherType(store, server, server, (RESTORED,), ours, records=[*before]), scripted)
    assert found.verdict is Verdict.ERRORED
    assert "restored from the snapshot ours, of which no golden answers are known" in found.summary


def test_what_created_a_snapshot_is_not_judged_by_the_answers_of_another_kind_of_machine(
    store: Store, server: Endpoint, local: LocalPlatform, scripted: Release, one_weight_off: Release
) -> None:
    with local.trial(one_weight_off) as another:
        theirs = golden_of(another)

    class OfAnotherType(Played):
        def boots(self, _stage: StageName) -> list[BootRecord]:
            return [each.model_copy(update={"snapshot": f"snapshot {n}"}) for n, each in enumerate(self.records)]

    before = BootRecord(stage="staging", release="r1", kind=BootKind.CREATED)
    platform = OfAnotherType(store, server, server, (BootKind.CREATED,), theirs, records=[before])
    found = probed(platform, scripted, ONE.model_copy(update={"created_max": 0}))
    assert found.verdict is Verdict.INCONCLUSIVE, found.summary
    (cycle,) = found.evidence["cycles"]
    assert (cycle["compared"], cycle["differences"]) == (False, [])


def test_a_verdict_rests_on_the_settings_and_on_the_code_that_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    known = basis(ONE)
    assert basis(ONE.model_copy(update={"good": 0.98})) != known
    names = {path.name for path in restore.RULES}
    assert names == {"warmup.py", "__init__.py", "cycle.py", "deaths.py", "judge.py", "sequential.py", "starts.py"}
    monkeypatch.setattr(restore, "RULES", restore.RULES[:-1])
    assert basis(ONE) != known
