"""A real HTTP server on loopback that does, request by request, what a test's script says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tasks.release import Endpoint

KEY = "secret-key-of-the-tests"
TIME: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {"hours": {"type": "integer"}}, "required": ["hours"]},
    },
}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


HANGUP = Reply(0, None)
"""The connection is closed where the answer should be."""
STARTING = Reply(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})


def says(content: str | None, *, finish: str = "stop", **message: Any) -> Reply:
    """A chat answer as llama-server gives it."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return Reply(200, {"id": "chatcmpl-of-the-server", "choices": [choice], "usage": {"completion_tokens": 16}})


def calls(name: str, arguments: str) -> Reply:
    call = {"type": "function", "id": "1", "function": {"name": name, "arguments": arguments}}
    return says(None, finish="tool_calls", tool_calls=[call])


@dataclass
class Seen:
    """What the server was sent."""

    endpoint: Endpoint
    bodies: list[dict[str, Any]] = field(default_factory=list)
    request_ids: list[str | None] = field(default_factory=list)


@contextmanager
def server(*script: Reply) -> Iterator[Seen]:
    """A server that gives these replies in turn, the last one for ever."""
    turn = iter(script)
    last = script[-1]
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                reply = next(turn, last)
                seen.bodies.append(json.loads(body))
                seen.request_ids.append(self.headers["X-Request-Id"])
            if over.wait(reply.delay_s) or reply is HANGUP:
                return
            text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(text.encode())), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that left is what a test is about."""

    over = threading.Event()
    http = Quiet(("127.0.0.1", 0), Handler)
    http.daemon_threads = False
    seen = Seen(Endpoint(base_url=f"http://127.0.0.1:{http.server_address[1]}", api_key=KEY))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        http.shutdown()
        http.server_close()
        thread.join()
