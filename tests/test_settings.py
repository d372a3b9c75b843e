"""Where settings come from, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.release import BadInput
from tasks.settings import SETTINGS_FILE, load


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, with nothing set."""
    for name in [name for name in os.environ if name.startswith("LLAMA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / SETTINGS_FILE


def test_the_environment_wins_over_the_file_and_the_file_over_what_is_usual(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.write_text('retain = 3\n[server]\nalias = "file"\nslots = 7\n')
    monkeypatch.setenv("LLAMA_RELEASE_SERVER__ALIAS", "environment")
    found = load()
    assert (found.server.alias, found.server.slots, found.retain, found.keep_builds) == ("environment", 7, 3, 20)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("retian = 3\n", "retian"),
        ("[server]\nmodle = 'm.gguf'\n", "server.modle"),
        ("retain = 0\n", "retain"),
        ("[watch]\nrestores = 2\nfailed_restores = 3\n", "watch"),
        ("[upstream]\nchannel = 'stable'\n", "upstream"),
    ],
)
def test_a_wrong_setting_is_named(here: Path, text: str, named: str) -> None:
    here.write_text(text)
    with pytest.raises(BadInput, match="the settings are not usable") as caught:
        load()
    assert caught.value.evidence.startswith(f"{named}: ")
