"""The demo's settings: it takes what a user has set, and keeps no server whose key nobody knows."""

from __future__ import annotations

import os

import pytest

from flows import demo
from tasks.release import BadInput


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LLAMA_")]:
        monkeypatch.delenv(name)


def test_what_a_user_has_set_is_left_as_it_is_and_the_rest_is_filled_in() -> None:
    environment = {"LLAMA_RELEASE_LOCAL__PRODUCTION_PORT": "8080", "LLAMA_RELEASE_API_KEY": "the user's"}
    demo.configure(environment, keep=False)
    assert environment["LLAMA_RELEASE_LOCAL__PRODUCTION_PORT"] == "8080"
    assert environment["LLAMA_RELEASE_API_KEY"] == "the user's"
    assert environment["LLAMA_RELEASE_LOCAL__STAGING_PORT"] == "0"


def test_without_a_key_one_is_made_and_no_server_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    first: dict[str, str] = {}
    second: dict[str, str] = {}
    demo.configure(first, keep=False)
    demo.configure(second, keep=False)
    assert len(first["LLAMA_RELEASE_API_KEY"]) > 20
    assert first["LLAMA_RELEASE_API_KEY"] != second["LLAMA_RELEASE_API_KEY"]
    with pytest.raises(BadInput, match="choose their API key first"):
        demo.configure({}, keep=True)
    monkeypatch.setenv("LLAMA_RELEASE_API_KEY", "the user's")
    demo.configure({}, keep=True)
