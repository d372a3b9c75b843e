"""The real httpx client against a GitHub on loopback whose repository is a real git repository."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from tasks.release import BadInput, ToolingError, UpstreamRelease
from tasks.settings import UpstreamSettings
from tasks.sources import Sources
from tasks.upstream import find, github
from tasks.upstream.github import Github
from tests.fakes.github import FakeGithub, Fault, fake_github

pytestmark = pytest.mark.wire

CMAKE = {"CMakeLists.txt": "project(x)\n"}


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeGithub]:
    """Five builds, a day apart, in the scheme since August 2026: every bN a prerelease, vX.Y.Z beside two of them."""
    with fake_github(tmp_path / "github") as github:
        for n in range(1, 6):
            title = f"server : change {n} (#{100 + n})\n\n* what it does\n"
            github.commit(title, {**CMAKE, f"tools/{n}.cpp": f"int x{n};\n"})
            github.release(f"b{10600 + n}", f"2026-11-0{n}T12:00:00Z", prerelease=True)
            if n in (2, 4):
                github.release(f"v0.{n}.0", f"2026-11-0{n}T13:00:00Z", asset=f"b{10600 + n}\n", annotated=n == 4)
        yield github


@pytest.fixture
def waits() -> list[float]:
    """The seconds that a client would have waited."""
    return []


@pytest.fixture
def upstream(fake: FakeGithub, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> Github:
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    return client(fake, tmp_path, waits)


def client(fake: FakeGithub, tmp_path: Path, waits: list[float], **settings: object) -> Github:
    chosen = UpstreamSettings.model_validate({"kind": "github", "api_url": fake.url, **settings})
    return Github(chosen, tmp_path / "cache", waits.append)


def test_every_tag_is_a_build_with_its_commit_and_its_stable_tag(upstream: Github, fake: FakeGithub) -> None:
    fake.page_size = 2
    releases = upstream.releases()
    assert [(r.build, r.stable) for r in releases] == [
        (10601, None),
        (10602, "v0.2.0"),
        (10603, None),
        (10604, "v0.4.0"),
        (10605, None),
    ]
    assert releases[-1].commit == fake.commit_of("b10605")
    assert find(releases, "v0.4.0").build == 10604
    with pytest.raises(BadInput) as refused:
        find(releases, "v0.9.0")
    assert "v0.2.0 (b10602), v0.4.0 (b10604)" in refused.value.evidence


def test_the_nightly_channel_takes_the_highest_build_and_the_stable_channel_the_highest_version(
    upstream: Github, fake: FakeGithub, tmp_path: Path
) -> None:
    nightly, stable = upstream.newest(), client(fake, tmp_path, [], channel="stable").newest()
    assert nightly is not None
    assert (nightly.build, nightly.stable) == (10605, None)
    assert nightly.published_at is not None
    assert stable is not None
    assert (stable.build, stable.stable, stable.commit) == (10604, "v0.4.0", fake.commit_of("b10604"))


def test_builds_are_compared_as_numbers(fake: FakeGithub, tmp_path: Path) -> None:
    fake.commit("x", CMAKE)
    fake.release("b9999", "2026-11-09T12:00:00Z")
    newest = client(fake, tmp_path, []).newest()
    assert newest is not None
    assert newest.build == 10605


def test_what_is_denied_or_too_young_is_not_taken_even_when_it_is_pages_away(fake: FakeGithub, tmp_path: Path) -> None:
    fake.page_size = 2
    assert chosen(client(fake, tmp_path, [], deny=(10605, 10604))) == 10603
    assert chosen(client(fake, tmp_path, [], min_age_days=36500)) is None


def chosen(upstream: Github) -> int | None:
    newest = upstream.newest()
    return newest.build if newest else None


def test_a_tag_whose_release_was_never_published_is_not_taken(fake: FakeGithub, tmp_path: Path) -> None:
    fake.published = [r for r in fake.published if r["tag_name"] != "b10605"]
    assert chosen(client(fake, tmp_path, [])) == 10604


def test_before_there_were_stable_releases_the_stable_channel_says_so(tmp_path: Path) -> None:
    with fake_github(tmp_path / "old") as fake:
        fake.commit("x", CMAKE)
        fake.release("b8672", "2026-04-05T12:00:00Z")
        assert chosen(client(fake, tmp_path, [])) == 8672
        with pytest.raises(BadInput, match="no stable release"):
            client(fake, tmp_path, [], channel="stable").newest()


def test_a_stable_release_on_a_commit_of_its_own_is_refused_not_skipped(fake: FakeGithub, tmp_path: Path) -> None:
    fake.commit("backport", CMAKE)
    fake.release("v0.9.0", "2026-11-09T12:00:00Z", asset="b10605")
    with pytest.raises(ToolingError, match=r"which build v0\.9\.0 is"):
        client(fake, tmp_path, [], channel="stable").newest()


def test_the_stable_channel_is_refused_for_a_package() -> None:
    with pytest.raises(ValidationError, match="needs upstream.kind github"):
        UpstreamSettings(channel="stable")


def test_the_source_has_the_tree_of_its_commit_and_is_fetched_once(
    upstream: Github, fake: FakeGithub, tmp_path: Path
) -> None:
    release = find(upstream.releases(), "v0.4.0")
    archive = upstream.fetch(release)
    assert Sources(tmp_path / "cache").tree_of(archive) == fake.tree_of("b10604")
    asked = len(fake.seen)
    assert upstream.fetch(release) == archive
    assert len(fake.seen) == asked


def test_a_tarball_that_is_not_the_commits_tree_is_refused_and_not_kept(upstream: Github, fake: FakeGithub) -> None:
    release = find(upstream.releases(), "b10605")
    with io.BytesIO() as made:
        with tarfile.open(fileobj=made, mode="w:gz") as tar:
            info = tarfile.TarInfo("x/CMakeLists.txt")
            tar.addfile(info, io.BytesIO())
        fake.swap_tarball = made.getvalue()
    with pytest.raises(ToolingError, match="not what its commit says"):
        upstream.fetch(release)
    fake.swap_tarball = None
    assert upstream.fetch(release).exists()


def test_a_stable_release_that_names_another_build_is_refused(upstream: Github, fake: FakeGithub) -> None:
    release = find(upstream.releases(), "v0.4.0")
    fake.assets["/download/v0.4.0/nightly-tag.txt"] = "b10603\n"
    with pytest.raises(ToolingError) as refused:
        upstream.fetch(release)
    assert "b10604" in refused.value.evidence
    assert "b10603" in refused.value.evidence


def test_changes_are_the_commits_between_two_builds_each_with_the_first_build_that_has_it(
    upstream: Github, fake: FakeGithub
) -> None:
    fake.commit("never tagged (#777)", {"a": "1"})
    fake.commit("direct push", {"a": "2"})
    fake.release("b10607", "2026-11-07T12:00:00Z")
    fake.page_size = 1
    notes = upstream.changes(10603, 10607)
    assert [(c.build, c.pull, c.title) for c in notes.changes] == [
        (10604, 104, "server : change 4"),
        (10605, 105, "server : change 5"),
        (10607, 777, "never tagged"),
        (10607, None, "direct push"),
    ]
    assert notes.changes[0].body == "* what it does"
    assert notes.until == 10607
    assert {c.files for c in notes.changes} == {()}


def test_with_a_token_changes_have_their_files_and_a_commit_is_asked_for_once(
    fake: FakeGithub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "secret-token"
    monkeypatch.setenv("GITHUB_TOKEN", "secret-token")
    upstream = client(fake, tmp_path, [])
    assert [c.files for c in upstream.changes(10603, 10605, files=False).changes] == [(), ()]
    assert not any("/commits/" in s.path for s in fake.seen)
    assert [c.files for c in upstream.changes(10603, 10605).changes] == [("tools/4.cpp",), ("tools/5.cpp",)]
    asked = sum("/commits/" in s.path for s in fake.seen)
    upstream.changes(10603, 10605)
    assert sum("/commits/" in s.path for s in fake.seen) == asked
    kept = "".join(path.read_text() for path in (tmp_path / "cache").rglob("*.json"))
    assert kept
    assert "secret-token" not in kept


def test_what_has_not_changed_is_asked_for_by_its_etag_and_read_from_disk(
    upstream: Github, fake: FakeGithub, tmp_path: Path
) -> None:
    first = upstream.releases()
    before = len(fake.seen)
    assert client(fake, tmp_path, []).releases() == first
    assert {s.status for s in fake.seen[before:]} == {304}
    fake.commit("x", CMAKE)
    fake.release("b10606", "2026-11-06T12:00:00Z")
    assert upstream.releases()[-1].build == 10606


@pytest.mark.parametrize("status", [500, 502, 503, 0])
def test_what_breaks_for_a_moment_is_tried_again_a_little_later_each_time(
    upstream: Github, fake: FakeGithub, waits: list[float], status: int
) -> None:
    fake.faults = [Fault(status), Fault(status)]
    assert upstream.releases()
    assert len(waits) == 2
    assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0


def test_a_server_that_stays_silent_is_given_up_with_what_was_seen(
    upstream: Github, fake: FakeGithub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(github, "TIMEOUT", httpx.Timeout(0.2))
    fake.faults = [Fault(0, hang_s=0.5) for _ in range(github.TRIES)]
    with pytest.raises(ToolingError, match="does not answer") as refused:
        upstream.releases()
    assert "ReadTimeout" in refused.value.evidence
    assert len(waits) == github.TRIES - 1


def test_a_secondary_rate_limit_is_waited_for_as_long_as_it_asks(
    upstream: Github, fake: FakeGithub, waits: list[float]
) -> None:
    message = "You have exceeded a secondary rate limit"
    fake.faults = [
        Fault(403, {"Retry-After": "7"}, message),
        Fault(429, {}, "Too Many Requests"),
        Fault(403, {}, message),
    ]
    assert upstream.releases()
    assert waits == [7.0, github.LONGEST_WAIT_S, github.LONGEST_WAIT_S]


def test_a_used_up_rate_limit_is_told_with_its_end_and_what_a_token_would_do(
    upstream: Github, fake: FakeGithub, waits: list[float]
) -> None:
    reset = str(int(time.time()) + 1800)
    fake.faults = [Fault(403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}, "API rate limit exceeded")]
    with pytest.raises(ToolingError, match="rate limit is used up") as refused:
        upstream.releases()
    assert refused.value.todo == "run it again in 30 min, or put a token into GITHUB_TOKEN: its limit is higher"
    assert waits == []


def test_a_wrong_token_names_the_variable_and_never_the_token(
    fake: FakeGithub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "right"
    monkeypatch.setenv("GITHUB_TOKEN", "wrong-token")
    with pytest.raises(BadInput, match="refuses the token") as refused:
        client(fake, tmp_path, []).releases()
    assert "GITHUB_TOKEN" in str(refused.value)
    assert "wrong-token" not in str(refused.value)


def test_a_repository_that_is_not_there_is_bad_input(fake: FakeGithub, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not have what was asked for"):
        client(fake, tmp_path, [], repository="nobody/nothing").releases()


def test_a_half_written_cache_is_read_anew(upstream: Github, tmp_path: Path) -> None:
    first = upstream.releases()
    for path in (tmp_path / "cache" / "github").glob("*.json"):
        path.write_text(json.dumps({"etag": "x"})[:-2])
    assert upstream.releases() == first


def test_a_release_is_told_by_both_its_names() -> None:
    assert str(UpstreamRelease(build=11429, stable="v0.6.0")) == "v0.6.0 (b11429)"
