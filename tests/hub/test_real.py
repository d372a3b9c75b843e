"""A real llama-server of a model that came from the Hub."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from tasks import hub as of_hub
from tasks.contracts.scripted import build as scripted_model
from tasks.contracts.scripted import thinks_then_answers
from tasks.endpoint import Client
from tasks.endpoint.answer import content
from tasks.platforms.local import LocalPlatform
from tasks.preflight.argv import bundle
from tasks.release import BadInput, Build
from tasks.settings import Settings
from tasks.store import Store
from tests.fakes.hub import FakeHub, Repository
from tests.hub.conftest import NAME

pytestmark = pytest.mark.real


def test_a_real_server_serves_what_the_hub_has_by_its_digest(
    hub: FakeHub, settings: Settings, build: Build, store_with: Store, tmp_path: Path
) -> None:
    path = scripted_model(thinks_then_answers(), tmp_path / "made.gguf")
    hub.repositories[NAME] = Repository({"m-Q4_K_M.gguf": path.read_bytes()})
    with pytest.raises(BadInput, match=f"the files of {NAME}:Q4_K_M are not on this machine"):
        bundle(store_with, build, settings.server)
    resolved, _ = of_hub.fetch(store_with, settings, lambda *_: None)
    release, notes = bundle(store_with, build, resolved.server)
    assert notes == []
    assert release.files["model"].sha256 == sha256(path.read_bytes()).hexdigest()
    assert "--hf-repo" not in release.argv
    platform = LocalPlatform(resolved.model_copy(update={"store": store_with.root}))
    with platform.trial(release) as endpoint, Client(endpoint) as client:
        assert content(client.chat("hello", max_tokens=400)) == "The answer is forty-two."
