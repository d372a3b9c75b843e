"""The one HTTP client of a llama-server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from tasks.release import Endpoint, ToolingError

COLD_START_RETRY_S = 5.0
"""Wait between tries while a server is starting (the guide: retry a 503 after 5-15 s)."""


@dataclass(frozen=True)
class Answer:
    """One HTTP exchange: what was asked, what came back, and how long it took."""

    method: str
    path: str
    request: Any
    status: int
    body: Any
    seconds: float
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def evidence(self) -> dict[str, Any]:
        """JSON for a verification. Holds no key: the key travels in a header that is not kept."""
        return {
            "method": self.method,
            "path": self.path,
            "request": self.request,
            "status": self.status,
            "response": self.body,
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class Stream:
    """A streamed exchange: parsed events, and when each arrived (seconds after the request was sent)."""

    status: int
    events: list[Any]
    arrived_s: list[float]
    done: bool
    """Whether the terminating `[DONE]` was seen."""

    @property
    def text(self) -> str:
        return "".join(_delta(e).get("content") or "" for e in self.events)

    @property
    def ttft_s(self) -> float | None:
        """Seconds to the first token of content or reasoning; None when there was none."""
        for event, at in zip(self.events, self.arrived_s, strict=True):
            delta = _delta(event)
            if delta.get("content") or delta.get("reasoning_content"):
                return at
        return None

    @property
    def finish_reason(self) -> str | None:
        for event in reversed(self.events):
            for choice in event.get("choices") or []:
                if choice.get("finish_reason"):
                    return str(choice["finish_reason"])
        return None


def _delta(event: Any) -> dict[str, Any]:
    choices = event.get("choices") if isinstance(event, dict) else None
    return (choices[0].get("delta") or {}) if choices else {}


class Client:
    """A synchronous client of one endpoint; a context manager.

    Methods return whatever the server said, also error statuses: callers judge. They raise
    ToolingError only when there was no HTTP answer at all.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = 120.0) -> None:
        self.endpoint = endpoint
        self._http = httpx.Client(
            base_url=endpoint.base_url,
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            # llama-server closes kept connections without a word; a request sent into that would be lost
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def _headers(self, key: str | None) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        content: bytes | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """One exchange. `key`: another key than the endpoint's, or None for none. `content`: a raw body."""
        headers = self._headers(self.endpoint.api_key if key == "" else key)
        if content is not None:
            headers["Content-Type"] = "application/json"
        start = time.monotonic()
        try:
            response = self._http.request(
                method,
                path,
                json=body,
                content=content,
                headers=headers,
                timeout=timeout_s if timeout_s is not None else httpx.USE_CLIENT_DEFAULT,
            )
        except httpx.HTTPError as error:
            raise ToolingError(
                f"no answer from {self.endpoint.base_url}{path}",
                evidence=f"{type(error).__name__}: {error}",
                todo="look at the server's log; retry when it is up",
            ) from error
        seconds = time.monotonic() - start
        try:
            parsed: Any = response.json()
        except ValueError:
            parsed = response.text
        return Answer(
            method, path, body if content is None else content.decode(errors="replace"),
            response.status_code, parsed, seconds, dict(response.headers),
        )  # fmt: skip

    def get(self, path: str, *, key: str | None = "") -> Answer:
        return self.request("GET", path, key=key)

    def post(self, path: str, body: Any, *, key: str | None = "", timeout_s: float | None = None) -> Answer:
        return self.request("POST", path, body, key=key, timeout_s=timeout_s)

    def chat(self, messages: list[dict[str, Any]] | str, **params: Any) -> Answer:
        """POST /v1/chat/completions. A string is one user message."""
        return self.post("/v1/chat/completions", chat_body(messages, **params))

    def stream(self, messages: list[dict[str, Any]] | str, **params: Any) -> Stream:
        """POST /v1/chat/completions with `stream: true`, read to its end."""
        body = chat_body(messages, stream=True, **params)
        start = time.monotonic()
        events: list[Any] = []
        arrived: list[float] = []
        done = False
        try:
            with self._http.stream(
                "POST", "/v1/chat/completions", json=body, headers=self._headers(self.endpoint.api_key)
            ) as response:
                for data in _sse(response.iter_lines()):
                    if data == "[DONE]":
                        done = True
                        continue
                    events.append(json.loads(data))
                    arrived.append(time.monotonic() - start)
                return Stream(response.status_code, events, arrived, done)
        except httpx.HTTPError as error:
            raise ToolingError(
                f"the stream from {self.endpoint.base_url} broke off",
                evidence=f"{type(error).__name__}: {error} after {len(events)} events",
                todo="look at the server's log",
            ) from error

    def health(self) -> int | None:
        """The status of GET /health, or None when nothing answers."""
        try:
            return self._http.get("/health", timeout=10.0).status_code
        except httpx.HTTPError:
            return None

    def wait_healthy(self, deadline_s: float, *, every_s: float = COLD_START_RETRY_S) -> float:
        """Seconds until /health was 200. Raises ToolingError at the deadline."""
        start = time.monotonic()
        status: int | None = None
        while (waited := time.monotonic() - start) < deadline_s:
            status = self.health()
            if status == 200:
                return time.monotonic() - start
            time.sleep(min(every_s, max(0.0, deadline_s - waited)))
        raise ToolingError(
            f"{self.endpoint.base_url} did not become healthy in {deadline_s:.0f} s",
            evidence=f"last answer of /health: {status or 'none'}",
            todo="look at the server's log",
        )


def chat_body(messages: list[dict[str, Any]] | str, **params: Any) -> dict[str, Any]:
    """A chat completions request body; a string is one user message."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return {"messages": messages, **params}


def content(answer: Answer) -> str:
    """The text of the first choice of a chat answer ('' when there is none)."""
    return str(message(answer).get("content") or "")


def message(answer: Answer) -> dict[str, Any]:
    """The first choice's message of a chat answer ({} when there is none)."""
    try:
        found = answer.body["choices"][0]["message"]
    except (KeyError, IndexError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _sse(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("data:"):
            yield line[5:].strip()
