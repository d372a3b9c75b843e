"""What is known of a candidate before anything is served: its argv, and how its API surface differs from production's.

argv.py       settings -> flags that this binary takes
surface.py    what may be asked of one build: flags, variables, routes, fields
observe.py    what its running server answers to one request of each kind
compare.py    every difference between two surfaces, classed
uses.py       what of it our settings, contracts and patches use
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tasks import contracts
from tasks.behaviour import digest_of_code
from tasks.patches.series import read_series
from tasks.platforms import Platform
from tasks.preflight.argv import bundle, render, wants
from tasks.preflight.compare import Difference, Kind, What, compare
from tasks.preflight.observe import observe
from tasks.preflight.surface import Surface, read
from tasks.preflight.uses import unproved, uses
from tasks.release import BadInput, Build, Release, ReleaseFailed, ToolingError, Verdict, Verification, digest_of
from tasks.report import code, fenced, markdown_table
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.stage import Row, stage
from tasks.upstream import open_upstream

__all__ = ["NAME", "SURFACE", "bundle", "check", "render", "routes", "wants"]

NAME, SURFACE = "preflight", "surface"
OURS = ("LLAMA_", "GGML_", "MTMD_")
"""How the names of llama.cpp's own environment variables begin."""
_SHOWN = 3  # users named in one cell of a table


def basis() -> str:
    """12 hex characters over the code that reads and compares surfaces: what was made with other code is stale."""
    return digest_of([digest_of_code(Path(__file__).parent), contracts.basis()])[:12]


def surface_of(platform: Platform, settings: Settings, build: Build) -> Surface:
    """The whole surface of a build, from the store or read and observed now.

    Raises ReleaseFailed when its trial server does not come up, ToolingError when it cannot be read.
    """
    store = platform.store
    if known := store.surface(build.digest, basis(), Surface):
        return known
    still = _read(platform, settings, build)
    found = still.model_copy(update={"exchanges": observe(platform, build, still.routes)})
    store.save_surface(build.digest, basis(), found)
    return found


def routes(platform: Platform, settings: Settings, build: Build) -> list[tuple[str, str]]:
    """(method, path) of every route that a build's source registers. Raises what `surface_of` raises."""
    return [(route.method, route.path) for route in surface_of(platform, settings, build).routes]


def _read(platform: Platform, settings: Settings, build: Build) -> Surface:
    sources, source = Sources(settings.cache), build.source
    tree = source.tree
    if sources.git("cat-file", "-e", tree, check=False).code:  # the cache is safe to delete; upstream's own will do
        _, tree = sources.add(source.upstream, open_upstream(settings).fetch(source.upstream))
    return read(platform.store, sources, build, tree)


def _production(platform: Platform, settings: Settings, before: Release) -> Surface:
    build = platform.store.build(before.build)
    if build is None:
        raise ToolingError(f"the build {before.build} of production is not in {platform.store.root}")
    try:
        return surface_of(platform, settings, build)
    except (ReleaseFailed, BadInput) as error:  # nothing is known about the candidate
        raise ToolingError(f"production's {build.tag} cannot be observed", evidence=str(error)) from error


def differences(
    platform: Platform, settings: Settings, build: Build, release: Release, before: Release
) -> tuple[Difference, ...]:
    """What differs from production's build, marked with who uses it; what fails the release first, then what we use.

    Raises what `surface_of` raises; ToolingError when it is production's build that cannot be observed.
    """
    old, new = _production(platform, settings, before), surface_of(platform, settings, build)
    built_with = {p.file for p in build.source.patches if p.status.built_with}
    patches = [patch for patch in read_series(settings.patches) if patch.name in built_with]
    who = uses(settings.server, release, before, platform.inherits(), patches)
    return tuple(sorted((who.mark(each) for each in compare(old, new)), key=_rank))


def _rank(difference: Difference) -> tuple[bool, bool, bool, bool]:
    changed = difference.what in (What.DEFAULT_CHANGED, What.VALUE_CHANGED, What.STATUS_CHANGED)
    return not difference.fails, not difference.used_by, not changed, not difference.gone


def told(found: Sequence[Difference]) -> str:
    """One line for a person: `12 flags, 3 routes differ; 2 touch what we use`, and what is gone that we need."""
    if not found:
        return "the API is production's"
    counts = Counter(each.kind for each in found)
    kinds = ", ".join(f"{n} {_plural(kind, n)}" for kind in Kind if (n := counts[kind]))
    used = sum(bool(each.used_by) for each in found)
    line = f"{kinds} differ; {used} touch what we use"
    gone = [f"{each} ({_users(each)})" for each in found if each.fails]
    return "; ".join([line, *gone])


def _plural(kind: Kind, n: int) -> str:
    return str(kind) if n == 1 else f"{kind}es" if kind is Kind.STATUS else f"{kind}s"


def _users(difference: Difference) -> str:
    some, rest = difference.used_by[:_SHOWN], difference.used_by[_SHOWN:]
    return ", ".join(some) + (f" and {len(rest)} more" if rest else "")


def table(found: Sequence[Difference]) -> str:
    """The differences as a Markdown table."""
    return markdown_table(
        ("used by", "kind", "name", "what", "before", "after", "evidence"),
        [(_users(d), d.kind, d.name, d.what, d.before, d.after, d.evidence or ", ".join(d.where)) for d in found],
    )


def _list(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"- {code(line)}" for line in lines)]) if lines else ""


def strays(inherited: Sequence[str]) -> list[str]:
    """Variables of llama.cpp's own that are set here and that no server sees, sorted."""
    ours = (name for name in os.environ if name.startswith(OURS) and not name.startswith("LLAMA_RELEASE_"))
    return sorted(name for name in ours if name not in inherited)


def bundle_or_explain(
    platform: Platform, settings: Settings, build: Build, before: Release | None
) -> tuple[Release, list[str]]:
    """As `bundle`; when the binary refuses a flag that production's takes, the error says what it is called now."""
    try:
        return bundle(platform.store, build, settings.server)
    except ReleaseFailed as error:
        if before is None:
            raise
        old, new = _production(platform, settings, before), _read(platform, settings, build)
        who = uses(settings.server, before, before, (), ())
        gone = [each for each in map(who.mark, compare(old, new)) if each.fails and each.kind is Kind.FLAG]
        lines = [f"{each} ({_users(each)}): {each.evidence}" for each in gone]
        raise ReleaseFailed(error.what, evidence="\n".join([error.evidence, *lines]), todo=error.todo) from error


@stage(NAME, "preflight {build.tag}")
def check(
    row: Row, platform: Platform, settings: Settings, build: Build, production: str | None, again: bool = False
) -> Release:
    """The release: its argv taken by this very binary, and its API surface compared with production's.

    Raises ReleaseFailed when the binary refuses a flag, or when something that we need is gone. With `again`, what was
    verified of this release before is put aside, unless it is in production: that stays what it was approved by.
    """
    store = platform.store
    before = store.get_release(production) if production else None
    release, notes = bundle_or_explain(platform, settings, build, before)
    store.save_release(release)
    if again and release.id != production:
        store.forget(release)
    if unseen := strays(platform.inherits()):
        notes.append(f"{', '.join(unseen)} set here does not reach the server")
    blind = unproved(release.argv)
    if blind:
        notes.append(f"no contract shows the effect of {len(blind)} options")
    accepted = Verification(
        name=NAME,
        release=release.id,
        verdict=Verdict.PASSED,
        summary="argv accepted" + "".join(f"; {note}" for note in notes),
        promise="the exact argv goes through the binary before anything is served (guide, issue 4)",
        evidence={"argv": list(release.argv), "notes": notes, "unproved": blind, "version": build.version},
    )
    store.record(accepted)
    verified = compare_with_production(platform, settings, build, release, before)
    found = [Difference.model_validate(each) for each in verified.evidence["differences"]]
    files = [
        (name, f"{ref.name}, {ref.size_bytes / 1e6:.0f} MB, sha256 {ref.sha256}") for name, ref in release.files.items()
    ]
    row.judged(
        [accepted, verified],
        f"{accepted.summary}; {verified.summary}",
        f"release `{release.id}`\n\n{fenced(' '.join(release.argv))}\n\n{markdown_table(('file', 'content'), files)}"
        f"\n\n{table(found)}\n\n{_list('Options whose effect no contract shows', blind)}"
        f"\n\n{_list('Where --help and the README disagree', verified.evidence['readme'])}",
    )
    return release


def compare_with_production(
    platform: Platform, settings: Settings, build: Build, release: Release, before: Release | None
) -> Verification:
    """The verification `surface`, recorded: as it was before when nothing that it rests on has changed.

    What was found of a release before it went into production stays. Raises what `differences` raises.
    """
    store = platform.store
    if before and before.id == release.id and (known := store.verification(release.id, SURFACE)):
        return known
    ours = sorted(name for name in platform.inherits() if name.startswith(OURS))
    rests_on = digest_of([basis(), before.id if before else None, ours])[:12]
    if fresh := store.fresh(release.id, (SURFACE,), rests_on):
        return fresh[0]
    here = surface_of(platform, settings, build)
    found = differences(platform, settings, build, release, before) if before else ()
    unread = [name for name in ours if not here.reads(name)]
    summary = told(found) if before else "nothing to compare with"
    verified = Verification(
        name=SURFACE,
        release=release.id,
        verdict=Verdict.FAILED if any(each.fails for each in found) else Verdict.PASSED,
        summary=summary + (f"; {', '.join(unread)} set here is not read" if unread else ""),
        promise="nothing that our settings, environment and contracts use is gone without a word (issue 4)",
        evidence={
            "against": before.id if before else None,
            "differences": [each.model_dump(mode="json") for each in found],
            "readme": list(here.readme),
            "unread": unread,
        },
        basis=rests_on,
    )
    store.record(verified)
    return verified
