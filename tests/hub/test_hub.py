"""A model of the Hub from its name to files by their digests, with a Hub on loopback that speaks as the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from flows import plan as planning
from flows.deployed import lacking
from tasks import hub as of_hub
from tasks.doctor import Seen, needs
from tasks.doctor.hub import repository
from tasks.hub import Resolved
from tasks.hub.choice import HubFile, Pin
from tasks.hub.remote import Hub
from tasks.preflight.argv import files, shown
from tasks.release import BadInput, Problem, ToolingError
from tasks.settings import ServerSettings, Settings
from tasks.store import Store
from tests.conftest import REPOSITORY
from tests.doctor.machines import needs_root, small_disk
from tests.fakes.hub import TOKEN, FakeHub, Repository
from tests.hub.conftest import BODIES, NAME
from tests.platforms.stand import until

pytestmark = pytest.mark.wire

MODEL, PROJECTOR = BODIES["m-Q4_K_M.gguf"], BODIES["mmproj-F16.gguf"]
FETCH = """
from tasks import hub
from tasks.settings import load
from tasks.store import Store
settings = load()
hub.fetch(Store(settings.store), settings, lambda *_: None)
"""


def with_server(settings: Settings, **server: Any) -> Settings:
    """The settings with these ones of the server's, checked as those of a file are."""
    more = ServerSettings(**{"hub_model": settings.server.hub_model, **server})
    return settings.model_copy(update={"server": more})


def quiet(*_: object) -> None:
    pass


def fetched(store: Store, settings: Settings) -> dict[str, Path]:
    return files(of_hub.fetch(store, settings, quiet)[0].server)


def elsewhere(settings: Settings) -> subprocess.Popen[str]:
    """Another process that fetches the same."""
    ours = {"STORE": settings.store, "CACHE": settings.cache, "SERVER__HUB_MODEL": settings.server.hub_model}
    env = os.environ | {f"LLAMA_RELEASE_{name}": str(value) for name, value in ours.items()}
    return subprocess.Popen([sys.executable, "-c", FETCH], cwd=REPOSITORY, env=env, text=True, stderr=subprocess.PIPE)


def reads_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that remembers what it has read, and may read no file."""

    def read(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("tasks.store.sha256_of", read)
    return store


# -- from the Hub -----------------------------------------------------------------------------------------------------


def test_the_files_come_here_once_and_are_read_no_more(
    hub: FakeHub, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int, str]] = []
    resolved, found = of_hub.fetch(store, settings, lambda *words: told.append(words))
    there = files(resolved.server)
    commit = hub.repositories[NAME].commit
    assert there == {
        "model": settings.cache / "hub" / NAME / commit / "m-Q4_K_M.gguf",
        "mmproj": settings.cache / "hub" / NAME / commit / "mmproj-F16.gguf",
    }
    assert [path.read_bytes() for path in there.values()] == [MODEL, PROJECTOR]
    assert told[-1][:2] == (0, 0) or told[-1][0] <= told[-1][1]
    assert f"m-Q4_K_M.gguf (0.00 GB, sha256 {sha256(MODEL).hexdigest()[:12]})" in str(found)
    asked = len(hub.seen)
    reads_nothing(store, monkeypatch)
    assert fetched(store, settings) == there
    assert of_hub.known(store, settings) == resolved
    assert {ref.sha256 for ref in map(store.put_file, there.values())} == {
        sha256(body).hexdigest() for body in (MODEL, PROJECTOR)
    }
    assert len(hub.seen) == asked, "nothing is asked of the network again"


def test_the_token_goes_to_the_hub_alone_and_into_no_text(
    hub: FakeHub, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[NAME].private = True
    monkeypatch.setenv("HF_TOKEN", TOKEN + "\n")
    fetched(store, settings)
    assert {each.headers.get("authorization") for each in hub.asked("hub")} == {f"Bearer {TOKEN}"}
    assert len(hub.asked("cdn")) == 2
    assert not any(TOKEN in str(each) for each in hub.asked("cdn"))
    assert not any(TOKEN in path.read_text(errors="replace") for path in store.root.rglob("*") if path.is_file())
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\u00e9")
    with pytest.raises(BadInput, match="cannot be sent in a header") as refused:
        Hub()
    assert TOKEN not in str(refused.value)


def test_a_token_is_not_sent_where_others_can_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for endpoint, sent in {"http://mirror.example": False, "https://mirror.example": True}.items():
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert bool(Hub()._authorization) == sent


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: FakeHub, settings: Settings, store: Store) -> None:
    hub.breaks_off = [300_000, 200_000]
    assert fetched(store, settings)["model"].read_bytes() == MODEL
    assert [each.headers.get("range") for each in hub.asked("cdn")] == [None, "bytes=300000-", "bytes=500000-", None]
    assert list(settings.cache.rglob("*.part")) == []


def test_a_server_that_sends_all_again_is_taken_from_its_start(hub: FakeHub, settings: Settings, store: Store) -> None:
    hub.breaks_off, hub.ranges = [300_000], False
    assert fetched(store, settings)["model"].read_bytes() == MODEL


def test_a_download_that_never_gets_on_ends_and_keeps_what_it_has(
    hub: FakeHub, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.hub.remote.FIRST_WAIT_S", 0.0)
    hub.breaks_off = [300_000, 0, 0, 0, 0]
    with pytest.raises(ToolingError, match=r"the download of m-Q4_K_M\.gguf breaks off") as broken:
        fetched(store, settings)
    assert "300000 of 900000 bytes are here" in broken.value.evidence
    assert "signed" not in str(broken.value), "an address of the CDN is a key to the file"
    assert fetched(store, settings)["model"].read_bytes() == MODEL
    assert hub.asked("cdn")[-2].headers["range"] == "bytes=300000-"


def test_another_digest_is_refused_and_nothing_of_it_is_kept(hub: FakeHub, settings: Settings, store: Store) -> None:
    hub.swapped[sha256(MODEL).hexdigest()] = MODEL[:-1] + b"!"
    with pytest.raises(ToolingError, match="is not the file that the Hub promises"):
        fetched(store, settings)
    assert [path.name for path in settings.cache.rglob("*") if path.is_file()] == [".m-Q4_K_M.gguf.lock"]
    hub.swapped.clear()
    assert fetched(store, settings)["model"].read_bytes() == MODEL


def test_a_kill_at_any_byte_costs_no_byte(hub: FakeHub, settings: Settings, store: Store) -> None:
    hub.holds = (400_000, Event())
    other = elsewhere(settings)
    assert until(lambda: sum(path.stat().st_size for path in settings.cache.rglob("*.part")) >= 262_144, 60)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    hub.holds[1].set()
    hub.holds = None
    (part,) = settings.cache.rglob("*.part")
    there = part.stat().st_size
    assert fetched(store, settings)["model"].read_bytes() == MODEL
    assert hub.asked("cdn")[1].headers["range"] == f"bytes={there}-"


def test_two_processes_at_once_download_once(hub: FakeHub, settings: Settings, store: Store) -> None:
    hub.holds = (400_000, Event())
    other = elsewhere(settings)
    assert until(lambda: len(hub.asked("cdn")) == 1, 60)
    found: list[dict[str, Path]] = []
    waits = Thread(target=lambda: found.append(fetched(store, settings)))
    waits.start()
    hub.holds[1].set()
    waits.join(60)
    assert other.communicate(timeout=60)[1] == ""
    assert found[0]["model"].read_bytes() == MODEL
    assert len(hub.asked("cdn")) == 2, "the model and the projector, each once"


def test_a_split_model_comes_with_all_its_parts(hub: FakeHub, settings: Settings, store: Store) -> None:
    parts = {f"Q4_K_M/m-Q4_K_M-0000{n}-of-00002.gguf": b"GGUF %d" % n * 1000 for n in (1, 2)}
    hub.repositories[NAME] = Repository(parts)
    found = fetched(store, settings)
    assert [found[name].read_bytes() for name in ("model", "model.2")] == list(parts.values())


def test_a_range_that_is_refused_is_fetched_anew(
    hub: FakeHub, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.hub.remote.FIRST_WAIT_S", 0.0)
    hub.breaks_off, hub.unsatisfiable = [300_000], 1
    assert fetched(store, settings)["model"].read_bytes() == MODEL
    ranges = [each.headers.get("range") for each in hub.asked("cdn")]
    assert ranges == [None, "bytes=300000-", None, None]
    hub.repositories[NAME] = Repository({"m-Q4_K_M.gguf": MODEL + b"!"})
    of_hub.update(store, settings)
    hub.breaks_off, hub.unsatisfiable = [300_000] * 9, 9
    with pytest.raises(ToolingError, match="breaks off"):
        fetched(store, settings)


def test_the_order_is_the_trees_as_for_llama_server(hub: FakeHub, settings: Settings, store: Store) -> None:
    bodies = {"m-b-Q4_K_M.gguf": b"GGUF b", "m-a-Q4_K_M.gguf": b"GGUF a", "z/preset.ini": b""}
    hub.repositories[NAME] = Repository(bodies)
    assert fetched(store, settings)["model"].name == "m-a-Q4_K_M.gguf"
    assert all("/tree/" not in each.path or "recursive=true" in each.path for each in hub.asked("hub"))


def test_a_tree_of_several_pages_is_read_to_its_end(hub: FakeHub, settings: Settings, store: Store) -> None:
    hub.page = 2
    assert [path.name for path in fetched(store, settings).values()] == ["m-Q4_K_M.gguf", "mmproj-F16.gguf"]
    assert [each.path.partition("?")[2] for each in hub.asked("hub") if "/tree/" in each.path] == [
        "recursive=true", "recursive=true&cursor=2",
    ]  # fmt: skip


# -- from this machine -------------------------------------------------------------------------------------------------


def in_cache(folder: Path, hub: FakeHub, link: bool = True, without: tuple[str, ...] = ()) -> None:
    """A cache as the Hub's own client and llama-server fill it."""
    commit = hub.repositories[NAME].commit
    top = folder / "models--u--m-GGUF"
    for path in (top / "blobs", top / "refs", top / "snapshots" / commit):
        path.mkdir(parents=True)
    (top / "refs" / "main").write_text(commit)
    for name, body in BODIES.items():
        if name.endswith(".gguf") and name not in without:
            file = top / "snapshots" / commit / name
            if link:
                (top / "blobs" / sha256(body).hexdigest()).write_bytes(body)
                file.symlink_to(Path("../../blobs") / sha256(body).hexdigest())
            else:
                file.write_bytes(body)


def by_home(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    in_cache(tmp_path / "hf" / "hub", hub)


def by_cache(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cached"))
    in_cache(tmp_path / "cached", hub, link=False)


def by_home_of_the_server(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.delenv("LLAMA_CACHE")
    in_cache(tmp_path / "hf" / "hub", hub)
    return {"HF_HOME": str(tmp_path / "hf")}


def by_cache_of_the_server(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch  # noqa: ARG001 - as the others
) -> dict[str, str]:  # fmt: skip
    in_cache(tmp_path / "cached", hub)
    return {"HF_HUB_CACHE": str(tmp_path / "cached")}


def by_llama_of_the_server(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch  # noqa: ARG001 - as the others
) -> dict[str, str]:  # fmt: skip
    in_cache(tmp_path / "other", hub)
    return {"LLAMA_CACHE": str(tmp_path / "other")}


def by_llama(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - as the others
    in_cache(tmp_path / "llama-cache", hub)


def by_old_llama(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    (tmp_path / "llama-cache").mkdir()
    for name, body in BODIES.items():
        (tmp_path / "llama-cache" / f"u_m-GGUF_{name}").write_bytes(body)


@pytest.mark.parametrize("filled", [by_home, by_cache, by_llama, by_old_llama])
def test_a_cache_that_has_the_files_saves_the_download(
    filled: Callable[[Path, FakeHub, pytest.MonkeyPatch], None],
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    filled(tmp_path, hub, monkeypatch)
    found = fetched(store, settings)
    assert [path.read_bytes() for path in found.values()] == [MODEL, PROJECTOR]
    assert not found["model"].is_symlink(), "it stays when the cache is emptied"
    assert hub.asked("cdn") == []
    assert store.file(store.put_file(found["model"])).read_bytes() == MODEL


@pytest.mark.parametrize("filled", [by_home_of_the_server, by_cache_of_the_server, by_llama_of_the_server])
def test_a_cache_that_the_server_is_set_to_counts_too(
    filled: Callable[[Path, FakeHub, pytest.MonkeyPatch], dict[str, str]],
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    named = with_server(settings, env=filled(tmp_path, hub, monkeypatch))
    assert fetched(store, named)["model"].read_bytes() == MODEL
    assert hub.asked("cdn") == []


def test_a_cache_whose_file_is_another_is_not_believed(
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path
) -> None:
    in_cache(tmp_path / "llama-cache", hub)
    blob = tmp_path / "llama-cache" / "models--u--m-GGUF" / "blobs" / sha256(MODEL).hexdigest()
    blob.write_bytes(MODEL[:-1] + b"!")
    assert fetched(store, settings)["model"].read_bytes() == MODEL
    assert len(hub.asked("cdn")) == 1


def test_what_the_store_has_is_not_downloaded_when_the_cache_is_gone(
    hub: FakeHub, settings: Settings, store: Store
) -> None:
    for path in fetched(store, settings).values():
        store.put_file(path)
        path.unlink()
    asked = len(hub.seen)
    assert fetched(store, settings)["model"].read_bytes() == MODEL
    assert len(hub.seen) == asked


def test_offline_a_cache_is_enough_and_without_one_it_is_said(
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ToolingError, match=f"{NAME} is not on this machine, and the Hub can't be asked") as refused:
        fetched(store, settings)
    assert "ConnectError" in refused.value.evidence
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ToolingError, match="can't be asked") as refused:
        fetched(store, settings)
    assert "HF_HUB_OFFLINE is set" in refused.value.evidence
    in_cache(tmp_path / "llama-cache", hub)
    assert fetched(store, settings)["model"].read_bytes() == MODEL
    assert hub.seen == []


@pytest.mark.parametrize("server", [{"flags": ("--offline",)}, {"env": {"LLAMA_ARG_OFFLINE": "1"}}])
def test_a_server_that_is_to_be_offline_has_the_hub_not_asked(
    server: dict[str, Any], hub: FakeHub, settings: Settings, store: Store, tmp_path: Path
) -> None:
    said = refused_with(store, with_server(settings, **server))
    assert said.what == f"{NAME} is not on this machine, and the Hub can't be asked for it"
    assert said.evidence == "--offline is said to llama-server"
    in_cache(tmp_path / "llama-cache", hub)
    assert fetched(store, with_server(settings, **server))["model"].read_bytes() == MODEL
    assert hub.seen == []


# -- what a cache told -------------------------------------------------------------------------------------------------


def pinned_by_cache(
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *without: str
) -> dict[str, Path]:
    """What a first upgrade without the Hub has, from a cache that has not all; the Hub answers from then on."""
    in_cache(tmp_path / "llama-cache", hub, without=without)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    found = fetched(store, settings)
    pin = store.hub_pin(NAME, Pin)
    assert pin
    assert not pin.told_by_hub
    assert fetched(store, settings) == found, "and again, as long as the Hub does not answer"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    return found


def test_what_a_cache_told_is_completed_when_the_hub_answers(
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pinned_by_cache(hub, settings, store, tmp_path, monkeypatch, "m-Q8_0.gguf")
    assert of_hub.look(store, settings)
    pin = store.hub_pin(NAME, Pin)
    assert pin
    assert not pin.told_by_hub, "to look pins nothing"
    assert fetched(store, settings) == before
    pin = store.hub_pin(NAME, Pin)
    assert pin
    assert pin.told_by_hub
    assert [file.path for file in pin.files] == ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf"]
    asked = len(hub.seen)
    assert fetched(store, with_server(settings, hub_model=f"{NAME}:Q8_0"))["model"].name == "m-Q8_0.gguf"
    assert len(hub.asked("hub")) == asked + 1, "the file alone is asked for"


@pytest.mark.parametrize("lacking", ["mmproj-F16.gguf", "m-Q4_K_M.gguf"])
def test_what_the_cache_lacked_is_told_and_served_when_somebody_says_so(
    lacking: str, hub: FakeHub, settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_server(settings, hub_model=NAME)
    before = pinned_by_cache(hub, settings, store, tmp_path, monkeypatch, lacking)
    pin = store.hub_pin(NAME, Pin)
    resolved, found = of_hub.fetch(store, settings, quiet)
    assert files(resolved.server) == before, "what is released does not change unseen"
    assert store.hub_pin(NAME, Pin) == pin
    seen = repository(settings, store)
    assert isinstance(seen, Seen)
    for said in (str(found), seen.evidence):
        pinned, _, hub_has = said.partition("; by the Hub that commit has ")
        assert lacking not in pinned
        assert lacking in hub_has.partition(", where ")[0]
        assert before["model"].name in hub_has.partition(", where ")[2]
    assert "`llama-release hub update`" in seen.todo
    was, is_now = of_hub.update(store, settings)
    assert was
    assert was.pin.commit == is_now.pin.commit
    assert lacking in [path.name for path in fetched(store, settings).values()]
    assert not isinstance(repository(settings, store), Seen)


def test_what_the_cache_could_not_give_is_taken_from_the_very_commit(
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned_by_cache(hub, with_server(settings, hub_model=NAME), store, tmp_path, monkeypatch, "m-Q4_K_M.gguf")
    assert fetched(store, settings)["model"].read_bytes() == MODEL


def test_a_commit_that_the_hub_has_no_longer_is_served_and_told(
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pinned_by_cache(hub, settings, store, tmp_path, monkeypatch)
    hub.repositories[NAME] = Repository({**BODIES, "README.md": b"# squashed"})
    resolved, found = of_hub.fetch(store, settings, quiet)
    assert files(resolved.server) == before
    assert "the Hub does not say whether that is all" in str(found)


# -- what can't be had -------------------------------------------------------------------------------------------------


def refused_with(store: Store, settings: Settings) -> Problem:
    with pytest.raises(Problem) as refused:
        of_hub.fetch(store, settings, quiet)
    return refused.value


def test_each_refusal_says_what_is_known_and_what_to_do(
    hub: FakeHub, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository_, other = hub.repositories[NAME], settings.model_copy(update={"server": ServerSettings(hub_model="u/x")})
    said = refused_with(store, other)
    assert isinstance(said, BadInput)
    assert said.what == "the Hub has no u/x, or not for us"
    assert "HF_TOKEN is not set" in said.evidence
    repository_.private = True
    assert refused_with(store, settings).what == f"the Hub has no {NAME}, or not for us"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    said = refused_with(store, other)
    assert "RepoNotFound" in said.evidence
    assert "the token in HF_TOKEN was sent" in said.evidence
    monkeypatch.setenv("HF_TOKEN", "hf_" + "z" * 36)
    assert refused_with(store, settings).what == "the Hub refuses the token"
    monkeypatch.delenv("HF_TOKEN")
    repository_.private, repository_.gated = False, True
    said = refused_with(store, settings)
    assert said.what == f"{NAME} is not for everybody"
    assert said.todo.startswith(f"accept the terms on {hub.url}/{NAME}, and put a token of that account into HF_TOKEN")
    assert hub.asked("cdn") == []
    repository_.gated, hub.down = False, 429
    said = refused_with(store, settings)
    assert isinstance(said, ToolingError)
    assert "its limit is higher" in said.todo
    hub.down, hub.is_page = 0, True
    assert refused_with(store, settings).what == f"{NAME} is not on this machine, and the Hub can't be asked for it"
    assert store.hub_pin(NAME, Pin) is None, "a refusal pins nothing"


def test_variables_that_cannot_be_meant_are_said_at_once(
    hub: FakeHub, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("socks5://127.0.0.1:1", "gopher://127.0.0.1:1"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        said = refused_with(store, settings)
        assert isinstance(said, BadInput)
        assert "can't be asked through what the proxy's" in said.what
    monkeypatch.delenv("ALL_PROXY")
    for endpoint in ("mirror.example", "localhost:8080", "http://", "http://[::1"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        said = refused_with(store, settings)
        assert isinstance(said, BadInput)
        assert said.what == f"HF_ENDPOINT is no address: {endpoint}".rstrip("/")
    assert hub.seen == []


@needs_root
def test_a_disk_without_room_is_seen_before_the_first_byte(
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small", "size=1m") as small:
        said = refused_with(store, settings.model_copy(update={"cache": small / "cache"}))
        assert said.what == f"the disk has no room for {NAME}:Q4_K_M"
        assert hub.asked("cdn") == []
        pin, body = Hub().listing(NAME), b"GGUF" * 500_000
        file = HubFile(path="m-Q4_K_M.gguf", sha256=sha256(body).hexdigest(), size_bytes=len(body))
        hub.swapped[sha256(MODEL).hexdigest()] = body
        with pytest.raises(ToolingError, match="the disk is full") as full:
            Hub().download(pin, file, small / "part", small / "m.gguf", quiet)
        assert "it goes on from there" in full.value.todo


# -- the pin -----------------------------------------------------------------------------------------------------------


def test_a_repository_that_moves_on_changes_nothing_until_somebody_says_so(
    hub: FakeHub, settings: Settings, store: Store
) -> None:
    before = fetched(store, settings)
    old = hub.repositories[NAME].commit
    hub.repositories[NAME] = Repository({**BODIES, "m-Q4_K_M.gguf": b"GGUF new"})
    assert fetched(store, settings) == before
    seen = repository(settings, store)
    assert isinstance(seen, Seen)
    assert "by now, with m-Q4_K_M.gguf (0.00 GB, sha256 " in seen.evidence
    assert f"where m-Q4_K_M.gguf (0.00 GB, sha256 {sha256(MODEL).hexdigest()[:12]})" in seen.evidence
    assert "`llama-release hub update`" in seen.todo
    was, is_now = of_hub.update(store, settings)
    assert was
    assert (was.pin.commit, is_now.pin.commit) == (old, hub.repositories[NAME].commit)
    assert of_hub.known(store, settings) == settings, "it is not here yet"
    assert fetched(store, settings)["model"].read_bytes() == b"GGUF new"


def test_who_pins_second_goes_on_with_what_the_first_pinned(
    hub: FakeHub, settings: Settings, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "llama-cache").mkdir()
    ours, newer = hub.repositories[NAME], Repository({"m-Q4_K_M.gguf": b"GGUF new"})
    (tmp_path / "llama-cache" / "u_m-GGUF_m-Q4_K_M.gguf").write_bytes(b"GGUF new")
    hub.repositories[NAME] = newer
    pin = Hub().listing(NAME)
    hub.repositories[NAME] = ours
    hub.seen.clear()
    with store.lock("hub", holder={"doing": "a test"}):
        found: list[Resolved] = []
        waits = Thread(target=lambda: found.append(of_hub.fetch(store, settings, quiet)[1]))
        waits.start()
        assert until(lambda: any("/tree/" in each.path for each in hub.asked("hub")), 60)
        store.save_hub_pin(NAME, pin)
    waits.join(60)
    assert found[0].pin == pin == store.hub_pin(NAME, Pin)
    assert found[0].path(found[0].chosen.model[0]).read_bytes() == b"GGUF new"


def test_another_quantization_is_taken_from_the_pinned_commit(hub: FakeHub, settings: Settings, store: Store) -> None:
    fetched(store, settings)
    old = hub.repositories[NAME].commit
    hub.repositories[NAME] = Repository({**BODIES, "m-Q8_0.gguf": b"GGUF new", "m-Q2_K.gguf": b"GGUF two"})
    other = settings.model_copy(update={"server": ServerSettings(hub_model=f"{NAME}:Q8_0")})
    found = of_hub.look(store, other)
    assert found
    assert found.pin.commit == old
    said = refused_with(store, other)
    assert said.what == f"{NAME} has no longer what was pinned of it"
    with pytest.raises(BadInput, match="`llama-release hub update`"):
        of_hub.look(store, settings.model_copy(update={"server": ServerSettings(hub_model=f"{NAME}:Q2_K")}))


# -- before it is here -------------------------------------------------------------------------------------------------


def test_what_only_looks_downloads_and_pins_nothing(hub: FakeHub, settings: Settings, store: Store) -> None:
    said, problem = planning._of_hub(store, settings)
    assert problem == ""
    assert said.endswith(f"of commit {hub.repositories[NAME].commit[:12]}; 0.00 GB to be fetched")
    assert "the upgrade has 0.00 GB to fetch" in str(repository(settings, store))
    assert hub.asked("cdn") == []
    assert store.hub_pin(NAME, Pin) is None
    asked = len(hub.seen)
    words = list(shown(settings))
    assert words[words.index("--hf-repo") + 1] == f"{NAME}:Q4_K_M"
    assert of_hub.known(store, settings) == settings
    assert len(hub.seen) == asked
    assert needs.served(settings) == f"{NAME}:Q4_K_M (the upgrade fetches it)"
    assert not [line for line in lacking(settings) if "no model" in line]
    hub.down = 503
    assert planning._of_hub(store, settings)[0] == f"{NAME} is not on this machine, and the Hub can't be asked for it"


def test_the_command_pins_and_says_what_changed(hub: FakeHub, settings: Settings, store: Store) -> None:
    ours = {"STORE": settings.store, "CACHE": settings.cache, "SERVER__HUB_MODEL": settings.server.hub_model}
    env = os.environ | {f"LLAMA_RELEASE_{name}": str(value) for name, value in ours.items()}

    def update() -> str:
        return subprocess.run(
            [sys.executable, "-m", "flows", "hub", "update"], cwd=REPOSITORY, env=env, capture_output=True, text=True,
            check=True,
        ).stdout  # fmt: skip

    first = hub.repositories[NAME].commit
    assert f"of commit {first[:12]}" in update()
    assert update().startswith("nothing newer")
    hub.repositories[NAME] = Repository({**BODIES, "README.md": b"# better"})
    assert f", was {first[:12]} with the same files" in update()
    assert [event.kind for event in store.ledger()] == ["hub.updated", "hub.updated"]
    assert json.loads((store.root / "hub" / f"{NAME}.json").read_text())["commit"] == hub.repositories[NAME].commit
    assert hub.asked("cdn") == []
