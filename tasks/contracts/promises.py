"""What a contract is made of: one function is one promise, checked on one running server."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import current_thread
from typing import Any, Literal

from modal_app.redaction import redact
from tasks.contracts.wire import Wire
from tasks.endpoint import Answer, Client, Stream, chat_body
from tasks.endpoint.listening import nobody_listens
from tasks.release import (
    NOT_ASKED,
    SERVER_SAID,
    UNMET,
    Endpoint,
    Problem,
    Release,
    ToolingError,
    Verdict,
    Verification,
)

Server = Literal["starting", "model", "scripted", "set", "calling", "counting", "seeing"]
"""Which trial server a promise is checked on: one just started, one with the release's model, or one with a scripted
model (trials.SCRIPTS): it thinks, thinks as argv sets it, calls tools, counts by chance, or thinks and sees."""

Routes = Sequence[tuple[str, str]]
"""(method, path) of what a server's source registers, as far as it is known."""

_ROOM: dict[Server, int] = {"calling": 512}  # tokens: the descriptions of two tools, a call and its answer
TIMEOUT_S = 60.0
_CLIP = 2000  # characters of one string kept as evidence
_REVIVE_S = 2.0
_WORDS = 200  # characters of what a server says of its error
DIED = "died"
"""In the evidence of a verification: the server is gone since it was asked this, and how it ended."""
REFUSED = "nobody listened when it was to be asked"


Exchange = dict[str, Any]
"""What was asked, and what came back, as evidence."""
LAST: Exchange = {}
"""Stands for the exchange that came last."""


class Unmet(Exception):
    """A promise that was not kept; the message is the verification's summary.

    `shown` is the exchange that shows it when it is asked again; None where no single one does.
    """

    def __init__(self, said: str, shown: Exchange | None = LAST) -> None:
        super().__init__(said)
        self.shown = shown


def expect(condition: object, otherwise: str, *, shown: Exchange | None = LAST) -> None:
    """Raise Unmet with `otherwise` unless the condition holds."""
    if not condition:
        raise Unmet(otherwise, shown)


def at(body: Any, *path: str | int) -> Any:
    """The value at a path of keys and indexes in an answer's body. Raises Unmet that names the path."""
    found = body
    for step in path:
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError):
            raise Unmet(f"the answer has no {'.'.join(map(str, path))}") from None
    return found


def slot_tokens(ctx: Context) -> int:
    """Tokens of context that a slot of the server has."""
    return int(at(ctx.client.get("/props").body, "default_generation_settings", "n_ctx"))


def slot_count(ctx: Context) -> int:
    """How many slots the server has."""
    return int(at(ctx.client.get("/props").body, "total_slots"))


class Recorder(Client):
    """The client that promises use: every exchange is kept as evidence."""

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = TIMEOUT_S, routes: Routes = ()) -> None:
        super().__init__(endpoint, timeout_s=timeout_s)
        self.routes = routes
        self.exchanges: list[Exchange] = []
        self.tokens: dict[str, int] = {}
        """Text -> its token's id, of what was asked for so far: hundreds of promises ask for the same few."""
        self._thread = current_thread()

    def begin(self) -> None:
        """From now on exchanges are of another promise."""
        self.exchanges, self._thread = [], current_thread()

    def _keep(self, exchange: Exchange) -> Exchange:
        if current_thread() is not self._thread:
            exchange["at_once"] = True  # with others
        self.exchanges.append(exchange)
        return exchange

    @property
    def bearer(self) -> tuple[str, str]:
        """The header with the right key, for a wire, which sends none of itself."""
        return "Authorization", f"Bearer {self.endpoint.api_key}"

    def wire(self) -> Wire:
        """A connection for requests that are to be spelled just so; its exchanges are this client's."""
        return Wire(self.endpoint, timeout_s=self.timeout_s, exchanges=self.exchanges)

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        key, raw = options.get("key", ""), options.get("content")
        sent = {"sent_key": "right" if key == "" else "wrong" if key else "none"}
        if raw is not None:
            sent["request"] = raw.decode(errors="replace")
        try:
            answer = super().request(method, path, body, **options)
        except ToolingError as error:
            self._keep({"method": method, "path": path, "request": body, "error": error.evidence} | sent)
            raise
        self._keep(answer.evidence | sent)
        return answer

    def stream(self, messages: list[dict[str, Any]] | str, **params: Any) -> Stream:
        """As Client.stream. Raises Unmet when an event is not JSON."""
        exchange = self._keep({"method": "POST", "path": "/v1/chat/completions", "request": [messages, params]})
        try:
            stream = super().stream(messages, **params)
        except ToolingError as error:
            exchange["error"] = error.evidence
            raise
        except ValueError as error:
            raise Unmet(f"an event of the stream is not JSON: {error}") from error
        exchange |= {
            "status": stream.status,
            "events": stream.events[:2] + stream.events[-2:],
            "event_count": len(stream.events),
            "text": stream.text,
            "done": stream.done,
            "seconds": [round(s, 4) for s in stream.arrived_s[:1] + stream.arrived_s[-1:]],
        }
        return stream

    @contextmanager
    def open_stream(self, messages: list[dict[str, Any]] | str, **params: Any) -> Iterator[Iterator[str]]:
        """The lines of a streamed chat as they come; the connection is closed on exit, whatever is left of it."""
        body = chat_body(messages, stream=True, **params)
        exchange = self._keep({"method": "POST", "path": "/v1/chat/completions", "request": body, "closed": False})
        headers = dict([self.bearer])
        with self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            exchange["status"] = response.status_code
            yield response.iter_lines()
        exchange["closed"] = True


@dataclass(frozen=True)
class Context:
    """What a promise is checked with: a client of the server, and the release that the server runs."""

    client: Recorder
    release: Release
    notes: dict[str, Any] = field(default_factory=dict)
    """Evidence beyond the exchanges; a promise may add to it."""

    def option(self, *names: str) -> str | None:
        """The value of a server argv option under any of its names; None when it is not given."""
        argv = self.release.argv
        for n, word in enumerate(argv[:-1]):
            if word in names:
                return argv[n + 1]
        return None


_PARALLEL = ("--parallel", "-np")
_CTX = ("--ctx-size", "-c")


def slots_asked(ctx: Context) -> int | None:
    """The number of slots that argv asks for; None when the server may choose."""
    asked = int(ctx.option(*_PARALLEL) or -1)
    return asked if asked > 0 else None


def ctx_asked(ctx: Context) -> int | None:
    """Tokens of context for each slot that argv asks for; None when the server may choose."""
    total, slots = int(ctx.option(*_CTX) or 0), slots_asked(ctx)
    if not total or slots is None:
        return None
    shared = any(flag in ctx.release.argv for flag in ("--kv-unified", "-kvu"))
    return total if shared else total // slots


@dataclass(frozen=True)
class Contract:
    """One promise: what is promised, who says so, and the function that checks it."""

    name: str
    text: str
    source: str
    server: Server
    check: Callable[[Context], str]
    must: bool = False
    """Whether it must be kept whatever production does. Else it must be kept if production keeps it."""
    known: str = ""
    """What is known of upstream not keeping it: the upstream issue, or a description where there is none."""
    anywhere: bool = False
    """Whether it may be asked of anybody's server: it holds whatever the model says, and changes nothing there."""
    room: int = 0
    """Tokens of context that a slot must have for it: in a smaller one a right server could not keep it."""

    def ask(self, ctx: Context) -> str:
        """As `check` where a slot has room for what it asks; in a smaller slot a summary that says so."""
        fits = ctx_asked(ctx)
        if fits is not None and fits < self.room:
            return f"a slot of {fits} tokens is too small to tell"
        return self.check(ctx)


CONTRACTS: dict[str, Contract] = {}


def promise(
    name: str,
    text: str,
    source: str,
    *,
    server: Server = "model",
    must: bool = False,
    known: str = "",
    anywhere: bool = False,
    room: int = 0,
) -> Callable[[Callable[[Context], str]], Callable[[Context], str]]:
    """Register a function as the contract `contracts.<name>`.

    It returns a one-line summary when the promise is kept, and raises Unmet (see `expect`) when it is not. For `must`,
    `known`, `anywhere` and `room` see Contract.
    """

    def register(check: Callable[[Context], str]) -> Callable[[Context], str]:
        full = f"contracts.{name}"
        if full in CONTRACTS:
            raise ValueError(f"two promises are called {full}")
        needs = room or _ROOM.get(server, 0)
        CONTRACTS[full] = Contract(full, text, source, server, check, must, known, anywhere, needs)
        return check

    return register


def verify(contract: Contract, client: Recorder, release: Release, *, subject: Release, basis: str) -> Verification:
    """Check one promise on one running server; the client's exchanges are then those of this promise.

    `release` is what the server runs (perhaps with the scripted model), `subject` is the release that the
    verification is of. An exception of our own, or no HTTP answer two times over, is `errored` while the server lives
    and `failed` when it does no more; the evidence has DIED then. That there was no answer at first is told. A 5xx that
    our own code fails on is `failed` when it comes again.
    """
    start = time.monotonic()
    client.begin()
    context = Context(client, release)
    try:
        try:
            verdict, summary = Verdict.PASSED, contract.ask(context)
        except ToolingError as error:
            if not _alive(client):
                raise
            context.notes["first_try"] = str(error)
            verdict, summary = Verdict.PASSED, f"{contract.ask(context)}; only when asked again: {error.what}"
    except Unmet as unmet:
        verdict, summary = Verdict.FAILED, _with_its_words(str(unmet), client)
        context.notes.update({UNMET: summary, "ask_it": curl_of(_meant(unmet.shown, client))})
    except Exception as error:  # whatever broke, it is the verdict of this promise alone
        alive = _alive(client)
        if alive and (said := _repeated_error(contract, context)):
            verdict, summary = Verdict.FAILED, said
            context.notes.update({UNMET: said, "ask_it": curl_of(_meant(LAST, client))})
            return _verified(contract, context, subject, verdict, summary, basis=basis, start=start)
        verdict = Verdict.ERRORED if alive else Verdict.FAILED
        summary = f"{type(error).__name__}: {error}".splitlines()[0] if alive else "the server died"
        if not alive:
            context.notes[DIED] = REFUSED if _never_reached(client) else summary
        context.notes["exception"] = f"{type(error).__name__}: {error}"
    return _verified(contract, context, subject, verdict, summary, basis=basis, start=start)


def _verified(
    contract: Contract, context: Context, subject: Release, verdict: Verdict, summary: str, *, basis: str, start: float
) -> Verification:
    key = context.client.endpoint.api_key
    return verification(
        contract,
        subject,
        verdict,
        clipped(summary, key),
        evidence=clipped({**context.notes, "exchanges": context.client.exchanges}, key),
        basis=basis,
        seconds=time.monotonic() - start,
    )


def _server_error(client: Recorder) -> str:
    """What the server said with a 5xx to what it was asked last; '' when it said something else."""
    last = client.exchanges[-1] if client.exchanges else {}
    if (last.get("status") or 0) < 500:
        return ""
    body = last.get("response")
    said = body.get("error") if isinstance(body, dict) else body
    words = said.get("message") if isinstance(said, dict) else said
    return f"{last['path']} answered {last['status']}" + (f": {str(words)[:_WORDS]}" if words else "")


def _with_its_words(unmet: str, client: Recorder) -> str:
    said = _server_error(client)
    return f"{unmet} ({said})" if said and said not in unmet else unmet


def _repeated_error(contract: Contract, context: Context) -> str:
    """What the server says with a 5xx each time that it is asked, where our own code fails on it; '' when it does not.

    A server that lives and answers so is wrong; it is nothing that another try of ours would mend.
    """
    first = _server_error(context.client)
    if not first:
        return ""
    try:
        contract.ask(context)
    except Exception:
        return _server_error(context.client) and first
    return ""


def _meant(shown: Exchange | None, client: Recorder) -> Exchange | None:
    """The exchange that shows what is not kept; None for one of several at once, which alone shows nothing."""
    if shown is not LAST:
        return shown
    last = client.exchanges[-1] if client.exchanges else None
    return None if last is None or last.get("at_once") else last


# as a header it would be redacted: whatever stands behind `Authorization:` is
_KEY_SENT = {"right": ' --oauth2-bearer "$KEY"', "wrong": " --oauth2-bearer not-the-key", "none": ""}


def curl_of(exchange: Exchange | None) -> str:
    """An exchange as a command that anybody can give; '' where none can be given.

    None can send what is all of a key but a character, or a fragment, and one that is cut is none.
    """
    if exchange is None or "#" in exchange["path"] or exchange.get("sent_key", "right") not in _KEY_SENT:
        return ""
    body, path = exchange.get("request"), exchange["path"]
    if isinstance(body, list) and len(body) == 2 and isinstance(body[1], dict):  # a stream's messages and parameters
        body = chat_body(body[0], stream=True, **body[1])
    sent = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    data = [] if body is None else ["-H", "Content-Type: application/json", "-d", sent]
    how = ["-I"] if exchange["method"] == "HEAD" else ["-X", exchange["method"]]
    as_is = ["--path-as-is"] if "/." in path else []
    words = shlex.join(["curl", "-sS", *how, *as_is, *data])
    command = f'{words}{_KEY_SENT[exchange.get("sent_key", "right")]} "$URL{path}"'
    return command if len(command) <= _CLIP else ""


def ended_by(
    contract: Contract, died: Verification | None, error: Problem, *, runs: Release, subject: Release, basis: str
) -> Verification:
    """The verification of a promise whose server is not there any more, or never was, as `error` tells.

    `died`: what was seen of the promise that was being asked just then; None for one that was not asked.
    """
    # a trial with a scripted model is another release, and the cause is the same
    what = error.what.replace(runs.label, subject.label).splitlines()[0]
    # a model or setting that is blamed is of the release, too: whether production's build takes it is asked elsewhere
    verdict = Verdict.ERRORED if isinstance(error, ToolingError) else Verdict.FAILED
    evidence = {SERVER_SAID: clipped(error.evidence, None), "at_fault": verdict}
    if died is None:
        return verification(contract, subject, verdict, what, evidence=evidence | {NOT_ASKED: what}, basis=basis)
    kept = {name: value for name, value in died.evidence.items() if name != UNMET}
    return died.model_copy(update={"verdict": verdict, "summary": what, "evidence": kept | evidence | {DIED: what}})


def verification(
    contract: Contract,
    subject: Release,
    verdict: Verdict,
    summary: str,
    *,
    evidence: dict[str, Any],
    basis: str,
    seconds: float = 0.0,
) -> Verification:
    """The verification of one contract, with its promise and source as text."""
    return Verification(
        name=contract.name,
        release=subject.id,
        verdict=verdict,
        summary=summary,
        promise=f"{contract.text} (source: {contract.source})",
        evidence={"server": contract.server, **evidence},
        basis=basis,
        seconds=round(seconds, 3),
    )


def clipped(value: Any, key: str | None) -> Any:
    """The value as JSON, without the key or another secret, and with long strings cut."""
    return _clipped(redact(json.loads(json.dumps(value, default=str)), key))


def _clipped(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _CLIP else f"{value[:_CLIP]}... ({len(value)} characters)"
    if isinstance(value, dict):
        return {_clipped(k): _clipped(v) for k, v in value.items()}
    return [_clipped(each) for each in value] if isinstance(value, list) else value


def _alive(client: Client) -> bool:
    deadline = time.monotonic() + _REVIVE_S
    while client.health() is None:
        if time.monotonic() > deadline or nobody_listens(client.endpoint):
            return False
        time.sleep(0.2)
    return True


def _never_reached(client: Recorder) -> bool:
    """Whether the server was gone before this promise was asked: it did not so much as take a connection."""
    return bool(client.exchanges) and all("ConnectError" in str(each.get("error")) for each in client.exchanges)
