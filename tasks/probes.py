"""The probes of the patch series, run on one build: promises, and what no client sees. None of them takes a GPU."""

from __future__ import annotations

import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tasks.contracts.probes import KINDS, run_probes, shows_fault
from tasks.contracts.promises import CONTRACTS
from tasks.contracts.trials import trial_release
from tasks.endpoint.client import Client
from tasks.patches.evidence import first_with
from tasks.patches.series import Broken, Patch
from tasks.platforms import Platform
from tasks.preflight.argv import bundle, complaint
from tasks.release import NOT_ASKED, Build, Model, ReleaseFailed, ToolingError, Verdict
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.upstream.treediff import cmake
from tasks.upstream.treediff.facts import Files, Kind

LOG_S = 10.0
"""How long a line may take from the server to where its log is read: on Modal that is another machine."""


class Seen(Model):
    """What one probe said of one build."""

    verdict: Verdict
    said: str
    asked: bool = True
    """Whether there was a server to ask, or none was needed."""
    fault: bool = False
    """Whether it does not do what the patch makes it do: one that never came up says nothing of that."""


def run(platform: Platform, settings: Settings, built: Build, names: Sequence[str]) -> dict[str, Seen]:
    """Probe -> what it says of a build, in the order of `names`. Raises BadInput for a name that no probe has."""
    of_kind = {kind: [name for name in names if name.partition(" :: ")[0] == kind and " :: " in name] for kind in KINDS}
    promises = [name for name in names if " :: " not in name]
    found: dict[str, Seen] = {}
    if promises:
        release, _ = bundle(platform.store, built, settings.server)
        for name, done in run_probes(platform, release, promises).items():
            asked = NOT_ASKED not in done.evidence
            found[name] = Seen(verdict=done.verdict, said=done.summary, asked=asked, fault=shows_fault(done))
    if of_kind["log"]:
        found |= _in_log(platform, settings, built, of_kind["log"])
    looks: dict[str, Callable[[str], str]] = {
        "argv": lambda what: complaint(platform.store, built, tuple(shlex.split(what))),
        "binary": lambda what: _lacks(platform, built, what),
        "cmake": lambda what: _differs(settings, built, what),
    }
    for kind, look in looks.items():
        for name in of_kind[kind]:
            found[name] = _seen(look, name.partition(" :: ")[2])
    return {name: found[name] for name in names}


def _seen(look: Callable[[str], str], what: str) -> Seen:
    try:
        fault = look(what)
    except ToolingError as error:
        return Seen(verdict=Verdict.ERRORED, said=str(error))
    return _failed(fault) if fault else Seen(verdict=Verdict.PASSED, said="as it should be")


def _failed(said: str) -> Seen:
    return Seen(verdict=Verdict.FAILED, said=said, fault=True)


def _lacks(platform: Platform, built: Build, text: str) -> str:
    found = platform.store.search(built, b"(" + re.escape(text.encode()) + b")")
    return "" if found else f"no file of the build holds {text!r}"


def _differs(settings: Settings, built: Build, what: str) -> str:
    """What is another default than this of an option; '' where it is this one, in all places that declare it."""
    name, _, value = what.partition("=")
    sources, tree = Sources(settings.cache), built.source.tree
    texts = {path: sources.read(tree, path) for glob in cmake.LISTS for path in sources.files(tree, glob)}
    found = [fact for fact in cmake.facts(Files(texts)) if fact.kind is Kind.OPTION and fact.name == name]
    others = [f"{fact.at} has it {fact.value}" for fact in found if fact.value != value]
    return "; ".join(others) if found else f"there is no option {name}"


def _in_log(platform: Platform, settings: Settings, built: Build, names: Sequence[str]) -> dict[str, Seen]:
    """What the log of one server says to these, which answers a request before it is read."""
    release, _ = bundle(platform.store, built, settings.server)
    try:
        with tempfile.TemporaryDirectory(prefix="llama-release-") as folder:
            runs = trial_release(platform.store, release, "scripted", Path(folder))
            with platform.trial(runs) as endpoint, Client(endpoint) as client:
                client.chat("hello", max_tokens=8)
                return _until_all(lambda: platform.said(endpoint), names)
    except (ReleaseFailed, ToolingError, Broken) as error:
        verdict = Verdict.FAILED if isinstance(error, ReleaseFailed) else Verdict.ERRORED
        return {name: Seen(verdict=verdict, said=str(error).splitlines()[0], asked=False) for name in names}


def _until_all(said: Callable[[], str], names: Sequence[str]) -> dict[str, Seen]:
    """What a log has of these as soon as it has them all, at the latest after LOG_S. Raises Broken."""
    end = time.monotonic() + LOG_S
    while True:
        late, lines = time.monotonic() > end, said().splitlines()
        found = {name: first_with(name.partition(" :: ")[2], lines) for name in names}
        if late or None not in found.values():
            return {
                name: _failed(f"none of {len(lines)} lines of its log is one")
                if at is None
                else Seen(verdict=Verdict.PASSED, said=lines[at])
                for name, at in found.items()
            }
        time.sleep(0.5)


# -- what could prove a patch ------------------------------------------------------------------------------

_ADDED = (
    ("argv", re.compile(r'\{\s*(?:"-[^"]*",\s*)*"(--[\w-]+)"')),
    ("log", re.compile(r'\b(?:LOG|SRV|SLT|QUE)_(?:INF|WRN|ERR)\s*\([^"]*"([^"%\\]{8,})')),
    ("cmake", re.compile(r'\boption\s*\(\s*(\w+)\s+"[^"]*"\s+(\w+)')),
    ("binary", re.compile(r'"([^"%\\]{8,})"')),
)


def proposed(patch: Patch) -> list[str]:
    """Proofs that could see a patch, by what it adds: promises by their subjects, then the other kinds."""
    words = set(re.findall(r"[a-z]+", patch.diff.lower()))
    promises = sorted(name.removeprefix("contracts.") for name in CONTRACTS)
    near = [name for name in promises if name.partition(".")[0] in words][:3]
    added = [line for file in patch.files for hunk in file.hunks for line in hunk.lines if line.startswith("+")]
    return [" ".join(near)] * bool(near) + [f"{kind} :: {what}" for kind, what in _by_lines(added)]


def _by_lines(added: Iterable[str]) -> Iterable[tuple[str, str]]:
    for kind, pattern in _ADDED:
        if match := next((m for line in added if (m := pattern.search(line))), None):
            yield kind, re.escape(match[1]).replace("\\ ", " ") if kind == "log" else "=".join(match.groups())
