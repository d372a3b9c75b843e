"""Who approves at the terminal, in front of a Prefect API that can't answer at first."""

from __future__ import annotations

import json
import os
import pty
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import approver_at_the_terminal
from tasks.console import console
from tasks.troubles import Troubles, load_troubles

pytestmark = pytest.mark.wire
BROKEN = 3
"""So many times the API says 500 to who asks for the run."""


class Api(ThreadingHTTPServer):
    """As much of Prefect's API as a paused run needs, over HTTP."""

    def __init__(self, run: UUID, broken: int) -> None:
        super().__init__(("127.0.0.1", 0), Talk)
        self.run, self.broken = run, broken
        self.answer: dict[str, str] = {}
        self.answered = threading.Event()


class Talk(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            return self._say(200, "3.9.1")
        if "csrf-token" in self.path:
            return self._say(200, {"client": "a", "token": "b", "expiration": "2999-01-01T00:00:00Z"})
        self.server.broken -= 1
        if self.server.broken >= 0:
            return self._say(500, {"exception_message": "Internal Server Error"})
        state = {"id": str(uuid4()), "type": "PAUSED", "name": "Paused", "state_details": {}}
        return self._say(200, {"id": str(self.server.run), "flow_id": str(uuid4()), "name": "run", "state": state})

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        self.server.answer = said.get("run_input", {})
        self.server.answered.set()
        self._say(404, {})

    def _say(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *words: object) -> None:
        """Nothing: it is no news."""


@contextmanager
def _api(broken: int = 0) -> Iterator[Api]:
    api = Api(uuid4(), broken)
    thread = threading.Thread(target=api.serve_forever)
    thread.start()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{api.server_address[1]}/api"}):
        try:
            yield api
        finally:
            api.shutdown()
            thread.join()
            api.server_close()


def shows_nothing(_: str) -> None:
    raise AssertionError("nobody asked to see it")


@contextmanager
def typing(*lines: str) -> Iterator[None]:
    """Somebody sits at the terminal and types these lines; after them he leaves."""
    keyboard, line = pty.openpty()
    with open(line) as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        patch.setattr(console, "_force_terminal", True)
        os.write(keyboard, "".join(f"{each}\n" for each in lines).encode() + b"\x04")
        try:
            yield
        finally:
            os.close(keyboard)


@pytest.mark.parametrize(
    ("line", "decision", "note"),
    [
        ("approve", "approve", ""), ("y", "approve", ""), ("Yes  restores look good", "approve", "restores look good"),
        ("reject", "reject", ""), ("N not today", "reject", "not today"), ("no", "reject", ""),
    ],
)  # fmt: skip
def test_what_people_type_is_understood(tmp_path: Path, line: str, decision: str, note: str) -> None:
    with (
        typing("what?", line), _api() as api,
        approver_at_the_terminal(None, Troubles(tmp_path), shows_nothing) as tell,
    ):  # fmt: skip
        tell(api.run)
        assert api.answered.wait(60)
    assert (api.answer["decision"], api.answer["note"]) == (decision, note)


def test_the_evidence_is_shown_to_who_asks_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []
    with typing("show", "y"), _api() as api, approver_at_the_terminal(None, Troubles(tmp_path), shown.append) as tell:
        tell(api.run)
        assert api.answered.wait(60)
    assert shown == [str(api.run)]
    assert "approve / reject / show" in capsys.readouterr().out


def test_who_leaves_the_terminal_leaves_the_decision_to_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with typing(), _api() as api, approver_at_the_terminal(None, Troubles(tmp_path), shows_nothing) as tell:
        tell(api.run)
        assert not api.answered.wait(3)
    assert load_troubles(tmp_path) == []
    assert "please say" not in capsys.readouterr().out


def test_who_approves_unattended_outlives_an_api_that_is_down_for_a_while(tmp_path: Path) -> None:
    with _api(BROKEN) as api, approver_at_the_terminal("ada", Troubles(tmp_path), shows_nothing) as tell:
        tell(api.run)
        assert api.answered.wait(60)
    (trouble,) = load_troubles(tmp_path)
    assert "500 Internal Server Error" in trouble.error
