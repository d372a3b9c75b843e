"""What an upgrade would do, without doing it, and how one ends that has nothing to do."""

from __future__ import annotations

from typing import get_args

from pydantic import Field

from flows.outcome import Outcome
from flows.required import required
from tasks import hub, patches, preflight, restore, upstream
from tasks.doctor import needs
from tasks.faults import Fault
from tasks.platforms import Platform, open_platform, open_store
from tasks.preflight import foreseen as of_source
from tasks.promote import refuse_on_hold
from tasks.release import (
    BadInput,
    Build,
    Hold,
    Model,
    PatchResult,
    Problem,
    Release,
    ReleaseFailed,
    SourceTree,
    StageName,
    ToolingError,
    UpstreamRelease,
    Verdict,
)
from tasks.settings import RestoreSettings, Settings
from tasks.sources import Sources
from tasks.store import Store
from tasks.upstream import Upstream, stage
from tasks.upstream.notes import Assessment

NOTHING_NEWER = Outcome(
    kind="nothing_newer",
    note="changed settings or patches go out on production's own build with `llama-release upgrade --to bN`",
)


class Plan(Model):
    """What is known of an upgrade before it is run."""

    production: str | None
    hold: Hold | None
    newer: tuple[str, ...]
    machine: str = Field(default="", description="what this machine lacks for it; empty where servers are elsewhere")
    model: str = Field(default="", description="the files that server.hub_model stands for; empty where it is not set")
    target: UpstreamRelease | None
    notes: Assessment | None = None
    patches: tuple[PatchResult, ...] = ()
    problem: str = ""
    build: str | None = None
    avoids: tuple[Fault, ...] = Field(default=(), description="known faults that would strike a build here")
    release: str | None = None
    recorded: dict[str, Verdict] = Field(default_factory=dict)
    to_verify: tuple[str, ...] = ()
    restore: str = Field(
        default="", description="how many idle cycles the restore probe takes, and how sure it is then"
    )

    foretold: tuple[str, ...] = Field(default=(), description="what deploying changes for clients, and costs besides")

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The plan as (stage, what would happen), in order."""
        found = [
            ("production", (self.production or "empty") + (f", on hold: {self.hold.reason}" if self.hold else "")),
            ("upstream", f"{len(self.newer)} newer; target {self.target or 'none'}"),
        ]
        if self.machine:
            found.append(("machine", self.machine))
        if self.model:
            found.append(("model", self.model))
        if self.target is None:
            return found
        if self.notes:
            found.append(("changes", self.notes.summary))
            found += self.notes.rows
        found += [("patches", f"{p.file}: {p.status}; {p.evidence}") for p in self.patches]
        if self.problem:
            return [*found, ("stops", self.problem)]
        found.append(("build", f"{self.build} is there" if self.build else "to be compiled"))
        found += [("", _told(fault)) for fault in self.avoids]
        done = ", ".join(f"{n} {v}" for v in Verdict if (n := list(self.recorded.values()).count(v)))
        found.append(("verify", f"{len(self.to_verify)} to do" + (f"; recorded: {done}" if done else "")))
        if self.restore:
            found.append(("restore", self.restore))
        found += [("", foretold) for foretold in self.foretold]
        found.append(("approval", "a person is asked before production moves"))
        return found


def _told(fault: Fault) -> str:
    how = " ".join((*fault.avoid.cpu_flags, *(f"{name}={value}" for name, value in fault.avoid.cmake.items())))
    if not fault.is_avoided:
        return f"a known fault that is not avoided: {fault.title}; {fault.avoid.advice}"
    return f"kept from a known fault: {fault.title}; {how}" + (f"; it costs: {fault.costs}" if fault.costs else "")


def plan(settings: Settings, to: str | None) -> Plan:
    """What `upgrade` would do now. Downloads upstream's source into the cache, changes nothing else.

    Raises BadInput for a build that upstream does not have, ToolingError when upstream cannot be read.
    """
    store = open_store(settings)
    model, problem = _of_hub(store, settings)
    settings = settings if problem else hub.known(store, settings)
    platform = open_platform(settings)
    pointer, current = store.pointer("production"), _in_production(store)
    source_of = upstream.open_upstream(settings)
    build = current.upstream.build if current else None
    target = upstream.choose(source_of, to, build)
    known = Plan(
        production=current.label if current else None,
        hold=pointer.hold,
        machine=needs.summary(settings) if settings.platform == "local" else "",
        model=model,
        problem=problem,
        newer=tuple(r.tag for r in upstream.newer(source_of.releases(), build)),
        target=target,
        notes=stage.changed(source_of, settings, build, target) if target else None,
    )
    if target is None or problem:
        return known
    try:
        source = _source(settings, source_of, target)
        of_source.check(settings, source)
    except (ReleaseFailed, BadInput) as error:
        return known.model_copy(update={"problem": str(error)})
    try:
        built, release = _release(platform, source, settings)
        avoids = platform.avoids(settings.recipe)
    except Problem as error:  # a binary that refuses our argv; a compiler that is not here
        return known.model_copy(update={"patches": source.patches, "problem": str(error)})
    names = required()
    found = {name: v for name in names if release and (v := store.verification(release.id, name))}
    return known.model_copy(
        update={
            "patches": source.patches,
            "build": built.digest if built else None,
            "avoids": avoids,
            "release": release.id if release else None,
            "recorded": {name: v.verdict for name, v in found.items()},
            "to_verify": tuple(name for name in names if name not in found),
            "restore": restore_of(store, release, settings.restore),
            "foretold": tuple(said for each in get_args(StageName) for said in platform.foretells(each)),
        }
    )


def restore_of(store: Store, release: Release | None, settings: RestoreSettings) -> str:
    """What the restore probe of a release will take; '' where its verdict stands. One by other rules does not."""
    fresh = store.fresh(release.id, (restore.NAME,), restore.basis(settings)) if release else []
    return "" if fresh else restore.foreseen(settings)


def foreseen(settings: Settings, to: str | None, again: bool) -> Outcome | None:
    """How an upgrade would end that has nothing to do; None when it has, be it what a killed run left open.

    By the rules that the flow goes by, so that a refusal needs no Prefect server. Raises what refuses the upgrade:
    BadInput for a hold or a build that upstream does not have. An upstream that can't be read is no refusal: the run
    says so, to people and in the ledger too.
    """
    store = open_store(settings)
    if store.intent("production"):
        return None
    refuse_on_hold(store.pointer("production"))
    current, source_of = _in_production(store), upstream.open_upstream(settings)
    try:
        target = upstream.choose(source_of, to, current.upstream.build if current else None)
    except ToolingError:
        return None
    if target is None:
        return NOTHING_NEWER
    known = {request.tag for request in store.requests() if request.state == "open"}
    if target.tag not in known | ({current.upstream.tag} if current else set()):
        return None
    try:
        settings = hub.known(store, settings)
        _, release = _release(open_platform(settings), _source(settings, source_of, target), settings)
    except Problem:  # the run will say so, and keep it
        return None
    return settled(store, release, again) if release else None


def settled(store: Store, release: Release, again: bool) -> Outcome | None:
    """How an upgrade ends that has come to a release which is in production, or which waits for a person in another
    run; None when it is to go on. `again`: to ask anew is what it is for."""
    if release.id == store.pointer("production").release:
        return Outcome(kind="already_there", release=release)
    if again or not any(request.state == "open" for request in store.requests()):
        return None
    from tasks import approval  # and with it Prefect, which takes two seconds to load
    from tasks.approval import held

    with held.password_of(store.root):
        other = approval.waiting(store, release)
    if other:
        why = f"{other.name} waits for a person: {other.link or other.run}"
        return Outcome(kind="waiting", release=release, note=why)
    return None


def _in_production(store: Store) -> Release | None:
    release = store.pointer("production").release
    return store.get_release(release) if release else None


def _source(settings: Settings, source_of: Upstream, target: UpstreamRelease) -> SourceTree:
    archive = source_of.fetch(target)
    return patches.apply_series(Sources(settings.cache), target, archive, settings.patches, source_of)


def _release(platform: Platform, source: SourceTree, settings: Settings) -> tuple[Build | None, Release | None]:
    """The build and the release that the upgrade would come to, as far as they are there: a release's model has to be
    on this machine."""
    built = platform.built(source, settings.recipe)
    if built is None or settings.server.hub_model:
        return built, None
    return built, preflight.bundle(platform.store, built, settings.server)[0]


def _of_hub(store: Store, settings: Settings) -> tuple[str, str]:
    """(what `server.hub_model` stands for and whether that is here, what keeps it from being had)."""
    try:
        found = hub.look(store, settings)
    except Problem as problem:
        return problem.what, str(problem)
    if found is None:
        return "", ""
    size = sum(file.size_bytes for file in found.missing(store))
    return f"{found}; " + (f"{size / 1e9:.2f} GB to be fetched" if size else "all is here"), ""
