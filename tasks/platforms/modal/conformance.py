"""What this account's Modal does, held against what this program assumes: `llama-release conformance`.

Nothing here was run on Modal by whoever wrote it; the first run of an account tells. What it finds is kept in the
store: `doctor` shows it, deadlines follow it, and the fake of the tests can be set by it. A run that was killed goes on
with the starts that it had; what it deployed is removed at the end, and the next run begins by it.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from statistics import median
from threading import Event
from typing import Any

import httpx
import modal
from pydantic import Field

from modal_app.settings import BAKED, ModalSettings
from tasks.platforms import Progress
from tasks.platforms.modal import apps, starts
from tasks.platforms.modal.account import command, told
from tasks.platforms.modal.cost import is_priced, usd
from tasks.platforms.modal.tools import DEPLOY_LIMIT_S
from tasks.release import Model, Problem, ToolingError, now
from tasks.store import Store

PATH, PARTLY = "conformance.json", "conformance-begun.json"
STARTS = 12
START_S, REST_S = 30.0, 180.0
"""About what a start takes, and all the rest, for the price that is told before."""
MINUTES = 15
"""About what it takes, the time included in which nothing is up."""
UP_LIMIT_S = 720.0
STREAM_S = 45
"""Longer than a container has to end where no grace is honoured, and shorter than the grace: what is paid for."""
POLL_S = 0.5
AFTER_S = 10.0
"""How long a client goes on asking after the new version has answered."""
REFUSED_S = 20.0
KNOWN_S = 60.0
"""How long the address of what was just deployed may not be known."""
LATE_S = 5.0
"""How late the log's lines may be, before the starts are judged."""
PROXY = "proxy authentication"
TOKEN = "whether the proxy token reaches the server"
SLOW_MB_PER_S = 300.0
CLOCK_S = 5.0


class Start(Model):
    """One container that was started from nothing, and how it came up."""

    kind: str
    worker: str = ""
    seconds: float = 0.0
    answered_s: float = Field(default=0.0, description="from the first request to the first answer")
    gpu: str = ""
    memory_mb: int = 0
    refused: tuple[str, ...] = Field(default=(), description="what requests got until one was answered")
    clock_s: float = Field(default=0.0, description="how far its clock is ahead of ours")
    task: str = Field(default="", description="the container's id")
    snapshot: str = Field(default="", description="which one it took, or came back from")
    at: datetime | None = Field(default=None, description="when it was up, by its own clock")


class Item(Model):
    """One thing that this program relies on."""

    name: str
    assumed: str
    seen: str
    as_assumed: bool | None = Field(description="None: it could not be seen here")
    follows: str = Field(default="", description="what to do where it is otherwise")


class Conformance(Model):
    """What a run found: conformance.json in the store."""

    sdk: str
    gpu: str
    snapshots: str
    regions: tuple[str, ...] = ()
    starts: tuple[Start, ...] = ()
    items: tuple[Item, ...] = ()
    at: datetime = Field(default_factory=now)

    @property
    def about(self) -> tuple[object, ...]:
        """What it holds for. The driver is Modal's to change, and part of a kind of worker."""
        return self.sdk, self.gpu, self.snapshots, self.regions

    @property
    def boot_s(self) -> float:
        """The longest that a container took to answer whole, seconds; 0 when none was seen."""
        return max((start.answered_s for start in self.starts if start.kind != "restored"), default=0.0)

    @property
    def differences(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.as_assumed is False)


def load(store: Store) -> Conformance | None:
    """The latest finished run, or None; None also when another version of this program wrote it."""
    return _read(store, PATH)


def price(settings: ModalSettings) -> str:
    """What a run does and about what it costs, in words."""
    does = f"{STARTS} cold starts and {len(LOOKS)} looks, {MINUTES} minutes"
    if not is_priced(settings):
        return f"{does} and a price that is not known ({settings.gpu} is not in modal.prices_usd_per_s)"
    usd_ = usd(settings, STARTS * START_S + REST_S, settings.gpu or None, settings.server_cpu, 1024)
    return f"{does} and about {usd_:.2f} USD"


def run(store: Store, settings: ModalSettings, headers: Mapping[str, str], progress: Progress) -> Conformance:
    """Deploy the app, ask it, remove it; what was found, kept in the store.

    Raises ToolingError when it does not come up at all, or another run is under way; what could not be seen besides is
    an item that says so.
    """
    with store.lock("conformance", holder={"doing": "finding out what Modal does", "since": now().isoformat()}):
        return _run(store, settings, headers, progress)


def _run(store: Store, settings: ModalSettings, headers: Mapping[str, str], progress: Progress) -> Conformance:
    begun = _read(store, PARTLY)
    fresh = Conformance(
        sdk=modal.__version__, gpu=settings.gpu, snapshots=settings.snapshots, regions=settings.compute_region
    )
    if begun is None or begun.about != fresh.about:
        begun = fresh
    found = list(begun.starts)
    site = Site(settings, headers)
    try:
        site.deploy("1")
        while len(found) < STARTS:
            progress(len(found), STARTS, f"cold starts: {_counted(found)}")
            found = with_failures([*found, site.start()], site.endings())
            store.files.write(PARTLY, begun.model_copy(update={"starts": tuple(found)}).model_dump_json())
        time.sleep(LATE_S)  # the log's lines of the last one
        found = with_failures(found, site.endings())
        items = [*_of_starts(found, settings)]
        for number, (name, look) in enumerate(LOOKS.items(), 1):
            progress(number, len(LOOKS), name)
            items.append(_looked(name, look, site))
    finally:
        site.remove()
    done = fresh.model_copy(update={"starts": tuple(found), "items": tuple(items)})
    store.files.write(PATH, done.model_dump_json(indent=1) + "\n")
    store.files.remove(PARTLY)
    return done


def _read(store: Store, path: str) -> Conformance | None:
    text = store.files.read(path)
    try:
        return Conformance.model_validate_json(text) if text else None
    except ValueError:
        return None


class Site:
    """The app while it is deployed."""

    def __init__(self, settings: ModalSettings, headers: Mapping[str, str]) -> None:
        self.settings, self.headers = settings, dict(headers)
        self.name = f"{settings.app}-conformance"
        self._log = starts.Log(settings, self.name)
        self._starts = 0

    def endings(self) -> list[starts.Ending]:
        """The containers that failed so far, as far as the log has it, and but for those that were stopped here."""
        self._starts += 1  # read anew
        return self._log.endings(self._starts)

    def deploy(self, variant: str) -> None:
        command(
            "deploy", "-m", "modal_app.conformance", environment=self.settings.environment, limit_s=DEPLOY_LIMIT_S,
            env={BAKED: self.settings.baked()[BAKED], "LLAMA_RELEASE_CONFORMANCE": variant},
        )  # fmt: skip

    @property
    def url(self) -> str:
        found = apps.url(self.settings, self.name)
        if found is None:
            raise ToolingError(f"Modal gives no address for {self.name}", todo="run it again")
        return found

    def get(self, path: str = "/", *, proxied: bool = True, timeout_s: float = 60.0) -> httpx.Response:
        headers = self.headers if proxied else {}
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=timeout_s, trust_env=False)

    def idle(self) -> None:
        """No container is up from here on. Raises ToolingError when some stay."""
        for _ in range(int(UP_LIMIT_S / POLL_S)):
            running = apps.containers(self.settings, self.name)
            if not running:
                return
            for container in running:
                self._log.ours.add(container.id)
                apps.stop_container(container.id)
            time.sleep(POLL_S)
        raise ToolingError(
            f"{self.name} did not go idle", todo=f"`modal app stop {self.name} --yes`, then run it again"
        )

    def up(self) -> tuple[dict[str, Any], list[str], float]:
        """(what the container says, what requests got before, seconds). Raises ToolingError when none comes up."""
        began, refused = time.monotonic(), list[str]()
        while time.monotonic() - began < UP_LIMIT_S:
            try:
                answer = self.get()
                if answer.status_code == 200:
                    said: dict[str, Any] = answer.json()
                    said["ahead_s"] = said["now"] - time.time()
                    return said, refused, time.monotonic() - began
                early = answer.status_code == 404 and time.monotonic() - began < KNOWN_S
                if answer.status_code in (401, 403, 404) and not early:
                    raise ToolingError(
                        f"{self.name} is refused, and nothing starts",
                        evidence=f"{answer.status_code} {answer.text[:200]}",
                        todo="set the two variables of modal.proxy_key_env and modal.proxy_secret_env to a proxy token "
                        "of this workspace",
                    )  # fmt: skip
                refused.append(str(answer.status_code))
            except httpx.TimeoutException:
                refused.append("held")
            except httpx.TransportError:
                refused.append("reset")
            time.sleep(POLL_S)
        raise ToolingError(
            f"{self.name} did not come up in {UP_LIMIT_S:.0f} s", evidence=", ".join(sorted(set(refused))),
            todo=f"`modal app logs {self.name}`; is there a free {self.settings.gpu}?",
        )  # fmt: skip

    def start(self) -> Start:
        """One start from nothing, as what answered says itself."""
        self.idle()
        said, refused, seconds = self.up()
        return Start(
            kind=said["kind"], worker=said["worker"], seconds=said["seconds"], answered_s=round(seconds, 1),
            gpu=said["gpu"], memory_mb=said["memory_mb"], refused=tuple(refused), clock_s=round(said["ahead_s"], 1),
            task=said["task"], snapshot=said["snapshot"], at=datetime.fromtimestamp(said["at"], UTC),
        )  # fmt: skip

    def remove(self) -> None:
        """Nothing of it is left; what can't be removed, `doctor` names."""
        try:
            apps.stop(self.settings, self.name)
            with told("removing what the conformance run wrote"):
                modal.Dict.objects.delete(
                    f"{self.name}-boots", allow_missing=True, environment_name=self.settings.environment
                )
        except Problem:
            return


# -- what the starts tell ---------------------------------------------------------------------------------------------


def _counted(found: list[Start]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(start.kind for start in found).items()) or "none yet"


def with_failures(found: list[Start], ended: list[starts.Ending]) -> list[Start]:
    """The starts, each with what failed in its time: a container that died after the one before it was up, and before
    its own was. The log tells of some late."""
    answered = {start.task for start in found}
    before: list[datetime | None] = [None, *(start.at for start in found)]

    def failed(since: datetime | None, start: Start) -> bool:
        silent = (each.at for each in ended if each.task not in answered)
        return bool(since and start.at and any(since < at <= start.at for at in silent))

    pairs = zip(before, found, strict=False)
    return [start.model_copy(update={"kind": "failed"}) if failed(since, start) else start for since, start in pairs]


def kinds_of(found: Iterable[Start]) -> dict[str, str]:
    """What a kind of worker's snapshot is called -> what its first container told of the machine.

    By Modal's own idea of a kind; by what each told where there are no snapshots.
    """
    kinds: dict[str, str] = {}
    for start in found:
        if start.worker and start.kind in ("created", "restored", "cold"):
            kinds.setdefault(start.snapshot if start.kind != "cold" else start.worker, start.worker)
    return kinds


def _of_starts(found: list[Start], settings: ModalSettings) -> Iterator[Item]:
    kinds = kinds_of(found)
    yield Item(
        name="kinds of workers", assumed="one to three for one GPU type, each with a snapshot of its own",
        seen=f"{len(kinds)}: {'; '.join(kinds.values())}", as_assumed=1 <= len(kinds) <= 3,
        follows="more kinds are more first boots: set modal.compute_region, or raise modal.warm_starts",
    )  # fmt: skip
    restored = [start.answered_s for start in found if start.kind == "restored"]
    booted = [start.answered_s for start in found if start.kind == "created"]
    failed = sum(start.kind in ("failed", "fell_back") for start in found)
    later = len(found) - len(booted)
    times = f"restored in {median(restored):.1f} s, " if restored else ""
    times += f"booted in {median(booted):.1f} to {max(booted):.1f} s" if booted else "none booted"
    yield Item(
        name="snapshots", assumed="a start on a known kind of worker is a restore, and rarely fails",
        seen=f"{_counted(found)}; {times}", as_assumed=bool(restored) and failed <= later // 10,
        follows="modal.snapshots = cpu or off does without; restores that fail are told by the restore stage as well",
    )  # fmt: skip
    codes = Counter(code for start in found for code in start.refused)
    yield Item(
        name="a starting server", assumed="requests are refused with 503, and 502, 504 or resets in between",
        seen=", ".join(f"{count} x {code}" for code, count in sorted(codes.items())) or "requests waited for an answer",
        as_assumed=bool(codes) and set(codes) <= {"502", "503", "504", "reset"},
        follows="clients have to wait out what is seen here; ours wait for whatever is not 200",
    )  # fmt: skip
    checks = Counter(start.gpu or "not told" for start in found if start.kind == "restored")
    yield Item(
        name="the GPU after a restore", assumed="it computes and copies right",
        seen=", ".join(f"{count} x {words}" for words, count in checks.items()) or "nothing was restored",
        as_assumed=set(checks) == {"right"} if settings.gpu and checks else None,
        follows="tell Modal, with the kind of worker; modal.snapshots = off until it is mended",
    )  # fmt: skip
    ahead = max((abs(start.clock_s) for start in found), default=0.0)
    yield Item(
        name="the clock", assumed=f"within {CLOCK_S:.0f} s of this machine's",
        seen=f"{ahead:.1f} s apart at most, the request's own time included", as_assumed=ahead <= CLOCK_S,
        follows="set this machine's clock (NTP): boot records are told apart by time",
    )  # fmt: skip
    memory = max((start.memory_mb for start in found), default=0)
    yield Item(
        name="memory at the snapshot", assumed="a container can tell what it uses",
        seen=f"{memory} MB" if memory else "not told", as_assumed=None if memory else False,
        follows="modal.server_memory_mb is checked by llama-server's own memory and the GPU's alone",
    )  # fmt: skip


# -- what has to be tried ---------------------------------------------------------------------------------------------


def _replacement(site: Site) -> Item:
    """Whether the next version comes up beside a container, and what a client sees meanwhile, and just after."""
    before, _, _ = site.up()
    codes: Counter[str] = Counter()
    replaced, most = Event(), 1

    def count() -> None:
        nonlocal most
        while not replaced.wait(POLL_S):
            most = max(most, len(apps.containers(site.settings, site.name)))

    with ThreadPoolExecutor(2) as pool:
        deploying, counting = pool.submit(site.deploy, secrets.token_hex(4)), pool.submit(count)
        deadline, task, settled = time.monotonic() + UP_LIMIT_S, before["task"], float("inf")
        while time.monotonic() < min(deadline, settled) and not (deploying.done() and deploying.exception()):
            try:
                answer = site.get()
                codes[str(answer.status_code)] += 1
                if answer.status_code == 200 and answer.json()["task"] != before["task"] and settled == float("inf"):
                    task, settled = answer.json()["task"], time.monotonic() + AFTER_S
            except httpx.TransportError:
                codes["reset"] += 1
            time.sleep(POLL_S)
        replaced.set()
        for each in (deploying, counting):
            each.result()
    beside, changed = most > 1, task != before["task"]
    seen = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
    return Item(
        name="replacement", assumed="the new version comes up beside the old one, which answers until then",
        seen=f"{'' if beside else 'not '}seen beside the old one, {'' if changed else 'not '}replaced; {seen}",
        as_assumed=changed and beside and set(codes) == {"200"},
        follows="clients see errors in a promotion: promote when nobody asks, and have them retry",
    )  # fmt: skip


def _exit_grace(site: Site) -> Item:
    """Whether a stream goes on in a container that another version replaces, for as long as one was read here."""
    site.up()
    begun = Event()

    def read() -> tuple[int, bool]:
        """(lines, which are seconds; whether the last one came)."""
        lines: list[str] = []
        with suppress(httpx.TransportError), httpx.stream(
            "GET", f"{site.url}/stream/{STREAM_S}", headers=site.headers, timeout=STREAM_S + 60.0, trust_env=False
        ) as answer:  # fmt: skip
            for line in answer.iter_lines():
                begun.set()
                lines.append(line)
        begun.set()
        return len(lines), lines[-1:] == ["end"]

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        begun.wait(60)
        site.deploy(secrets.token_hex(4))
        asked_until = time.monotonic() + STREAM_S + 60.0
        while not reading.done() and time.monotonic() < asked_until:  # it is requests that bring the next one up
            with suppress(httpx.TransportError):
                site.get()
            time.sleep(POLL_S)
        lines, whole = reading.result()
    grace_s = site.settings.exit_grace_s
    return Item(
        name="exit grace", assumed=f"an answer may go on in a container that is replaced (up to {grace_s} s)",
        seen=f"a stream of {STREAM_S} s was " + ("read to its end; no longer one was tried" if whole else
        f"cut after {lines} s"), as_assumed=whole,
        follows="a promotion cuts streams: promote when nobody reads one",
    )  # fmt: skip


def _proxy(site: Site) -> Item:
    """Whether a request without a token is refused before anything starts."""
    assumed, follows = "401 without a token, and nothing starts", "a stranger's request costs a GPU: tell Modal"
    if site.settings.open:
        return Item(name=PROXY, assumed=assumed, seen="modal.open is set: not asked", as_assumed=None, follows="")
    site.idle()
    try:
        status = str(site.get(proxied=False, timeout_s=REFUSED_S).status_code)
    except httpx.TimeoutException:
        status = f"held for {REFUSED_S:.0f} s"
    except httpx.TransportError as error:
        status = type(error).__name__
    time.sleep(3)
    running = len(apps.containers(site.settings, site.name))
    return Item(
        name=PROXY, assumed=assumed, seen=f"{status}, {running} containers started",
        as_assumed=status == "401" and not running,
        follows=f"{follows}; the answers still need the API key",
    )  # fmt: skip


def _token(site: Site) -> Item:
    """Whether the token that opens Modal's proxy goes on to the server behind it."""
    if not site.headers:
        return Item(name=TOKEN, assumed="it may", seen="no token is asked for: not asked", as_assumed=None)
    said, _, _ = site.up()
    return Item(
        name=TOKEN, assumed="it may", seen="it does" if said["token"] else "it does not", as_assumed=None,
        follows="give this app a token of its own, and nothing else" if said["token"] else "",
    )  # fmt: skip


def _failures(site: Site) -> Item:
    """Whether a container that dies leaves its exit code in Modal's own log lines, with its id."""
    said, _, _ = site.up()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: site.get("/die")).exception()
    found = _waited(lambda: [each for each in starts.endings(site.settings, site.name) if each.task == said["task"]])
    return Item(
        name="a container that dies", assumed="Modal's log has its exit code, with its id",
        seen=found[0].words if found else f"nothing of {said['task']} in the log's own lines",
        as_assumed=bool(found),
        follows="restores that fail cannot be told from Modal's log: watch `fell_back` and the numbers of Server.stats",
    )  # fmt: skip


def _stats(site: Site) -> Item:
    found = apps.last_hour(site.settings, site.name)
    return Item(
        name="Server.stats", assumed="requests by status, containers started and failed",
        seen=str(found) if found else "not told", as_assumed=found is not None and found.started > 0,
        follows="the watch sees production by boot records and its own probes alone",
    )  # fmt: skip


def _volume(site: Site) -> Item:
    site.up()
    speeds: dict[str, float] = site.get("/volume", timeout_s=300.0).json().get("speeds", {})
    one, four = speeds.get("1", 0.0), speeds.get("4", 0.0)
    return Item(
        name="reading the Volume", assumed=f"at least {SLOW_MB_PER_S:.0f} MB/s for what nobody has read",
        seen=f"{one:.0f} MB/s by one reader, {four:.0f} MB/s by four" if speeds else "no file is in the store yet",
        as_assumed=max(one, four) >= SLOW_MB_PER_S if speeds else None,
        follows="a cold boot takes as long as the weights: a smaller quantization, or snapshots",
    )  # fmt: skip


LOOKS: dict[str, Callable[[Site], Item]] = {
    "replacement": _replacement, "exit grace": _exit_grace, PROXY: _proxy, TOKEN: _token,
    "reading the Volume": _volume, "a container that dies": _failures, "Server.stats": _stats,
}  # fmt: skip


def _looked(name: str, look: Callable[[Site], Item], site: Site) -> Item:
    """What a look found, or why nothing could be seen."""
    try:
        return look(site)
    except (Problem, httpx.HTTPError, ValueError, KeyError) as error:
        words = error.what if isinstance(error, Problem) else repr(error)
        return Item(name=name, assumed="", seen=f"not seen: {words}", as_assumed=None, follows="run it again")


def _waited(look: Callable[[], list[starts.Ending]], limit_s: float = 30.0) -> list[starts.Ending]:
    deadline = time.monotonic() + limit_s
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return found


def told_age(found: Conformance) -> str:
    """A run in one line, with its age."""
    days = (datetime.now(UTC) - found.at).days
    other = ", ".join(item.name for item in found.differences)
    sdk = "" if found.sdk == modal.__version__ else f", with modal {found.sdk}: {modal.__version__} is in use"
    return f"{days} days ago{sdk}; " + (f"other than assumed: {other}" if other else "all as assumed")
