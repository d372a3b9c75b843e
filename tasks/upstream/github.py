"""Upstream releases, their source and their changes through GitHub's REST API."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from tasks.release import BadInput, Change, ReleaseNotes, ToolingError, UpstreamRelease, now
from tasks.settings import UpstreamSettings
from tasks.sources import Sources
from tasks.store import write_atomic

TRIES = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
"""A rate limit that ends later than this is told, not waited for."""
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
RELEASE_PAGES = 20
"""Pages of 100 releases that are searched for one that the policy lets through."""
STABLE_ASSET = "nightly-tag.txt"
"""The asset of a stable release that names the build it was made from (upstream, since v0.3.0)."""

_BUILD = re.compile(r"b(\d+)")
_STABLE = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_PULL = re.compile(r"\(#(\d+)\)$")

Sleep = Callable[[float], None]


class Github:
    """One repository on GitHub, or on a server that speaks its REST API."""

    def __init__(self, settings: UpstreamSettings, cache: Path, sleep: Sleep = time.sleep) -> None:
        self._settings = settings
        self._cache = cache
        self._api = _Api(settings, cache / "github", sleep)
        self._repo = f"/repos/{settings.repository}"

    def releases(self) -> list[UpstreamRelease]:
        """Every tagged build with its commit, and its stable tag when it carries one; oldest first."""
        stable = {self._commit(ref): tag for tag, ref in self._stable_refs()}
        builds = [(int(tag[1:]), self._commit(ref)) for tag, ref in self._refs("b", _BUILD)]
        return [
            UpstreamRelease(build=build, stable=stable.get(commit), commit=commit, source="github")
            for build, commit in sorted(builds)
        ]

    def newest(self) -> UpstreamRelease | None:
        """The highest release of the channel that is published, old enough and not denied; None when there is none.

        Raises BadInput when the channel is `stable` and upstream has no stable release, ToolingError when the highest
        one can't be told as a build.
        """
        if self._settings.channel == "nightly":
            wanted = {release.tag: release for release in self.releases()}
        else:
            wanted = {release.stable: release for release in self.releases() if release.stable}
            self._refuse_unresolved(wanted)
        latest = now() - timedelta(days=self._settings.min_age_days)
        for page in self._api.pages(f"{self._repo}/releases?per_page=100", RELEASE_PAGES):
            dated = {item["tag_name"]: _when(item["published_at"]) for item in page if item["published_at"]}
            found = [
                tag
                for tag in wanted.keys() & dated.keys()
                if dated[tag] <= latest and wanted[tag].build not in self._settings.deny
            ]
            if found:
                tag = max(found, key=_version)
                return wanted[tag].model_copy(update={"published_at": dated[tag]})
        return None

    def _refuse_unresolved(self, resolved: Mapping[str, UpstreamRelease]) -> None:
        refs = self._stable_refs()
        if not refs:
            raise BadInput(f"{self._settings.repository} has no stable release", todo="set upstream.channel to nightly")
        tag, target = refs[-1]
        if tag not in resolved:
            raise ToolingError(
                f"it is not known which build {tag} is",
                evidence=f"no tag bN is on its commit {self._commit(target)}",
                todo="look at upstream's release page, and name the build that you want with --to",
            )

    def fetch(self, release: UpstreamRelease) -> Path:
        """The tarball of this release's commit, downloaded once; its content has the commit's own git tree hash.

        Raises ToolingError when it has not, or when a stable release says that it was made from another build.
        """
        archive = self._cache / "downloads" / f"{self._settings.repository.replace('/', '-')}-{release.commit}.tar.gz"
        if archive.exists():
            return archive
        if release.stable:
            self._cross_check(release)
        promised = str(self._api.get(f"{self._repo}/git/commits/{release.commit}")["tree"]["sha"])
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
            partial = Path(folder) / archive.name
            self._api.download(f"{self._repo}/tarball/{release.commit}", partial)
            tree = Sources(self._cache).tree_of(partial)
            if tree != promised:
                raise ToolingError(
                    f"the source of {release} is not what its commit says",
                    evidence=f"commit {release.commit} has tree {promised}, the tarball has {tree}",
                    todo="try again; if it stays so, do not build this release",
                )
            os.replace(partial, archive)
        return archive

    def _cross_check(self, release: UpstreamRelease) -> None:
        item = self._api.get(f"{self._repo}/releases/tags/{release.stable}")
        assets = {asset["name"]: asset["browser_download_url"] for asset in item["assets"]}
        if STABLE_ASSET not in assets:
            return
        said = self._api.text(assets[STABLE_ASSET]).strip()
        if said != release.tag:
            raise ToolingError(
                f"upstream contradicts itself about {release.stable}",
                evidence=f"its commit {release.commit} is tagged {release.tag}, its {STABLE_ASSET} says {said!r}",
                todo="look at upstream's release page, and name the build that you want with --to",
            )

    def changes(self, low: int, high: int) -> ReleaseNotes:
        """Every commit between two builds: title and body of its message, and (with a token) the files it touches."""
        tagged = {release.commit: release.build for release in self.releases()}
        found: list[Change] = []
        waiting: list[dict[str, Any]] = []
        for page in self._api.pages(f"{self._repo}/compare/b{low}...b{high}?per_page=100"):
            for commit in page["commits"]:
                waiting.append(commit)
                if build := tagged.get(commit["sha"]):  # untagged commits went into the next tagged build
                    found += [self._change(build, one) for one in waiting]
                    waiting = []
        found += [self._change(high, one) for one in waiting]
        return ReleaseNotes(low=low, high=high, until=high, changes=tuple(found))

    def pull(self, number: int) -> str:
        """The commits of a pull request, one mail after the other. Raises BadInput when there is none such."""
        return self._api.text(f"{self._settings.api_url}{self._repo}/pulls/{number}", "application/vnd.github.patch")

    def _change(self, build: int, commit: dict[str, Any]) -> Change:
        title, _, body = commit["commit"]["message"].partition("\n")
        title = title.strip()
        match = _PULL.search(title)
        pull = int(match[1]) if match else None
        files: tuple[str, ...] = ()
        if self._api.has_token:  # one request a commit: too many for the limit without a token
            whole = self._api.get(f"{self._repo}/commits/{commit['sha']}", immutable=True)
            files = tuple(file["filename"] for file in whole.get("files", ()))
        said = title[: match.start()].rstrip() if match else title
        return Change(build=build, pull=pull, title=said, body=body.strip(), files=files)

    def _refs(self, prefix: str, tag: re.Pattern[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for page in self._api.pages(f"{self._repo}/git/matching-refs/tags/{prefix}"):
            for ref in page:
                name = ref["ref"].removeprefix("refs/tags/")
                if tag.fullmatch(name):
                    yield name, ref["object"]

    def _stable_refs(self) -> list[tuple[str, dict[str, Any]]]:
        """Lowest version first, so that the highest of several on one commit names it."""
        return sorted(self._refs("v", _STABLE), key=lambda found: _version(found[0]))

    def _commit(self, target: dict[str, Any]) -> str:
        while target["type"] == "tag":  # an annotated tag points to an object that points to the commit
            target = self._api.get(f"{self._repo}/git/tags/{target['sha']}", immutable=True)["object"]
        return str(target["sha"])


def _version(tag: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", tag))


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


class _Api:
    """GET with conditional requests, rate limits and retries. Bodies and their ETags are kept on disk, no headers."""

    def __init__(self, settings: UpstreamSettings, folder: Path, sleep: Sleep) -> None:
        self._settings, self._folder, self._sleep = settings, folder, sleep
        self._token = os.environ.get(settings.token_env)

    @property
    def has_token(self) -> bool:
        return bool(self._token)

    def get(self, path: str, *, immutable: bool = False) -> Any:
        """The parsed answer. With `immutable`, what was read once is never asked for again."""
        return self._read(self._settings.api_url + path, immutable=immutable)["body"]

    def pages(self, path: str, limit: int | None = None) -> Iterator[Any]:
        """The parsed answer of each page, as the `Link` header names the next one."""
        url: str | None = self._settings.api_url + path
        count = 0
        while url and (limit is None or count < limit):
            page = self._read(url)
            yield page["body"]
            url, count = page["next"], count + 1

    def text(self, url: str, accept: str = "application/vnd.github+json") -> str:
        return self._ask(url, {"Accept": accept}).text

    def download(self, path: str, target: Path) -> None:
        self._ask(self._settings.api_url + path, {}, target)

    def _read(self, url: str, *, immutable: bool = False) -> dict[str, Any]:
        kept = self._folder / f"{hashlib.sha256(url.encode()).hexdigest()[:24]}.json"
        known = _kept(kept)
        if known and immutable:
            return known
        response = self._ask(url, {"If-None-Match": known["etag"]} if known and known["etag"] else {})
        if response.status_code == httpx.codes.NOT_MODIFIED and known:
            return known
        page = {
            "etag": response.headers.get("ETag"),
            "next": response.links.get("next", {}).get("url"),
            "body": response.json(),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, json.dumps(page))
        return page

    def _ask(self, url: str, headers: dict[str, str], target: Path | None = None) -> httpx.Response:
        said = ""
        for attempt in range(TRIES):
            wait = FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0)
            try:
                response = self._send(url, headers, target)
            except httpx.HTTPError as error:
                said = f"{type(error).__name__}: {error}"
            else:
                if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
                    return response
                said = f"{response.status_code} {_message(response)}"
                if (limited := _limited_for_s(response)) is not None:
                    wait = limited
                elif response.status_code < 500:
                    raise self._refused(url, response, said)
            if wait > LONGEST_WAIT_S:
                raise ToolingError(
                    "GitHub's rate limit is used up",
                    evidence=f"{url}: {said}",
                    todo=f"run it again in {wait / 60:.0f} min, or {self._hint()}",
                )
            if attempt + 1 < TRIES:
                self._sleep(wait)
        raise ToolingError(
            "GitHub does not answer",
            evidence=f"{url}: {TRIES} tries, the last one: {said}",
            todo="check the network and upstream.api_url, then run it again: what is done is kept",
        )

    def _send(self, url: str, headers: dict[str, str], target: Path | None) -> httpx.Response:
        sent = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28", **headers}
        if self._token and url.startswith(self._settings.api_url + "/"):
            sent["Authorization"] = f"Bearer {self._token}"  # httpx drops it when a redirect leaves the host
        with (
            httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client,
            client.stream("GET", url, headers=sent) as response,
        ):
            if target and response.is_success:
                with target.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
            else:
                response.read()
            return response

    def _refused(self, url: str, response: httpx.Response, said: str) -> BadInput:
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return BadInput(
                "GitHub refuses the token", evidence=said, todo=f"renew the token in {self._settings.token_env}"
            )
        return BadInput(
            "GitHub does not have what was asked for",
            evidence=f"{url}: {said}",
            todo="check upstream.repository and upstream.api_url",
        )

    def _hint(self) -> str:
        name = self._settings.token_env
        return f"use another token in {name}" if self._token else f"put a token into {name}: its limit is higher"


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # a cache: what can't be read is asked for again
        return None


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])[:300]
    except (ValueError, KeyError, TypeError, httpx.ResponseNotRead):
        return response.reason_phrase


def _limited_for_s(response: httpx.Response) -> float | None:
    """Seconds to wait when a rate limit was hit (primary: none left; secondary: Retry-After), else None.

    Source: GitHub's documentation, "Rate limits for the REST API", exceeding the rate limit.
    """
    if response.status_code not in (httpx.codes.FORBIDDEN, httpx.codes.TOO_MANY_REQUESTS):
        return None
    headers = response.headers
    if "Retry-After" in headers:
        return float(headers["Retry-After"])
    if headers.get("X-RateLimit-Remaining") == "0":
        reset = datetime.fromtimestamp(int(headers["X-RateLimit-Reset"]), UTC)
        return max(0.0, (reset - now()).total_seconds()) + 1.0
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS or "secondary rate limit" in _message(response):
        return LONGEST_WAIT_S  # what the documentation asks for when no header tells
    return None
