"""What four upstream builds keep of the promises, how long each takes, and what is caught when it breaks: the listed
breaks one by one, and the kinds of faults as caught and missed.

The first time compiles the builds that the cache does not have.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from flows.demo import model as demo_model
from tasks import contracts
from tasks.contracts.promises import CONTRACTS, Recorder, verify
from tasks.contracts.trials import ORDER, trial_release
from tasks.platforms.local import LocalPlatform
from tasks.release import UNMET, Build, Endpoint, Release, Verdict, Verification
from tasks.report import markdown_table
from tasks.settings import Settings, load
from tests.conftest import REPOSITORY, build_of, first_patch_alone
from tests.contracts.breakages import BROKEN, LIVE, title
from tests.contracts.breaking_proxy import broken
from tests.contracts.broken_kinds import KINDS, Broken
from tests.contracts.conftest import release_of

OLD, NEWEST = ("b8672", "b9105", "b10605"), "b11434"
MOST_S = 90.0


def main() -> Iterator[str]:
    """Lines of the report."""
    known = load()
    base = known.model_copy(update={"store": known.cache / "test-store", "patches": REPOSITORY / "patches"})
    platform, model = LocalPlatform(base), demo_model(known.cache)
    releases = {tag: release_of(platform, build, model) for tag, build in _builds(base).items()}
    found: dict[str, dict[str, Verification]] = {}
    for tag, release in releases.items():
        start, busy = time.monotonic(), _cpu_s()
        every = contracts.run_all(platform, release, lambda *_: None)
        seconds, busy = time.monotonic() - start, _cpu_s() - busy
        found[tag] = {v.name.removeprefix("contracts."): v for v in every}
        kept = sum(v.verdict is Verdict.PASSED for v in every)
        slow = "" if seconds <= MOST_S else f", more than the {MOST_S:.0f} s it should take"
        yield (
            f"{tag}: {kept} of {len(every)} promises kept in {seconds:.1f} s on {len(ORDER)} servers{slow}; "
            f"{busy:.1f} s of CPU, ours and the servers'"
        )
    yield f"\nseconds of each promise on {NEWEST}, those of a tenth and more:\n"
    yield from _seconds(found[NEWEST])
    yield "\nkept, by subject:\n"
    yield from _by_subject(found)
    yield "\nnot kept by one build or another:\n"
    yield from _not_kept(found)
    yield f"\nbroken servers of {NEWEST}:\n"
    yield from _breaks(platform, releases[NEWEST], set(_broken(found[NEWEST])))
    yield f"\nkinds of broken servers of {NEWEST}:\n"
    yield from _kinds(platform, releases[NEWEST], set(_broken(found[NEWEST])))


def _cpu_s() -> float:
    """Seconds of CPU that this process and its ended children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _builds(base: Settings) -> dict[str, Build]:
    with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder:
        old = first_patch_alone(base, Path(folder))
        return {tag: build_of(old, tag) for tag in OLD} | {NEWEST: build_of(base, NEWEST)}


def _broken(found: dict[str, Verification]) -> list[str]:
    return [name for name, v in found.items() if v.verdict is not Verdict.PASSED]


def _by_subject(found: dict[str, dict[str, Verification]]) -> Iterator[str]:
    subjects = Counter(name.split(".")[0] for name in found[NEWEST])
    rows = []
    for subject, count in sorted(subjects.items()):
        lost = {tag: sum(name.startswith(f"{subject}.") for name in _broken(of)) for tag, of in found.items()}
        rows.append((subject, *(f"{count - lost[tag]} of {count}" for tag in found)))
    yield markdown_table(("subject", *found), rows)


def _not_kept(found: dict[str, dict[str, Verification]]) -> Iterator[str]:
    rows = []
    for name in found[NEWEST]:
        seen = [of[name] for of in found.values()]
        if all(v.verdict is Verdict.PASSED for v in seen):
            continue
        marks = ["kept" if v.verdict is Verdict.PASSED else "no" if "unmet" in v.evidence else v.verdict for v in seen]
        says = next(v.summary for v in seen if v.verdict is not Verdict.PASSED)
        rows.append((name, *marks, says[:90], CONTRACTS[f"contracts.{name}"].known or "NOT KNOWN"))
    yield markdown_table(("promise", *found, "what was seen first", "what is known"), rows)


def _breaks(platform: LocalPlatform, release: Release, standing: set[str]) -> Iterator[str]:
    rows, caught_all, intact = [], 0, True
    with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder:
        for server in ("scripted", "counting", "seeing", "calling"):
            runs = trial_release(platform.store, release, server, Path(folder))
            kinds = ("model", server) if server == "scripted" else (server,)
            names = sorted(name for name, contract in CONTRACTS.items() if contract.server in kinds)
            with platform.trial(runs) as endpoint:
                for breakage, before, changed in BROKEN:
                    if before != server:
                        continue
                    with broken(endpoint, breakage) as proxied, Recorder(proxied) as client:
                        every = [verify(CONTRACTS[n], client, runs, subject=release, basis="") for n in names]
                    seen = {v.name.removeprefix("contracts."): v for v in every}
                    caught = (set(_broken(seen)) ^ (standing & seen.keys())) - {LIVE}
                    if not changed:
                        intact = intact and not caught
                        continue
                    right = set(changed) == caught
                    caught_all += right
                    rows.append(
                        (title(breakage), server, ", ".join(sorted(caught)) or "nobody", "yes" if right else "NO")
                    )
    yield markdown_table(("what is wrong", "server", "who says so", "as it should be, and nobody else"), rows)
    yield f"\n{caught_all} of {len(rows)} breaks are caught by the promises made for them and by no other; "
    yield f"the unbroken proxy {'changes nothing' if intact else 'CHANGES SOMETHING'}"


def _seconds(found: dict[str, Verification]) -> Iterator[str]:
    slow = sorted(found.items(), key=lambda each: -each[1].seconds)
    rows = [(name, f"{v.seconds:.2f}", len(v.evidence.get("exchanges", ()))) for name, v in slow if v.seconds >= 0.1]
    yield markdown_table(("promise", "seconds", "exchanges"), rows)


def _kinds(platform: LocalPlatform, release: Release, standing: set[str]) -> Iterator[str]:
    """How many servers of each kind the subjects meant have caught, and which they have missed."""
    caught: Counter[str] = Counter()
    missed: dict[str, list[str]] = {each.kind: [] for each in KINDS}
    with tempfile.TemporaryDirectory(prefix="llama-release-bench-") as folder:
        for server in sorted({each.server for each in KINDS}):
            runs = trial_release(platform.store, release, server, Path(folder))
            with platform.trial(runs) as endpoint:
                for each in (one for one in KINDS if one.server == server):
                    if _is_caught(endpoint, runs, each, standing):
                        caught[each.kind] += 1
                    else:
                        missed[each.kind].append(each.what)
    rows = [(kind, caught[kind], len(lost), "; ".join(lost) or "none") for kind, lost in missed.items()]
    yield markdown_table(("kind", "caught", "missed", "which were missed"), rows)
    yield f"\n{caught.total()} of {len(KINDS)} caught"


def _is_caught(endpoint: Endpoint, runs: Release, each: Broken, standing: set[str]) -> bool:
    servers = ("model", each.server) if each.server == "scripted" else (each.server,)
    meant = [
        contract
        for name, contract in CONTRACTS.items()
        if contract.server in servers
        and name.split(".")[1] in each.caught_by
        and name.removeprefix("contracts.") not in standing | {LIVE}
    ]
    with broken(endpoint, each.breakage) as proxied, Recorder(proxied) as client:
        return any(UNMET in verify(contract, client, runs, subject=runs, basis="").evidence for contract in meant)
