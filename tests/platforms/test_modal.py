"""What only the Modal platform does: snapshots told apart, no snapshot of a full GPU, production behind a trial."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from grpclib import Status

from modal_app.warmup import ask_again
from tasks.console import one_line
from tasks.platforms.modal import ModalPlatform, _is_of, apps
from tasks.platforms.modal.account import command
from tasks.platforms.modal.doctor import checks
from tasks.promote import back_now, check_serving, recover, swap, to_staging
from tasks.release import (
    Approval,
    BadInput,
    BootKind,
    Dossier,
    Endpoint,
    Intent,
    Release,
    ReleaseFailed,
    StagePointer,
    ToolingError,
    Verdict,
)
from tasks.restore import probe
from tasks.restore.comeback import comes_back
from tasks.restore.cycle import run
from tasks.restore.deaths import later
from tasks.restore.judge import fault
from tasks.settings import RestoreSettings
from tests.fakes.modal import Fault, Worker
from tests.platforms.modal_stand import (
    KEY,
    PROXY_ENV,
    ModalStand,
    clients_of,
    create_secret,
    platform_on_modal,
    say,
    set_gpu_memory,
)
from tests.platforms.stand import KEY_ENV, until

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("error::modal.exception.AsyncUsageWarning")]


def serves(stand: ModalStand, release: Release) -> Endpoint:
    return stand.platform.deploy("staging", release, say)


def kinds(stand: ModalStand) -> list[BootKind]:
    return [boot.kind for boot in stand.platform.boots("staging")]


def running(stand: ModalStand) -> set[str]:
    return {each.id for each in apps.containers(stand.platform.settings.modal, "llama-release-staging")}


def versions(stand: ModalStand, stage: str) -> int | None:
    return apps.version(stand.platform.settings.modal, f"llama-release-{stage}")


def test_a_restore_that_failed_is_told_from_one_that_did_not(modal_stand: ModalStand) -> None:
    serves(modal_stand, modal_stand.first)
    known = len(kinds(modal_stand))
    modal_stand.platform.idle("staging")
    say(modal_stand.platform.endpoint("staging"))
    modal_stand.platform.idle("staging")
    modal_stand.fake.containers.fail_restores(1)
    say(modal_stand.platform.endpoint("staging"))
    assert kinds(modal_stand)[known:] == [BootKind.RESTORED, BootKind.FELL_BACK]
    signs = apps.classified(modal_stand.platform.logs("staging").read_text())
    assert "restore failed, started without a snapshot" in signs
    assert "fell back" in signs


def test_each_kind_of_worker_takes_a_snapshot_of_its_own_and_is_compared_with_that(modal_stand: ModalStand) -> None:
    """What is asked for after an idle window, and compared, is right whichever of them the container comes from."""
    platform, settings = modal_stand.platform, RestoreSettings(wait_s=0)
    here, there = Worker(), Worker(region="us-west-2", driver="575.57.08")
    modal_stand.fake.lifecycle.coming = [here, there, here, there]
    platform.deploy("staging", modal_stand.first, say, generation="by kind")
    cycles = []
    for _ in range(3):
        golden = platform.golden("staging")
        assert golden is not None
        cycles.append(run(platform, "staging", golden, settings))
    assert [(cycle.kind, fault(cycle)) for cycle in cycles] == [
        (BootKind.CREATED, None), (BootKind.RESTORED, None), (BootKind.RESTORED, None),
    ]  # fmt: skip
    (created,), (restored_here,), (restored_there,) = (cycle.boots for cycle in cycles)
    assert created.snapshot == restored_there.snapshot != restored_here.snapshot
    assert created.worker == restored_there.worker != restored_here.worker
    assert "us-west-2, NVIDIA L40S, 575.57.08" in created.worker


def test_cold_starts_are_forced_until_no_new_kind_of_worker_shows_itself_and_never_more_than_are_allowed(
    modal_stand: ModalStand,
) -> None:
    platform = platform_on_modal(modal_stand.platform.store.root.parent, rare_worker=0.7, warm_starts=4)
    here, there = Worker(), Worker(region="eu-west-1")
    modal_stand.fake.lifecycle.coming = [here, there, here, there, here]
    platform.deploy("staging", modal_stand.first, say, generation="to be warmed")
    told: list[str] = []
    said = platform.warm("staging", lambda _done, _total, what: told.append(what))
    assert said.startswith("2 kinds of workers, each with a snapshot, none new in 3 starts; first token in ")
    assert "(1 so far): 3 to 4 more" in told[0] and len(told) == 4
    assert platform.warm("staging", lambda *_: pytest.fail("what was found before is not looked for again")) == said
    platform.deploy("staging", modal_stand.first, say, generation="cut short")
    modal_stand.fake.lifecycle.coming = [there]
    short = platform_on_modal(modal_stand.platform.store.root.parent, rare_worker=0.7, warm_starts=1)
    assert "none new in 0 starts; stopped after 1 starts, there may be more" in short.warm("staging", lambda *_: None)


@pytest.mark.parametrize("code", [139, 222])
def test_a_container_that_dies_in_its_restore_is_a_restore_that_failed_whatever_comes_up_after_it(
    modal_stand: ModalStand, code: int
) -> None:
    platform = modal_stand.platform
    serves(modal_stand, modal_stand.first)
    platform.idle("staging")
    say(platform.endpoint("staging"))
    golden = platform.golden("staging")
    assert golden is not None
    modal_stand.fake.containers.fail_restores(1, code)
    cycle = run(platform, "staging", golden, RestoreSettings(wait_s=0))
    failed, *after = cycle.boots
    assert failed.kind is BootKind.FELL_BACK and f"exit code: {code}" in failed.reason
    assert bool(failed.retry_of) == (code == 222)
    assert [boot.kind for boot in after] == ([] if code == 222 else [BootKind.CREATED])
    assert (cycle.kind, fault(cycle)) == (BootKind.FELL_BACK, None)


def test_a_death_in_a_restore_that_the_log_tells_late_is_of_its_own_cycle(modal_stand: ModalStand) -> None:
    platform, settings = modal_stand.platform, RestoreSettings(wait_s=0)
    platform.deploy("staging", modal_stand.first, say, generation="lagging")
    modal_stand.fake.lifecycle.log_lag_s = 3600.0
    golden = platform.golden("staging")
    assert golden is not None
    modal_stand.fake.containers.fail_restores(1, 139)
    first = run(platform, "staging", golden, settings)
    assert first.kind is BootKind.CREATED
    known = platform.boots("staging")
    modal_stand.fake.lifecycle.log_lag_s = 0.0
    second = run(platform, "staging", golden, settings)
    assert second.kind is BootKind.RESTORED
    assert later(known, known) == [] and first.seen_again(platform.boots("staging")).kind is BootKind.FELL_BACK


def test_a_container_that_died_without_a_trace_is_missed_by_the_count_and_no_release_passes_on_it(
    modal_stand: ModalStand,
) -> None:
    platform, settings = modal_stand.platform, RestoreSettings(wait_s=0, bad=0.3, bad_passes=0.1)
    platform.deploy("staging", modal_stand.first, say, generation="without a trace")
    modal_stand.fake.lifecycle.coming = [Worker()] * 30
    modal_stand.fake.lifecycle.unlogged = 1
    modal_stand.fake.containers.fail_restores(1, 139)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.restore.LATE_S", 2.0)
        found = probe(platform, "staging", modal_stand.first, settings, lambda *_: None)
    count = len(found.evidence["cycles"])
    assert found.verdict is Verdict.ERRORED
    words = f"{count + 1} servers were started for the idle windows, and only {count} are known of"
    assert found.summary.startswith(words), found.summary
    found = probe(platform, "staging", modal_stand.first, settings, lambda *_: None)
    assert found.verdict is Verdict.PASSED, found.summary
    modal_stand.fake.lifecycle.coming = []


def test_the_golden_answers_are_those_of_the_process_that_came_back(modal_stand: ModalStand) -> None:
    endpoint = serves(modal_stand, modal_stand.first)
    modal_stand.platform.idle("staging")
    golden = modal_stand.platform.golden("staging")
    assert golden is not None
    assert ask_again(endpoint.base_url, endpoint.api_key, golden, headers=endpoint.headers).nonce.found


def test_a_forced_idle_window_undoes_its_override(modal_stand: ModalStand) -> None:
    serves(modal_stand, modal_stand.first)
    assert modal_stand.platform.idle("staging") == 0
    boots = modal_stand.platform.boots("staging")
    sight = modal_stand.platform.sight("staging")
    assert (sight.servers, sight.in_flight, sight.aside) == (0, None, None)
    assert modal_stand.platform.boots("staging") == boots  # to look wakes nothing
    windows = [r.settings.scaledown_window for r in modal_stand.fake.requests("FunctionUpdateSchedulingParams")][-2:]
    assert windows == [2, modal_stand.platform.settings.modal.idle_s]


def test_an_idle_window_that_a_killed_process_forced_is_seen_and_ended_with_the_settings_that_it_found(
    modal_stand: ModalStand,
) -> None:
    platform, settings = modal_stand.platform, modal_stand.platform.settings.modal
    serves(modal_stand, modal_stand.first)
    platform.store.save_pointer(StagePointer(stage="staging", release=modal_stand.first.id))
    mine = apps.Scaling(min_containers=0, scaledown_window=44)  # by hand, as somebody has it
    apps.scale(settings, "llama-release-staging", mine)
    killed = platform._no_spare_containers("staging")
    killed.__enter__()  # and never left
    with pytest.raises(ToolingError, match="staging lets its containers go at once"):
        dict(checks(platform.settings))["staging"]()
    assert recover(platform) == "staging keeps its containers for 44 s again"
    assert apps.scaling(settings, "llama-release-staging") == mine
    assert dict(checks(platform.settings))["staging"]() and recover(platform) == ""
    killed = platform._no_spare_containers("staging")
    killed.__enter__()
    platform.deploy("staging", modal_stand.first, say, generation="after it was killed")  # ends every override
    assert platform.unforce("staging") == "" and platform.idle("staging") == 0
    assert apps.scaling(settings, "llama-release-staging") == mine, "what was set by hand holds again"
    apps.scale(settings, "llama-release-staging", apps.Scaling(scaledown_window=settings.idle_s))


def test_a_container_that_crashes_while_it_serves_is_replaced_and_the_log_says_how(modal_stand: ModalStand) -> None:
    say(serves(modal_stand, modal_stand.first))
    (container,) = running(modal_stand)
    modal_stand.fake.containers.crash(container, 139)
    assert until(lambda: container not in running(modal_stand))
    assert say(modal_stand.platform.endpoint("staging")) == "first"
    assert "segmentation fault" in apps.classified(modal_stand.platform.logs("staging").read_text())


def test_no_snapshot_is_taken_of_a_gpu_that_is_full(modal_stand: ModalStand) -> None:
    serves(modal_stand, modal_stand.first)
    set_gpu_memory(modal_stand.fake.folder, "45000, 46068")
    try:
        with pytest.raises(BadInput, match="no room for a snapshot") as caught:
            serves(modal_stand, modal_stand.second)
    finally:
        set_gpu_memory(modal_stand.fake.folder, "20000, 46068")
    assert "no snapshot: 45000 of 46068 MB" in caught.value.evidence
    assert say(modal_stand.platform.endpoint("staging")) == "first"


def test_no_snapshot_is_taken_where_the_memory_of_the_gpu_has_no_room_beside_the_servers_own(
    modal_stand: ModalStand,
) -> None:
    small = platform_on_modal(modal_stand.platform.store.root.parent, server_memory_mb=20_000)
    with pytest.raises(BadInput, match="no room for the GPU's memory") as caught:
        small.deploy("staging", modal_stand.second, say, generation="small")
    assert "modal.server_memory_mb asks for 20000: raise it" in caught.value.evidence


def test_production_is_not_touched_before_a_trial_passed_the_check(modal_stand: ModalStand) -> None:
    seen: list[str] = []

    def refuse(endpoint: Endpoint) -> None:
        seen.append(endpoint.base_url)
        raise ReleaseFailed("refused")

    with pytest.raises(ReleaseFailed, match="refused"):
        modal_stand.platform.deploy("production", modal_stand.first, refuse)
    assert len(seen) == 1
    assert "llama-release-production" not in {request.name for request in modal_stand.fake.requests("AppPublish")}


def test_another_key_is_another_deployment_since_a_snapshot_keeps_its_key(
    modal_stand: ModalStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform, first = modal_stand.platform, modal_stand.first
    say(serves(modal_stand, first))
    before, known = versions(modal_stand, "staging"), platform.boots("staging")
    create_secret("a-new-key")
    try:
        monkeypatch.setenv(KEY_ENV, "a-new-key")
        assert say(serves(modal_stand, first)) == "first"
        assert versions(modal_stand, "staging") == (before or 0) + 1
        other = platform._deployment("staging", "llama-release-staging", first)
        same = [boot for boot in known if (boot.release, boot.generation) == (first.id, "") and boot.deployment]
        assert same and not any(_is_of(boot, other) for boot in same), "no proof of the one with another key"
        assert _is_of(later(platform.boots("staging"), known)[-1], other)
    finally:
        create_secret()


def test_a_stage_that_somebody_else_deployed_to_is_deployed_again(modal_stand: ModalStand) -> None:
    serves(modal_stand, modal_stand.first)
    serves(modal_stand, modal_stand.second)
    command("app", "rollback", "llama-release-staging", limit_s=60)
    assert say(serves(modal_stand, modal_stand.second)) == "second"


def test_what_a_killed_flow_deployed_and_did_not_record_is_taken_as_it_is(modal_stand: ModalStand) -> None:
    say(serves(modal_stand, modal_stand.first))
    before, containers = versions(modal_stand, "staging"), running(modal_stand)
    modal_stand.platform.store.files.remove("deployments/staging.json")
    assert say(serves(modal_stand, modal_stand.first)) == "first"
    assert versions(modal_stand, "staging") == before
    assert running(modal_stand) == containers


def test_a_failed_check_never_leaves_a_stage_with_nothing_that_its_pointer_says_it_has(modal_stand: ModalStand) -> None:
    """Not even when what we know of the deployment is gone, or somebody deployed by hand."""
    serves(modal_stand, modal_stand.first)
    modal_stand.platform.store.save_pointer(StagePointer(stage="staging", release=modal_stand.first.id))
    modal_stand.platform.store.files.remove("deployments/staging.json")

    def interrupted(_: Endpoint) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        modal_stand.platform.deploy("staging", modal_stand.second, interrupted)
    assert say(modal_stand.platform.endpoint("staging")) == "first"


def test_no_setting_of_the_container_reaches_the_server_and_no_secret_but_its_key(modal_stand: ModalStand) -> None:
    say(serves(modal_stand, modal_stand.first))
    served = f"builds/{modal_stand.first.build}/llama-server"
    within = [process for container in modal_stand.fake.containers.live() for process in container.processes()]
    mine = [process for process in within if (process / "cmdline").read_text().split("\0")[0].endswith(served)]
    assert mine
    for process in mine:
        names = {word.split("=")[0] for word in (process / "environ").read_text().split("\0")}
        assert {name for name in names if name.startswith(("LLAMA_", "MODAL_"))} == {"LLAMA_API_KEY"}


def test_a_trial_of_a_large_model_has_a_gpu_and_of_a_scripted_one_none(modal_stand: ModalStand) -> None:
    def gpu(cpu_trial_mb: int) -> str | None:
        platform = platform_on_modal(modal_stand.platform.store.root.parent, cpu_trial_mb=cpu_trial_mb)
        return platform._deployment("trial", "t", modal_stand.first).gpu

    assert (gpu(64), gpu(0)) == (None, "L40S")


def test_what_a_trial_costs_is_known_once_it_is_gone(modal_stand: ModalStand) -> None:
    with modal_stand.platform.trial(modal_stand.second):
        pass
    (trial,) = (cost for cost in modal_stand.platform.costs(modal_stand.second) if cost.stage == "trial")
    assert (trial.containers, trial.open, trial.gpu_seconds) == (1, 0, 0)
    assert trial.seconds > 0 and trial.usd > 0


def test_without_a_proxy_token_nothing_is_deployed_and_with_a_wrong_one_nothing_is_started(
    modal_stand: ModalStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = modal_stand.platform
    endpoint = serves(modal_stand, modal_stand.first)
    assert platform.idle("staging") == 0
    assert httpx.get(f"{endpoint.base_url}/health", trust_env=False).status_code == 401
    monkeypatch.setenv(PROXY_ENV[1], "ws-of-another-workspace")
    with pytest.raises(BadInput, match="Modal's proxy refuses"):
        platform.deploy("staging", modal_stand.second, say)
    assert not running(modal_stand)
    monkeypatch.delenv(PROXY_ENV[1])
    before = versions(modal_stand, "staging")
    with pytest.raises(BadInput, match="has a proxy token, and none is known here"):
        platform.deploy("staging", modal_stand.second, say)
    with pytest.raises(BadInput, match="has a proxy token, and none is known here"):
        platform.endpoint("staging")
    assert versions(modal_stand, "staging") == before
    with pytest.raises(BadInput, match="none is known here"):
        dict(checks(platform.settings))["who may wake it"]()
    opened = platform_on_modal(modal_stand.platform.store.root.parent, open=True)
    assert say(opened.deploy("staging", modal_stand.first, say, generation="open")) == "first"
    assert "staging and production: anybody." in (told := dict(checks(opened.settings))["who may wake it"]())
    assert "keeps a L40S up, 54 USD a day; many at once start as many as are asked for" in told
    assert say(platform.deploy("staging", modal_stand.first, say, generation="open still")) == "first"
    assert platform.opens("staging") and not any("refused (401)" in said for said in platform.foretells("staging"))
    closing = platform_on_modal(modal_stand.platform.store.root.parent, open=False)
    with pytest.raises(BadInput, match="modal.open is false, and what is deployed is open"):
        dict(checks(closing.settings))["who may wake it"]()
    assert "clients of staging are refused (401) from its next deployment on" in closing.foretells("staging")[0]
    monkeypatch.setenv(PROXY_ENV[1], modal_stand.fake.lifecycle.proxy_token[1])
    assert say(closing.deploy("staging", modal_stand.first, say, generation="closed")) == "first"
    assert not platform.opens("staging") and closing.foretells("staging") == ()
    opened.deploy("staging", modal_stand.first, say, generation="open")
    platform.stop("staging")
    assert platform.serving("staging") is None and platform.opens("staging"), "a stop closes nothing"


def test_without_the_api_key_nothing_is_deployed_but_the_store_can_be_read(
    modal_stand: ModalStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_ENV)
    assert modal_stand.platform.store.pointer("production").release is None
    with pytest.raises(BadInput, match="API key"):
        serves(modal_stand, modal_stand.first)


def promoted(stand: ModalStand) -> None:
    """`first` goes to staging and then to production, as flows have it."""
    platform, dossier = stand.platform, Dossier(release=stand.first, required=(), verifications=())
    to_staging(platform, stand.first)
    approval = Approval(
        release=stand.first.id, dossier=dossier.digest, expected=platform.store.pointer("production").release,
        version=platform.store.pointer("production").version, decision="approve", approver="carol",
    )  # fmt: skip
    swap(platform, dossier, approval, 2)


def test_production_is_proved_by_an_idle_window_in_which_no_container_is_stopped(modal_stand: ModalStand) -> None:
    promoted(modal_stand)
    platform, stopped = modal_stand.platform, len(modal_stand.fake.requests("ContainerStop"))

    def answers() -> object:
        return check_serving(platform.endpoint("production"), modal_stand.first)

    verdict, seen = comes_back(platform, "production", answers, platform.settings.restore)
    assert verdict is Verdict.PASSED and seen.startswith("restored in "), seen
    assert len(modal_stand.fake.requests("ContainerStop")) == stopped


def test_a_rollback_at_once_takes_no_trial_and_no_look_at_files_and_one_that_can_wait_does(
    modal_stand: ModalStand,
) -> None:
    """Each is a container of its own, a trial one with a GPU: minutes in which production is what one runs from."""
    promoted(modal_stand)
    platform, fake = modal_stand.platform, modal_stand.fake
    pointer = platform.store.pointer("production")
    platform.store.save_pointer(pointer.model_copy(update={"release": "r9", "retained": (modal_stand.first.id,)}))
    platform.stop("production")

    def apps_and_calls() -> tuple[set[str], int]:
        return {r.name for r in fake.requests("AppPublish")}, len(fake.requests("FunctionMap"))

    trials, calls = apps_and_calls()
    back_now(platform, None, "carol", "it burns", 2, lambda _: None)
    assert say(platform.endpoint("production")) == "first"
    assert apps_and_calls() == (trials, calls)
    assert platform.store.pointer("production").hold
    platform.deploy("production", modal_stand.second, say)
    tried = apps_and_calls()[0]
    assert len(tried) > len(trials)
    pointer = platform.store.pointer("production")
    moved = pointer.model_copy(update={"release": modal_stand.second.id, "retained": (modal_stand.first.id,)})
    platform.store.save_pointer(moved)
    intent = Intent(
        stage="production", action="promote", before=modal_stand.first.id, after=modal_stand.second.id,
        dossier=None, by="carol", failed="it did not verify",
    )  # fmt: skip
    platform.store.open_intent(intent)
    assert recover(platform).startswith(f"went back from {modal_stand.second.id}")
    last = platform.store.ledger()[-1]
    assert last.kind == "rolled_back", "no idle window is forced upon clients that would be refused"
    assert say(platform.endpoint("production")) == "first"
    platform.store.open_intent(intent.model_copy(update={"failed": ""}))  # killed before its pointer moved
    platform.deploy("production", modal_stand.second, say, at_once=True)
    assert recover(platform).startswith("undid the promote")
    assert say(platform.endpoint("production")) == "first"
    assert apps_and_calls()[0] == tried, "what was in production before takes no trial, by whatever way it comes back"


def test_a_release_that_does_not_pass_changes_no_setting_of_what_serves(modal_stand: ModalStand) -> None:
    """Settings that were changed since reach a stage with the next release, and only with one that passes."""
    platform, folder = modal_stand.platform, modal_stand.platform.store.root.parent
    say(platform.deploy("staging", modal_stand.first, say, generation="as it was"))
    serves_now, opens = apps.scaling(platform.settings.modal, "llama-release-staging"), platform.opens("staging")
    changed = platform_on_modal(folder, idle_s=77, open=not opens)

    def refuse(_: Endpoint) -> None:
        raise ReleaseFailed("refused")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ReleaseFailed, match="refused"):
        patch.setattr("tasks.platforms.modal.BESIDE_LIMIT_S", 0.0)
        changed.deploy("staging", modal_stand.second, refuse)
    assert apps.scaling(platform.settings.modal, "llama-release-staging") == serves_now
    assert platform.opens("staging") is opens and say(platform.endpoint("staging")) == "first"
    version = versions(modal_stand, "staging")
    changed.deploy("staging", modal_stand.first, refuse, generation="as it was")  # it serves that: nothing happens
    with pytest.raises(ToolingError):
        modal_stand.fake.faults.arm(Fault("AppPublish", Status.FAILED_PRECONDITION, times=1000))
        changed.deploy("staging", modal_stand.second, say)
    modal_stand.fake.faults.clear()
    assert versions(modal_stand, "staging") == version, "what was not deployed is not undone"
    assert say(platform.endpoint("staging")) == "first"


def test_what_was_set_by_hand_outlives_a_move(modal_stand: ModalStand, capsys: pytest.CaptureFixture[str]) -> None:
    platform, name = modal_stand.platform, "llama-release-staging"
    say(platform.deploy("staging", modal_stand.first, say, generation="scaled by hand"))
    by_hand = apps.Scaling(scaledown_window=99, buffer_containers=0)
    apps.scale(platform.settings.modal, name, by_hand)
    say(platform.deploy("staging", modal_stand.second, say))
    assert apps.scaling(platform.settings.modal, name) == by_hand
    assert "is scaled as it was set by hand" in capsys.readouterr().out


def test_one_way_back_from_what_hangs_does_not_ask_it_whether_it_may(modal_stand: ModalStand) -> None:
    """While both are up, a request may reach either."""
    promoted(modal_stand)
    platform, fake = modal_stand.platform, modal_stand.fake
    platform.deploy("production", modal_stand.second, say)
    pointer = platform.store.pointer("production")
    platform.store.save_pointer(
        pointer.model_copy(update={"release": modal_stand.second.id, "retained": (modal_stand.first.id,), "hold": None})
    )
    app = "llama-release-production"
    fake.lifecycle.replaces_old, fake.lifecycle.asks_old = False, 0.5
    for container in apps.containers(platform.settings.modal, app):
        fake.containers.freeze(container.id)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tasks.platforms.modal.KNOCK_S", 2.0)
            back_now(platform, None, "carol", "it hangs", 2, lambda _: None)
    finally:
        fake.lifecycle.replaces_old, fake.lifecycle.asks_old = True, 0.0
    assert platform.serving("production") == (modal_stand.first.id, "")
    assert say(platform.endpoint("production")) == "first"
    platform.stop("production")


def test_one_restore_that_dies_on_the_way_back_is_bad_luck(modal_stand: ModalStand) -> None:
    platform = modal_stand.platform
    for release in (modal_stand.first, modal_stand.second):
        say(platform.deploy("staging", release, say, generation="there and back"))
        assert platform.idle("staging") == 0
    modal_stand.fake.containers.fail_restores(1, 139)
    assert say(platform.deploy("staging", modal_stand.first, say, generation="there and back")) == "first"


def test_without_a_key_a_move_that_was_left_open_waits_for_one(
    modal_stand: ModalStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = modal_stand.platform
    before = platform.store.pointer("production")
    moved = before.model_copy(update={"release": modal_stand.second.id})
    platform.store.save_pointer(moved)
    intent = Intent(
        stage="production", action="promote", before=modal_stand.first.id, after=modal_stand.second.id,
        dossier=None, by="carol",
    )  # fmt: skip
    platform.store.open_intent(intent)
    monkeypatch.delenv(PROXY_ENV[0])
    with pytest.raises(BadInput, match="none is known here"):
        recover(platform)
    assert platform.store.pointer("production").release == modal_stand.second.id
    assert platform.store.intent("production")
    platform.store.close_intent("production")
    platform.store.save_pointer(before)


def test_proxy_tokens_go_to_our_own_stages_alone(modal_stand: ModalStand, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, endpoint = modal_stand.platform.settings.modal, serves(modal_stand, modal_stand.first)
    for address in (endpoint.base_url, f"{endpoint.base_url}/", f"{endpoint.base_url}/v1"):
        assert tuple(apps.tokens_for(settings, address).values()) == modal_stand.fake.lifecycle.proxy_token
    for address in ("https://stranger--llama-release-production-llama.modal.run", f"{endpoint.base_url}.example.com"):
        assert apps.tokens_for(settings, address) == {}
    monkeypatch.delenv(PROXY_ENV[0])
    assert apps.tokens_for(settings, endpoint.base_url) == {}


def test_what_was_up_goes_on_answering_when_the_new_version_does_not_pass(modal_stand: ModalStand) -> None:
    """Not even a container of it is ended: the one that was up is not replaced by a stop, and the check saw the new."""
    platform = modal_stand.platform
    modal_stand.fake.lifecycle.replaces_old = False
    say(serves(modal_stand, modal_stand.first))
    before = running(modal_stand)

    def refuse(_: Endpoint) -> None:
        raise ReleaseFailed("refused")

    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ReleaseFailed, match="refused"):
            patch.setattr("tasks.platforms.modal.BESIDE_LIMIT_S", 0.0)
            patch.setattr("tasks.platforms.modal.apps.SETTLE_S", 5.0)
            platform.deploy("staging", modal_stand.second, refuse)
    finally:
        modal_stand.fake.lifecycle.replaces_old = True
    assert before <= running(modal_stand)
    assert say(platform.endpoint("staging")) == "first"


@pytest.fixture
def leaves_old(modal_stand: ModalStand) -> Iterator[ModalPlatform]:
    """Modal leaves the containers of an earlier version alone, and answers may go on in them for some seconds."""
    modal_stand.fake.lifecycle.replaces_old = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.platforms.modal.apps.SETTLE_S", 15.0)
        yield platform_on_modal(modal_stand.platform.store.root.parent, exit_grace_s=10)
    modal_stand.fake.lifecycle.replaces_old = True


def test_an_earlier_container_that_modal_leaves_up_is_stopped_after_its_grace_and_cuts_no_answer_off(
    modal_stand: ModalStand, leaves_old: ModalPlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    endpoint = leaves_old.deploy("staging", modal_stand.first, say, generation="left up")
    before = running(modal_stand)
    with clients_of(endpoint) as wrong:
        leaves_old.deploy("staging", modal_stand.second, say, progress=lambda _done, _all, what: told.append(what))
    assert wrong == []
    assert not before & running(modal_stand)
    assert told and all("the earlier container ends its answers" in what for what in told)
    said = one_line(capsys.readouterr().out)
    assert f"the earlier containers of staging: stopped after 25 s with what it still answered: {before.pop()}" in said


def test_a_look_that_fails_while_the_earlier_container_ends_undoes_nothing(
    modal_stand: ModalStand, leaves_old: ModalPlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    platform, fake = leaves_old, modal_stand.fake

    def fail(_done: int, _all: int, _what: str) -> None:
        fake.faults.arm(Fault("TaskList", Status.FAILED_PRECONDITION, times=1000))

    say(platform.deploy("staging", modal_stand.first, say, generation="not seen to end"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tasks.platforms.modal.apps.SETTLE_S", 0.0)
            short = platform_on_modal(platform.store.root.parent, exit_grace_s=1)
            short.deploy("staging", modal_stand.second, say, progress=fail)
    finally:
        fake.faults.clear()
    assert short.serving("staging") == (modal_stand.second.id, "")
    assert say(short.endpoint("staging")) == "second"
    assert "not seen to end, and may answer as well" in capsys.readouterr().out


def test_what_a_killed_process_left_up_beside_what_it_deployed_is_ended_by_the_next_one(
    modal_stand: ModalStand, leaves_old: ModalPlatform
) -> None:
    say(leaves_old.deploy("staging", modal_stand.first, say, generation="to be left"))
    before = running(modal_stand)
    deployment = leaves_old._deployment("staging", "llama-release-staging", modal_stand.second, generation="killed")
    known, move = set(apps.boots(deployment)), leaves_old._begin_move("staging", deployment)
    leaves_old._deploy(deployment)
    leaves_old._await(deployment, KEY, known, move.history[0].at)  # and it is killed
    assert before < running(modal_stand)
    after = platform_on_modal(leaves_old.store.root.parent, exit_grace_s=10)
    after.deploy("staging", modal_stand.second, say, generation="killed")
    left = running(modal_stand)
    assert left and not before & left


def test_what_only_an_earlier_container_passed_is_seen_once_that_is_gone(modal_stand: ModalStand) -> None:
    platform = modal_stand.platform
    say(serves(modal_stand, modal_stand.first))
    before = running(modal_stand)

    def passes_by_the_earlier_one(_: Endpoint) -> None:
        if not before & running(modal_stand):
            raise ReleaseFailed("it was another one that passed")

    with pytest.raises(ReleaseFailed, match="it was another one"):
        platform.deploy("staging", modal_stand.first, passes_by_the_earlier_one, generation="worse")
    assert platform.serving("staging") == (modal_stand.first.id, "")


def test_clients_of_production_see_nothing_of_a_version_that_does_not_pass(modal_stand: ModalStand) -> None:
    """What was just deployed to go back to is not ended, and what did not pass is."""
    platform = modal_stand.platform
    endpoint = platform.deploy("production", modal_stand.first, say)
    say(endpoint)  # what a client of a sleeping server gets is a start, and no move
    up: list[str] = []

    def refuse(at: Endpoint) -> None:
        if at.base_url == endpoint.base_url:
            up.extend(each.id for each in apps.containers(platform.settings.modal, "llama-release-production"))
            raise ReleaseFailed("refused")

    with clients_of(endpoint) as wrong:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ReleaseFailed, match="refused"):
            patch.setattr("tasks.platforms.modal.BESIDE_LIMIT_S", 0.0)
            platform.deploy("production", modal_stand.second, refuse)
        left = {each.id for each in apps.containers(platform.settings.modal, "llama-release-production")}
        assert left and not left & set(up)
        assert say(platform.endpoint("production")) == "first"
    assert wrong == []
    platform.stop("production")


def test_clients_of_production_see_no_error_and_no_cut_stream_while_it_is_replaced(modal_stand: ModalStand) -> None:
    platform = modal_stand.platform
    endpoint = platform.deploy("production", modal_stand.first, say)
    say(endpoint)  # what a client of a sleeping server gets is a start, and no move
    with clients_of(endpoint) as wrong:
        for release, generation in ((modal_stand.second, ""), (modal_stand.second, "2"), (modal_stand.first, "")):
            platform.deploy("production", release, say, generation=generation)
            assert platform.serving("production") == (release.id, generation)
    assert wrong == []
    platform.stop("production")
