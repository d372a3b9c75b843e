"""Which upstream release is next, and its source."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tasks.release import BadInput, ReleaseNotes, UpstreamRelease
from tasks.settings import Settings, UpstreamSettings
from tasks.sources import Sources
from tasks.upstream.github import Github
from tasks.upstream.pypi import Pypi


class Upstream(Protocol):
    """Where upstream releases and their source come from."""

    def releases(self) -> list[UpstreamRelease]:
        """Every release that can be had, oldest build first."""

    def newest(self) -> UpstreamRelease | None:
        """The newest one that the policy (channel, minimum age, deny list) lets an unattended upgrade take."""

    def fetch(self, release: UpstreamRelease) -> Path:
        """The archive with this release's whole source, checked, on this machine."""

    def changes(self, low: int, high: int) -> ReleaseNotes:
        """What changed after build `low`, up to and with build `high`."""


def open_upstream(settings: Settings) -> Upstream:
    """The upstream that the settings name."""
    kinds: dict[str, Callable[[UpstreamSettings, Path], Upstream]] = {"pypi": Pypi, "github": Github}
    return kinds[settings.upstream.kind](settings.upstream, settings.cache)


def choose(upstream: Upstream, to: str | None, production: int | None) -> UpstreamRelease | None:
    """The release to upgrade to: `to` when given, else the newest eligible one; None when production has it.

    Raises BadInput for a tag that is none, or is not there (naming its neighbours).
    """
    if to is not None:
        return find(upstream.releases(), to)
    newest = upstream.newest()
    return None if newest is None or (production is not None and newest.build <= production) else newest


def tree_of(source: Upstream, sources: Sources, build: int, release: UpstreamRelease | None = None) -> str:
    """The git tree of a build's source, fetched where it was never imported; `release` is the build's, where known.

    Raises BadInput for a build that upstream does not have, ToolingError when it can't be had.
    """
    if known := sources.upstream_tree(build):
        return known
    release = release or find(source.releases(), f"b{build}")
    return sources.add(release, source.fetch(release))[1]


def find(releases: list[UpstreamRelease], tag: str) -> UpstreamRelease:
    """The release of this tag (`b11434`, `11434`, or a stable `v0.6.0`). Raises BadInput with the nearest ones."""
    if re.fullmatch(r"v\d+\.\d+\.\d+", tag.strip()):
        return _find_stable(releases, tag.strip())
    match = re.fullmatch(r"b?(\d+)", tag.strip())
    if not match:
        raise BadInput(f"{tag!r} is not an upstream build", todo="give a tag such as b11434 or v0.6.0")
    build = int(match[1])
    known = [r.build for r in releases]
    at = bisect.bisect_left(known, build)
    if at < len(known) and known[at] == build:
        return releases[at]
    near = ", ".join(f"b{n}" for n in known[max(0, at - 2) : at + 2])
    raise BadInput(
        f"upstream has no release b{build} here",
        evidence=f"the nearest of {len(known)} are {near}" if near else "upstream lists no release at all",
        todo="take one of these with --to",
    )


def _find_stable(releases: list[UpstreamRelease], tag: str) -> UpstreamRelease:
    stable = [release for release in releases if release.stable]
    for release in stable:
        if release.stable == tag:
            return release
    raise BadInput(
        f"upstream has no stable release {tag} here",
        evidence=f"the last ones are {', '.join(map(str, stable[-4:]))}" if stable else "it lists no stable release",
        todo="take one of these with --to" if stable else "set upstream.kind to github, or give a tag such as b11434",
    )


def newer(releases: list[UpstreamRelease], production: int | None) -> list[UpstreamRelease]:
    """The releases after production's build, oldest first."""
    return [r for r in releases if production is None or r.build > production]
