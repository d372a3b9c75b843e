"""The life of the patch series: its table for a target, and what a person does to it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks import upstream
from tasks.console import console, one_line, print_json, show_table
from tasks.contracts.probes import probes_of
from tasks.patches import Patch, Placed, blame, change, edit, read_series, refuse_blocked, retire, select
from tasks.patches.export import refresh as export_series
from tasks.patches.series import PROOF
from tasks.platforms import open_store
from tasks.probes import proposed
from tasks.release import BadInput, Event
from tasks.settings import Settings, load
from tasks.sources import Sources
from tasks.store import Store
from tasks.upstream.github import Github


def _work(settings: Settings, to: str | None) -> change.Work:
    """The series and the release that it is brought to. Raises BadInput for a build that upstream does not have."""
    source_of = upstream.open_upstream(settings)
    release = upstream.choose(source_of, to, None)
    if release is None:
        raise BadInput("no upstream release is eligible", todo="name one with --to")
    sources = Sources(settings.cache)
    _, tree = sources.add(release, source_of.fetch(release))
    return change.Work(sources, settings.patches, release, source_of, tree, _proposed)


def _position(placed: Sequence[Placed], which: str) -> int:
    """The position of a patch. Raises BadInput when the series has none such."""
    patches = [one.patch for one in placed]
    return patches.index(select(patches, which))


def _say(what: str) -> None:
    console.print(f"  {what}", soft_wrap=True)


def show(to: str | None, culprit: bool, as_json: bool) -> None:
    """Print what becomes of each patch on a release, and with `culprit` what broke it. Raises ReleaseFailed when one is
    blocked.
    """
    console.stderr = as_json
    work = _work(load(), to)
    placed = work.placed()
    if culprit:
        placed = blame(work.sources, placed, work.release, work.upstream, tell=_say)
    results = [one.result for one in placed]
    if as_json:
        print_json([result.model_dump(mode="json") for result in results])
    else:
        show_table(
            f"the patch series on {work.release}",
            ("file", "title", "status", "evidence"),
            ((r.file, r.title, r.status, r.evidence) for r in results),
        )
        for result in results:
            if result.detail and not result.status.blocked:
                console.print(f"\n{result.file}, as it is on {work.release.tag}:\n{result.detail}")
    refuse_blocked(placed, work.release, work.folder)


def refresh(to: str | None) -> None:
    """Write the series as it stands on a release. Writes nothing when a patch is blocked."""
    with _changing("refresh", to) as (work, store):
        placed = work.placed()
        refuse_blocked(placed, work.release, work.folder)
        told = export_series(work.sources, placed, work.upstream_tree, work.release)
        for path, what in told:
            console.print(f"  {path.name}  {what}")
        if changed := [path.name for path, what in told if what.startswith("exported")]:
            store.log(Event(kind="patches.refreshed", summary=f"{', '.join(changed)} exported on {work.release.tag}"))


def retire_one(which: str, to: str | None) -> None:
    """Take a patch out of the series when upstream has it or its probe passes without it, and commit that."""
    with _changing("retire", to) as (work, store):
        placed = work.placed()
        result = placed[_position(placed, which)].result
        console.print(retire.retire(store, work.folder, result, work.release))


def edit_one(which: str | None, to: str | None, go_on: bool, abort: bool) -> None:
    """Take a patch into your hands, or export (`go_on`) or drop (`abort`) what you made of it."""
    if [which is not None, go_on, abort].count(True) != 1:
        raise BadInput("one of FILE, --continue or --abort", todo="llama-release patches edit FILE --to bN")
    store = open_store(load())
    with store.lock("patches", holder={"doing": "patches edit"}):
        if which:
            _begin(store, which, to)
        elif go_on:
            work = edit.under_way(store.root)
            strays = edit.stray(work) if work else []
            done, _ = edit.finish(store.root)
            if strays:
                console.print(f"not exported, since git was not told of it (`git add`): {', '.join(strays)}")
            told = f"{done.state.patch.name} exported on {done.state.release.tag}"
            store.log(Event(kind="patches.edited", summary=told))
            console.print(f"{told}: {done.state.patch}", soft_wrap=True)
        else:
            console.print(f"dropped the edit of {edit.abort(store.root).state.patch.name}")


def _begin(store: Store, which: str, to: str | None) -> None:
    series = _work(load(), to)
    placed = series.placed()
    at = _position(placed, which)
    result = placed[at].result
    edited = edit.begin(store.root, series.sources, placed[at], series.before(placed, at), series.release)
    console.print(f"{edited.state.patch.name} on {edited.state.release.tag}: {edited.tree}", soft_wrap=True)
    for place in edited.unsettled:
        console.print(f"  conflict marker at {place}", soft_wrap=True)
    if result.status.blocked:
        console.print(f"\n{result.evidence}", soft_wrap=True)
    if result.detail:
        console.print(f"\n{result.detail}", soft_wrap=True)
    console.print("\nthen `llama-release patches edit --continue`, or --abort")


# -- changes of the series --------------------------------------------------------------------------


@dataclass(frozen=True)
class Reasons:
    """What a patch says for itself where its own text does not: all may be empty."""

    title: str = ""
    why: str = ""
    proved_by: str = ""
    waiver: str = ""

    def on(self, text: str) -> str:
        """The file of a patch with these reasons."""
        return change.draft(text, title=self.title, why=self.why, proved_by=self.proved_by, waiver=self.waiver)


def _proposed(patch: Patch) -> str:
    if names := patch.trailers.get(PROOF):
        probes_of(names)
    some = [f"--proved-by {shlex.quote(proof)}" for proof in proposed(patch)]
    return " or ".join([*some, '--waive "why nothing can see it"'])


@contextmanager
def _changing(doing: str, to: str | None) -> Iterator[tuple[change.Work, Store]]:
    """The series to change and the store, whose lock is held.

    Raises BadInput while a patch is being edited: `--continue` writes it as it was begun, whatever became of it.
    """
    settings = load()
    work, store = _work(settings, to), open_store(settings)
    with store.lock("patches", holder={"doing": f"patches {doing}"}):
        if known := edit.under_way(store.root):
            raise known.refusal
        yield work, store


def add(source: str, commit: str | None, to: str | None, reasons: Reasons) -> None:
    """Put a patch at the end of the series: a diff, what is changed in a work tree, a commit, a pull request."""
    _add([("", text) for text in _texts(source, commit)], to, reasons)


def import_series(folder: Path, since: str | None, to: str | None, reasons: Reasons) -> None:
    """Put a folder of patches, a quilt series, or the commits of a fork's branch at the end of the series."""
    if since is None:
        some = change.of_folder(folder)
    else:
        some = [("", text) for text in _commits(folder, change.since(folder, since))]
    _add(some, to, reasons)


def _add(some: Sequence[tuple[str, str]], to: str | None, reasons: Reasons) -> None:
    with _changing("add", to) as (work, store):
        for added in change.add(work, [(name, reasons.on(text)) for name, text in some]):
            _tell(store, "added", f"{added.patch.title}: {added.result.status} on {work.release.tag}")


def _texts(source: str, commit: str | None) -> list[str]:
    if pull := re.fullmatch(r"#?(\d+)", source):
        settings = load()
        github = upstream.open_upstream(settings)
        if not isinstance(github, Github):
            raise BadInput("pull requests are read from GitHub", todo='set upstream.kind to "github", or give its diff')
        return [github.pull(int(pull[1]))]
    if source == "-":
        return [sys.stdin.buffer.read().decode("utf-8", errors="replace")]
    path = Path(source)
    if commit:
        return _commits(path, commit)
    if path.is_dir():
        return [change.of_work_tree(path)]
    if not path.is_file():
        raise BadInput(f"{source} is no file, no folder and no pull request", todo="give one of them, or - for a pipe")
    return [path.read_bytes().decode("utf-8", errors="replace")]


def _commits(repository: Path, what: str) -> list[str]:
    texts = change.of_commits(repository, what)
    if ".." in what and (merges := change.merges_of(repository, what)):
        _say(f"{merges} of these commits are merges: what they changed themselves is left out")
    return texts


def drop(which: str, reason: str, to: str | None) -> None:
    """Take a patch out of the series because somebody says so."""
    with _changing("drop", to) as (work, store):
        patch = select(read_series(work.folder), which)
        change.drop(work, patch)
        _tell(store, "dropped", f"{patch.name}: {reason}")


def reorder(some: Sequence[str], to: str | None) -> None:
    """Put these patches first, in this order."""
    with _changing("reorder", to) as (work, store):
        patches = read_series(work.folder)
        names = change.reorder(work, [select(patches, which) for which in some])
        _tell(store, "reordered", ", ".join(names))


def fold(into: str, which: str, to: str | None) -> None:
    """Make a patch part of the one before it."""
    with _changing("fold", to) as (work, store):
        patches = read_series(work.folder)
        first, second = select(patches, into), select(patches, which)
        change.fold(work, first, second)
        _tell(store, "folded", f"{second.name} into {first.name}")


def export(folder: Path, to: str | None) -> None:
    """Write the series as it stands on a release into another folder."""
    work = _work(load(), to)
    names = change.export_to(work, folder)
    told = f"{len(names)} patches as they stand on {work.release.tag}: {folder}"
    console.print(one_line(told), soft_wrap=True)


def _tell(store: Store, what: str, summary: str) -> None:
    store.log(Event(kind=f"patches.{what}", summary=summary))
    console.print(one_line(f"{what}: {summary}"), soft_wrap=True)
