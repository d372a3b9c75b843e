"""Who approves at the terminal, in front of a Prefect API that can't answer at first."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import approver_at_the_terminal
from tasks.troubles import Troubles, load_troubles

pytestmark = pytest.mark.wire
BROKEN = 3
"""So many times the API says 500 to who asks for the run."""


class Api(ThreadingHTTPServer):
    """As much of Prefect's API as a paused run needs, over HTTP."""

    def __init__(self, run: UUID) -> None:
        super().__init__(("127.0.0.1", 0), Talk)
        self.run = run
        self.asked = 0
        self.answered = threading.Event()


class Talk(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            return self._say(200, "3.9.1")
        if "csrf-token" in self.path:
            return self._say(200, {"client": "a", "token": "b", "expiration": "2999-01-01T00:00:00Z"})
        self.server.asked += 1
        if self.server.asked <= BROKEN:
            return self._say(500, {"exception_message": "Internal Server Error"})
        state = {"id": str(uuid4()), "type": "PAUSED", "name": "Paused", "state_details": {}}
        return self._say(200, {"id": str(self.server.run), "flow_id": str(uuid4()), "name": "run", "state": state})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
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
def _api() -> Iterator[Api]:
    api = Api(uuid4())
    thread = threading.Thread(target=api.serve_forever)
    thread.start()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{api.server_address[1]}/api"}):
        try:
            yield api
        finally:
            api.shutdown()
            thread.join()
            api.server_close()


def test_who_approves_unattended_outlives_an_api_that_is_down_for_a_while(tmp_path: Path) -> None:
    with _api() as api, approver_at_the_terminal("ada", Troubles(tmp_path)) as tell:
        tell(api.run)
        assert api.answered.wait(60)
    (trouble,) = load_troubles(tmp_path)
    assert "500 Internal Server Error" in trouble.error
