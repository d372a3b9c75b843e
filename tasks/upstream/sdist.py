"""An sdist through the index that pip is set up with: the file, checked, and nothing that it holds is run.

`pip download` asks an sdist's build backend for metadata, which is to run upstream's code (pip 26.3, also with
`--no-deps`). So the file is looked for here, as the simple API tells of it (packaging.python.org, "Simple repository
API"), with pip's own settings: indexes, find-links, certificates, proxy, timeout, and the credentials in addresses or
in .netrc. Of keyring pip alone knows.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import netrc
import os
import re
import ssl
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

import httpx
from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import Version

from modal_app.child import PIP, PROXY, PYTHON, TLS, environment
from modal_app.redaction import redact
from tasks.process import Output, run
from tasks.release import BadInput, ToolingError

SETTINGS_TIMEOUT_S = 60
FETCH_TIMEOUT_S = 900
TIMEOUT_S = "15"
"""pip's own default."""
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
HASHES = ("sha256", "sha384", "sha512")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Link:
    """Where a file is, and the hashes that whoever names it promises."""

    url: str
    hashes: Mapping[str, str]

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def promise(self) -> tuple[str, str] | None:
        """(name, hex digest) of the hash to check it against."""
        return next(((name, self.hashes[name]) for name in HASHES if name in self.hashes), None)


def fetch(package: str, version: str, folder: Path) -> Path:
    """The sdist of this version, in `folder`.

    Raises BadInput when none has it, ToolingError when an index can't be read, promises no hash, or breaks its promise.
    """
    with closing(Index(settings())) as index:
        found = [link for link in index.links(package) if _is_sdist(link.name, package, version)]
        if not found:
            if index.unread:
                raise unreadable(index.unread)
            raise no_such(f"no sdist of {package} {version}")
        return index.save(min(found, key=lambda link: link.promise is None), folder)


def unreadable(why: Iterable[str]) -> ToolingError:
    return ToolingError(
        "the package index could not be read",
        evidence="\n".join(why),
        todo="check the network and pip's settings, then run it again: what is done is kept",
    )


def no_such(evidence: str) -> BadInput:
    return BadInput(
        "the package index has no such package or version",
        evidence=evidence,
        todo="check upstream.package, the build number and upstream.min_age_days",
    )


def pip(*argv: str | Path, timeout_s: float) -> Output:
    """What pip says, with its own settings and their secrets."""
    words = [sys.executable, "-m", "pip", *argv]
    return run(words, env=environment(PIP, PROXY, TLS, PYTHON), timeout_s=timeout_s, check=False)


def settings() -> dict[str, str]:
    """pip's settings for a download: option -> value. Variables win over files, `[download]` over `[global]`."""
    output = pip("config", "list", timeout_s=SETTINGS_TIMEOUT_S)
    if output.code:
        raise ToolingError("pip's settings can't be read", evidence=output.stderr[-500:], todo="try `pip config list`")
    found: dict[str, str] = {}
    for section in ("global", "download", ":env:"):
        for name, value in re.findall(rf"^{section}\.([\w-]+)=(.*)$", output.stdout, re.MULTILINE):
            found[name] = ast.literal_eval(value)
    return found


class Index:
    """The indexes and folders of these settings of pip's."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = options
        self._indexes = [] if _is_on(options.get("no-index")) else [options.get("index-url") or _usual_index()]
        self._indexes += options.get("extra-index-url", "").split() if self._indexes else []
        self.unread: list[str] = []
        """What could not be read, one line each, without credentials."""

    def close(self) -> None:
        self._http.close()

    def links(self, package: str) -> Iterator[Link]:
        """What all of them have of a package."""
        for index in self._indexes:
            yield from self._page(f"{index.rstrip('/')}/{canonicalize_name(package)}/")
        for place in self._options.get("find-links", "").split():
            path = _path(place)
            if path is not None and path.is_dir():
                yield from (Link(file.absolute().as_uri(), {}) for file in sorted(path.iterdir()))
            else:
                yield from self._page(place if path is None else path.absolute().as_uri())

    def save(self, link: Link, folder: Path) -> Path:
        """The file of a link, once it is what was promised. Raises ToolingError."""
        path = _path(link.url)
        if link.promise is None and path is None:
            raise ToolingError(
                f"the package index promises no hash of {link.name}",
                evidence=f"{redact(link.url)}: none of {', '.join(HASHES)}",
                todo="take it from an index that does: without one nobody can tell what was sent",
            )
        kind, wanted = link.promise or ("sha256", "")
        target = folder / link.name
        digest = hashlib.new(kind)
        try:
            with open(target, "wb") as file:
                for chunk in self._chunks(link.url) if path is None else _read(path):
                    digest.update(chunk)
                    file.write(chunk)
        except (httpx.HTTPError, OSError) as error:
            target.unlink(missing_ok=True)
            raise unreadable([redact(f"{link.name}: {error}")]) from error
        if wanted and digest.hexdigest() != wanted:
            target.unlink()
            raise ToolingError(
                f"{link.name} is not the file that the package index promises",
                evidence=f"{kind} promised: {wanted}\n{kind} sent:     {digest.hexdigest()}",
                todo="run it again; if it stays so, somebody changes it on its way",
            )
        return target

    def _page(self, url: str) -> Iterator[Link]:
        try:
            path = _path(url)
            if path is None:
                answer = self._http.get(url, headers={"Accept": ACCEPT}, auth=self._auth(url))
                if answer.status_code == httpx.codes.NOT_FOUND:
                    return
                kind = answer.raise_for_status().headers.get("Content-Type", "")
                yield from read_page(answer.text, kind, str(answer.url))
            elif (file := path / "index.html" if path.is_dir() else path).exists():
                yield from read_page(file.read_text(encoding="utf-8"), "text/html", url)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, KeyError, TypeError) as error:
            self.unread.append(redact(f"{url}: {error}"))

    def _chunks(self, url: str) -> Iterator[bytes]:
        deadline = time.monotonic() + FETCH_TIMEOUT_S
        with self._http.stream("GET", url, auth=self._auth(url)) as answer:
            for chunk in answer.raise_for_status().iter_raw(_CHUNK_BYTES):
                yield chunk
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"not here after {FETCH_TIMEOUT_S} s")

    @cached_property
    def _http(self) -> httpx.Client:
        timeout_s = float(self._options.get("timeout") or self._options.get("default-timeout") or TIMEOUT_S)
        mounts: dict[str, httpx.BaseTransport | None] = {}
        mounts |= {f"all://{host}": self._transport(False) for host in self._trusted}
        if self._options.get("proxy"):
            mounts["all://"] = self._transport(self._tls)
        return httpx.Client(
            verify=self._tls,
            mounts=mounts,
            timeout=timeout_s,
            follow_redirects=True,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"request": [self._refuse_bare]},
        )

    @property
    def _trusted(self) -> list[str]:
        return self._options.get("trusted-host", "").split()

    def _refuse_bare(self, request: httpx.Request) -> None:
        """As pip does: what comes without TLS has its hash from whoever sits on the way."""
        url, trusted = request.url, (*_LOOPBACK, *self._trusted)
        if url.scheme != "https" and url.host not in trusted and url.netloc.decode() not in trusted:
            raise httpx.UnsupportedProtocol(f"{url.host} is asked without TLS, and pip does not trust it")

    def _transport(self, verify: ssl.SSLContext | bool) -> httpx.HTTPTransport:
        proxy = self._options.get("proxy")
        return httpx.HTTPTransport(verify=verify, proxy=httpx.Proxy(proxy) if proxy else None)

    @cached_property
    def _tls(self) -> ssl.SSLContext | bool:
        cert, client = self._options.get("cert"), self._options.get("client-cert")
        if not cert and not client:
            return True
        context = ssl.create_default_context(cafile=cert)
        if client:
            context.load_cert_chain(client)
        return context

    def _auth(self, url: str) -> httpx.BasicAuth | None:
        """The credentials for a host: those in its address, in an index's address on the same host, or in .netrc."""
        here = httpx.URL(url)
        for known in (here, *map(httpx.URL, self._indexes)):
            if known.userinfo and (known.host, known.port) == (here.host, here.port):
                return httpx.BasicAuth(known.username, known.password)
        with suppress(OSError, netrc.NetrcParseError):
            if found := netrc.netrc(os.environ.get("NETRC")).authenticators(here.host):
                return httpx.BasicAuth(found[0], found[2] or "")
        return None


def read_page(text: str, kind: str, url: str) -> Iterator[Link]:
    """The links of a package's page at this address, of this media type. Raises ValueError for what is no page."""
    if "json" in kind:
        for file in json.loads(text)["files"]:
            yield Link(urljoin(url, file["url"]), file["hashes"])
        return
    anchors = _Anchors(url)
    anchors.feed(text)
    yield from anchors.links


class _Anchors(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._base = url
        self.links: list[Link] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "base" and href:
            self._base = urljoin(self._base, href)
        elif tag == "a" and href:
            address, fragment = urldefrag(urljoin(self._base, href))
            name, _, value = fragment.partition("=")
            self.links.append(Link(address, {name: value} if value else {}))


def _usual_index() -> str:
    """pip's own, where no setting names one. It has no public name for it (pip 26.3)."""
    return str(importlib.import_module("pip._internal.models.index").PyPI.simple_url)


def _is_sdist(name: str, package: str, version: str) -> bool:
    with suppress(InvalidSdistFilename):
        return parse_sdist_filename(name) == (canonicalize_name(package), Version(version))
    return False


def _is_on(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "yes", "on")


def _path(place: str) -> Path | None:
    """The file or folder that this is the address or the path of, when it is on this machine."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(place).expanduser()


def _read(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
