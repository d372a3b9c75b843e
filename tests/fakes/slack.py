"""A Slack on loopback: chat.postMessage and chat.update, with Block Kit's limits, threads and rate limits."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.fakes.listening import Answering, listening

TOKEN = "xoxb-right"
CHANNELS = {"#releases": "C0RELEASES"}
LIMITS = {"header": 150, "section": 3000}


class FakeSlack:
    """What was said, and what a test arranges to go wrong."""

    def __init__(self) -> None:
        self.url = ""
        self.messages: list[dict[str, Any]] = []
        self.faults: list[tuple[int, dict[str, str]]] = []
        """The next calls' statuses and headers."""
        self.refusals: dict[str, str] = {}
        """Method -> the error that it gives from now on."""
        self.calls = 0
        self._lock = threading.Lock()

    def call(self, method: str, token: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if token != f"Bearer {TOKEN}":
                return _no("invalid_auth")
            if wrong := _wrong(body) or self.refusals.get(method):
                return _no(wrong)
            if method == "chat.postMessage":
                return self._post(body)
            if method == "chat.update":
                return self._update(body)
            return _no("unknown_method")

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        channel = CHANNELS.get(body["channel"], body["channel"])
        if channel not in CHANNELS.values():
            return _no("channel_not_found")
        if body.get("thread_ts") and not self.by_ts(body["thread_ts"]):
            return _no("thread_not_found")
        ts = f"1700000000.{len(self.messages):06}"
        self.messages.append({**body, "channel": channel, "ts": ts})
        return {"ok": True, "channel": channel, "ts": ts}

    def _update(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["channel"] not in CHANNELS.values():
            return _no("channel_not_found")  # a name is taken by chat.postMessage only
        if not (message := self.by_ts(body["ts"])):
            return _no("message_not_found")
        message.update(body)
        return {"ok": True, "channel": body["channel"], "ts": body["ts"]}

    def by_ts(self, ts: str) -> dict[str, Any] | None:
        return next((m for m in self.messages if m["ts"] == ts), None)

    def titles(self, *, thread: str | None = None) -> list[str]:
        """The headers, of all messages or of those in one thread."""
        return [m["blocks"][0]["text"]["text"] for m in self.messages if thread is None or m.get("thread_ts") == thread]


def _no(error: str) -> dict[str, Any]:
    return {"ok": False, "error": error}


def _wrong(body: dict[str, Any]) -> str | None:
    blocks = body.get("blocks", [])
    if not body.get("text") or not 1 <= len(blocks) <= 50:
        return "no_text" if not body.get("text") else "invalid_blocks"
    for block in blocks:
        kind, text = block["type"], block["text"]
        known = {"plain_text"} if kind == "header" else {"plain_text", "mrkdwn"}
        if kind not in LIMITS or text["type"] not in known or not 1 <= len(text["text"]) <= LIMITS[kind]:
            return "invalid_blocks"
    return None


class _Handler(Answering):
    slack: FakeSlack

    def do_POST(self) -> None:
        self.slack.calls += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.slack.faults:
            status, headers = self.slack.faults.pop(0)
            return self._send(status, headers, _no("ratelimited" if status == 429 else "internal_error"))
        method = self.path.rpartition("/")[2]
        self._send(200, {}, self.slack.call(method, self.headers["Authorization"], body))

    def _send(self, status: int, headers: dict[str, str], body: dict[str, Any]) -> None:
        self.say(json.dumps(body).encode(), status, {**headers, "Content-Type": "application/json"})


@contextmanager
def fake_slack() -> Iterator[FakeSlack]:
    """A Slack that listens on loopback."""
    slack = FakeSlack()
    handler = type("Handler", (_Handler,), {"slack": slack})
    with listening(handler) as url:
        slack.url = f"{url}/api/"
        yield slack
