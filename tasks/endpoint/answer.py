"""What came back from a llama-server, and how to read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REQUEST_ID = "x-request-id"


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

    @property
    def server_id(self) -> str | None:
        """The server's own id of this exchange: a header (proxies send one), or the body's `id` (llama-server)."""
        found = self.headers.get(REQUEST_ID) or (self.body.get("id") if isinstance(self.body, dict) else None)
        return str(found) if found else None


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
    return next((choice["message"] for choice in choices(answer)), {})


def choices(answer: Answer) -> list[dict[str, Any]]:
    """All choices of a chat answer that have a message ([] when it is no chat answer)."""
    found = answer.body.get("choices") if isinstance(answer.body, dict) else None
    return [c for c in found or [] if isinstance(c, dict) and isinstance(c.get("message"), dict)]
