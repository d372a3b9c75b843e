"""The wire: a strict client, sync and async, and the two loops that drive a chain."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

import httpx

from tasks.endpoint.answer import Answer, Stream, chat_body
from tasks.endpoint.chain import Chain, Patience
from tasks.release import BadInput, Endpoint, ToolingError

COLD_START_RETRY_S = 5.0
"""Wait between tries while a server is starting (the guide: retry a 503 after 5-15 s)."""
REFUSED = (401, 403, 404)
"""What /health never says while a server comes up behind a proxy."""
CHAT = "/v1/chat/completions"
_CONNECT_S = 10.0

A = TypeVar("A", Answer, Coroutine[Any, Any, Answer])


def base_url(url: str) -> str:
    """The URL without what every route begins with. Raises BadInput for one that no request can go to."""
    try:
        known = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadInput("this is no URL", evidence=f"{url!r}: {error}", todo="give http://host:port") from error
    if known.scheme not in ("http", "https") or not known.host:
        raise BadInput("this is no URL of a server", evidence=repr(url), todo="give http://host:port")
    return url.rstrip("/").removesuffix("/v1")


class _Methods(ABC, Generic[A]):
    """What both clients are: an endpoint, its patience, and the requests that are made of `request`.

    The strict methods return whatever the server said, also error statuses: callers judge. They raise ToolingError,
    caused by httpx's error, only when there was no HTTP answer at all.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = 120.0, patience: Patience | None = None) -> None:
        self.endpoint, self.timeout_s, self.patience = endpoint, timeout_s, patience or Patience()
        self._cold = True
        """Whether no request of `ask` has been answered yet: the first one waits as long as a cold start may take."""

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "base_url": self.endpoint.base_url,
            "headers": self.endpoint.headers,
            "timeout": httpx.Timeout(self.timeout_s, connect=_CONNECT_S),
            # llama-server closes kept connections without a word; a request sent into that would be lost
            "limits": httpx.Limits(max_keepalive_connections=0),
            "trust_env": False,
        }

    @abstractmethod
    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        content: bytes | None = None,
        timeout_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> A:
        """One exchange. `key`: another key than the endpoint's, or None for none. `content`: a raw body."""

    def get(self, path: str, *, key: str | None = "") -> A:
        return self.request("GET", path, key=key)

    def post(
        self,
        path: str,
        body: Any,
        *,
        key: str | None = "",
        timeout_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> A:
        return self.request("POST", path, body, key=key, timeout_s=timeout_s, headers=headers)

    def chat(self, messages: list[dict[str, Any]] | str, **params: Any) -> A:
        """POST /v1/chat/completions. A string is one user message."""
        return self.post(CHAT, chat_body(messages, **params))

    def _asked(
        self,
        method: str,
        path: str,
        body: Any,
        key: str | None = "",
        content: bytes | None = None,
        timeout_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """The arguments of httpx's `request` or `stream`."""
        key = self.endpoint.api_key if key == "" else key
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        if content is not None:
            sent["Content-Type"] = "application/json"
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s, connect=_CONNECT_S)
        return {
            "method": method, "url": path, "json": body, "content": content, "headers": sent | (headers or {}),
            "timeout": timeout,
        }  # fmt: skip

    @contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ToolingError(
                f"no answer from {self.endpoint.base_url}{path}",
                evidence=f"{type(error).__name__}: {error}",
                todo="look at the server's log; retry when it is up",
            ) from error

    def _chain(self, messages: list[dict[str, Any]] | str, idempotent: bool, params: dict[str, Any]) -> Chain:
        return Chain(
            chat_body(messages, **params), self.patience, timeout_s=self.timeout_s, cold=self._cold,
            idempotent=idempotent, key=self.endpoint.api_key,
        )  # fmt: skip


class Client(_Methods[Answer]):
    """A synchronous client of one endpoint; a context manager.

    `timeout_s`: how long an answer may take, with the restore of a server that had gone idle. `patience`: the bounds of
    `ask`.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = 120.0, patience: Patience | None = None) -> None:
        super().__init__(endpoint, timeout_s=timeout_s, patience=patience)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        asked = self._asked(method, path, body, **options)
        start = time.monotonic()
        with self._reaching(path):
            response = self._http.request(**asked)
        return _answer(asked, response, time.monotonic() - start)

    def stream(self, messages: list[dict[str, Any]] | str, **params: Any) -> Stream:
        """POST /v1/chat/completions with `stream: true`, read to its end."""
        events = _Events()
        with (
            events.breaking_off(self.endpoint),
            self._http.stream(**self._asked("POST", CHAT, chat_body(messages, stream=True, **params))) as response,
        ):
            for line in response.iter_lines():
                events.take(line)
            return events.stream(response.status_code)

    def ask(self, messages: list[dict[str, Any]] | str, *, idempotent: bool = False, **params: Any) -> Answer:
        """A chat answer that is what was asked for: cold starts waited out, tool calls guarded. Not for contracts.

        `params` are those of /v1/chat/completions; a named function as `tool_choice` sends only that tool. What is
        sent again and when, what `idempotent` declares, and what is raised: see `chain.Chain` and `guards`.
        """
        chain = self._chain(messages, idempotent, params)
        answer: Answer | None = None
        while answer is None:
            time.sleep(chain.pause_s)
            try:
                said: Answer | ToolingError = self.post(CHAT, **chain.request)
            except ToolingError as error:
                said = error
            answer = chain.take(said)
        self._cold = False
        return answer

    def health(self) -> int | None:
        """The status of GET /health, or None when nothing answers."""
        try:
            return self._http.get("/health", timeout=10.0).status_code
        except httpx.HTTPError:
            return None

    def wait_healthy(self, deadline_s: float, *, every_s: float = COLD_START_RETRY_S) -> float:
        """Seconds until /health was 200. Raises ToolingError at the deadline, and at once for what no wait mends: a
        proxy that refuses (llama-server asks for no key there), or has nothing at this address."""
        start = time.monotonic()
        status: int | None = None
        while (waited := time.monotonic() - start) < deadline_s:
            status = self.health()
            if status == 200:
                return time.monotonic() - start
            if status in REFUSED:
                raise ToolingError(
                    f"{self.endpoint.base_url} does not let /health through: {status}",
                    evidence="401 and 403 are a proxy's, of its own tokens or keys; 404 says that nothing is there",
                    todo="look at what stands before the server: on Modal its proxy tokens (`llama-release doctor`)",
                )
            time.sleep(min(every_s, max(0.0, deadline_s - waited)))
        raise ToolingError(
            f"{self.endpoint.base_url} did not become healthy in {deadline_s:.0f} s",
            evidence=f"last answer of /health: {status or 'none'}",
            todo="look at the server's log",
        )


class AsyncClient(_Methods[Coroutine[Any, Any, Answer]]):
    """The same for `async` code; an asynchronous context manager."""

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = 120.0, patience: Patience | None = None) -> None:
        super().__init__(endpoint, timeout_s=timeout_s, patience=patience)
        self._http = httpx.AsyncClient(**self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        asked = self._asked(method, path, body, **options)
        start = time.monotonic()
        with self._reaching(path):
            response = await self._http.request(**asked)
        return _answer(asked, response, time.monotonic() - start)

    async def stream(self, messages: list[dict[str, Any]] | str, **params: Any) -> Stream:
        """As Client.stream."""
        events = _Events()
        asked = self._asked("POST", CHAT, chat_body(messages, stream=True, **params))
        with events.breaking_off(self.endpoint):
            async with self._http.stream(**asked) as response:
                async for line in response.aiter_lines():
                    events.take(line)
                return events.stream(response.status_code)

    async def ask(self, messages: list[dict[str, Any]] | str, *, idempotent: bool = False, **params: Any) -> Answer:
        """As Client.ask."""
        chain = self._chain(messages, idempotent, params)
        answer: Answer | None = None
        while answer is None:
            await asyncio.sleep(chain.pause_s)
            try:
                said: Answer | ToolingError = await self.post(CHAT, **chain.request)
            except ToolingError as error:
                said = error
            answer = chain.take(said)
        self._cold = False
        return answer


class _Events:
    """A stream's events as its lines come in."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._events: list[Any] = []
        self._arrived: list[float] = []
        self._done = False

    def take(self, line: str) -> None:
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        if data == "[DONE]":
            self._done = True
        else:
            self._events.append(json.loads(data))
            self._arrived.append(time.monotonic() - self._start)

    def stream(self, status: int) -> Stream:
        return Stream(status, self._events, self._arrived, self._done)

    @contextmanager
    def breaking_off(self, endpoint: Endpoint) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ToolingError(
                f"the stream from {endpoint.base_url} broke off",
                evidence=f"{type(error).__name__}: {error} after {len(self._events)} events",
                todo="look at the server's log",
            ) from error


def _answer(asked: dict[str, Any], response: httpx.Response, seconds: float) -> Answer:
    try:
        parsed: Any = response.json()
    except ValueError:
        parsed = response.text
    raw = asked["content"]
    request = asked["json"] if raw is None else raw.decode(errors="replace")
    return Answer(asked["method"], asked["url"], request, response.status_code, parsed, seconds, dict(response.headers))
