"""A patch that proves nothing is rejected: its probes must fail on a build without it and pass on the build with it."""

from __future__ import annotations

from collections.abc import Sequence

from tasks import contracts, patches
from tasks.contracts.probes import probes_of, run_probes, shows_fault
from tasks.platforms import Platform, Progress
from tasks.preflight import bundle
from tasks.release import (
    NOT_ASKED,
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


class Proof(Model):
    """What the probes of one patch said of two builds; `without` is empty where the patch is not built with."""

    file: str
    probes: tuple[str, ...]
    without: dict[str, Verdict]
    present: dict[str, Verdict]
    fault: dict[str, bool]
    """Probe -> whether the server without the patch ran and broke the promise."""
    evidence: dict[str, str]
    waiver: str = ""
    """Who says that it can't be proved, and why; empty where there are probes."""
    unasked: tuple[str, ...] = ()
    """The probes that no server was there for, as they are called in `evidence`."""

    @property
    def errored(self) -> list[str]:
        """The probes that our own tooling could not run, as they are called in `evidence`."""
        found = [name for name, v in self.present.items() if v is Verdict.ERRORED]
        return found + [f"{name} without" for name, v in self.without.items() if v is Verdict.ERRORED]

    @property
    def is_needed_to_come_up(self) -> bool:
        """Whether the server without the patch could be asked nothing, where the one with it answers."""
        return bool(self.without) and all(f"{name} without" in self.unasked for name in self.without)

    @property
    def told(self) -> str:
        """One line for a person."""
        if self.waiver:
            return f"not proved, waived by {self.waiver}"
        if not self.probes:
            return "no proof is owed: what it mends is not there"
        after = f"{list(self.present.values()).count(Verdict.PASSED)} of {len(self.probes)} probes pass"
        if not self.without:
            return f"{after} on upstream's own code"
        if self.is_needed_to_come_up:
            return f"the server without it does not come up, {after} with it"
        failing = sum(self.fault.values())
        return f"{failing} of {len(self.probes)} probes fail without it, {after} with it"


def judge(result: PatchResult, proof: Proof) -> PatchResult:
    """The patch's result with its proof, `obsolete` when no probe misses it.

    Raises ReleaseFailed when a probe fails where the patch's effect should be, ToolingError when a probe could not
    be run: then nothing is known.
    """
    if broken := proof.errored:
        raise ToolingError(
            f"the probes of {result.file} could not be run",
            evidence=_by_words(proof, broken),
            todo="mend it and run the upgrade again",
        )
    if lost := [name for name in proof.present if name in proof.unasked]:
        alike = any(f"{name} without" in proof.unasked for name in proof.without)
        raise (ToolingError if alike else ReleaseFailed)(
            f"the server with {result.file} could not be asked, nor the one without it"
            if alike
            else f"the server with {result.file} could not be asked",
            evidence=_by_words(proof, lost),
            todo="nothing is known of the patch: `llama-release explain` knows what its signal can mean",
        )
    if failed := [name for name, v in proof.present.items() if v is not Verdict.PASSED]:
        raise ReleaseFailed(
            f"{result.file} is {result.status}, and its effect is not there",
            evidence=_by_words(proof, failed),
            todo=f"`llama-release patches edit {result.file}` and mend the patch, or its status's evidence",
        )
    told = f"{result.evidence}\n{proof.told}"
    if proof.without and not any(proof.fault.values()) and not proof.is_needed_to_come_up:
        if any(v is not Verdict.PASSED for v in proof.without.values()):
            raise ToolingError(f"the server without {result.file} did not come up", evidence=proof.told)
        return result.model_copy(update={"status": PatchStatus.OBSOLETE, "evidence": told})
    return result.model_copy(update={"evidence": told})


def _by_words(proof: Proof, names: Sequence[str]) -> str:
    """What these probes came to, one line for all that came to the same."""
    said: dict[str, list[str]] = {}
    for name in names:
        said.setdefault(proof.evidence.get(name, ""), []).append(name)
    return "\n".join(f"{', '.join(same)}: {words}" for words, same in said.items())


def prove(
    platform: Platform, settings: Settings, source: SourceTree, built: Build, progress: Progress
) -> tuple[SourceTree, Build]:
    """The source tree with every patch of its series proved, without those that prove nothing here, and its build.

    Builds the tree once more without each patch that is in it; probes are run on trial servers. Raises what `judge`
    raises.
    """
    by_name = {patch.name: patch for patch in patches.read_series(settings.patches)}
    results: list[PatchResult] = []
    for result in source.patches:
        progress(len(results), len(source.patches), f"probing {result.file}")
        trailers = by_name[result.file].trailers
        names = owed(result, trailers)
        others: Build | None = None
        if result.status.built_with and names:
            without = patches.tree_without(settings, source, result.file)
            others = platform.build(without, settings.recipe, progress)
        waiver = "" if names or result.status is PatchStatus.NOT_APPLICABLE else trailers["Waiver"]
        results.append(judge(result, _proof(platform, settings, result, names, built, others, waiver)))
    proved = source.model_copy(update={"patches": tuple(results)})
    if dropped := [r.file for r in results if r.status is PatchStatus.OBSOLETE]:
        proved = proved.model_copy(update={"tree": patches.tree_without(settings, source, *dropped).tree})
        built = platform.build(proved, settings.recipe, progress)
    return proved, built


def owed(result: PatchResult, trailers: dict[str, str]) -> tuple[str, ...]:
    """The probes that a patch owes: none where it is not applicable, or where a person waived them."""
    if result.status is PatchStatus.NOT_APPLICABLE or ("Waiver" in trailers and "Proved-by" not in trailers):
        return ()
    return probes_of(trailers.get("Proved-by", ""))


def _proof(
    platform: Platform,
    settings: Settings,
    result: PatchResult,
    names: Sequence[str],
    built: Build,
    others: Build | None,
    waiver: str,
) -> Proof:
    """The proof of one patch, from the store when these builds were probed with these contracts before."""
    key = digest_of(
        [result.file, list(names), built.digest, others.digest if others else None, waiver, contracts.basis()]
    )[:16]
    if known := platform.store.proof(key, Proof):
        return known
    with_patch = _run(platform, settings, built, names)
    without = _run(platform, settings, others, names) if others else {}
    proof = Proof(
        file=result.file,
        probes=tuple(names),
        waiver=waiver,
        present={name: v.verdict for name, v in with_patch.items()},
        without={name: v.verdict for name, v in without.items()},
        fault={name: shows_fault(v) for name, v in without.items()},
        evidence={name: v.summary for name, v in with_patch.items()}
        | {f"{name} without": v.summary for name, v in without.items()},
        unasked=tuple(name for name, v in with_patch.items() if NOT_ASKED in v.evidence)
        + tuple(f"{name} without" for name, v in without.items() if NOT_ASKED in v.evidence),
    )
    if not proof.errored:
        platform.store.save_proof(key, proof)
    return proof


def _run(platform: Platform, settings: Settings, built: Build, names: Sequence[str]) -> dict[str, Verification]:
    if not names:
        return {}
    release, _ = bundle(platform.store, built, settings.server)
    return run_probes(platform, release, names)


@stage("proof", "prove the patches on {source.upstream}")
def check(
    row: Row, platform: Platform, settings: Settings, source: SourceTree, built: Build
) -> tuple[SourceTree, Build]:
    """The source tree with every patch in it proved and none that proves nothing, and its build.

    Raises what `judge` raises.
    """
    proved, built = prove(platform, settings, source, built, row.progress)
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
            summary=", ".join(f"{p.file.removesuffix('.patch')} {p.status}" for p in source.patches) or "no patches",
            promise="no patch is applied or dropped without a probe that says so (guide, issue 8)",
            evidence={"patches": [p.model_dump(mode="json") for p in source.patches], "tree": source.tree},
        )
    )
