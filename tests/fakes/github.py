"""A GitHub on loopback: one repository, really a git repository, behind the part of the REST API that we use."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.listening import Answering, listening

REPOSITORY = "ggml-org/llama.cpp"
GIT = ["git", "-c", "user.name=u", "-c", "user.email=u@localhost", "-c", "commit.gpgsign=false"]


@dataclass
class Fault:
    """What answers the next request instead of GitHub: a status with headers, or (status 0) silence."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected"
    hang_s: float = 0.0


@dataclass
class Seen:
    """One request as it arrived, and the status that it got."""

    path: str
    headers: dict[str, str]
    status: int = 0


class FakeGithub:
    """State that a test arranges, and every request that arrived. What it does not know it answers with 404."""

    def __init__(self, root: Path) -> None:
        self.repo = root / "repo"
        self.repo.mkdir(parents=True)
        self.url = ""
        self.page_size = 100
        self.token: str | None = None
        self.published: list[dict[str, Any]] = []
        self.assets: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.swap_tarball: bytes | None = None
        self.pulls: dict[int, str] = {}
        self._git("init", "--quiet", "--initial-branch=master")

    def _git(self, *argv: str) -> str:
        return subprocess.run([*GIT, *argv], cwd=self.repo, check=True, capture_output=True, text=True).stdout

    # -- what a test arranges -------------------------------------------------------------------

    def commit(self, message: str, files: dict[str, str]) -> str:
        """A commit on master with these files written; its sha."""
        for path, text in files.items():
            file = self.repo / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "-m", message)
        return self._git("rev-parse", "HEAD").strip()

    def release(
        self, tag: str, at: str, *, prerelease: bool = False, asset: str | None = None, annotated: bool = False
    ) -> None:
        """Tag HEAD and publish a release of it; `asset` is the content of nightly-tag.txt."""
        self._git("tag", *(["-a", "-m", tag] if annotated else []), tag)
        urls = []
        if asset is not None:
            name = f"/download/{tag}/nightly-tag.txt"
            self.assets[name] = asset
            urls = [{"name": "nightly-tag.txt", "browser_download_url": self.url + name}]
        body = {"tag_name": tag, "prerelease": prerelease, "published_at": at, "assets": urls}
        self.published.insert(0, body)

    def commit_of(self, ref: str) -> str:
        return self._git("rev-parse", f"{ref}^{{commit}}").strip()

    def tree_of(self, ref: str) -> str:
        return self._git("rev-parse", f"{ref}^{{tree}}").strip()

    # -- what a client asks ---------------------------------------------------------------------

    def answer(self, path: str) -> tuple[Any, list[Any] | None]:
        """(body, None), or for a list that pages (what is around it, the list). Raises KeyError for 404."""
        base = f"/repos/{REPOSITORY}"
        if not path.startswith(base + "/"):
            raise KeyError(path)
        rest = path.removeprefix(base + "/")
        match rest.split("/", 3):
            case ["releases"]:
                return None, self.published
            case ["releases", "tags", tag]:
                return next(r for r in self.published if r["tag_name"] == tag), None
            case ["git", "matching-refs", "tags", prefix]:
                return None, self._refs(prefix)
            case ["git", "tags", sha]:
                return {"object": {"sha": self._git("rev-parse", f"{sha}^{{commit}}").strip(), "type": "commit"}}, None
            case ["git", "commits", sha]:
                return {"sha": sha, "tree": {"sha": self._git("rev-parse", f"{sha}^{{tree}}").strip()}}, None
            case ["commits", sha]:
                names = self._git("show", "--name-only", "--format=", sha).split()
                return {**self._commit(sha), "files": [{"filename": name} for name in names]}, None
            case ["compare", span]:
                low, _, high = span.partition("...")
                shas = self._git("rev-list", "--reverse", f"{low}..{high}").split()
                return {"total_commits": len(shas)}, [self._commit(sha) for sha in shas]
        raise KeyError(path)

    def _commit(self, sha: str) -> dict[str, Any]:
        return {"sha": sha, "commit": {"message": self._git("show", "--no-patch", "--format=%B", sha).strip()}}

    def _refs(self, prefix: str) -> list[dict[str, Any]]:
        form = "%(refname) %(objectname) %(objecttype)"
        lines = self._git("for-each-ref", f"--format={form}", f"refs/tags/{prefix}*").splitlines()
        return [{"ref": r, "object": {"sha": sha, "type": kind}} for r, sha, kind in map(str.split, lines)]

    def tarball(self, sha: str) -> bytes:
        if self.swap_tarball is not None:
            return self.swap_tarball
        argv = [*GIT, "archive", "--format=tar.gz", f"--prefix=ggml-org-llama.cpp-{sha[:7]}/", sha]
        return subprocess.run(argv, cwd=self.repo, check=True, capture_output=True).stdout


class _Handler(Answering):
    github: FakeGithub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        github, url = self.github, urlsplit(self.path)
        seen = Seen(self.path, {name.lower(): value for name, value in self.headers.items()})
        github.seen.append(seen)
        if github.faults:
            fault = github.faults.pop(0)
            time.sleep(fault.hang_s)
            if not fault.status:
                self.close_connection = True
                return
            return self._send(seen, fault.status, {"message": fault.message}, fault.headers)
        if github.token and seen.headers.get("authorization") not in (None, f"Bearer {github.token}"):
            return self._send(seen, 401, {"message": "Bad credentials"})
        if url.path in github.assets:
            return self._bytes(seen, 200, github.assets[url.path].encode(), {})
        try:
            if url.path.startswith(f"/repos/{REPOSITORY}/pulls/"):
                said = github.pulls[int(url.path.rpartition("/")[2])]
                mail = seen.headers.get("accept") == "application/vnd.github.patch"
                return self._bytes(seen, 200, said.encode() if mail else b"{}", {})
            if url.path.startswith(f"/repos/{REPOSITORY}/tarball/"):
                location = f"{github.url}/codeload/{url.path.rpartition('/')[2]}"
                return self._send(seen, 302, {}, {"Location": location})
            if url.path.startswith("/codeload/"):
                return self._bytes(seen, 200, github.tarball(url.path.rpartition("/")[2]), {})
            body, listed = github.answer(url.path)
        except (KeyError, StopIteration, subprocess.CalledProcessError):
            return self._send(seen, 404, {"message": "Not Found"})
        headers = {}
        if listed is not None:
            page = int(parse_qs(url.query).get("page", ["1"])[0])
            size, start = github.page_size, (page - 1) * github.page_size
            if start + size < len(listed):
                query = "&".join(part for part in url.query.split("&") if part and not part.startswith("page="))
                following = f"{github.url}{url.path}?{query}{'&' if query else ''}page={page + 1}"
                headers["Link"] = f'<{following}>; rel="next"'
            part = listed[start : start + size]
            body = part if body is None else {**body, "commits": part}
        self._send(seen, 200, body, headers)

    def _send(self, seen: Seen, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._bytes(seen, status, json.dumps(body).encode(), headers or {})

    def _bytes(self, seen: Seen, status: int, content: bytes, headers: dict[str, str]) -> None:
        etag = f'W/"{sha256(content).hexdigest()}"'
        if status == 200 and seen.headers.get("if-none-match") == etag:
            status, content = 304, b""
        seen.status = status
        self.say(content, status, {**headers, "ETag": etag})


@contextmanager
def fake_github(root: Path) -> Iterator[FakeGithub]:
    """A GitHub with an empty repository, listening on loopback."""
    github = FakeGithub(root)
    handler = type("Handler", (_Handler,), {"github": github})
    with listening(handler) as github.url:
        yield github
