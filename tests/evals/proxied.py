"""A local platform whose trial servers are reached through a proxy that counts, garbles, or dies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx

from tasks.platforms.local import LocalPlatform
from tasks.release import Endpoint, Release
from tasks.settings import Settings
from tests.fakes.listening import Answering, listening


class Proxied(LocalPlatform):
    """`asked` counts chat requests that reached the model; after `dies_after` of them nothing is answered any more."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.asked = 0
        self.trials = 0
        self.dies_after: int | None = None
        self.garble: Callable[[str], str] | None = None
        self._lock = threading.Lock()

    @contextmanager
    def trial(self, release: Release, *, wait: bool = True) -> Iterator[Endpoint]:
        self.trials += 1
        with super().trial(release, wait=wait) as endpoint, listening(self._handler(endpoint)) as url:
            yield endpoint.model_copy(update={"base_url": url})

    def _dead(self, counts: bool) -> bool:
        with self._lock:
            if self.dies_after is not None and self.asked >= self.dies_after:
                return True
            self.asked += counts
            return False

    def _handler(self, endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
        platform = self

        class Handler(Answering):
            def do_GET(self) -> None:
                self._pass(b"")

            def do_POST(self) -> None:
                self._pass(self.rfile.read(int(self.headers["Content-Length"])))

            def _pass(self, body: bytes) -> None:
                if platform._dead(counts=self.command == "POST"):
                    self.close_connection = True
                    return
                headers = {k: v for k, v in self.headers.items() if k.title() in ("Authorization", "Content-Type")}
                got = httpx.request(
                    self.command, endpoint.base_url + self.path, content=body, headers=headers, timeout=120,
                    trust_env=False,
                )  # fmt: skip
                content = got.content
                if platform.garble and self.command == "POST":
                    content = garbled(got.json(), platform.garble)
                self.say(content, got.status_code, {"Content-Type": "application/json"})

        return Handler


def garbled(answer: dict[str, Any], change: Callable[[str], str]) -> bytes:
    for choice in answer.get("choices", []):
        choice["message"]["content"] = change(choice["message"]["content"])
    return json.dumps(answer).encode()
