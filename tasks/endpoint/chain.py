"""One guarded chat request, attempt after attempt: what to send next, and what to make of what came back."""

from __future__ import annotations

import json
import logging
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx

from modal_app.redaction import redact
from tasks.endpoint.answer import REQUEST_ID, Answer, choices
from tasks.endpoint.guards import guard
from tasks.release import BadInput, Problem, ToolingError
from tasks.settings import load

log = logging.getLogger(__name__)

_EXCERPT = 300  # characters of the server's own words
_HISTORY = 6  # attempts shown in an error


class Rejected(ToolingError):
    """The server answered as often as it may be asked, and never with what was asked for."""


@dataclass(frozen=True)
class Patience:
    """The bounds of one `ask`."""

    cold_start_s: float = 300.0
    """How long a server may take to come up, seconds from the first attempt; also the timeout of the first request."""
    pause_s: tuple[float, float] = (5.0, 15.0)
    """Shortest and longest pause before a server that is starting is asked again, seconds (guide 04)."""
    answers: int = 3
    """How many answers are looked at before the last fault is raised."""


PROXY = "modal-http:"
"""What the answers of Modal's own proxy begin with."""


class Chain:
    """The state of one `ask`. It does no HTTP and does not wait: sync and async clients drive it the same way.

        while answer is None: wait chain.pause_s, send chain.request, answer = chain.take(what came back)

    What is sent again, and within which bounds:

    - A 503, or a connection that was never made: the request was not taken on. Again, until `patience.cold_start_s`.
    - A 502 or 504, or a connection that broke once it was made: the server may have worked on the request. Again as
      above, but only when the request cannot have run a tool.
    - A whole answer that its guard rejects: again, with a stricter system message, until `patience.answers`.
    - Nothing else. A 408 or a timeout would only be as slow again.

    When may a request have run a tool? A whole answer never has: its `tool_calls` are calls for the caller to make
    (OpenAI's contract), and they are handed out only once they pass, so asking again repeats no tool of the caller's. A
    tool's result in the conversation is only read. What remains is a request whose end was not seen: llama-server runs
    no tool in a chat, but a gateway or an agent that runs them on the way to it may have. So a request that offers
    `tools` with a `tool_choice` other than `none`, and whose connection broke, is not sent again, unless the caller
    declares with `idempotent` that running its tools twice does no harm.
    """

    def __init__(
        self,
        body: dict[str, Any],
        patience: Patience,
        *,
        timeout_s: float,
        cold: bool,
        idempotent: bool = False,
        key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.guard = guard(body)
        self.body = self.guard.body
        self.patience, self.cold, self.key = patience, cold, key
        self.repeatable = idempotent or not self.guard.may_run_a_tool
        self.id = uuid.uuid4().hex[:12]
        self.pause_s = 0.0
        self._timeout_s, self._clock = timeout_s, clock
        self._deadline = clock() + patience.cold_start_s
        self._attempt, self._answers = 1, 0
        self._history: list[str] = []

    @property
    def request(self) -> dict[str, Any]:
        """The next attempt, as arguments of `Client.post`."""
        left = self._deadline - self._clock()
        return {
            "body": self.body,
            "timeout_s": max(self._timeout_s, left) if self.cold else self._timeout_s,
            "headers": {REQUEST_ID: f"{self.id}-{self._attempt}"},
        }

    def take(self, said: Answer | ToolingError) -> Answer | None:
        """The answer when it is what was asked for, None when another attempt is to be made.

        `said` is what came back, or the error of the strict client, caused by httpx's. Raises Rejected when too many
        answers were not what was asked for; BadInput when the request or the key must change; ToolingError when the
        server did not come up in time, was too slow, broke, or broke off a request that may have run a tool.
        """
        try:
            why = self._why_again(said)
        except Problem as problem:
            self._note(said, problem.what)
            evidence = "\n".join(filter(None, [problem.evidence, *self._history[-_HISTORY:]]))
            raise type(problem)(
                self._clean(problem.what), evidence=self._clean(evidence), todo=problem.todo
            ) from problem.__cause__
        self._note(said, f"again in {self.pause_s:.1f} s: {why}" if why else "taken")
        self._attempt += 1
        return said if why is None and isinstance(said, Answer) else None

    def _why_again(self, said: Answer | ToolingError) -> str | None:
        if isinstance(said, ToolingError):
            match said.__cause__:
                case httpx.ConnectError() | httpx.ConnectTimeout():
                    return self._starting(said, "nothing listens there")
                case httpx.TimeoutException():
                    _slow(said.evidence)
                case httpx.NetworkError() | httpx.RemoteProtocolError():
                    return self._lost(said)
            raise said
        match said.status:
            case 200:
                return self._rejected(said)
            case 401 if PROXY not in str(said.body):
                raise _key_refused(self.key, self._words(said))
            case 408:
                _slow(self._words(said))
            case 502 | 504:
                return self._lost(said)
            case 503:
                return self._starting(said, "the server is starting")
        kind = BadInput if said.status < 500 else ToolingError
        if PROXY in str(said.body):
            raise kind(
                f"Modal's own proxy answered {said.status}, before the server saw the request",
                evidence=self._words(said), todo="`llama-release explain` knows its words",
            )  # fmt: skip
        todo = "correct the request" if said.status < 500 else "look at the server's log"
        raise kind(f"the server answered {said.status}", evidence=self._words(said), todo=todo)

    def _starting(self, said: Answer | ToolingError, why: str) -> str:
        self.cold = True
        self.pause_s = random.uniform(*self.patience.pause_s)
        if self._clock() + self.pause_s > self._deadline:
            raise ToolingError(
                f"the server did not come up in {self.patience.cold_start_s:.0f} s",
                evidence=self._words(said),
                todo="look at the server's log; allow a longer Patience.cold_start_s when it only needs more time",
            )
        return why

    def _lost(self, said: Answer | ToolingError) -> str:
        if not self.repeatable:
            raise ToolingError(
                "the server broke off a request that may have run a tool: it is not sent again",
                evidence=self._words(said),
                todo="find out whether the tool ran; ask with idempotent=True where running it twice does no harm",
            )
        return self._starting(said, "the server broke off")

    def _rejected(self, answer: Answer) -> str | None:
        if not choices(answer):
            raise ToolingError(
                "the answer is no chat completion",
                evidence=self._words(answer),
                todo="check that the base URL is a llama-server's",
            )
        _not_empty(answer)
        if (fault := self.guard.fault(answer)) is None:
            return None
        self._answers += 1
        self.pause_s = 0.0
        if self._answers >= self.patience.answers:
            raise Rejected(
                f"{self._answers} answers were rejected, the last one because {fault}",
                evidence=self._words(answer),
                todo="prefer tool_choice auto, say in the prompt what is wanted, or give the tool a simpler schema",
            )
        self.body = self.guard.stricter(fault)
        return fault

    def _note(self, said: Answer | ToolingError, outcome: str) -> None:
        if isinstance(said, Answer):
            seen = f"{said.status} in {said.seconds:.2f} s" + (f" as {said.server_id}" if said.server_id else "")
        else:
            seen = type(said.__cause__).__name__
        line = self._clean(" ".join(f"request {self.id}-{self._attempt}: {seen}, {outcome}".split()))
        self._history.append(line)
        log.info("%s", line)

    def _clean(self, text: str) -> str:
        return redact(text, self.key)

    def _words(self, said: Answer | ToolingError) -> str:
        """The beginning of what the server said; the key is taken out before a cut could leave half of it."""
        if isinstance(said, ToolingError):
            return said.evidence
        text = said.body if isinstance(said.body, str) else json.dumps(said.body, ensure_ascii=False)
        return self._clean(text)[:_EXCERPT]


def _slow(evidence: str) -> NoReturn:
    raise ToolingError(
        "the answer took too long (guide 04, status 408)",
        evidence=evidence,
        todo="raise the client's timeout_s (for a cold start: Patience.cold_start_s), or lower max_tokens",
    )


def _key_refused(key: str | None, evidence: str) -> BadInput:
    variable = load().server.api_key_env
    held = os.environ.get(variable)
    state = (
        f"{variable} is not set"
        if not held
        else f"{variable} is set, and {'is the key that was sent' if held == key else 'is not what was sent'}"
    )
    return BadInput(
        "the server refused the API key" if key else "the server wants an API key, and none was sent",
        evidence=f"{state}\n{evidence}",
        todo=f"set {variable} to the server's key (`source .env`), and give it to the client's Endpoint as api_key",
    )


def _not_empty(answer: Answer) -> None:
    """Raises BadInput when the tokens were used up before the first word of content or the first call."""
    for choice in choices(answer):
        message = choice["message"]
        if choice.get("finish_reason") != "length" or message.get("content") or message.get("tool_calls"):
            continue
        thought = bool(message.get("reasoning_content"))
        raise BadInput(
            "the answer is empty: "
            + ("thinking used up the tokens" if thought else "the tokens were used up before it"),
            evidence=f"finish_reason length, usage {json.dumps(answer.body.get('usage'))}",
            todo="raise max_tokens"
            + ("; for a simple query disable thinking: chat_template_kwargs={'enable_thinking': False}" * thought),
        )
