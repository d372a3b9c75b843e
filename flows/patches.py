"""The life of the patch series: its table for a target, and what a person does to it."""

from __future__ import annotations

from dataclasses import dataclass

from tasks import upstream
from tasks.console import console, print_json, show_table
from tasks.patches import Placed, edit, place_series, read_series, refuse_blocked, retire, select
from tasks.patches.export import refresh as export_series
from tasks.platforms import open_store
from tasks.release import BadInput, Event, UpstreamRelease
from tasks.settings import Settings, load
from tasks.sources import Sources
from tasks.store import Store


@dataclass(frozen=True)
class Series:
    """The series on a target."""

    settings: Settings
    sources: Sources
    release: UpstreamRelease
    upstream_tree: str
    placed: list[Placed]

    @classmethod
    def on(cls, to: str | None) -> Series:
        """Raises BadInput for a build that upstream does not have or a series that names a missing file."""
        settings = load()
        patches = read_series(settings.patches)
        source_of = upstream.open_upstream(settings)
        release = upstream.choose(source_of, to, None)
        if release is None:
            raise BadInput("no upstream release is eligible", todo="name one with --to")
        sources = Sources(settings.cache)
        _, tree = sources.add(release, source_of.fetch(release))
        return cls(settings, sources, release, tree, place_series(sources, patches, release, tree, source_of))

    def pick(self, which: str) -> int:
        """The position of a patch. Raises BadInput when the series has none such."""
        patches = [one.patch for one in self.placed]
        return patches.index(select(patches, which))


def show(to: str | None, as_json: bool) -> None:
    """Print what becomes of each patch on a release. Raises ReleaseFailed when one is blocked."""
    series = Series.on(to)
    results = [one.result for one in series.placed]
    if as_json:
        print_json([result.model_dump(mode="json") for result in results])
    else:
        show_table(
            f"the patch series on {series.release}",
            ("file", "title", "status", "evidence"),
            ((r.file, r.title, r.status, r.evidence) for r in results),
        )
        for result in results:
            if result.detail and not result.status.blocked:
                console.print(f"\n{result.file}, as it is on {series.release.tag}:\n{result.detail}")
    refuse_blocked(series.placed, series.release, series.settings.patches)


def refresh(to: str | None) -> None:
    """Write the series as it stands on a release. Writes nothing when a patch is blocked."""
    series = Series.on(to)
    refuse_blocked(series.placed, series.release, series.settings.patches)
    store = open_store(series.settings)
    with store.lock("patches", holder={"doing": "patches refresh"}):
        told = export_series(series.sources, series.placed, series.upstream_tree, series.release)
        for path, what in told:
            console.print(f"  {path.name}  {what}")
        if changed := [path.name for path, what in told if what.startswith("exported")]:
            store.log(Event(kind="patches.refreshed", summary=f"{', '.join(changed)} exported on {series.release.tag}"))


def retire_one(which: str, to: str | None) -> None:
    """Take a patch out of the series when upstream has it or its probe passes without it, and commit that."""
    series = Series.on(to)
    result = series.placed[series.pick(which)].result
    store = open_store(series.settings)
    with store.lock("patches", holder={"doing": "patches retire"}):
        result = retire.proved_obsolete(store, result.file, series.release) or result
        console.print(retire.retire(store, series.settings.patches, result, series.release))


def edit_one(which: str | None, to: str | None, go_on: bool, abort: bool) -> None:
    """Take a patch into your hands, or export (`go_on`) or drop (`abort`) what you made of it."""
    if [which is not None, go_on, abort].count(True) != 1:
        raise BadInput("one of FILE, --continue or --abort", todo="llama-release patches edit FILE --to bN")
    store = open_store(load())
    with store.lock("patches", holder={"doing": "patches edit"}):
        if which:
            _begin(store, which, to)
        elif go_on:
            done, _ = edit.finish(store.root)
            told = f"{done.state.patch.name} exported on {done.state.release.tag}"
            store.log(Event(kind="patches.edited", summary=told))
            console.print(f"{told}: {done.state.patch}", soft_wrap=True)
        else:
            console.print(f"dropped the edit of {edit.abort(store.root).state.patch.name}")


def _begin(store: Store, which: str, to: str | None) -> None:
    series = Series.on(to)
    at = series.pick(which)
    start = series.placed[at - 1].tree if at else series.upstream_tree
    work = edit.begin(store.root, series.sources, series.placed[at], start, series.release)
    console.print(f"{work.state.patch.name} on {work.state.release.tag}: {work.tree}", soft_wrap=True)
    for place in work.unsettled:
        console.print(f"  conflict marker at {place}", soft_wrap=True)
    if detail := series.placed[at].result.detail:
        console.print(f"\n{detail}", soft_wrap=True)
    console.print("\nthen `llama-release patches edit --continue`, or --abort")
