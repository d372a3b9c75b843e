from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.settings import ServerSettings, Settings
from tests.fakes.hub import FakeHub, Repository, fake_hub

NAME = "u/m-GGUF"
BODIES = {
    "README.md": b"# m",
    "m-Q4_K_M.gguf": b"GGUF four" * 100_000,
    "m-Q8_0.gguf": b"GGUF eight" * 100_000,
    "mmproj-F16.gguf": b"GGUF sees" * 1_000,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with one repository, which is the one of this process, and no cache on this machine that has its files."""
    for name in ("MODEL_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama-cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with fake_hub() as hub:
        hub.repositories[NAME] = Repository(dict(BODIES))
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        store=tmp_path / "store", cache=tmp_path / "cache", server=ServerSettings(hub_model=f"{NAME}:Q4_K_M")
    )
