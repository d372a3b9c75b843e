"""The restore watch on a real production: what it never does, and real faults that it tells of once."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import pytest

from tasks.contracts.scripted import build as build_model
from tasks.endpoint import chat_body
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.proc import is_alive
from tasks.release import BootKind, Build, Endpoint, StageName, now
from tasks.settings import RestoreSettings, Settings, WatchSettings
from tasks.watch import series
from tasks.watch.judge import BASELINE, LATEST, found
from tasks.watch.observe import observe
from tasks.watch.probe import probe
from tasks.watch.series import Look
from tests.contracts.breaking_proxy import Ask, Breakage, broken
from tests.platforms.conftest import platform_at, stand_of
from tests.platforms.stand import until
from tests.watch.conftest import SCRIPT, Production

pytestmark = pytest.mark.real

RESTORED, FELL_BACK = BootKind.RESTORED, BootKind.FELL_BACK
AT_ONCE = RestoreSettings(wait_s=0)


def test_an_idle_production_is_not_woken_when_the_budget_is_spent(production: Production) -> None:
    before = production.kinds()
    production.watch(due=False)
    assert production.kinds() == before
    assert production.status().state == "idle"
    assert [look.servers for look in production.series().looks] == [0]


def test_a_production_that_is_up_is_not_asked_for_anything_that_counts_as_use(production: Production) -> None:
    assert production.ask() == 200
    before = production.kinds()
    production.watch(due=True)
    status = production.status()
    assert (status.state, status.answered) == ("up", production.series().looks[-1].answered)
    assert production.kinds() == before
    (look,) = production.series().looks
    assert look.metrics["tokens_predicted_total"] > 0
    assert look.metrics["requests_deferred"] == 0


def test_an_idle_production_is_woken_once_measured_and_let_go_idle_at_once(production: Production) -> None:
    before = production.kinds()
    production.watch(due=True)
    assert production.kinds() == [*before, RESTORED]
    assert production.status().state == "idle"  # long before its idle window of ten minutes is over
    (latency,) = production.platform.store.latencies(production.release.id)
    assert (latency.stage, latency.kind) == ("production", RESTORED)
    assert latency.tokens_per_s and latency.tokens_per_s > 0
    (wake,) = production.series().wakes
    assert (wake.status, wake.probe) == (200, True)
    assert production.status().answered == production.series().looks[-1].answered  # no user asked anything
    production.watch(due=False)
    assert production.kinds() == [*before, RESTORED]


def test_a_user_who_comes_with_the_probe_is_served_on_and_nothing_is_judged_by_it(production: Production) -> None:
    platform, headers = production.platform, {"Authorization": f"Bearer {production.stand.key}"}
    body = chat_body("Count.", stream=True, max_tokens=7000, ignore_eos=True)
    url = f"{platform.endpoint('production').base_url}/v1/chat/completions"
    idle = platform.sight("production")
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60, trust_env=False) as answer:
        lines = answer.iter_lines()
        next(lines)
        pid = production.status().server_pid
        seen = probe(platform, production.release, production.series(), idle, AT_ONCE)
        assert (production.status().state, production.status().server_pid) == ("up", pid)
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert not seen.probes[-1].fault
    assert platform.store.latencies(production.release.id) == []


def test_while_another_run_is_at_work_it_only_looks(production: Production) -> None:
    before = production.kinds()
    with production.platform.store.lock("release", holder={"name": "upgrade to b11434"}):
        production.watch(due=True)
    assert production.kinds() == before
    assert len(production.series().looks) == 1


def test_repeated_failed_restores_are_one_alert_and_good_ones_end_it(production: Production) -> None:
    for n in range(3):
        assert production.events("watch_alert") == [], f"after {n} of them"
        production.damage()
        production.watch(due=True)
    (alert,) = production.events("watch_alert")
    assert alert.release == production.release.id
    assert alert.summary.startswith("3 of the last 3 returns from idle failed (fell_back ")
    assert (alert.detail["about"], alert.detail["in_a_row"], alert.detail["last_good"]) == ("restores_fail", 3, None)
    assert alert.detail["command"].startswith("llama-release redeploy")
    production.watch(due=False)
    for _ in range(3):
        assert production.events("watch_over") == []
        production.watch(due=True)
    (over,) = production.events("watch_over")
    assert over.detail["incident"] == alert.detail["incident"]
    production.watch(due=False)
    assert (len(production.events("watch_alert")), len(production.events("watch_over"))) == (1, 1)


@contextmanager
def broken_build(production: Production) -> Iterator[None]:
    """No server of the release can start: its binary is gone, and its snapshot damaged."""
    binary = production.platform.store.build_dir(production.release.build) / "llama-server"
    away = binary.with_name("away")
    production.damage()
    shutil.move(binary, away)
    try:
        yield
    finally:
        shutil.move(away, binary)


def test_what_clients_do_to_production_is_told_and_only_what_our_probes_see_starts_a_rollback_once(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_RELEASE_WATCH__ACT", "rollback")
    with broken_build(production):
        assert production.ask() == 503
        production.watch(due=False)
        (alert,) = production.events("watch_alert")
        assert (alert.detail["about"], alert.summary) == (
            "errors_after_idle", "1 of the last 1 first requests after idle got an error (HTTP 503)"
        )  # fmt: skip
        production.watch(due=False)
        assert production.events("rolled_back") == []
        assert production.platform.store.pointer("production").release == production.release.id
        quick = RestoreSettings(wait_s=0, answer_s=1)
        for _ in range(WatchSettings().failed_restores):  # one probe of ours may fail for any reason
            production.watch(due=False)
            assert production.events("watch_acts") == []
            idle = production.platform.sight("production")
            seen = probe(production.platform, production.release, production.series(), idle, quick).probes[-1]
            assert (seen.kind, seen.unclear, seen.status) == (BootKind.CRASHED, "", None)
    production.watch(due=False)
    pointer = production.platform.store.pointer("production")
    assert pointer.release == production.stand.second.id
    assert pointer.hold and pointer.hold.by == "llama-release" and "returns from idle failed" in pointer.hold.reason
    assert production.ask() == 200
    production.watch(due=False)
    assert len(production.events("rolled_back")) == len(production.events("watch_acts")) == 1
    over = production.events("watch_over")
    assert len(over) == len(production.events("watch_alert")) and all("production is" in each.summary for each in over)


HOSTILE: tuple[tuple[str, str, bytes], ...] = (
    ("POST", "/v1/chat/completions", b"{"),
    ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": 7}], "max_tokens": -5}'),
    ("POST", "/completion", b'{"prompt": [[]], "n_predict": 1e99, "grammar": "root ::= ("}'),
    ("POST", "/v1/responses", b'{"input": {"a": 1}}'),
    ("POST", "/completion", b'{"prompt": "Once", "n_predict": 4000, "ignore_eos": true}'),
    ("GET", "/nowhere", b""),
    ("DELETE", "/props", b""),
)


def test_a_client_that_floods_production_causes_no_rollback(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that get 4xx and 5xx, slow ones, and ones that are given up; some say that they are our probe."""
    monkeypatch.setenv("LLAMA_RELEASE_WATCH__ACT", "rollback")
    url, over = production.platform.endpoint("production").base_url, threading.Event()

    def flood(number: int) -> None:
        headers = {"Authorization": f"Bearer {production.stand.key}", "Content-Type": "application/json"}
        headers |= {"User-Agent": "llama-release-probe"} if number % 2 else {}
        with httpx.Client(headers=headers, timeout=0.5, trust_env=False) as client:
            for method, path, body in itertools.cycle(HOSTILE[number:] + HOSTILE[:number]):
                if over.is_set():
                    return
                with suppress(httpx.HTTPError):  # given up after half a second
                    client.request(method, url + path, content=body)

    with ThreadPoolExecutor(4) as pool:
        floods = [pool.submit(flood, number) for number in range(4)]
        try:
            for _ in range(3):
                production.watch(due=True)
        finally:
            over.set()
    assert [future.exception() for future in floods] == [None] * 4
    for _ in range(2):
        production.idle()
        production.watch(due=True)
    assert [production.events(kind) for kind in ("watch_acts", "rolled_back")] == [[], []]
    assert production.platform.store.pointer("production").release == production.release.id


def test_a_production_that_was_killed_is_told_of_and_brought_back(production: Production) -> None:
    killed = production.status().pid
    os.kill(killed, signal.SIGKILL)
    assert until(lambda: not is_alive(killed))
    production.watch(due=True)
    (alert,) = production.events("watch_alert")
    assert (alert.detail["about"], alert.detail["command"]) == ("down", "llama-release start")
    assert "its activator does not run" in alert.summary
    (revived,) = production.events("revived")
    assert revived.release == production.release.id
    assert production.series().probes == ()  # a dead one says nothing of how it comes back from idle
    assert production.ask() == 200
    for _ in range(3):
        assert production.events("watch_over") == []
        production.watch()
    assert production.events("watch_over")[0].detail["incident"] == alert.detail["incident"]
    assert len(production.events("revived")) == len(production.events("watch_alert")) == 1


def test_a_production_that_somebody_stopped_is_told_of_and_stays_so(
    production: Production, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_RELEASE_WATCH__ACT", "rollback")
    production.platform.stop("production")
    for _ in range(2):
        production.watch(due=True)
    (alert,) = production.events("watch_alert")
    assert "it was stopped" in alert.summary
    assert production.platform.status("production") is None
    assert [production.events(kind) for kind in ("revived", "watch_acts", "rolled_back")] == [[], [], []]


class Slow(Breakage):
    """The first token of a stream comes late."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s

    def ask(self, ask: Ask) -> Ask:
        if b'"stream": true' in ask.body or b'"stream":true' in ask.body:
            time.sleep(self.delay_s)
        return ask


class Behind(LocalPlatform):
    """Its production answers at another address."""

    elsewhere = ""

    def endpoint(self, stage: StageName) -> Endpoint:
        return super().endpoint(stage).model_copy(update={"base_url": self.elsewhere})


def test_a_slower_wire_is_a_drift_from_the_releases_own_baseline(production: Production) -> None:
    store, release = production.platform.store, production.release
    platform = production.platform
    probe(platform, release, production.series(), platform.sight("production"), AT_ONCE)
    (real,) = store.latencies(release.id)
    for n in range(BASELINE - 1):  # as fast as it really is, and a little apart
        share = 1 + n / 100
        latency = {"after_idle_s": share * real.after_idle_s, "warm_s": share * real.warm_s, "at": now()}
        store.add_latency(release.id, real.model_copy(update=latency))
    delay_s = max(0.2, 4 * real.after_idle_s)
    behind = Behind(production.platform.settings)
    with broken(production.platform.endpoint("production"), Slow(delay_s)) as slow:
        behind.elsewhere = slow.base_url
        for _ in range(LATEST):
            assert (
                found(series.load(store, release), store.latencies(release.id), WatchSettings(), "slower", None) is None
            )
            seen = probe(behind, release, production.series(), behind.sight("production"), AT_ONCE)
            assert not (seen.probes[-1].fault or seen.probes[-1].unclear)
    drift = found(series.load(store, release), store.latencies(release.id), WatchSettings(), "slower", None)
    assert drift
    assert "first token after idle" in drift.summary and "its baseline" in drift.summary


def test_looking_again_and_again_does_not_keep_production_awake(
    base: Settings, build: Build, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It is looked at more often than its idle window is long."""
    folder = tmp_path_factory.mktemp("awake")
    platform = platform_at(folder / "store", idle_s=1.5)
    with stand_of(platform, base, build, build_model(SCRIPT, folder / "model.gguf")) as stand:
        platform.deploy("production", stand.first, lambda _: None)
        looks: list[Look] = []

        def idle() -> bool:
            looks.append(observe(platform, stand.first, None).looks[-1])
            return looks[-1].servers == 0

        assert until(idle, 60.0)
        assert any(look.metrics for look in looks)
        # on a platform without snapshots the first probe learns what it says, the second measures
        kinds = []
        for _ in range(2):
            seen = probe(
                platform, stand.first, series.load(platform.store, stand.first), platform.sight("production"), AT_ONCE
            )
            kinds.append((seen.probes[-1].kind, seen.probes[-1].fault, bool(seen.probes[-1].unclear)))
        assert kinds == [(BootKind.COLD, "", True), (BootKind.COLD, "", False)]
        (latency,) = platform.store.latencies(stand.first.id)
        assert latency.kind is BootKind.COLD
