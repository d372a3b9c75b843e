"""The eval gate as one stage of a flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tasks.evals.collect import Asking, Book, Unanswered, others
from tasks.evals.families import families, generate
from tasks.evals.families.family import Family
from tasks.evals.gate import Standing, decide, in_order
from tasks.evals.model import Item, ItemSet
from tasks.evals.shown import cost, evidence, markdown, summary
from tasks.flags.words import values_of
from tasks.platforms import Platform, Progress
from tasks.release import BadInput, Endpoint, Release, ReleaseFailed, ToolingError, Verdict, Verification, digest_of
from tasks.settings import EvalSettings
from tasks.stage import Row, stage

NAME = "evals"
PROMISE = (
    "Answers are no worse than production's by more than the margin: paired non-inferiority, looked at after every "
    "batch, each bound 95% over all looks together (tasks/evals/sequential.py)."
)
SHOWN_ERRORS = 20
DEFAULT_SLOT = 4096
"""Tokens that a slot is taken to hold where a release's argv does not say."""


def slot_tokens(release: Release) -> int:
    """Tokens of context of one slot of this release."""
    said = values_of(release.argv)
    total, slots = int(said.get("--ctx-size", 0)), int(said.get("--parallel", 1))
    return total // max(slots, 1) if total else DEFAULT_SLOT  # 0: the model's own


def asked_families(releases: Sequence[Release], settings: EvalSettings) -> list[Family]:
    """Our families that the settings name and that every one of these releases can be asked."""
    longest = min(settings.longest_prompt, *(slot_tokens(r) * 3 // 4 for r in releases))
    return families(settings.families, longest, all("mmproj" in r.files for r in releases))


def item_set(releases: Sequence[Release], settings: EvalSettings) -> ItemSet:
    """The items that these releases are compared on, in the order in which they are asked.

    Raises BadInput for a family or an Inspect task that there is not.
    """
    ours = asked_families(releases, settings)
    theirs = others(settings)
    each = -(-settings.items // max(1, sum(len(f.templates) for f in ours)))
    items = generate(ours, settings.seed, each, settings.hardest)
    names = {item.family for item in items}
    if clash := names & {item.family for item in theirs.items}:
        raise BadInput(f"{min(clash)} is the name of one of our families too", todo="rename the Inspect task")
    if missing := {*settings.critical, *settings.margins} - names - {item.family for item in theirs.items}:
        raise BadInput(
            f"no item is asked of the family {min(missing)}",
            evidence="evals.critical or evals.margins names it",
            todo="correct it, or give the release what the family needs (images: a server.mmproj)",
        )
    return ItemSet(
        items=tuple(in_order([*items, *theirs.items], settings.seed)[: settings.items]), sources=theirs.sources
    )


def basis(production: Release | None, asked: ItemSet, settings: EvalSettings) -> str:
    """Digest of what the verdict depends on beside the candidate."""
    rules = settings.model_dump(exclude={"max_connections", "price_per_hour", "price_per_million_tokens"})
    return digest_of([production.id if production else None, asked.digest, rules])[:12]


class Gate:
    """One candidate against production, on one set of items."""

    def __init__(
        self, platform: Platform, release: Release, production: Release | None, settings: EvalSettings,
        asked: ItemSet, progress: Progress,
    ) -> None:  # fmt: skip
        self._platform, self._release, self._production = platform, release, production
        self._settings, self._items, self._progress = settings, asked.items, progress
        self._basis = basis(production, asked, settings)
        paths = platform.store.answers_path
        self._ours = Book(paths(release.id, asked.digest))
        known = production or release
        self._theirs, self._again = (Book(paths(known.id, asked.digest, again)) for again in (False, True))
        self._asking = release

    def verify(self) -> Verification:
        """Ask what is missing, and judge.

        - `passed`, `failed`: as `gate.decide` says.
        - `inconclusive`: neither, at the item limit; or no production to compare with.
        - `errored`: an item was left without an answer; or production against itself is not shown to be the same.

        One server is up at a time. Production is asked (twice: once to be kept, once for its noise) until production
        against itself is sure, which is about as far as an equal candidate needs; if the candidate needs more, as
        many again, and so on. Raises what `platform.trial` raises for the candidate, ToolingError when production does
        not come up or the asking itself breaks.
        """
        try:
            with Asking(self._settings) as asking:
                if self._production is None:
                    return self._first(asking)
                noise = self._noise(asking, self._production)
                if noise.verdict is Verdict.FAILED:
                    return self._verification(
                        Verdict.ERRORED, f"production against itself is {summary(noise, noise, self._settings)}: "
                        "this gate is broken for this release, because its answers change by themselves",
                        self._evidence(noise, noise),
                    )  # fmt: skip
                standing = self._compare(asking, self._production)
        except Unanswered as left:
            side = "candidate" if self._asking is self._release else "production"
            found = [{"side": side, "item": a.item, "error": a.error} for a in left.answers]
            what = f"{len(found)} items have no answer of {side}: run it again"
            return self._verification(Verdict.ERRORED, what, {"errors": found[:SHOWN_ERRORS], "cost": self._costs()})
        said = summary(standing, noise, self._settings)
        return self._verification(standing.verdict, said, self._evidence(standing, noise))

    def _first(self, asking: Asking) -> Verification:
        batch = self._items[: self._settings.batch]
        if any(item.id not in self._ours for item in batch):
            with self._platform.trial(self._release) as endpoint:
                self._ask(asking, endpoint, self._release, batch, self._ours)
        standing = decide(batch, self._ours, self._ours, self._settings)
        right = sum(self._ours[item.id].right for item in batch)
        what = f"{right} of {len(batch)} right; nothing to compare with: the first release"
        found = evidence(standing, self._ours, {}, self._protects()) | {"cost": self._costs()}
        return self._verification(Verdict.INCONCLUSIVE, what, found)

    def _noise(self, asking: Asking, production: Release) -> Standing:
        """Production against itself, asked until it is sure."""
        standing = decide(self._items, self._again, self._theirs, self._settings)
        if standing.wanted:
            with self._trial_of(production) as endpoint:
                while standing.wanted:
                    self._ask(asking, endpoint, production, standing.wanted, self._theirs)
                    self._ask(asking, endpoint, production, standing.wanted[::-1], self._again)
                    standing = decide(self._items, self._again, self._theirs, self._settings)
        return standing

    def _compare(self, asking: Asking, production: Release) -> Standing:
        standing = decide(self._items, self._ours, self._theirs, self._settings)
        while standing.wanted:
            if all(item.id in self._theirs for item in standing.wanted):
                with self._platform.trial(self._release) as endpoint:
                    while standing.wanted and all(item.id in self._theirs for item in standing.wanted):
                        self._ask(asking, endpoint, self._release, standing.wanted, self._ours)
                        standing = decide(self._items, self._ours, self._theirs, self._settings)
            else:
                asked = {item.family for item in standing.wanted}
                missing = [i for i in self._items if i.id not in self._theirs and i.family in asked]
                with self._trial_of(production) as endpoint:
                    more = max(self._settings.batch, len(self._theirs))
                    self._ask(asking, endpoint, production, [*standing.wanted, *missing[:more]], self._theirs)
                standing = decide(self._items, self._ours, self._theirs, self._settings)
        return standing

    @contextmanager
    def _trial_of(self, production: Release) -> Iterator[Endpoint]:
        """A trial of production. That it does not come up, or dies, is no fault of the candidate: ToolingError."""
        try:
            with self._platform.trial(production) as endpoint:
                yield endpoint
        except (ReleaseFailed, BadInput) as error:
            raise ToolingError(
                f"production's {production.label} could not be asked", evidence=str(error),
                todo="see why production's own binary does not serve in a trial; the candidate is not to blame",
            ) from error  # fmt: skip

    def _ask(self, asking: Asking, endpoint: Endpoint, release: Release, items: Sequence[Item], book: Book) -> None:
        missing = list({item.id: item for item in items if item.id not in book}.values())

        def progress(done: int, _total: int, what: str) -> None:
            self._progress(done, len(self._items), f"at most, asking {release.label}: {what}")

        self._asking = release
        try:
            asking.ask(endpoint, release.alias, missing, book, progress)
        finally:
            self._platform.store.share_answers(book.path)

    def _evidence(self, standing: Standing, noise: Standing) -> dict[str, Any]:
        ours = self._again if standing is noise else self._ours
        return evidence(standing, ours, self._theirs, self._protects()) | {
            "production": self._production.id if self._production else None,
            "noise": {
                "items": len(noise.asked), "changed": sum(d != 0 for d in noise.overall.differences),
                "interval": noise.overall.interval._asdict(), "verdict": noise.verdict,
            },
            "cost": self._costs(),
        }  # fmt: skip

    def _costs(self) -> dict[str, dict[str, float]]:
        """Of all answers that are kept, whenever they were given."""
        sides = {"candidate": self._ours}
        if self._production:
            sides |= {"production": self._theirs, "production again": self._again}
        return {side: cost([*book.values()], self._settings) for side, book in sides.items()}

    def _protects(self) -> dict[str, str]:
        return {f.name: f.protects for f in asked_families([self._release], self._settings)}

    def _verification(self, verdict: Verdict, what: str, found: dict[str, Any]) -> Verification:
        return Verification(
            name=NAME, release=self._release.id, verdict=verdict, summary=what, promise=PROMISE, evidence=found,
            basis=self._basis, seconds=found.get("cost", {}).get("candidate", {}).get("seconds", 0.0),
        )  # fmt: skip


@stage(NAME, "evals of {release.label}")
def check(
    row: Row, platform: Platform, release: Release, production: str | None, settings: EvalSettings
) -> Verification:
    """The verdict on a release against production's (the id of that release, None for the first ever); recorded.

    Raises ReleaseFailed when it is worse or doesn't come up, ToolingError when answers are missing, production can't
    be asked or differs from itself, BadInput for settings that cannot be met.
    """
    before = platform.store.get_release(production) if production else None
    asked = item_set([release, before] if before else [release], settings)
    found = platform.store.fresh(release.id, (NAME,), basis(before, asked, settings))
    again = bool(found)
    if not found:
        found = [Gate(platform, release, before, settings, asked, row.progress).verify()]
        platform.store.record(found[0])
    (made,) = found
    row.judged(found, made.summary, markdown(made), again=again, detail={"cost": made.evidence.get("cost", {})})
    return made
