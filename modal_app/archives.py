"""Archives from elsewhere, unpacked into a folder that they cannot leave. Used in containers and on a machine."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

if not hasattr(tarfile, "data_filter"):  # Python 3.11.0 to 3.11.3, such as Debian 12's
    from backports import tarfile  # type: ignore[no-redef]

UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError)
"""What `unpack` raises."""

Wanted = Callable[[str], bool]
"""Whether a file of an archive is unpacked, by the name that it has in there."""


class Outside(tarfile.FilterError):
    """A member of an archive would be written, or points, outside its folder."""


def unpack(archive: Path, folder: Path, wanted: Wanted = lambda _: True) -> None:
    """Unpack a wheel or a tarball, or the `wanted` files of it. Raises one of UNREADABLE; what was unpacked until then
    is in `folder` only.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            # drops what would leave the folder from its names, and makes no links
            wheel.extractall(folder, [name for name in wheel.namelist() if wanted(name)])
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, (member for member in tar if wanted(member.name)), filter=_Inside())


class _Inside:
    """tarfile's own `data` filter, and nothing through a link.

    The filter alone can be led outside by long paths of links (CVE-2025-4517, mended in Python 3.11.13 and 3.12.11).
    """

    def __init__(self) -> None:
        self._links: set[PurePosixPath] = set()

    def __call__(self, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        kept = tarfile.data_filter(member, folder)
        name = PurePosixPath(kept.name)
        names = [name, PurePosixPath(kept.linkname)] if kept.islnk() else [name]
        for each in names:
            if ".." in each.parts or {each, *each.parents} & self._links:
                raise Outside(f"{member.name} leads through a link or outside")
        if kept.issym():
            self._links.add(name)
        return kept
