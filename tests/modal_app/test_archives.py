"""Archives that try to write outside their folder, through every way in which we unpack one."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from modal_app.archives import UNREADABLE, unpack
from tasks.release import ToolingError
from tasks.sources import Sources

TREE = "pkg-1/llama.cpp"


def entry(name: str, kind: bytes = tarfile.REGTYPE, to: str = "", text: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, to, len(text)
    return member, text


def tarball(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A tarball with a small source tree, and these members behind it."""
    with tarfile.open(path, "w:gz") as tar:
        for member, text in (entry(f"{TREE}/CMakeLists.txt", text=b"project(x)\n"), *members):
            tar.addfile(member, io.BytesIO(text))
    return path


def long_way(outside: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """CVE-2025-4517: the real path of a link grows past PATH_MAX, so the link is taken to stay inside."""
    deep, path, members = "d" * 247, Path(), []
    for step in (steps := "abcdefghijklmnop"):
        members += [entry(f"{path / deep}", tarfile.DIRTYPE), entry(f"{path / step}", tarfile.SYMTYPE, deep)]
        path /= deep
    last = f"{'/'.join(steps)}/{'l' * 254}"
    members.append(entry(last, tarfile.SYMTYPE, "../" * len(steps)))
    members.append(entry("escape", tarfile.SYMTYPE, f"{last}/../.."))
    members.append(entry(f"escape/{outside.name}", text=b"evil"))
    return members


BAD: dict[str, Callable[[Path], list[tuple[tarfile.TarInfo, bytes]]]] = {
    "a name with ..": lambda outside: [entry(f"{TREE}/../../../{outside.name}", text=b"evil")],
    "a link to an absolute place, and a file through it": lambda outside: [
        entry(f"{TREE}/away", tarfile.SYMTYPE, str(outside.parent)),
        entry(f"{TREE}/away/{outside.name}", text=b"evil"),
    ],
    "a link with .., and a file through it": lambda outside: [
        entry(f"{TREE}/away", tarfile.SYMTYPE, "../../.."),
        entry(f"{TREE}/away/{outside.name}", text=b"evil"),
    ],
    "a file through a link that stays inside": lambda _: [
        entry(f"{TREE}/here", tarfile.SYMTYPE, "."),
        entry(f"{TREE}/here/file", text=b"x"),
    ],
    "a hard link to a file of the machine": lambda _: [entry(f"{TREE}/hosts", tarfile.LNKTYPE, "/etc/hosts")],
    "a hard link through a link": lambda _: [
        entry(f"{TREE}/here", tarfile.SYMTYPE, "."),
        entry(f"{TREE}/hard", tarfile.LNKTYPE, f"{TREE}/here/CMakeLists.txt"),
    ],
    "a device": lambda _: [entry(f"{TREE}/null", tarfile.CHRTYPE)],
    "a pipe": lambda _: [entry(f"{TREE}/pipe", tarfile.FIFOTYPE)],
    "a long way of links": long_way,
}


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("way", BAD)
def test_what_would_leave_its_folder_is_refused_and_nothing_is_written_outside(tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside"
    bad = tarball(tmp_path / "bad.tar.gz", *BAD[way](outside))
    sources = Sources(tmp_path / "cache")
    folder = tmp_path / "in" / "folder"
    folder.mkdir(parents=True)
    before = everything(tmp_path)
    with pytest.raises(UNREADABLE):
        unpack(bad, folder)
    with pytest.raises(ToolingError, match="cannot be unpacked"):
        sources.tree_of(bad)
    assert {name for name in everything(tmp_path) - before if not name.startswith("in/folder/")} == set()


def test_absolute_names_and_wheels_with_dots_land_inside(tmp_path: Path) -> None:
    tar = tarball(tmp_path / "a.tar.gz", entry(f"{tmp_path}/outside", text=b"evil"))
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("../outside", "evil")
        wheel.writestr(f"{tmp_path}/outside", "evil")
    for archive in (tar, tmp_path / "a.whl"):
        unpack(archive, tmp_path / "in" / "folder")
    assert not os.path.lexists(tmp_path / "outside") and not os.path.lexists(tmp_path / "in" / "outside")


def test_a_link_may_stay_in_the_source_tree_and_not_lead_to_what_else_the_archive_holds(tmp_path: Path) -> None:
    sources = Sources(tmp_path / "cache")
    good = tarball(tmp_path / "good.tar.gz", entry(f"{TREE}/link", tarfile.SYMTYPE, "CMakeLists.txt"))
    assert sources.files(sources.tree_of(good), "*") == ["CMakeLists.txt", "link"]
    bad = tarball(tmp_path / "bad.tar.gz", entry(f"{TREE}/link", tarfile.SYMTYPE, "../setup.py"))
    with pytest.raises(ToolingError, match="a link that leaves its source tree"):
        sources.tree_of(bad)
