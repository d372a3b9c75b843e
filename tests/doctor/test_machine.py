"""What this machine lacks: hf_xet where weights must be downloaded."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from modal_app.settings import ModalSettings
from tasks.doctor import Seen, Severity
from tasks.doctor.machine import FAST, hf_xet
from tasks.settings import ServerSettings, Settings


def installed() -> bool:
    try:
        return bool(version("hf_xet"))
    except PackageNotFoundError:
        return False


@pytest.fixture
def wanting(tmp_path: Path) -> Settings:
    """Settings whose weights are not here."""
    return Settings(store=tmp_path / "store", server=ServerSettings(model=tmp_path / "gemma.gguf"))


@pytest.mark.skipif(installed(), reason="hf_xet is installed here")
def test_weights_to_download_without_hf_xet_are_a_warning(wanting: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAST, raising=False)
    seen = hf_xet(wanting)
    assert isinstance(seen, Seen)
    assert seen.severity is Severity.WARNING
    assert (
        "gemma.gguf must be downloaded, and hf_xet is not installed and HF_XET_HIGH_PERFORMANCE is not 1"
        in seen.evidence
    )
    assert "huggingface_hub[hf_xet]" in seen.todo


def test_hf_xet_with_its_fast_mode_off_is_a_warning_and_with_it_on_all_is_well(
    wanting: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "hf_xet-1.8.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: hf-xet\nVersion: 1.8.0\n")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv(FAST, "0")
    seen = hf_xet(wanting)
    assert isinstance(seen, Seen)
    assert "HF_XET_HIGH_PERFORMANCE is not 1" in seen.evidence
    assert "not installed" not in seen.evidence
    monkeypatch.setenv(FAST, "1")
    assert "in fast mode" in str(hf_xet(wanting))


def test_nothing_is_asked_for_when_no_weights_have_to_be_downloaded(wanting: Settings) -> None:
    model = wanting.server.model
    assert model
    model.touch()
    assert hf_xet(wanting) == "no weights have to be downloaded here"


def test_what_modal_fetches_is_fetched_with_it() -> None:
    weight = {"repo": "unsloth/g", "revision": "0" * 40, "path": "g.gguf", "sha256": "0" * 64}
    settings = Settings(platform="modal", modal=ModalSettings.model_validate({"weights": {"g.gguf": weight}}))
    assert "hf_xet==" in str(hf_xet(settings))
