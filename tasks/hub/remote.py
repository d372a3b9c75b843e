"""The Hugging Face Hub over HTTP: what a repository has, and its files.

As its own client speaks to it (huggingface_hub: hf_api.py `model_info`, file_download.py, utils/_http.py
`hf_raise_for_status`). `HF_ENDPOINT` names another server that speaks so, `HF_TOKEN` is sent to that one alone: httpx
drops it where a redirect leaves the host, as each does to the CDN that has the bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any
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
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Unreachable(ToolingError):
    """The Hub gives no answer: nothing is known of what it has."""


class Hub:
    """The Hub that the variables of this process name."""

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        # llama-server reads MODEL_ENDPOINT before it (b11434: common_get_model_endpoint)
        named = os.environ.get("MODEL_ENDPOINT") or os.environ.get("HF_ENDPOINT") or ENDPOINT
        self.endpoint = named.rstrip("/")
        self._token = _token()
        self._sleep = sleep

    def listing(self, repo: str) -> Pin:
        """A repository's GGUF files as of now, with the commit. Raises BadInput when there is none or it is not for us,
        Unreachable when the Hub gives no answer."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
            raise Unreachable(
                "the Hub is not to be asked", evidence="HF_HUB_OFFLINE is set", todo="unset it where there is a network"
            )
        url = f"{self.endpoint}/api/models/{repo}/revision/{BRANCH}?blobs=true"
        with self._client() as client, self._told(url):
            answer = client.get(url, headers={"Accept": "application/json"} | self._authorization)
            if not answer.is_success:
                raise self._refused(repo, answer)
            return _pin(repo, answer)

    def download(self, pin: Pin, file: HubFile, part: Path, target: Path, tell: Callable[[int], None]) -> None:
        """A file of a pinned commit in its place, once its content is what the Hub said. What is in `part` already is
        not asked for again. `tell` is given the bytes that are here.

        Raises as `listing`, and ToolingError when the digest is another or the disk takes no more.
        """
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
        idle = 0
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
            idle = 0 if out.tell() > begin else idle + 1
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
            if not answer.is_success:
                answer.read()
                raise self._refused(pin.repo, answer)
            if begin and not _goes_on(answer, begin):
                yield None
            yield from answer.iter_raw()  # as they come: what is kept back is lost when it breaks off

    def _client(self) -> httpx.Client:
        return httpx.Client(timeout=TIMEOUT, follow_redirects=True)

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


def _token() -> str:
    """The token of this process; '' without. Raises BadInput for what no header can hold."""
    token = os.environ.get(TOKEN, "").strip()
    if token and not re.fullmatch("[!-~]+", token):
        raise BadInput(f"the token in {TOKEN} cannot be sent in a header", todo="set it to the token alone")
    return token


def _pin(repo: str, answer: httpx.Response) -> Pin:
    """Raises Unreachable for what is no answer of a Hub, such as a proxy's page."""
    try:
        said: dict[str, Any] = answer.json()
        commit = str(said["sha"])
        names = [str(each["rfilename"]) for each in said["siblings"]]
        files = [_file(each) for each in said["siblings"] if str(each["rfilename"]).endswith(".gguf")]
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError(f"{commit[:60]!r} is no commit")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreachable(
            "what answers for the Hub is none",
            evidence=f"{answer.url.copy_with(query=None)}: {type(error).__name__}: {error}; {answer.text[:200]}",
            todo="check HF_ENDPOINT and the proxy's variables",
        ) from error
    return Pin(
        repo=repo,
        commit=commit,
        files=tuple(file for file in files if _is_inside(file.path)),
        preset=PRESET in names,
        gated=bool(said.get("gated")),
        at=now(),
    )


def _file(sibling: dict[str, Any]) -> HubFile:
    lfs = sibling.get("lfs") or {}
    sha256 = str(lfs.get("sha256", ""))
    return HubFile(
        path=str(sibling["rfilename"]),
        sha256=sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else "",
        size_bytes=int(lfs.get("size") or sibling["size"]),
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
