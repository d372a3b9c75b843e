import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.release import (
    BadInput,
    BootKind,
    Build,
    Event,
    Intent,
    Latency,
    Recipe,
    Release,
    SourceTree,
    StagePointer,
    ToolingError,
    UpstreamRelease,
    Verdict,
    Verification,
    now,
)
from tasks.store import DAMAGED, Store, hold, write_atomic

REPOSITORY = Path(__file__).parent.parent


def a_build(digest: str = "d1", files: dict[str, str] | None = None) -> Build:
    source = SourceTree(upstream=UpstreamRelease(build=11434), archive_sha256="a", upstream_tree="t", tree="t")
    return Build(
        digest=digest, source=source, recipe=Recipe(), toolchain={}, version="11434", files=files or {},
        seconds=1.0, objects=2, cache_hits=0, built_at=now(),
    )  # fmt: skip


def a_verification(name: str = "preflight", verdict: Verdict = Verdict.PASSED, basis: str = "") -> Verification:
    return Verification(name=name, release="r1", verdict=verdict, summary="seen", basis=basis)


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "pointer.json"
    write_atomic(target, "old")
    script = (
        "import os, sys; from pathlib import Path; from tasks import store\n"
        "store.os.replace = lambda *a: (print('ready', flush=True), sys.stdin.read())\n"
        f"store.write_atomic(Path({str(target)!r}), 'new' * 100000)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"


def test_a_build_without_a_manifest_is_no_build(store: Store) -> None:
    (store.root / "builds" / "d1").mkdir(parents=True)
    (store.root / "builds" / "d1" / "llama-server").write_text("half")
    assert store.build("d1") is None
    assert store.builds() == []


def test_publishing_replaces_what_a_killed_publication_left(store: Store) -> None:
    left = store.build_dir("d1")
    left.mkdir(parents=True)
    (left / "stale").write_text("x")
    made = store.root / "builds" / ".making"
    made.mkdir()
    (made / "llama-server").write_text("binary")
    store.publish_build(a_build(), made)
    assert sorted(p.name for p in left.iterdir()) == ["llama-server", "manifest.json"]


def test_a_changed_or_missing_file_of_a_build_is_noticed(store: Store) -> None:
    folder = store.build_dir("d1")
    folder.mkdir(parents=True)
    (folder / "llama-server").write_text("binary")
    good = "9a3a45d01531a20e89ac6ae10b0b0beb0492acd7216a368aa062d1a5fecaf9cd"
    assert store.damaged(a_build(files={"llama-server": good})) == []
    (folder / "llama-server").write_text("Binary")
    assert store.damaged(a_build(files={"llama-server": good, "lib.so": "0"})) == ["llama-server", "lib.so"]


def test_a_file_is_kept_by_content_and_survives_its_source(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    ref = store.put_file(path)
    assert store.put_file(path) == ref
    link = tmp_path / "links" / "m.gguf"  # as the Hub's cache has its files
    link.parent.mkdir()
    link.symlink_to(Path("..") / path.name)
    target = store.file(store.put_file(link))
    assert target.read_bytes() == path.read_bytes()
    assert not target.is_symlink()
    path.unlink()
    assert store.file(ref).read_bytes() == b"weights"


def test_a_changed_file_gets_another_reference(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    first = store.put_file(path)
    path.unlink()
    path.write_bytes(b"others!")
    assert store.put_file(path).sha256 != first.sha256


def test_a_missing_file_is_bad_input(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.gguf cannot be read"):
        store.put_file(tmp_path / "nowhere.gguf")


def test_an_unknown_release_is_refused_with_the_known_ones(store: Store) -> None:
    with pytest.raises(BadInput, match="known: none"):
        store.get_release("abc")


def test_a_damaged_record_names_its_file(store: Store) -> None:
    path = store.root / "stages" / "production.json"
    path.parent.mkdir()
    path.write_text('{"stage": "production", "release"')
    with pytest.raises(ToolingError, match=r"production\.json in the store is not a readable StagePointer"):
        store.pointer("production")


def test_recorded_verifications_are_fresh_only_when_all_are_there_decided_and_of_this_basis(store: Store) -> None:
    store.record(a_verification("a", basis="1"))
    assert [v.name for v in store.fresh("r1", ("a",), "1")] == ["a"]
    assert store.fresh("r1", ("a",), "2") == []
    assert store.fresh("r1", ("a", "b"), "1") == []
    store.record(a_verification("b", Verdict.ERRORED, basis="1"))
    assert store.fresh("r1", ("a", "b"), "1") == []


def test_pointers_intents_and_ledger_come_back_as_written(store: Store) -> None:
    pointer = StagePointer(stage="production", release="r1", retained=("r0",))
    store.save_pointer(pointer)
    intent = Intent(stage="production", action="promote", before="r0", after="r1", dossier="d", by="me")
    store.open_intent(intent)
    for n in range(3):
        store.log(Event(kind="k", summary=str(n)))
    assert Store(store.root).pointer("production") == pointer.model_copy(update={"version": 1})
    assert store.intent("production") == intent
    store.close_intent("production")
    assert store.intent("production") is None
    assert [e.summary for e in store.ledger()] == ["0", "1", "2"]


@pytest.mark.parametrize("left", [b"", b'{"kind": "k", "summ', b"\xff\x00", b"[]", b'{"kind": 7}'])
def test_an_event_that_cannot_be_read_is_named_in_its_place_and_stops_nothing(store: Store, left: bytes) -> None:
    for n in range(3):
        store.log(Event(kind="k", summary=str(n)))
    damaged = sorted((store.root / "ledger").iterdir())[1]
    damaged.write_bytes(left)
    first, second, third = store.ledger()
    assert (first.summary, third.summary) == ("0", "2")
    assert second.kind == DAMAGED
    assert second.summary.startswith(f"ledger/{damaged.name} can't be read: ")
    assert first.at <= second.at <= third.at
    damaged.rename(damaged.with_name("0-by-hand.json"))
    assert [e.kind for e in store.ledger()] == [DAMAGED, "k", "k"]


def test_the_latest_of_the_ledger_are_read_alone(store: Store) -> None:
    for kind in ("a", "b", "c"):
        store.log(Event(kind=kind, summary="s"))
    assert [e.kind for e in store.ledger(2)] == ["b", "c"]
    first = min((store.root / "ledger").iterdir())
    first.write_text("{")
    assert [e.kind for e in store.ledger(2)] == ["b", "c"]
    assert [e.kind for e in store.ledger(9)] == [DAMAGED, "b", "c"]


def test_a_ledger_that_cannot_be_reached_is_no_damaged_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.log(Event(kind="k", summary="s"))

    def away(_path: str) -> str:
        raise ToolingError("Modal cannot be reached")

    monkeypatch.setattr(store.files, "read", away)
    with pytest.raises(ToolingError, match="cannot be reached"):
        store.ledger()


def test_every_write_of_a_pointer_is_another_version_of_it(store: Store) -> None:
    pointer = store.pointer("production")
    for version in (1, 2, 3):
        store.save_pointer(pointer)
        assert store.pointer("production").version == version
    assert store.pointer("staging").version == 0


def test_who_holds_a_lock_is_told_for_certain_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.lock_holder("production") is None
    path = store.root / "locks" / "production.lock"
    with store.lock("production", holder={}):
        assert store.lock_holder("production") == os.getpid()
        path.write_text(json.dumps({"pid": os.getppid()}))  # what a killed one left, and its number is another's
        assert store.lock_holder("production") is None
        path.write_text(json.dumps({"pid": os.getpid()}))
    path.write_text(json.dumps({"pid": os.getpid()}))
    assert store.lock_holder("production") is None
    monkeypatch.setattr("tasks.store.PROC_LOCKS", path.with_name("none"))
    with store.lock("production", holder={}):
        assert store.lock_holder("production") is None


def test_no_secret_gets_into_the_ledger_or_a_dossier(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-secret-of-somebody")
    logged = store.log(Event(kind="k", summary="said a-secret-of-somebody", detail={"why": ["a-secret-of-somebody"]}))
    assert (logged.summary, logged.detail) == ("said [SOME_TOKEN]", {"why": ["[SOME_TOKEN]"]})
    store.record(a_verification().model_copy(update={"evidence": {"answer": {"text": "a-secret-of-somebody"}}}))
    written = [path.read_text() for path in store.root.rglob("*") if path.is_file()]
    assert len(written) == 2
    assert not [text for text in written if "a-secret-of-somebody" in text]


def test_of_too_many_idle_cycles_the_first_and_the_latest_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.store.MAX_LATENCIES", 4)
    for n in range(9):
        cycle = Latency(
            stage="staging", kind=BootKind.RESTORED, health_s=1.0, after_idle_s=n, warm_s=1.0,
            at=now() + timedelta(seconds=n),
        )  # fmt: skip
        store.add_latency("r1", cycle)
    assert [each.after_idle_s for each in store.latencies("r1")] == [0, 1, 7, 8]


def test_a_lock_is_refused_to_a_second_process_and_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with hold(path, holder={"name": "the first"}):
        script = (
            f"from pathlib import Path; from tasks.store import hold\nwith hold(Path({str(path)!r}), holder={{}}): pass"
        )
        second = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert second.returncode != 0
    assert "the first" in second.stderr


def test_a_lock_of_a_killed_process_is_free_and_tells_who_held_it(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    script = (
        "import os, signal; from pathlib import Path; from tasks.store import hold\n"
        f"with hold(Path({str(path)!r}), holder={{'flow_run': 'abc'}}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    told: list[dict[str, object]] = []
    with hold(path, holder={}, stale=told.append):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert [t["flow_run"] for t in told] == ["abc"]
    with hold(path, holder={}, stale=told.append):
        pass
    assert len(told) == 1


def test_a_disk_that_takes_no_more_is_one_clear_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "pointer.json"
    write_atomic(target, "old")
    script = (
        "import resource; from pathlib import Path; from tasks.store import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_atomic(Path({str(target)!r}), 'x' * 100000)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert "ToolingError: could not write" in done.stderr
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_forgotten_build_is_no_build_any_more_and_an_unknown_one_is_refused(store: Store) -> None:
    store.save_build(a_build())
    assert store.forget_build("d1").digest == "d1"
    assert store.build("d1") is None
    store.save_build(a_build("d2"))
    with pytest.raises(BadInput, match="there is no build d1") as caught:
        store.forget_build("d1")
    assert "d2" in caught.value.evidence


def test_old_builds_go_but_what_a_stage_serves_retains_or_moves_to_stays(store: Store) -> None:
    releases = []
    for age in range(8):
        build = a_build(f"d{age}").model_copy(update={"built_at": now() - timedelta(days=age)})
        store.build_dir(build.digest).mkdir(parents=True)
        store.save_build(build)
        source = build.source
        release = Release(upstream=source.upstream, tree=source.tree, build=build.digest, argv=(), files={}, alias="m")
        store.save_release(release)
        releases.append(release.id)
    store.save_pointer(StagePointer(stage="production", release=releases[4], retained=(releases[6],)))
    store.save_pointer(StagePointer(stage="staging", release=releases[0]))
    store.open_intent(
        Intent(stage="production", action="promote", before=None, after=releases[7], dossier=None, by="me")
    )
    assert store.prune_builds(8) == []
    assert [build.digest for build in store.prune_builds(2)] == ["d3", "d5"]
    assert sorted(folder.name for folder in (store.root / "builds").iterdir()) == ["d0", "d1", "d2", "d4", "d6", "d7"]
    assert store.prune_builds(2) == []
    assert store.release(releases[3])


def test_what_is_written_is_for_this_user_alone_and_a_file_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    was = os.umask(0)
    try:
        store = Store(tmp_path / "store")
        store.log(Event(kind="promoted", summary="b11434 is in production"))
        patch = tmp_path / "0001.patch"
        patch.write_text("old")
        patch.chmod(0o644)
        write_atomic(patch, "new")
    finally:
        os.umask(was)
    assert store.root.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.root.rglob("*.json")} == {0o600}
    assert patch.stat().st_mode & 0o777 == 0o644


def test_a_file_changed_behind_its_mtime_is_read_again(store: Store, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"one")
    ref = store.put_file(model)
    build = a_build(files={"llama-server": store.content_of(model)})
    store.build_dir(build.digest).mkdir(parents=True)
    binary = store.build_dir(build.digest) / "llama-server"
    for path in (store.file(ref), binary):
        path.write_bytes(b"one")
        stamp = path.stat()
        assert store.content_of(path) == ref.sha256
        with open(path, "r+b") as file:
            file.write(b"two")
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert path.stat().st_mtime_ns == stamp.st_mtime_ns
        assert store.content_of(path) != ref.sha256


def test_a_model_that_was_linked_into_the_store_is_not_read_again(store: Store, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"one")
    ref = store.put_file(model)
    seen = sorted(path.name for path in (store.root / "files/.seen").iterdir())
    assert store.content_of(model) == store.content_of(store.file(ref)) == ref.sha256
    assert sorted(path.name for path in (store.root / "files/.seen").iterdir()) == seen


def test_who_does_not_tell_of_a_holder_that_died_leaves_that_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    told: list[dict[str, object]] = []
    path.write_text('{"pid": 1, "flow_run": "abc"}')
    with hold(path, holder={"name": "stop"}):
        assert json.loads(path.read_text())["name"] == "stop"
    with hold(path, holder={}, stale=told.append):
        pass
    assert told == [{"pid": 1, "flow_run": "abc"}]


def three_releases(store: Store) -> tuple[Release, Release, Release]:
    """Two of one tag, and an earlier one that upstream calls stable, in the store."""
    found = [
        Release(
            upstream=UpstreamRelease(build=build, stable=stable), tree="t", build="d", argv=(), files={}, alias=alias
        )
        for build, stable, alias in ((11434, None, "a"), (11434, None, "b"), (11401, "v0.5.0", "a"))
    ]
    for release in found:
        store.save_release(release)
    return found[0], found[1], found[2]


def test_a_release_is_called_as_people_read_it(store: Store) -> None:
    first, second, stable = three_releases(store)
    for word in ("b11401", "11401", "v0.5.0", stable.id, stable.id[:4]):
        assert store.named(word, ()) == stable
    assert store.named("b11434", (None, first.id)) == first
    assert store.named(second.id[:5], (first.id,)) == second
    with pytest.raises(BadInput, match="2 releases are called b11434") as several:
        store.named("b11434", (first.id, second.id))
    assert {*several.value.evidence.split(", ")} == {first.label, second.label}
    for word in ("b1", "1140", stable.id[:3], "../releases/" + stable.id, "f" * 12):
        with pytest.raises(BadInput, match="there is no release") as none:
            store.named(word, (first.id,))
        assert stable.label in none.value.evidence


def test_the_way_back_is_found_beside_a_release_that_cannot_be_read(store: Store) -> None:
    first, second, stable = three_releases(store)
    (store.root / "releases" / f"{second.id}.json").write_text("{")
    assert store.named("b11401", (stable.id, first.id)) == stable
    assert store.named(first.id, (second.id,)) == first
    with pytest.raises(ToolingError, match=f"{second.id}.json in the store is not a readable Release"):
        store.named("b11402", (stable.id,))
