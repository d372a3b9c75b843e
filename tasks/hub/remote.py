"""The Hugging Face Hub over HTTP: what a repository has, and its files.

As its own client speaks to it (huggingface_hub: hf_api.py `model_info` and `list_repo_tree`, utils/_pagination.py,
file_download.py, utils/_http.py `hf_raise_for_status`; huggingface.co/docs/hub/api). `HF_ENDPOINT` names
another server that speaks so, `HF_TOKEN` is sent to that one alone: httpx drops it where a redirect leaves the host, as
each does to the CDN that has the bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from tasks.hub.choice import PRESET, HubFile, Pin
from tasks.release import BadInput, Problem, ToolingError, now
from tasks.store import FULL, sync_folder

ENDPOINT = "https://huggingface.co"
TOKEN = "HF_TOKEN"
BRANCH = "main"
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
TRIES = 4
"""Downloads that may break off one after the other without a byte between them."""
FIRST_WAIT_S = 1.0
_CHUNK_BYTES = 1 << 20
_TRUE = ("1", "ON", "YES", "TRUE")  # huggingface_hub/constants.py
T = TypeVar("T")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Unreachable(ToolingError):
    """The Hub gives no answer: nothing is known of what it has."""


class Hub:
    """The Hub that the variables of this process name."""

    def __init__(self, offline: bool = False, sleep: Callable[[float], None] = time.sleep) -> None:
        """`offline`: the settings say that it is not to be asked. Raises BadInput for variables that can't be meant."""
        self.endpoint = _endpoint()
        self._token = _token()
        self._offline = "--offline is said to llama-server" if offline else ""
        if not offline and os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
            self._offline = "HF_HUB_OFFLINE is set"
        self._sleep = sleep

    def listing(self, repo: str, revision: str = BRANCH) -> Pin:
        """A repository's GGUF files as of a commit, or as of now. Raises BadInput when there is none or it is not for
        us, Unreachable when the Hub gives no answer.

        They are in the order of the commit's tree, as for llama-server, which takes the first that fits (b11434:
        get_repo_files in common/hf-cache.cpp).
        """
        self._refuse_offline()
        with self._client() as client:
            said = self._read(client, repo, f"revision/{revision}", _commit)
            tree: list[HubFile] = []
            page: dict[str, str] | None = {"recursive": "true"}
            while page:
                files, page = self._read(client, repo, f"tree/{said['sha']}", _entries, page)
                tree += files
        return _pin(repo, said, tree)

    def _read(
        self,
        client: httpx.Client,
        repo: str,
        what: str,
        meaning: Callable[[httpx.Response], T],
        query: dict[str, str] | None = None,
    ) -> T:
        """What the Hub says of a repository. Raises as `listing`, Unreachable too for what is no answer of a Hub, such
        as a proxy's page."""
        url = f"{self.endpoint}/api/models/{repo}/{what}"
        with self._told(url):
            answer = client.get(url, params=query, headers={"Accept": "application/json"} | self._authorization)
        if not answer.is_success:
            raise self._refused(repo, answer)
        try:
            return meaning(answer)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable(
                "what answers for the Hub is none",
                evidence=f"{url}: {type(error).__name__}: {error}; {answer.text[:200]}",
                todo="check HF_ENDPOINT and the proxy's variables",
            ) from error

    def _refuse_offline(self) -> None:
        if self._offline:
            raise Unreachable(
                "the Hub is not to be asked", evidence=self._offline, todo="take that away where there is a network"
            )

    def download(self, pin: Pin, file: HubFile, part: Path, target: Path, tell: Callable[[int], None]) -> None:
        """A file of a pinned commit in its place, once its content is what the Hub said. What is in `part` already is
        not asked for again. `tell` is given the bytes that are here.

        Raises as `listing`, and ToolingError when the digest is another or the disk takes no more.
        """
        self._refuse_offline()
        again = part.exists()
        try:
            with part.open("ab") as out:
                digest = self._complete(pin, file, out, part, tell)
                os.fsync(out.fileno())
        except OSError as error:
            if error.errno not in FULL:
                raise ToolingError(
                    f"{file.path} cannot be written", evidence=str(error), todo="mend its permissions, or set `cache`"
                ) from error
            raise ToolingError(
                f"the disk is full, {file.path} is not all here",
                evidence=f"{part.stat().st_size} of {file.size_bytes} bytes are in {part}",
                todo="free some, or set `cache` to a larger disk; then run it again: it goes on from there",
            ) from error
        if digest != file.sha256:
            part.unlink()
            if again:  # a power cut may have left holes in what was here
                return self.download(pin, file, part, target, tell)
            raise ToolingError(
                f"{file.path} is not the file that the Hub promises",
                evidence=f"sha256 promised: {file.sha256}\nsha256 sent:     {digest}",
                todo="run it again; if it stays so, somebody changes it on its way, or HF_ENDPOINT is a bad mirror",
            )
        os.replace(part, target)
        sync_folder(target.parent)

    def refuse_gated(self, repo: str) -> None:
        """Raises BadInput where no token is sent, without which nobody gets a file of a gated repository."""
        if not self._authorization:
            raise self._not_for_us(repo, "it is gated: its files are for accounts that accepted its terms")

    def _complete(self, pin: Pin, file: HubFile, out: IO[bytes], part: Path, tell: Callable[[int], None]) -> str:
        """Have all bytes of a file, from where they end, as often as that gets on; their sha256."""
        digest = hashlib.sha256()
        with part.open("rb") as there:
            while chunk := there.read(_CHUNK_BYTES):
                digest.update(chunk)
        idle, most = 0, out.tell()
        while (begin := out.tell()) < file.size_bytes:
            try:
                for piece in self._bytes(pin, file, begin):
                    if piece is None:  # it is sent from its first byte again
                        out.seek(0)
                        out.truncate()
                        digest = hashlib.sha256()
                        continue
                    out.write(piece[: file.size_bytes - out.tell()])
                    digest.update(piece)
                    tell(out.tell())
                why = "it ended too early"
            except Unreachable as error:
                why = error.evidence
            if out.tell() >= file.size_bytes:
                break
            idle = 0 if out.tell() > most else idle + 1
            most = max(most, out.tell())
            if idle == TRIES:
                out.flush()
                raise Unreachable(
                    f"the download of {file.path} breaks off",
                    evidence=f"{out.tell()} of {file.size_bytes} bytes are here; {why}",
                    todo="check the network, then run it again: it goes on from there",
                )
            if idle:
                self._sleep(FIRST_WAIT_S * 2 ** (idle - 1))
        out.flush()
        return digest.hexdigest()

    def _bytes(self, pin: Pin, file: HubFile, begin: int) -> Iterator[bytes | None]:
        """The bytes of a file from one on; before them None when they are sent from the first one instead."""
        url = f"{self.endpoint}/{pin.repo}/resolve/{pin.commit}/{quote(file.path)}"
        headers = {"Accept-Encoding": "identity"} | self._authorization
        if begin:
            headers["Range"] = f"bytes={begin}-"
        with (
            self._client() as client,
            self._told(url),
            client.stream("GET", url, headers=headers) as answer,
        ):
            if begin and answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                yield None  # it knows of no such byte: what is here is not the beginning of what it has
                return
            if not answer.is_success:
                answer.read()
                raise self._refused(pin.repo, answer)
            if begin and not _goes_on(answer, begin):
                yield None
            yield from answer.iter_raw()  # as they come: what is kept back is lost when it breaks off

    def _client(self) -> httpx.Client:
        """Raises BadInput where the variables name a proxy that httpx can't use, or certificates that can't be read."""
        try:
            return httpx.Client(timeout=TIMEOUT, follow_redirects=True)
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            raise BadInput(
                "the Hub can't be asked through what the proxy's or the certificates' variables name",
                evidence=f"{type(error).__name__}: {error}",
                todo="set HTTPS_PROXY and ALL_PROXY to an http:// proxy, SSL_CERT_FILE to a file, or unset them; for a "
                "socks5:// proxy `pip install 'httpx[socks]'`",
            ) from error

    @property
    def _authorization(self) -> dict[str, str]:
        """The header with the token; none where somebody on the way could read it."""
        parts = urlsplit(self.endpoint)
        is_safe = parts.scheme == "https" or parts.hostname in _LOOPBACK
        return {"Authorization": f"Bearer {self._token}"} if self._token and is_safe else {}

    @contextmanager
    def _told(self, url: str) -> Iterator[None]:
        """Around a request: what is no answer is Unreachable. An address that the Hub redirected to has a signature in
        it, and is not told."""
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(
                "the Hub does not answer",
                evidence=f"{url}: {type(error).__name__}: {error}",
                todo="check the network, the proxy's variables and HF_ENDPOINT, then run it again",
            ) from error

    def _refused(self, repo: str, answer: httpx.Response) -> Problem:
        """What a status that is no success means, as the Hub's own client reads it."""
        status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
        said = answer.headers.get("X-Error-Message") or answer.text[:200]
        evidence = f"{self.endpoint} says {status} {code}: {said}"
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return Unreachable(
                f"the Hub can't tell of {repo} just now", evidence=evidence, todo=f"wait some minutes{self._or_token}"
            )
        if code in ("RevisionNotFound", "EntryNotFound"):
            return BadInput(
                f"{repo} has no longer what was pinned of it",
                evidence=evidence,
                todo="`llama-release hub update` takes what it has now; what is released already is in the store",
            )
        if code == "GatedRepo" or (status == httpx.codes.FORBIDDEN):
            return self._not_for_us(repo, evidence)
        if status == httpx.codes.UNAUTHORIZED and said == "Invalid credentials in Authorization header":
            return BadInput("the Hub refuses the token", evidence=evidence, todo=f"put a valid one into {TOKEN}")
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.NOT_FOUND):
            # without a token the Hub says 401 of a private repository, and of one that does not exist
            return BadInput(
                f"the Hub has no {repo}, or not for us",
                evidence=f"{evidence}\n{self._sent}",
                todo=f"look at {self.endpoint}/{repo}: correct server.hub_model, or put a token that may read it into "
                f"{TOKEN}",
            )
        return BadInput(f"the Hub refuses to tell of {repo}", evidence=evidence, todo="check server.hub_model")

    def _not_for_us(self, repo: str, evidence: str) -> BadInput:
        accept = f"accept the terms on {self.endpoint}/{repo}"
        return BadInput(
            f"{repo} is not for {'this account' if self._authorization else 'everybody'}",
            evidence=f"{evidence}\n{self._sent}",
            todo=f"{accept} with the account of the token, which must be allowed to read gated repositories"
            if self._authorization
            else f"{accept}, and put a token of that account into {TOKEN}",
        )

    @property
    def _sent(self) -> str:
        if self._authorization:
            return f"the token in {TOKEN} was sent"
        return f"{TOKEN} was not sent: {self.endpoint} has no TLS" if self._token else f"{TOKEN} is not set"

    @property
    def _or_token(self) -> str:
        return "" if self._authorization else f", or set {TOKEN}: its limit is higher"


def _endpoint() -> str:
    """The address of the Hub; llama-server reads MODEL_ENDPOINT first (b11434: common_get_model_endpoint). Raises
    BadInput for what is no address."""
    name = next((name for name in ("MODEL_ENDPOINT", "HF_ENDPOINT") if os.environ.get(name)), "")
    named = os.environ[name].rstrip("/") if name else ENDPOINT
    try:
        parts = urlsplit(named)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # such as a bracket that nothing closes
        is_address = False
    if not is_address:
        raise BadInput(f"{name} is no address: {named}", todo=f"set it to one with its scheme, as {ENDPOINT}")
    return named


def _token() -> str:
    """The token of this process; '' without. Raises BadInput for what no header can hold."""
    token = os.environ.get(TOKEN, "").strip()
    if token and not re.fullmatch("[!-~]+", token):
        raise BadInput(f"the token in {TOKEN} cannot be sent in a header", todo="set it to the token alone")
    return token


def _commit(answer: httpx.Response) -> dict[str, Any]:
    """What the Hub says of a commit of a repository. Raises ValueError and its like for anything else."""
    said: dict[str, Any] = answer.json()
    if not re.fullmatch("[0-9a-f]{40}", str(said["sha"])):
        raise ValueError(f"{str(said['sha'])[:60]!r} is no commit")
    return said


def _entries(answer: httpx.Response) -> tuple[list[HubFile], dict[str, str] | None]:
    """(the files of one page of a commit's tree, what to ask for the next one).

    Raises ValueError and its like for anything else. Of the address of the next page only the query is taken:
    the token goes to no other.
    """
    files = [_file(each) for each in answer.json() if each["type"] == "file"]
    following = answer.links.get("next", {}).get("url")
    return files, dict(httpx.URL(following).params) if following else None


def _pin(repo: str, said: dict[str, Any], tree: list[HubFile]) -> Pin:
    return Pin(
        repo=repo,
        commit=said["sha"],
        files=tuple(file for file in tree if file.path.endswith(".gguf") and _is_inside(file.path)),
        preset=any(file.path == PRESET for file in tree),
        gated=bool(said.get("gated")),
        at=now(),
    )


def _file(entry: dict[str, Any]) -> HubFile:
    lfs = entry.get("lfs") or {}
    sha256 = str(lfs.get("oid", ""))
    return HubFile(
        path=str(entry["path"]),
        sha256=sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else "",
        size_bytes=int(lfs.get("size") or entry["size"]),
    )


def _is_inside(path: str) -> bool:
    """Whether a name from elsewhere stays in its folder (hf-cache.cpp: is_valid_subpath)."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and not {"..", "."} & set(parts) and "\0" not in path


def _goes_on(answer: httpx.Response, begin: int) -> bool:
    """Whether the bytes that come are those from `begin` on (RFC 9110, 14.4 and 15.3.7)."""
    return answer.status_code == httpx.codes.PARTIAL_CONTENT and answer.headers.get("Content-Range", "").startswith(
        f"bytes {begin}-"
    )
