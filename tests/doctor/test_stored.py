"""What a store has, lacks, or left undone: each fault made in a real store, and silence where all is well."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.contracts.scripted import build as build_model
from tasks.contracts.scripted import thinks_forever
from tasks.doctor import Seen, Severity
from tasks.doctor.stored import binaries, builds, intents, ledger, locks, outbox, speed, stages
from tasks.notify import Notice, Outbox, Waiting
from tasks.preflight import bundle
from tasks.release import BadInput, Build, Event, Hold, Intent, Release, ReleaseFailed, StagePointer, ToolingError, now
from tasks.settings import PROBES_TO_KNOW, NotifySettings, ServerSettings, Settings, WatchSettings
from tasks.store import Store
from tasks.watch.judge import BASELINE, LATEST


@pytest.fixture
def release(store_with: Store, older_build: Build, tmp_path: Path) -> Release:
    model = build_model(thinks_forever(), tmp_path / "m.gguf")
    made, _ = bundle(store_with, older_build, ServerSettings(model=model))
    store_with.save_release(made)
    return made


def severity(seen: object) -> Severity:
    return seen.severity if isinstance(seen, Seen) else Severity.OK


@pytest.mark.real
def test_a_binary_older_than_its_tag_is_found(store_with: Store, build: Build, older_build: Build) -> None:
    assert severity(binaries(store_with)) is Severity.OK
    folder = store_with.build_dir(build.digest)
    (folder / "llama-server").unlink()  # what a stale cache does: the right manifest, an older binary
    shutil.copy(store_with.build_dir(older_build.digest) / "llama-server", folder)
    with pytest.raises(ReleaseFailed) as caught:
        binaries(store_with)
    assert caught.value.what == f"the binary of build {build.digest} is not b11434"
    assert "11401" in caught.value.evidence
    assert f"llama-release rebuild {build.digest}" in caught.value.todo
    assert severity(builds(store_with)) is Severity.WARNING


@pytest.mark.real
def test_what_a_stage_serves_and_retains_must_be_whole(store_with: Store, release: Release) -> None:
    store_with.save_pointer(StagePointer(stage="production", release=release.id, retained=(release.id,)))
    assert severity(stages(store_with, here=True)) is Severity.OK
    store_with.file(release.files["model"]).unlink()
    with pytest.raises(ToolingError) as caught:
        stages(store_with, here=True)
    assert caught.value.evidence == "m.gguf"
    store_with.save_pointer(StagePointer(stage="production", retained=(release.id,)))
    seen = stages(store_with, here=True)
    assert isinstance(seen, Seen)
    assert f"cannot go back to {release.id}: m.gguf" in seen.evidence


def test_a_pointer_to_what_the_store_does_not_have_is_found(store: Store) -> None:
    store.save_pointer(StagePointer(stage="staging", release="0" * 12))
    with pytest.raises(ToolingError) as caught:
        stages(store, here=True)
    assert caught.value.evidence == f"releases/{'0' * 12}.json"


def test_a_hold_is_a_note_with_its_reason(store: Store) -> None:
    store.save_pointer(StagePointer(stage="production", hold=Hold(reason="slow", by="ann")))
    seen = stages(store, here=True)
    assert isinstance(seen, Seen)
    assert (seen.severity, seen.todo) == (Severity.NOTE, "`llama-release hold lift`")
    assert "ann: slow" in seen.evidence


def test_an_open_intent_is_a_warning(store: Store) -> None:
    assert severity(intents(store)) is Severity.OK
    store.open_intent(Intent(stage="production", action="promote", before=None, after="f" * 12, dossier=None, by="ann"))
    seen = intents(store)
    assert severity(seen) is Severity.WARNING
    store.close_intent("production")
    assert severity(intents(store)) is Severity.OK


def test_events_that_cannot_be_read_are_a_warning_that_names_them(store: Store) -> None:
    for n in range(5):
        store.log(Event(kind="k", summary=str(n)))
    assert ledger(store) == "5 events"
    for path in sorted((store.root / "ledger").iterdir())[:4]:
        path.write_text("")
    seen = ledger(store)
    assert isinstance(seen, Seen)
    assert seen.evidence.count("can't be read") == 3 and seen.evidence.endswith(" and 1 more")


@pytest.fixture(params=["the kernel", "its holder"])
def told_by(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says that a lock is held: macOS has no /proc/locks."""
    if request.param == "its holder":
        monkeypatch.setattr("tasks.store.PROC_LOCKS", tmp_path / "no-proc-locks")


@pytest.mark.usefixtures("told_by")
def test_a_lock_is_told_while_its_holder_lives_and_not_when_it_was_killed(store: Store) -> None:
    holds = (
        "import sys; from pathlib import Path; from tasks.store import Store\n"
        "with Store(Path(sys.argv[1])).lock('release', holder={'name': 'quick-fox'}):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holds, store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        seen = locks(store)
        assert isinstance(seen, Seen)
        assert "release: " in seen.evidence
        assert "quick-fox" in seen.evidence
        process.kill()
    assert "quick-fox" in (store.root / "locks" / "release.lock").read_text()
    assert locks(store) == "none held"
    with store.lock("release", holder={"name": "slow-fox"}):
        assert "slow-fox" in str(locks(store))
    assert locks(store) == "none held"


@pytest.mark.usefixtures("told_by")
def test_the_lock_of_an_activator_is_nothing_to_wait_for(store: Store) -> None:
    with store.lock("activator-staging", holder={"stage": "staging"}):
        assert locks(store) == "none held"


def test_people_who_could_not_be_told_are_a_warning(store: Store) -> None:
    quiet = Settings(store=store.root)
    assert severity(outbox(store, quiet)) is Severity.OK
    store.save_outbox(Outbox(after=""))
    store.log(Event(kind="promoted", summary="b2 is in production"))
    assert "1 events are to be told" in str(outbox(store, quiet))
    waiting = Waiting(notice=Notice(thread="b2", title="b2: promoted"), due=now(), why="Slack refused it: invalid_auth")
    store.save_outbox(Outbox(after="", waiting=(waiting,)))
    seen = outbox(store, quiet)
    assert isinstance(seen, Seen)
    assert seen.severity is Severity.WARNING
    assert "invalid_auth" in seen.evidence


def test_slack_without_a_token_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLACK_BOT_TOKEN", raising=False)
    store.save_outbox(Outbox(after=""))
    told = Settings(store=store.root, notify=NotifySettings(slack_channel="#releases"))
    with pytest.raises(BadInput, match="there is no token"):
        outbox(store, told)
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-1")
    assert outbox(store, told) == "all told"


def test_releases_that_go_before_the_watch_knows_how_fast_they_are_are_a_warning(store: Store) -> None:
    assert speed(store, WatchSettings()) == "known of a release after 26 probes, 6.5 days at 4 a day"
    for minutes in (40, 25, 0):  # a first day of releases, one after the other: not how it goes on
        at = now() - timedelta(days=12, minutes=minutes)
        store.log(Event(kind="promoted", release="r", summary="in production", at=at))
        assert severity(speed(store, WatchSettings())) is Severity.OK
    for days in (9, 6, 2):
        store.log(Event(kind="promoted", release="r", summary="in production", at=now() - timedelta(days=days)))
    seen = speed(store, WatchSettings())
    assert severity(seen) is Severity.WARNING
    assert "one stays in production for 2.0 days: none is ever found to have become slower" in str(seen)
    assert "watch.probes_per_day to 13 or more" in str(seen)
    assert severity(speed(store, WatchSettings(probes_per_day=13))) is Severity.OK
    assert severity(speed(store, WatchSettings(probes_per_day=0))) is Severity.NOTE


def test_so_many_probes_are_what_the_watch_needs() -> None:
    assert PROBES_TO_KNOW == BASELINE + LATEST
