"""A Hugging Face Hub on loopback, with the CDN that has its bytes on another port.

What it answers is as the Hub's own client expects it: huggingface_hub's hf_api.py (`model_info`: sha, siblings with
rfilename; `list_repo_tree`: type, path, size, oid, lfs with its oid), utils/_pagination.py (a Link to the next page),
file_download.py (302 from /resolve/ to a signed address) and utils/_http.py
(`hf_raise_for_status`: 401 without a token for what is private and for what does not exist, X-Error-Code,
X-Error-Message); docs: huggingface.co/docs/hub/api, /docs/hub/models-gated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from pathlib import PurePosixPath
from threading import Event
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.listening import Answering, listening

TOKEN = "hf_" + "a1B2" * 9
INVALID = "Invalid credentials in Authorization header"


@dataclass
class Asked:
    """One request as it arrived."""

    host: str
    path: str
    headers: dict[str, str]


@dataclass
class Repository:
    """What a test puts on the Hub."""

    files: dict[str, bytes]
    private: bool = False
    gated: bool = False
    small: tuple[str, ...] = ()
    """Files that git has itself: the Hub says no sha256 of them."""

    @property
    def commit(self) -> str:
        return sha1(b"\0".join(name.encode() + body for name, body in self.files.items())).hexdigest()


@dataclass
class FakeHub:
    """State that a test arranges, and every request that arrived."""

    url: str = ""
    cdn: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    seen: list[Asked] = field(default_factory=list)
    breaks_off: list[int] = field(default_factory=list)
    """Bytes after which the next answers of the CDN end."""
    holds: tuple[int, Event] | None = None
    """After so many bytes the CDN waits for somebody to go on."""
    swapped: dict[str, bytes] = field(default_factory=dict)
    """What the CDN sends in the place of a file."""
    ranges: bool = True
    unsatisfiable: int = 0
    """So many of the next answers of the CDN to a range are 416."""
    page: int = 1000
    """Entries of a tree in one answer."""
    down: int = 0
    """Status with which everything is answered; 0: as it should be."""
    is_page: bool = False
    """A proxy answers with a page of its own."""

    def asked(self, host: str) -> list[Asked]:
        return [each for each in self.seen if each.host == host]

    def info(self, name: str) -> dict[str, Any]:
        repository = self.repositories[name]
        return {
            "id": name, "sha": repository.commit, "private": repository.private,
            "gated": "auto" if repository.gated else False, "siblings": [{"rfilename": p} for p in repository.files],
        }  # fmt: skip

    def tree(self, name: str) -> list[dict[str, Any]]:
        """Every file and folder of a repository, as git sorts them; its siblings are in the order of the test."""
        repository = self.repositories[name]
        folders = {folder.as_posix() for path in repository.files for folder in PurePosixPath(path).parents}
        entries: list[dict[str, Any]] = [
            {"type": "directory", "oid": sha1(folder.encode()).hexdigest(), "size": 0, "path": folder}
            for folder in folders - {"."}
        ]
        for path, body in repository.files.items():
            file = {"type": "file", "oid": sha1(body).hexdigest(), "size": len(body), "path": path}
            if path.endswith(".gguf") and path not in repository.small:
                file["lfs"] = {"oid": sha256(body).hexdigest(), "size": len(body), "pointerSize": 135}
            entries.append(file)
        return sorted(entries, key=lambda each: str(each["path"]))


class _Hub(Answering):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.seen.append(Asked("hub", self.path, headers))
        if hub.down:
            return self._error(hub.down, "", "")
        if hub.is_page:
            return self.say(b"<html>Sign in to the guest network</html>")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        if not found:
            return self._error(404, "", "Sorry, we can't find the page you are looking for.")
        authorization = headers.get("authorization")
        if authorization not in (None, f"Bearer {TOKEN}"):
            return self._error(401, "", INVALID)
        known = bool(authorization)
        repository = hub.repositories.get(found[1])
        if repository is None or (repository.private and not known):
            if not known:
                return self._error(401, "", "Invalid username or password.")
            return self._error(404, "RepoNotFound", "Repository not found")
        if found[2] not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {found[2]}")
        if api and "/tree/" in path:
            return self._page(found[1], parse_qs(urlsplit(self.path).query))
        if api:
            return self.say(json.dumps(hub.info(found[1])).encode(), headers={"Content-Type": "application/json"})
        assert file
        if repository.gated and not known:
            said = f"Access to model {file[1]} is restricted. You must have access to it and be authenticated"
            return self._error(401, "GatedRepo", said)
        if file[3] not in repository.files:
            return self._error(404, "EntryNotFound", "Entry not found")
        digest = sha256(repository.files[file[3]]).hexdigest()
        location = f"{hub.cdn}/xet/{digest}?X-Amz-Signature=signed&name={file[3]}"
        self.say(status=302, headers={"Location": location, "X-Linked-Etag": f'"{digest}"'})

    def _page(self, name: str, query: dict[str, list[str]]) -> None:
        tree = self.hub.tree(name)
        if query.get("recursive") != ["true"]:
            tree = [each for each in tree if "/" not in each["path"]]
        begin = int(query.get("cursor", ["0"])[0])
        end = begin + self.hub.page
        headers = {"Content-Type": "application/json"}
        if end < len(tree):
            address = f"https://huggingface.co{urlsplit(self.path).path}?recursive=true&cursor={end}"
            headers["Link"] = f'<{address}>; rel="next"'
        self.say(json.dumps(tree[begin:end]).encode(), headers=headers)

    def _error(self, status: int, code: str, said: str) -> None:
        headers = {"X-Error-Message": said} if said else {}
        self.say(json.dumps({"error": said}).encode(), status, headers | ({"X-Error-Code": code} if code else {}))


class _Cdn(Answering):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.seen.append(Asked("cdn", self.path, headers))
        digest = urlsplit(self.path).path.removeprefix("/xet/")
        bodies = {sha256(b).hexdigest(): b for r in hub.repositories.values() for b in r.files.values()}
        body = hub.swapped.get(digest, bodies[digest])
        if "range" in headers and hub.unsatisfiable:
            hub.unsatisfiable -= 1
            return self.say(status=416, headers={"Content-Range": f"bytes */{len(body)}"})
        begin = int(re.sub(r"\D", "", headers["range"])) if hub.ranges and "range" in headers else 0
        end = min(len(body), begin + hub.breaks_off.pop(0)) if hub.breaks_off else len(body)
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        at = begin
        if hub.holds and hub.holds[0] > begin:
            at, go_on = hub.holds
            self.wfile.write(body[begin:at])
            go_on.wait(60)
        try:
            self.wfile.write(body[at:end])
        except OSError:  # whoever asked was killed meanwhile
            self.close_connection = True
        if end < len(body):
            self.close_connection = True


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """An empty Hub, listening on loopback."""
    hub = FakeHub()
    with (
        listening(type("Hub", (_Hub,), {"hub": hub})) as hub.url,
        listening(type("Cdn", (_Cdn,), {"hub": hub})) as hub.cdn,
    ):
        yield hub
