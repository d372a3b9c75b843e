"""What a dossier must have."""

from __future__ import annotations

from tasks import contracts, evals, preflight, promote, proof, restore


def required() -> tuple[str, ...]:
    """The names of all verifications that must be in a dossier before anybody may approve it."""
    ours = (proof.NAME, preflight.NAME, preflight.SURFACE, promote.STAGING, restore.NAME, evals.NAME)
    return tuple(sorted((*ours, *contracts.required())))
