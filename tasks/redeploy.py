"""A redeploy: a release that production has or retains, on new servers with a new snapshot, proved anew on the way.

It is for what no release tells: another API key, another base image, another runtime of Modal, another driver. What
was verified of the binary stands; what another deployment can break (staging, restore) is verified again.

A server knows one API key. So a new key counts from the moment that traffic moves, and the old one until then: what is
under way is answered to its end, and whoever still sends the old key is refused with 401 from that moment on.
"""

from __future__ import annotations

import secrets

from tasks.platforms import Platform
from tasks.promote import refuse_on_hold, whole
from tasks.release import Approval, BadInput, Dossier, Redeploy, Release, StagePointer
from tasks.stage import Row, stage
from tasks.store import Store


def choose(store: Store, wanted: str | None) -> Release:
    """The release that is redeployed: the one in production, or a retained one.

    Raises BadInput when production neither has nor retains it, or another one is wanted during a hold; ToolingError
    when it is not whole in the store.
    """
    pointer = store.pointer("production")
    served, target = (pointer.release, *pointer.retained), wanted or pointer.release
    release = store.named(target, served) if target else None
    if release is None or release.id not in served:
        raise BadInput(
            f"production can be redeployed with what it has or retains, not with {wanted or 'nothing'}",
            evidence=f"in production: {pointer.release or 'none'}; retained: {', '.join(pointer.retained) or 'none'}",
            todo="take one from `llama-release status`; `llama-release upgrade` brings another release",
        )
    if release.id != pointer.release:
        refuse_on_hold(pointer)
    whole(store, release)
    return release


@stage("redeploy", "redeploy {wanted}")
def begin(row: Row, platform: Platform, wanted: str | None, by: str, reason: str) -> Redeploy:
    """Write down what is redeployed, before anything is touched.

    A redeploy of the same release for the same reason that a killed run left open is gone on with, in its generation.
    Raises what `choose` raises.
    """
    store = platform.store
    release = choose(store, wanted)
    left = store.redeploy()
    gone_on = left if left and (left.release, left.reason) == (release.id, reason) else None
    generation = gone_on.generation if gone_on else secrets.token_hex(4)
    begun = Redeploy(release=release.id, generation=generation, by=by, reason=reason)
    store.open_redeploy(begun)
    since = f"; goes on with what {gone_on.by} began at {gone_on.at:%Y-%m-%d %H:%M} UTC" if gone_on else ""
    row.done(
        f"{release.label} as generation {generation}, by {by}: {reason}{since}",
        release=release.id,
        detail=begun.model_dump(mode="json"),
    )
    return begun


def approval(begun: Redeploy, dossier: Dossier, production: StagePointer) -> Approval:
    """The approval of whoever started the redeploy by hand: of this dossier, to replace what production has now.

    It is not kept in the store, where an upgrade to the same release would find it.
    """
    return Approval(
        release=begun.release,
        dossier=dossier.digest,
        expected=production.release,
        version=production.version,
        decision="approve",
        approver=begun.by,
        note=begun.reason,
    )
