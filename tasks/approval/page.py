"""What a person reads before deciding: the whole dossier as the Prefect page shows it."""

from __future__ import annotations

from collections.abc import Iterator

from tasks import evals, preflight, proof, restore
from tasks.approval.question import rollbacks
from tasks.evals import shown
from tasks.platforms import Platform
from tasks.preflight.compare import Difference
from tasks.release import Dossier, PatchResult, Problem, Release, Verification
from tasks.report import dossier_markdown, markdown, markdown_table
from tasks.upstream.notes import Assessment, digest


def page(platform: Platform, dossier: Dossier, expected: str | None, notes: Assessment | None) -> str:
    """The dossier in Markdown, what did not pass first; `expected` is the release in production."""
    replaces = platform.store.get_release(expected).label if expected else "nothing (the first release)"
    return dossier_markdown(dossier, replaces, list(_sections(platform, dossier, notes)))


def _sections(platform: Platform, dossier: Dossier, notes: Assessment | None) -> Iterator[tuple[str, str]]:
    """(title, Markdown) of what there is more to see of than a verdict."""
    found = {v.name: v for v in dossier.verifications}
    if foretold := platform.foretells("production"):
        yield "What changes for clients", "\n".join(f"- {markdown(line)}" for line in foretold)
    if before := rollbacks(platform.store, dossier.release):
        yield "It was rolled back before", "\n".join(f"- {markdown(line)}" for line in before)
    if notes:
        yield "What changed upstream", digest(notes)
    if proved := found.get(proof.NAME):
        yield "Patches", _patches(proved)
    if surface := found.get(preflight.SURFACE):
        differ = [Difference.model_validate(each) for each in surface.evidence["differences"]]
        yield (
            "Preflight",
            markdown(surface.summary) + (_folded(f"{len(differ)} differences", preflight.table(differ)) * bool(differ)),
        )
    if kept := [v for v in dossier.verifications if v.promise and v.name.startswith("contracts.")]:
        rows = ((v.name.removeprefix("contracts."), v.verdict, v.summary, v.promise) for v in kept)
        table = markdown_table(("promise", "verdict", "what was seen", "promised"), rows)
        yield "Contracts", _folded(f"{len(kept)} promises", table)
    if came_back := found.get(restore.NAME):
        yield "Restores", f"{markdown(came_back.summary)}\n\n{restore.markdown(platform.store, came_back)}"
    if asked := found.get(evals.NAME):
        yield "Evals", shown.markdown(asked)
    if spent := _spent(platform, dossier.release):
        yield "Cost", spent


def _patches(proved: Verification) -> str:
    rows = [PatchResult.model_validate(each) for each in proved.evidence["patches"]]
    if not rows:
        return "None."
    return markdown_table(("patch", "status", "evidence"), [(p.file, p.status, p.evidence) for p in rows])


def _spent(platform: Platform, release: Release) -> str:
    """What the release has cost so far, where the platform knows; '' where it costs nothing."""
    if platform.name != "modal":
        return ""
    from tasks.platforms.modal import ModalPlatform  # Modal's SDK takes a second to load

    assert isinstance(platform, ModalPlatform)
    try:
        found = platform.costs(release)
    except Problem as problem:
        return f"not known: {markdown(problem.what)}"
    rows = [(c.stage, c.containers, f"{c.seconds:.0f}", f"{c.gpu_seconds:.0f}", f"{c.usd:.2f}") for c in found]
    total = ("together", "", "", "", f"{sum(c.usd for c in found):.2f}")
    return markdown_table(("stage", "containers", "seconds", "GPU seconds", "USD"), [*rows, total])


def _folded(title: str, markdown: str) -> str:
    return f"\n\n<details><summary>{title}</summary>\n\n{markdown}\n\n</details>"
