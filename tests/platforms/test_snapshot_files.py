"""Which snapshot on disk may be used, by its files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.platforms.local.snapshot import NoSnapshot, check_pages, folder_name, usable, write_manifest
from tests.test_release import a_release

RELEASE = a_release()
MACHINE = {"CPU": "a", "CPU flags": "1", "kernel": "6.1 #1", "GPU": "none"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A snapshot of two images, the second with pages."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "core-1.img").write_bytes(b"core")
    (tmp_path / "images" / "pages-1.img").write_bytes(b"pages" * 1000)
    write_manifest(tmp_path, RELEASE, MACHINE, 8081, tmp_path / "output")
    return tmp_path


def test_it_is_used_by_the_release_that_it_is_of_where_it_was_taken(folder: Path) -> None:
    manifest = usable(folder, RELEASE, MACHINE)
    check_pages(folder, manifest)
    with pytest.raises(NoSnapshot, match=f"the snapshot is of release {RELEASE.id}"):
        usable(folder, a_release(alias="other"), MACHINE)


@pytest.mark.parametrize("name", MACHINE)
def test_on_another_machine_it_is_not_used_and_what_differs_is_named(folder: Path, name: str) -> None:
    with pytest.raises(NoSnapshot, match=f"taken with another {name}: {MACHINE[name]}, here other"):
        usable(folder, RELEASE, {**MACHINE, name: "other"})
    with pytest.raises(NoSnapshot, match=f"taken with another {name}: .*, here None"):
        usable(folder, RELEASE, {each: value for each, value in MACHINE.items() if each != name})


def test_one_that_is_damaged_is_not_used(folder: Path) -> None:
    manifest = usable(folder, RELEASE, MACHINE)
    pages = folder / "images" / "pages-1.img"
    pages.write_bytes(pages.read_bytes()[:-1] + b"!")
    assert usable(folder, RELEASE, MACHINE) == manifest, "pages are read while CRIU restores them"
    with pytest.raises(NoSnapshot, match=r"damaged: images/pages-1\.img"):
        check_pages(folder, manifest)
    (folder / "images" / "core-1.img").unlink()
    with pytest.raises(NoSnapshot, match="can't be read"):
        usable(folder, RELEASE, MACHINE)
    (folder / "manifest.json").write_text("")
    with pytest.raises(NoSnapshot, match="manifest can't be read"):
        usable(folder, RELEASE, MACHINE)


def test_another_release_key_or_generation_has_a_folder_of_its_own_and_no_key_is_in_its_name() -> None:
    names = {folder_name(*each) for each in (("r1", "k"), ("r2", "k"), ("r1", "l"), ("r1", None), ("r1", "k", "2"))}
    assert len(names) == 5
    assert "a-long-key" not in folder_name("r1", "a-long-key")
