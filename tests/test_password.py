"""The password of a store's Prefect servers: whose eyes it is for, and which server is told it."""

from __future__ import annotations

import stat
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from tasks import password
from tasks.approval import held
from tasks.release import BadInput
from tasks.store import Store
from tests.approval.test_standing import a_request
from tests.fakes.listening import Answering, listening

pytestmark = pytest.mark.wire


def test_it_is_made_once_for_its_owners_eyes_however_many_make_it(tmp_path: Path) -> None:
    home = tmp_path / "store" / "prefect"
    with ThreadPoolExecutor(16) as many:
        made = set(many.map(password.keep, [home] * 64))
    assert len(made) == 1
    assert made == {password.keep(home)}
    assert [path.name for path in home.iterdir()] == ["password"]
    assert stat.S_IMODE((home / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_folder_of_an_earlier_version_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    password.keep(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["", "\n", "admin:admin", "llama-release:", "llama-release: \n", "\udcff"])
def test_a_file_that_holds_none_opens_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / "password").write_text(text, errors="surrogateescape")
    with pytest.raises(BadInput, match="password"):
        password.keep(tmp_path)


def test_a_folder_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file/prefect/password can't be had"):
        password.keep(tmp_path / "file" / "prefect")


def test_our_server_shows_that_it_has_it_and_to_whom_another_is_strange(page: str) -> None:
    given = PREFECT_API_AUTH_STRING.value()
    assert password.shows(page, given)
    assert not password.shows(page, given + "x")
    assert not password.shows("http://127.0.0.1:9", given)
    assert not password.shows("http://[", given)


@contextmanager
def squatter(asks: str = "") -> Iterator[tuple[str, list[str | None]]]:
    """Somebody who took the port of a server that has ended and asks a live one for what he does not know; what he is
    told of passwords."""
    told: list[str | None] = []

    class Handler(Answering):
        def do_GET(self) -> None:
            told.append(self.headers["Authorization"])
            said = httpx.get(f"{asks}{self.path}", trust_env=False).content if asks else b"true"
            self.say(said)

    with listening(Handler) as address:
        yield address, told


def test_who_took_the_port_of_a_server_that_ended_is_told_nothing(page: str, store: Store) -> None:
    for asks in ("", page):
        with squatter(asks) as (address, told):
            assert held.state(a_request(store, api_url=f"{address}/api")) is None
            assert len(told) >= 2, "it was asked"
            assert set(told) == {None}


def test_a_server_that_somebody_runs_himself_is_told_his_password(store: Store) -> None:
    with squatter() as (address, told), temporary_settings({PREFECT_API_AUTH_STRING: "ada:lovelace"}):
        held.state(a_request(store, api_url=f"{address}/api"))
    assert told == [f"Basic {b64encode(b'ada:lovelace').decode()}"]
