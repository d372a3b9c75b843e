"""A patch that proves nothing is rejected: its probes must fail on a build without it and pass on the build with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from tasks import contracts, patches, probes
from tasks.behaviour import digest_of_code
from tasks.contracts.probes import probes_of
from tasks.patches.series import PROOF
from tasks.platforms import Platform, Progress
from tasks.probes import Seen
from tasks.release import (
    Build,
    Model,
    PatchResult,
    PatchStatus,
    Release,
    ReleaseFailed,
    SourceTree,
    ToolingError,
    Verdict,
    Verification,
    digest_of,
)
from tasks.report import markdown_table
from tasks.settings import Settings
from tasks.stage import Row, stage

NAME = "patches"


class Look(Model):
    """What the probes of one patch said of two builds once; `without` is empty where the patch is not built with."""

    present: dict[str, Seen]
    without: dict[str, Seen] = Field(default_factory=dict)


class Proof(Model):
    """What the probes of one patch said, look by look: most of the looks decide, and the history is kept."""

    file: str
    probes: tuple[str, ...]
    looks: tuple[Look, ...]
    waiver: str = ""
    """Who says that it can't be proved, and why; empty where there are probes."""

    @property
    def present(self) -> dict[str, Seen]:
        """What most looks said of each probe on the build with the patch, or on upstream's own code."""
        return {name: _most([look.present[name] for look in self.looks]) for name in self.looks[0].present}

    @property
    def without(self) -> dict[str, Seen]:
        """The same of the build without it; empty where the patch is not built with."""
        return {name: _most([look.without[name] for look in self.looks]) for name in self.looks[0].without}

    @property
    def is_needed_to_come_up(self) -> bool:
        """Whether the server without the patch could be asked nothing, where the one with it answers."""
        return bool(self.without) and not any(seen.asked for seen in self.without.values())

    @property
    def wavering(self) -> list[str]:
        """The probes of which two looks at the same build said different things, with how often."""
        found = []
        for what, looks in self._looks_by_probe:
            for word, so in (
                ("passed", [seen.verdict is Verdict.PASSED for seen in looks]),
                ("could be asked", [seen.asked for seen in looks]),
            ):
                if len(set(so)) > 1:
                    found.append(f"{what} {word} in {so.count(True)} of {len(so)} looks")
        return found

    @property
    def _looks_by_probe(self) -> list[tuple[str, list[Seen]]]:
        """(a probe and the build it was put to, what each look said of it)."""
        sides = {"with it": [look.present for look in self.looks], "without it": [look.without for look in self.looks]}
        return [
            (f"{name} {word}", [look[name] for look in looks]) for word, looks in sides.items() for name in looks[0]
        ]

    @property
    def in_doubt(self) -> bool:
        """Whether another look is due: where two differ, until more say one thing than the other; and where one alone
        would refuse a release, drop a patch, or prove one by a server that did not come up.
        """
        if len(self.looks) > 1:
            return any(_is_tie(looks) for _, looks in self._looks_by_probe)
        idle = bool(self.without) and not any(seen.fault for seen in self.without.values())
        failing = any(seen.verdict is Verdict.FAILED for seen in self.present.values())
        return failing or idle

    @property
    def told(self) -> str:
        """One line for a person."""
        if self.waiver:
            return f"not proved, waived by {self.waiver}"
        if not self.probes:
            return "no proof is owed: what it mends is not there"
        passing = sum(seen.verdict is Verdict.PASSED for seen in self.present.values())
        after = f"{passing} of {len(self.probes)} probes pass"
        if not self.without:
            said = f"{after} on upstream's own code"
        elif self.is_needed_to_come_up:
            said = f"the server without it does not come up, {after} with it"
        else:
            failing = sum(seen.fault for seen in self.without.values())
            said = f"{failing} of {len(self.probes)} probes fail without it, {after} with it"
        return "; ".join([said, *(f"flaky: {each}" for each in self.wavering)])


def _most(seen: Sequence[Seen]) -> Seen:
    """What most looks said; the latest of those."""
    count = _count(seen)
    return max(reversed(seen), key=lambda each: count[each.verdict, each.asked])


def _is_tie(seen: Sequence[Seen]) -> bool:
    most = [n for _, n in _count(seen).most_common(2)]
    return len(most) == 2 and most[0] == most[1]


def _count(seen: Sequence[Seen]) -> Counter[tuple[Verdict, bool]]:
    """How often each thing was said: a server that did not come up says another thing than one that fails."""
    return Counter((each.verdict, each.asked) for each in seen)


def judge(result: PatchResult, proof: Proof) -> PatchResult:
    """The patch's result with its proof, `obsolete` when no probe misses it.

    Raises ReleaseFailed when a probe fails where the patch's effect should be, ToolingError when a probe could not
    be run: then nothing is known.
    """
    present = proof.present
    without = {f"{name} without": seen for name, seen in proof.without.items()}
    if broken := {name: seen for name, seen in (present | without).items() if seen.verdict is Verdict.ERRORED}:
        raise ToolingError(
            f"the probes of {result.file} could not be run",
            evidence=_by_words(broken),
            todo="mend it and run the upgrade again",
        )
    if lost := {name: seen for name, seen in present.items() if not seen.asked}:
        alike = any(not seen.asked for seen in without.values())
        raise (ToolingError if alike else ReleaseFailed)(
            f"the server with {result.file} could not be asked, nor the one without it"
            if alike
            else f"the server with {result.file} could not be asked",
            evidence=_by_words(lost),
            todo="nothing is known of the patch: `llama-release explain` knows what its signal can mean",
        )
    if failed := {name: seen for name, seen in present.items() if seen.verdict is not Verdict.PASSED}:
        raise ReleaseFailed(
            f"{result.file} is {result.status}, and its effect is not there",
            evidence="\n".join([_by_words(failed), *proof.wavering]),
            todo=f"`llama-release patches edit {result.file}` and mend the patch, or its status's evidence",
        )
    status, passed_without = result.status, bool(present) and not without
    if without and not any(seen.fault for seen in without.values()) and not proof.is_needed_to_come_up:
        if any(seen.verdict is not Verdict.PASSED for seen in without.values()):
            raise ToolingError(f"the server without {result.file} did not come up", evidence=proof.told)
        status, passed_without = PatchStatus.OBSOLETE, True
    return result.model_copy(
        update={
            "status": status,
            "evidence": f"{result.evidence}\n{proof.told}",
            "passed_without": passed_without,
            "waiver": proof.waiver,
        }
    )


def _by_words(seen: Mapping[str, Seen]) -> str:
    """What these probes came to, one line for all that came to the same."""
    said: dict[str, list[str]] = {}
    for name, each in seen.items():
        said.setdefault(each.said, []).append(name)
    return "\n".join(f"{', '.join(same)}: {words}" for words, same in said.items())


def prove(
    platform: Platform,
    settings: Settings,
    source: SourceTree,
    built: Build,
    progress: Progress,
    again: bool = False,
) -> tuple[SourceTree, Build]:
    """The source tree with every patch of its series proved, without those that prove nothing here, and its build.

    Builds the tree once more without each patch that is in it; probes are run on trial servers. Raises what `judge`
    raises, and ReleaseFailed when those that prove nothing alone can't all be left out.
    """
    trailers = {patch.name: patch.trailers for patch in patches.read_series(settings.patches)}
    bases = patches.bases_of(settings, source)
    results: list[PatchResult] = []
    for result in source.patches:
        progress(len(results), len(source.patches), f"probing {result.file}")
        names = owed(result, trailers[result.file])
        others: Build | None = None
        if result.status.built_with and names:
            without = patches.tree_without(settings, source, result.file, bases=bases)
            others = platform.build(without, settings.recipe, progress)
        waiver = "" if names or result.status is PatchStatus.NOT_APPLICABLE else trailers[result.file]["Waiver"]
        results.append(judge(result, _proof(platform, settings, result, names, built, others, waiver, again)))
    proved = source.model_copy(update={"patches": tuple(results)})
    if gone := [r.file for r in results if r.status is PatchStatus.OBSOLETE]:
        left = patches.leave_out(settings, source, *gone, bases=bases)
        proved = proved.model_copy(update={"tree": left.tree})
        built = platform.build(proved, settings.recipe, progress)
        for result in results:
            if names := owed(result, trailers[result.file]):
                _refuse_missed(result, _proof(platform, settings, result, names, built, None, "", again), gone)
    return proved, built


def _refuse_missed(result: PatchResult, proof: Proof, gone: Sequence[str]) -> None:
    """Raises what `judge` raises, where a patch's effect is not there without all those that prove nothing alone: two
    can cover for each other, and one that stays can need one that goes.
    """
    try:
        judge(result, proof)
    except ReleaseFailed as failed:
        raise ReleaseFailed(
            f"{', '.join(gone)} can't {'all ' * (len(gone) > 1)}go: the effect of {result.file} would go too",
            evidence=failed.evidence,
            todo="take one of them out with `llama-release patches drop`, or make one patch of them with `fold`",
        ) from failed


def owed(result: PatchResult, trailers: dict[str, str]) -> tuple[str, ...]:
    """The probes that a patch owes: none where it is not applicable, or where a person waived them."""
    if result.status is PatchStatus.NOT_APPLICABLE or ("Waiver" in trailers and PROOF not in trailers):
        return ()
    return probes_of(trailers.get(PROOF, ""))


def _proof(
    platform: Platform,
    settings: Settings,
    result: PatchResult,
    names: Sequence[str],
    built: Build,
    others: Build | None,
    waiver: str,
    again: bool,
) -> Proof:
    """The proof of one patch, from the store when these builds were probed with these contracts before.

    `again` adds a look to what is known; so does a proof that is in doubt.
    """
    key = digest_of([result.file, list(names), built.digest, others.digest if others else None, waiver, _basis()])[:16]
    proof = platform.store.proof(key, Proof)
    while proof is None or again or proof.in_doubt:
        look = Look(
            present=probes.run(platform, settings, built, names),
            without=probes.run(platform, settings, others, names) if others else {},
        )
        one = Proof(file=result.file, probes=tuple(names), waiver=waiver, looks=(look,))
        if any(seen.verdict is Verdict.ERRORED for side in (look.present, look.without) for seen in side.values()):
            return one  # which decides nothing, and is not kept
        proof = one.model_copy(update={"looks": (*proof.looks, look)}) if proof else one
        platform.store.save_proof(key, proof)
        again = False
    return proof


def _basis() -> str:
    return digest_of([contracts.basis(), digest_of_code(Path(probes.__file__))])[:12]


@stage("proof", "prove the patches on {source.upstream}")
def check(
    row: Row, platform: Platform, settings: Settings, source: SourceTree, built: Build, again: bool = False
) -> tuple[SourceTree, Build]:
    """The source tree with every patch in it proved and none that proves nothing, and its build. `again`: the probes
    are run once more, whatever they said before.

    Raises what `judge` raises.
    """
    proved, built = prove(platform, settings, source, built, row.progress, again)
    told = [f"{p.file.removesuffix('.patch')} {p.status}: {p.evidence.splitlines()[-1]}" for p in proved.patches]
    row.done(
        "; ".join(told) or "no patches",
        markdown_table(("patch", "status", "evidence"), [(p.file, p.status, p.evidence) for p in proved.patches]),
        detail={
            "upstream": source.upstream.tag,
            "patches": [p.model_dump(mode="json", exclude={"detail"}) for p in proved.patches],
        },
    )
    return proved, built


def record(platform: Platform, release: Release, source: SourceTree) -> None:
    """Put the proofs into the release's dossier as the verification `patches`."""
    platform.store.record(
        Verification(
            name=NAME,
            release=release.id,
            verdict=Verdict.PASSED,
            summary=", ".join(map(_named, source.patches)) or "no patches",
            promise="no patch is applied or dropped without a probe that says so (guide, issue 8)",
            evidence={"patches": [p.model_dump(mode="json") for p in source.patches], "tree": source.tree},
        )
    )


def _named(result: PatchResult) -> str:
    """A patch for the line that the approver reads: one that nobody has proved says so there."""
    waived = f" (not proved, waived by {result.waiver})" if result.waiver else ""
    return f"{result.file.removesuffix('.patch')} {result.status}{waived}"
