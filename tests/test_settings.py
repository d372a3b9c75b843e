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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"retain = \n", f"{SETTINGS_FILE}: Invalid value (at line 1, column 10)"),
        (b"[server\n", f"{SETTINGS_FILE}: Expected ']'"),
        (b"\xff\xfe", f"{SETTINGS_FILE}: 'utf-8' codec can't decode byte 0xff"),
        (b"evals.tasks = " + b"[" * 5000, f"{SETTINGS_FILE}: maximum recursion depth exceeded"),
        (b'store = "a\\u0000b"', "store: it has a byte 0"),
        (b'evals.critical = ["a", "b\\u0000"]', "evals.critical: it has a byte 0"),
    ],
)
def test_a_file_that_is_no_settings_is_told(here: Path, text: bytes, told: str) -> None:
    here.write_bytes(text)
    with pytest.raises(BadInput, match="the settings are not usable") as caught:
        load()
    assert told in caught.value.evidence


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("LLAMA_RELEASE_SERVER", "{", 'field "server"'),
        ("LLAMA_RELEASE_UPSTREAM__DENY", "[1", 'field "upstream"'),
        ("LLAMA_RELEASE_STORE", os.fsdecode(b"\xff"), "store: it has a byte 0 or one that is not UTF-8"),
        ("XDG_CACHE_HOME", "~nobody-of-this-name/x", "home directory"),
        ("LLAMA_RELEASE_API_KEY", "\N{LATIN SMALL LETTER E WITH ACUTE}", "LLAMA_RELEASE_API_KEY has a character"),
        ("LLAMA_RELEASE_API_KEY", "a key\n", "or a blank at an end"),
    ],
)
def test_a_variable_that_is_no_setting_is_told(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput) as caught:
        load()
    assert told in caught.value.evidence
    assert value not in str(caught.value)
