"""Files of the Hub that are on this machine already: in the store, or in a cache that llama-server or the Hub's own
client filled.

The layout is `models--USER--REPO/{refs,blobs,snapshots/COMMIT}`; a blob is called by its sha256 (huggingface_hub,
"Understand caching"; llama.cpp since it shares that cache, common/hf-cache.cpp, where the order of the places is from).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tasks.hub.choice import PRESET, HubFile, Pin
from tasks.hub.remote import BRANCH
from tasks.release import ToolingError, now
from tasks.settings import ServerSettings
from tasks.store import Store


def of(store: Store, repo: str, file: HubFile, server: ServerSettings) -> Path | None:
    """A file with this content on this machine. A name is only a hint: each that has the size is read once."""
    for path in _candidates(store, repo, file, _variables(server)):
        with suppress(OSError):
            if path.stat().st_size == file.size_bytes and store.content_of(path) == file.sha256:
                return path.resolve()
    return None


def take(copy: Path, path: Path) -> None:
    """Have a file that is here in another place too, without its bytes twice. Raises ToolingError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(copy, temporary)
        except OSError:  # another disk, or a file system without
            temporary.symlink_to(copy)
        os.replace(temporary, path)
    except OSError as error:
        raise ToolingError(f"{path} can't be made", evidence=str(error), todo="mend that, or set `cache`") from error


def listing(store: Store, repo: str, server: ServerSettings) -> Pin | None:
    """A repository as a cache here has it: its GGUF files as of the commit that `main` was when it was last asked."""
    for folder in _folders(repo, _variables(server)):
        commit = _text(folder / "refs" / BRANCH)
        snapshot = folder / "snapshots" / commit
        if not re.fullmatch("[0-9a-f]{40}", commit) or not snapshot.is_dir():
            continue
        paths = sorted(path for path in snapshot.rglob("*.gguf") if path.is_file())
        if paths:
            return Pin(
                repo=repo,
                commit=commit,
                files=tuple(_file(store, snapshot, path) for path in paths),
                preset=(snapshot / PRESET).exists(),
                told_by_hub=False,
                at=now(),
            )
    return None


def _file(store: Store, snapshot: Path, path: Path) -> HubFile:
    blob = path.resolve().name
    sha256 = blob if re.fullmatch("[0-9a-f]{64}", blob) else store.content_of(path)
    return HubFile(path=path.relative_to(snapshot).as_posix(), sha256=sha256, size_bytes=path.stat().st_size)


CACHES = ("LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
"""Variables that say where a copy may be (b11434: common/hf-cache.cpp; huggingface_hub's constants.py)."""


def _variables(server: ServerSettings) -> Mapping[str, str]:
    """As llama-server has them, which looks into the same caches: this process's, and over them what is set for it."""
    return {name: os.environ[name] for name in CACHES if name in os.environ} | server.env


def _candidates(store: Store, repo: str, file: HubFile, env: Mapping[str, str]) -> Iterator[Path]:
    yield from sorted((store.root / "files" / file.sha256).glob("[!.]*"))
    for folder in _folders(repo, env):
        yield folder / "blobs" / file.sha256
        yield from sorted(folder.glob(f"snapshots/*/{_literal(file.path)}"))
    home = env.get("LLAMA_CACHE") or _cache(env) / "llama.cpp"
    yield Path(home) / f"{repo}/{file.path}".replace("/", "_")  # llama.cpp before it shared the Hub's cache


def _folders(repo: str, env: Mapping[str, str]) -> Iterator[Path]:
    """Where a repository would be, the first place first."""
    named = [env.get(name) for name in ("LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")]
    home = env.get("HF_HOME")
    places = [Path(each) for each in named if each] + ([Path(home) / "hub"] if home else [])
    for place in dict.fromkeys((*places, _cache(env) / "huggingface" / "hub")):
        yield place.expanduser() / f"models--{repo.replace('/', '--')}"


def _cache(env: Mapping[str, str]) -> Path:
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _literal(path: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
