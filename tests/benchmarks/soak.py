"""Release cycles with random faults while clients stream from production: is every answer from one verified release?

A cycle deploys a release to staging, promotes it by the real compare-and-swap, and now and then rolls back. A fault
of a random kind strikes somewhere in most cycles. Each release has words of its own, so an answer that is cut short,
or mixed from two, shows.

    python -m tests.benchmarks soak 200
"""

from __future__ import annotations

import json
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from tasks.contracts import scripted
from tasks.contracts.trials import with_model
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.snapshot import snapshots_folder
from tasks.process import die_with_parent
from tasks.promote import back_to, lift_hold, recover, swap, to_staging
from tasks.release import Approval, Dossier, Problem, Release, ToolingError, Verdict, Verification
from tasks.settings import LocalSettings, ServerSettings, Settings, load
from tasks.store import Store
from tests.benchmarks.released import NoRelease, copy_build

CLIENTS = 3
KEY_ENV = "LLAMA_RELEASE_SOAK_KEY"
ROLLBACK_EVERY = 5
FAULTS = ("mover killed", "server killed", "activator killed", "snapshot damaged", "disk full", "server won't start")
FAULT_SHARE = 0.6
REPOSITORY = Path(__file__).parents[2]


def platform_at(root: Path, cache: Path) -> LocalPlatform:
    local = LocalSettings(staging_port=0, production_port=0, idle_s=600, start_timeout_s=120)
    return LocalPlatform(Settings(store=root, cache=cache, local=local, server=ServerSettings(api_key_env=KEY_ENV)))


# -- releases -------------------------------------------------------------------------------------------


def own_words(number: int) -> str:
    """What the release of this number answers."""
    return " ".join(f"r{number}w{n}" for n in range(12))


def releases_of(store: Store, sources: Sequence[Release], folder: Path) -> list[Release]:
    """Each source with a scripted model of its own words, and a name to match."""
    made = []
    for number, source in enumerate(sources):
        script = scripted.Script((f"model\n{own_words(number)}<turn|>",))
        model = scripted.build(script, folder / f"{number}.gguf")
        release = with_model(store, source, model)
        argv = list(release.argv)
        argv[argv.index("--alias") + 1] = f"release-{number}"
        release = release.model_copy(update={"argv": tuple(argv), "alias": f"release-{number}"})
        store.save_release(release)
        made.append(release)
    return made


def wont_start(release: Release) -> Release:
    return release.model_copy(update={"argv": (*release.argv, "--no-such-flag")})


# -- the process that moves, which is killed ------------------------------------------------------------


def move(platform: LocalPlatform, release: Release, back: bool) -> None:
    """One cycle: what was left open is put right, then staging, promotion, and perhaps a rollback."""
    store = platform.store
    recover(platform)
    if store.pointer("production").hold:
        lift_hold(store, "soak")
    to_staging(platform, release)
    current = store.pointer("production").release
    if current != release.id:
        seen = Verification(name="soak", release=release.id, verdict=Verdict.PASSED, summary="verified")
        dossier = Dossier(release=release, required=("soak",), verifications=(seen,))
        agreed = Approval(
            release=release.id, dossier=dossier.digest, expected=current, decision="approve", approver="soak",
            version=store.pointer("production").version,
        )  # fmt: skip
        swap(platform, dossier, agreed, retain=2)
    if back and store.pointer("production").retained:
        back_to(platform, None, "soak", "now and then", retain=2)
        lift_hold(store, "soak")


def mover(root: str, cache: str) -> None:
    """Moves as it is told, line by line, until its input ends; says `{}` or the problem after each."""
    platform = platform_at(Path(root), Path(cache))
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for line in sys.stdin:
        told = json.loads(line)
        # no file may grow: each write fails as on a full disk, with another errno
        resource.setrlimit(resource.RLIMIT_FSIZE, (0 if told["full"] else most, most))
        try:
            move(platform, platform.store.get_release(told["release"]), told["back"])
            said = {}
        except Problem as problem:
            said = {"problem": str(problem)}
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        print(json.dumps(said), flush=True)


@dataclass
class Mover:
    """That process, started again when it was killed."""

    root: Path
    cache: Path
    process: subprocess.Popen[str] | None = None

    def tell(self, release: Release, *, back: bool, full: bool = False) -> dict[str, Any] | None:
        """What came of it; None when the process was killed over it."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.soak", str(self.root), str(self.cache)], cwd=REPOSITORY,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True, preexec_fn=die_with_parent,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        stdin, stdout = _pipes(self.process)
        with suppress(BrokenPipeError):
            print(json.dumps({"release": release.id, "back": back, "full": full}), file=stdin, flush=True)
        line = stdout.readline()
        return dict(json.loads(line)) if line.endswith("\n") else None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


# -- those who ask --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One request: when, and what came of it."""

    began: float
    ended: float
    number: int | None
    """The release that answered, whole; None when there was no whole answer."""
    wrong: str = ""
    refused: bool = False
    """Nobody listened: it was not sent."""


@dataclass
class Clients:
    """Several who stream from production all the time."""

    base_url: str
    key: str
    fingerprints: dict[str, str]
    """Alias -> what the binary of that release calls itself."""
    asked: list[Asked] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(180)

    def _ask(self) -> None:
        while not self._over.is_set():
            self.asked.append(self.once())
            self._over.wait(0.05)

    def once(self) -> Asked:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 64, "stream": True}
        began, seen, done = time.monotonic(), [], False
        try:
            with httpx.stream(
                "POST", f"{self.base_url}/v1/chat/completions", json=body, timeout=180, trust_env=False,
                headers={"Authorization": f"Bearer {self.key}"},
            ) as answer:  # fmt: skip
                if answer.status_code != 200:
                    answer.read()
                    return Asked(began, time.monotonic(), None, f"{answer.status_code} {answer.text[:300]}")
                for line in answer.iter_lines():
                    done = done or line == "data: [DONE]"
                    if line.startswith("data: {"):
                        seen.append(json.loads(line[6:]))
        except httpx.ConnectError as error:
            return Asked(began, time.monotonic(), None, repr(error), refused=True)
        except httpx.HTTPError as error:
            return Asked(began, time.monotonic(), None, f"{error!r} after {len(seen)} events")
        wrong = "" if done else f"it ended after {len(seen)} events"
        number, why = self._whose(seen)
        return Asked(began, time.monotonic(), None if wrong else number, wrong or why)

    def _whose(self, events: list[dict[str, Any]]) -> tuple[int | None, str]:
        """The release whose words, alias and binary these all are."""
        text = "".join((event["choices"][0]["delta"].get("content") or "") for event in events if event["choices"])
        who = {(event["model"], event["system_fingerprint"]) for event in events}
        for number, (alias, fingerprint) in enumerate(self.fingerprints.items()):
            if who == {(alias, fingerprint)} and text.strip() == own_words(number):
                return number, ""
        return None, f"no release says {text!r} as {who}"


@dataclass
class Reader:
    """One who reads production's pointer all the time."""

    store: Store
    whole: int = 0
    torn: int = 0

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        over = threading.Event()

        def read() -> None:
            while not over.wait(0.002):
                try:
                    self.store.pointer("production")
                    self.whole += 1
                except ToolingError:
                    self.torn += 1

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()


# -- faults ---------------------------------------------------------------------------------------------


@dataclass
class Soak:
    """What happened, and what it did."""

    platform: LocalPlatform
    releases: list[Release]
    mover: Mover
    clients: Clients
    chance: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    downs: list[tuple[float, float]] = field(default_factory=list)
    """When a process that serves production was killed, and when production listened again."""
    cycles: list[tuple[float, set[int]]] = field(default_factory=list)
    """When each cycle began, and which releases production may answer from until the next."""
    held: Counter[str] = field(default_factory=Counter)
    """How the cycles came out."""

    def cycle(self, number: int) -> None:
        store, target = self.platform.store, self.releases[number % len(self.releases)]
        current = store.pointer("production")
        known = {current.release, target.id, *current.retained}
        self.cycles.append((time.monotonic(), {n for n, r in enumerate(self.releases) if r.id in known}))
        fault = self.chance.choice(FAULTS) if self.chance.random() < FAULT_SHARE else ""
        back = number % ROLLBACK_EVERY == ROLLBACK_EVERY - 1
        if fault:
            self.faults[fault] += 1
        if fault == "snapshot damaged":
            self._damage()
        if fault == "server won't start":
            bad = wont_start(target)
            store.save_release(bad)
            said = self.mover.tell(bad, back=False)
            assert said and "no-such-flag" in said["problem"], said
        striking = self._striking(fault)
        said = self.mover.tell(target, back=back, full=fault == "disk full")
        if striking:
            striking.join()
        self.held["killed" if said is None else "refused" if said else "moved"] += 1
        if said is None or said:
            self.platform.ensure("production")
            again = self.mover.tell(target, back=False)
            assert again == {}, f"after {fault or 'no fault'}: first {said}, then {again}"
        serving = store.pointer("production").release
        self.cycles.append((time.monotonic(), {n for n, r in enumerate(self.releases) if r.id == serving}))
        assert store.intent("production") is None

    def _striking(self, fault: str) -> threading.Thread | None:
        strikes: dict[str, Callable[[], None]] = {
            "mover killed": self.mover.kill,
            "server killed": self._kill_server,
            "activator killed": self._kill_activator,
        }
        if fault not in strikes:
            return None
        delay = self.chance.uniform(0, 2.0)
        thread = threading.Timer(delay, strikes[fault])
        thread.start()
        return thread

    def _kill_server(self) -> None:
        status = self.platform.status("production")
        if status and status.server_pid:
            began = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(status.server_pid, signal.SIGKILL)
            self.downs.append((began, time.monotonic() + 0.05))

    def _kill_activator(self) -> None:
        status = self.platform.status("production")
        if status:
            began = time.monotonic()
            os.kill(status.pid, signal.SIGKILL)
            self.platform.ensure("production")
            self.downs.append((began, time.monotonic()))

    def _damage(self) -> None:
        """Flip bytes in the middle of each image that production could come back from, and let it go idle."""
        for image in snapshots_folder(self.platform.store.root, "production").glob("*/images/pages-*.img"):
            with open(image, "r+b") as file:
                file.seek(image.stat().st_size // 2)
                file.write(secrets.token_bytes(64))
        with suppress(ToolingError):
            self.platform.idle("production")

    # -- what it came to --------------------------------------------------------------------------------

    def permitted(self, asked: Asked) -> set[int]:
        """Which releases production was, at some time while this request was under way."""
        starts = [at for at, _ in self.cycles]
        after = [*starts[1:], float("inf")]
        return {
            number
            for (begin, numbers), end in zip(self.cycles, after, strict=True)
            if begin <= asked.ended and end >= asked.began
            for number in numbers
        }

    def told(self) -> tuple[dict[str, int], list[str]]:
        """Counts of requests, and the lost ones in words."""
        counts, lost = Counter[str](), []
        for asked in self.clients.asked:
            if asked.number is not None and asked.number in self.permitted(asked):
                counts["served"] += 1
            elif asked.number is not None:
                lost.append(f"answered by release {asked.number}, production was {self.permitted(asked)}")
            elif any(begin <= asked.ended and end >= asked.began for begin, end in self.downs):
                counts["refused while the activator was away" if asked.refused else "cut by a killed process"] += 1
            else:
                lost.append(asked.wrong)
        return dict(counts) | {"lost": len(lost)}, lost


@contextmanager
def soaking(sources: Sequence[Release], known: Store, cache: Path, seed: int) -> Iterator[Soak]:
    """Production serves the first of these releases, each with words of its own, and clients ask it."""
    with tempfile.TemporaryDirectory(prefix="llama-release-soak-") as folder:
        root = Path(folder) / "store"
        before = os.environ.get(KEY_ENV)
        os.environ[KEY_ENV] = key = secrets.token_urlsafe(24)
        platform = platform_at(root, cache)
        mover_process = Mover(root, cache)
        try:
            for digest in {release.build for release in sources}:
                copy_build(known, platform.store, digest)
            releases = releases_of(platform.store, sources, Path(folder))
            assert mover_process.tell(releases[0], back=False) == {}
            names = {r.alias: f"{r.upstream.tag}-{r.tree[:9]}" for r in releases}
            clients = Clients(platform.endpoint("production").base_url, key, names)
            soak = Soak(platform, releases, mover_process, clients, random.Random(seed))
            soak.cycles.append((time.monotonic(), {0}))
            with clients.asking():
                yield soak
        finally:
            mover_process.kill()
            platform.shut_down()
            os.environ.pop(KEY_ENV)
            if before is not None:
                os.environ[KEY_ENV] = before


def main(cycles: int = 200, seed: int = 2026) -> Iterator[str]:
    """Lines of the result, on the latest builds in the store that the settings name. Exits 1 when a request is lost."""
    settings = load()
    known = Store(settings.store)
    newest = {release.build: release for release in reversed(known.releases()) if known.build(release.build)}
    if not newest:
        raise NoRelease(known)
    sources = [*newest.values()][-2:]
    sources = [sources[n % len(sources)] for n in range(3)]
    began = time.monotonic()
    with soaking(sources, known, settings.cache, seed) as soak, Reader(soak.platform.store).reading() as reader:
        yield f"{len(sources)} releases of {', '.join(dict.fromkeys(s.upstream.tag for s in sources))}, seed {seed}"
        for number in range(1, cycles + 1):
            soak.cycle(number)
            if number % 20 == 0:
                yield f"{number} cycles, {time.monotonic() - began:.0f} s: {soak.told()[0]}"
    counts, lost = soak.told()
    yield f"cycles    {cycles} in {time.monotonic() - began:.0f} s: {dict(soak.held)}"
    yield f"faults    {dict(soak.faults.most_common())}"
    yield f"kills     {sum(count for what, count in soak.faults.items() if what.endswith('killed'))}"
    yield f"pointer   {reader.whole} times whole, {reader.torn} times not"
    for what, count in counts.items():
        yield f"requests  {count:6} {what}"
    yield from (f"lost: {what}" for what in lost[:20])
    if lost or reader.torn:
        sys.exit(1)


if __name__ == "__main__":
    mover(*sys.argv[1:])
