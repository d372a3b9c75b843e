"""The probe against real servers that came back, did not, or pretend to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import httpx
import pytest

from modal_app.warmup import SLOT, Golden, record
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
    found = probed(Played(store, server, server, (RESTORED,), golden_of(server)), scripted)
    assert (found.verdict, found.name, found.basis) == (Verdict.PASSED, NAME, basis(ONE))
    assert found.summary.startswith("1 of 1 restored: rather 99% than 4% come back; same answers; first token ")
    (cycle,) = found.evidence["cycles"]
    assert cycle["nonce"]["cached_tokens"] > 100 > cycle["control"]["cached_tokens"]
    (latency,) = store.latencies(scripted.id)
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
    assert (found.verdict, found.summary[:47]) == (Verdict.PASSED, "2 of 2 restored: rather 99% than 30% come back;")
    assert [latency.kind for latency in snapshots.platform.store.latencies(snapshots.first.id)] == [RESTORED] * 2


def test_a_damaged_snapshot_falls_back_and_names_itself(snapshots: Stand) -> None:
    damage(snapshots)
    found = probed(snapshots.platform, snapshots.first, ONE.model_copy(update={"cycles_max": 1}))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.summary.startswith("0 of 1 restored: too few cycles to tell 99% from 4%; cycle 1 fell_back (")


def test_a_fall_back_that_is_recorded_as_a_restore_is_found_out(snapshots: Stand) -> None:
    damage(snapshots)
    found = probed(Lying(snapshots.platform.settings), snapshots.first, ONE)
    assert (found.verdict, found.summary[:52]) == (
        Verdict.FAILED, "cycle 1: recorded as restored, but the nonce is gone"
    )  # fmt: skip
