"""Servers with one thing wrong, by kind of fault: what two ways of asking must agree on, and don't.

Written before the promises that catch them. Each names the subjects one of whose promises has to say so.
"""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from tasks.contracts.promises import Server
from tests.contracts.breakages import CHAT, edited, resent
from tests.contracts.breaking_proxy import ANY, Ask, Breakage, Reply

NATIVE, COMPLETIONS, RESPONSES, MESSAGES = "/completion", "/v1/completions", "/v1/responses", "/v1/messages"
APIS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
Edit = Callable[[Any], object]
"""Changes a JSON body or an event in place. An event for which it says False is not sent."""


class Asks(Breakage):
    """Hears something else than what was asked, on these routes."""

    def __init__(self, edit: Edit, *routes: str) -> None:
        self.edit, self.routes = edit, routes or (*APIS, NATIVE)

    def ask(self, ask: Ask) -> Ask:
        return resent(ask, self.edit) if ask.path in self.routes else ask


class Says(Breakage):
    """Answers something else than the server did, on these routes, where no stream was asked for."""

    def __init__(self, edit: Edit, *routes: str, among: str = "") -> None:
        self.edit, self.routes, self.among = edit, routes, among.encode()

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        hit = ask.path in self.routes and reply.status == 200 and self.among in ask.body
        return edited(reply, self.edit) if hit else reply


class Streams(Breakage):
    """Sends other events than the server did, on these routes."""

    def __init__(self, edit: Edit, *routes: str) -> None:
        self.edit, self.routes = edit, routes

    def line(self, ask: Ask, line: bytes) -> bytes:
        if ask.path not in self.routes or not line.startswith(b"data: {"):
            return line
        event = json.loads(line[6:])
        if self.edit(event) is False:
            return b""
        return b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class Bytes(Breakage):
    """Says one text for another, in streams or in whole answers."""

    def __init__(self, old: str, new: str, *routes: str, streams: bool, pattern: bool = False) -> None:
        self.old, self.new, self.routes, self.streams = old if pattern else re.escape(old), new, routes, streams

    def _said(self, text: bytes) -> bytes:
        return re.sub(self.old, self.new, text.decode(), flags=re.DOTALL).encode()

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        hit = not self.streams and ask.path in self.routes and reply.status == 200
        return replace(reply, body=self._said(reply.body)) if hit else reply

    def line(self, ask: Ask, line: bytes) -> bytes:
        return self._said(line) if self.streams and ask.path in self.routes else line


class Lets(Breakage):
    """Takes what `knows` takes for the key. It is given the key that came (None for none), the right one, the ask."""

    def __init__(self, knows: Callable[[str | None, str, Ask], bool]) -> None:
        self.knows = knows

    def ask(self, ask: Ask) -> Ask:
        if not self.knows(ask.key, self.right_key, ask):
            return ask
        others = tuple(each for each in ask.headers if each[0].lower() != "authorization")
        return replace(ask, key=self.right_key, headers=others)


class Changes(Breakage):
    """Does what one function makes of an ask, or of a reply; each is given the right key too."""

    def __init__(
        self,
        *,
        ask: Callable[[Ask, str], Ask] = lambda ask, _: ask,
        reply: Callable[[Ask, Reply, str], Reply] = lambda _, reply, __: reply,
    ) -> None:
        self.of_ask, self.of_reply = ask, reply

    def ask(self, ask: Ask) -> Ask:
        return self.of_ask(ask, self.right_key)

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return self.of_reply(ask, reply, self.right_key)


class ForgetsHeader(Breakage):
    """Does not hear one header."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ask(self, ask: Ask) -> Ask:
        return replace(ask, headers=tuple(each for each in ask.headers if each[0].lower() != self.name))


class Forgets(Breakage):
    """Loses one keyword of every JSON schema that it is given."""

    def __init__(self, *keywords: str) -> None:
        self.keywords = keywords

    def ask(self, ask: Ask) -> Ask:
        return resent(ask, self._forget)

    def _forget(self, value: Any) -> None:
        if isinstance(value, list):
            for each in value:
                self._forget(each)
        elif isinstance(value, dict):
            schema = value.keys() & {"type", "anyOf", "oneOf", "allOf", "$ref", "enum", "const"}
            for word in self.keywords if schema else ():
                value.pop(word, None)
            for each in value.values():
                self._forget(each)


class Remembers(Breakage):
    """Something of one request is heard in the next one of the same route that does not say it itself."""

    def __init__(self, *fields: str) -> None:
        self.fields, self.last = fields, {}  # type: tuple[str, ...], dict[str, Any]

    def ask(self, ask: Ask) -> Ask:
        return resent(ask, self._mix) if ask.path in (*APIS, NATIVE) else ask

    def _mix(self, body: Any) -> None:
        mine = {name: body[name] for name in self.fields if name in body}
        for name, value in self.last.items():
            body.setdefault(name, value)
        self.last = mine


class Leaks(Breakage):
    """A prompt is read behind what was asked before it, while the prompt cache is on."""

    before: Any = None

    def ask(self, ask: Ask) -> Ask:
        return resent(ask, self._leak) if ask.path == CHAT else ask

    def _leak(self, body: Any) -> None:
        mine = body.get("messages")
        if not isinstance(mine, list) or body.get("cache_prompt") is False or not mine:
            return
        if self.before and self.before != mine[0]["content"] and isinstance(mine[0]["content"], str):
            mine[0] = {**mine[0], "content": f"{str(self.before)[:8]}{mine[0]['content']}"}
        self.before = body["messages"][0]["content"] if self.before is None else self.before


class Answers1(Breakage):
    """Gives the answer to an earlier request again, where `alike` says that they are the same."""

    def __init__(self, alike: Callable[[Any], Any], *routes: str) -> None:
        self.alike, self.routes, self.known = alike, routes, {}  # type: Any, tuple[str, ...], dict[str, Reply]

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path not in self.routes or reply.status != 200:
            return reply
        return self.known.setdefault(json.dumps(self.alike(json.loads(ask.body)), sort_keys=True), reply)


class MixesUp(Breakage):
    """Of requests at the same time one may get another's answer."""

    def __init__(self) -> None:
        self.lock, self.under_way, self.spare = Lock(), 0, []  # type: Lock, int, list[Reply]

    def ask(self, ask: Ask) -> Ask:
        with self.lock:
            self.under_way += ask.path == CHAT
        return ask

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path != CHAT:
            return reply
        with self.lock:
            together, self.under_way = self.under_way > 1, self.under_way - 1
            if not together:
                self.spare = []
                return reply
            self.spare.append(reply)
            return self.spare[0]

    def ended(self, ask: Ask) -> None:
        with self.lock:
            self.under_way -= ask.path == CHAT


class AfterCancel(Breakage):
    """What is left of a stream whose client has gone stands before the next answer."""

    drains = ANY
    left = False

    def ended(self, _ask: Ask) -> None:
        self.left = True

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if not self.left or ask.path != CHAT or reply.status != 200:
            return reply
        self.left = False
        return edited(reply, self._put)

    def _put(self, body: Any) -> None:
        body["choices"][0]["message"]["content"] = "w39 " + (body["choices"][0]["message"].get("content") or "")


class EverySeventh(Breakage):
    """Each seventh chat is answered short of its last word."""

    count = 0

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path != CHAT or reply.status != 200:
            return reply
        self.count += 1
        return edited(reply, self._cut) if self.count % 7 == 0 else reply

    def _cut(self, body: Any) -> None:
        message = body["choices"][0]["message"]
        message["content"] = (message.get("content") or "").rstrip().rpartition(" ")[0]


class Drains(Breakage):
    """Works on for nobody, on this route."""

    def __init__(self, route: str) -> None:
        self.drains = route


class Slow(Breakage):
    """A slot is told to be busy for some seconds after it is free."""

    def __init__(self) -> None:
        self.until = 0.0

    def ended(self, _ask: Ask) -> None:
        self.until = time.monotonic() + 3.0

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path != "/slots" or reply.status != 200 or time.monotonic() > self.until:
            return reply
        return edited(reply, lambda slots: slots[0].update(is_processing=True))


class Stateful(Breakage):
    """A stream of which one event is changed by what came before it: `make` gives a fresh edit for each stream."""

    def __init__(self, make: Callable[[], Edit], *routes: str) -> None:
        self.make, self.routes, self.edits = make, routes, {}  # type: Any, tuple[str, ...], dict[int, Edit]

    def line(self, ask: Ask, line: bytes) -> bytes:
        if ask.path not in self.routes or not line.startswith(b"data: {"):
            return line
        event = json.loads(line[6:])
        if self.edits.setdefault(id(ask), self.make())(event) is False:
            return b""
        return b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"

    def ended(self, ask: Ask) -> None:
        self.edits.pop(id(ask), None)


def choices(event: Any) -> Iterator[Any]:
    yield from event.get("choices") or []


def each_choice(edit: Edit) -> Edit:
    return lambda body: [edit(choice) for choice in choices(body)]


def each_call(edit: Edit) -> Edit:
    def on(choice: Any) -> None:
        for call in (choice.get("delta") or choice.get("message") or {}).get("tool_calls") or []:
            edit(call)

    return each_choice(on)


def drop(*names: str) -> Edit:
    return lambda value: [value.pop(name, None) for name in names]


def put(**values: Any) -> Edit:
    return lambda value: value.update(values)


def inside(name: str, edit: Edit) -> Edit:
    """The edit, of the value of this name where there is one."""
    return lambda value: edit(value[name]) if isinstance(value.get(name), dict) else None


def when(name: str, kind: object, edit: Edit) -> Edit:
    return lambda value: edit(value) if value.get(name) == kind else None


def add(name: str, by: int) -> Edit:
    def on(value: Any) -> None:
        if isinstance(value.get(name), int):
            value[name] += by

    return on


def scale(name: str, by: float) -> Edit:
    def on(value: Any) -> None:
        if isinstance(value.get(name), int | float):
            value[name] = value[name] * by

    return on


def texts(change: Callable[[str], str]) -> Edit:
    """Changes every text that a client sends: contents, prompts."""

    def on(value: Any) -> None:
        if isinstance(value, list):
            for n, each in enumerate(value):
                if isinstance(each, str):
                    value[n] = change(each)
                else:
                    on(each)
        elif isinstance(value, dict):
            for name in ("content", "prompt", "input", "text", "system", "instructions", "messages"):
                if isinstance(value.get(name), str):
                    value[name] = change(value[name])
                elif isinstance(value.get(name), list | dict):
                    on(value[name])

    return on


def messages(edit: Callable[[list[Any]], list[Any]]) -> Edit:
    def on(body: Any) -> None:
        if isinstance(body.get("messages"), list):
            body["messages"] = edit(body["messages"])

    return on


def stops(edit: Callable[[list[str]], list[str]]) -> Edit:
    def on(body: Any) -> None:
        for name in ("stop", "stop_sequences"):
            if name in body:
                given = body[name] if isinstance(body[name], list) else [body[name]]
                body[name] = edit(given)

    return on


def once_more(kind: str) -> Callable[[], Edit]:
    """Lets the first event of this delta through, and each later one twice as long."""

    def make() -> Edit:
        seen: list[int] = []

        def on(event: Any) -> None:
            for choice in choices(event):
                if choice.get("delta", {}).get(kind):
                    seen.append(1)
                    if len(seen) == 2:
                        choice["delta"][kind] *= 2

        return on

    return make


def loses(number: int, kind: str) -> Callable[[], Edit]:
    """The delta of this number does not arrive."""

    def make() -> Edit:
        seen: list[int] = []

        def on(event: Any) -> bool:
            found = any(choice.get("delta", {}).get(kind) for choice in choices(event))
            seen.extend([1] * found)
            return not (found and len(seen) == number)

        return on

    return make


def loses_first_of(kind: str) -> Callable[[], Edit]:
    def make() -> Edit:
        seen: list[int] = []

        def on(event: Any) -> bool:
            hit = event.get("type") == kind and not seen
            seen.extend([1] * hit)
            return not hit

        return on

    return make


def new_ids() -> Edit:
    count: list[int] = []

    def on(event: Any) -> None:
        count.append(1)
        if "id" in event:
            event["id"] = f"chatcmpl-{len(count)}"

    return on


def cut_choices(body: Any) -> None:
    body["choices"] = body["choices"][:1]


def same_choices(body: Any) -> None:
    for choice in body["choices"][1:]:
        choice["message"] = body["choices"][0]["message"]


def all_but_one_cached(body: Any) -> None:
    usage = body["usage"]
    usage["prompt_tokens_details"]["cached_tokens"] = usage["prompt_tokens"] - 1


def caches_all(ask: Ask, reply: Reply, _key: str) -> Reply:
    hit = ask.path == CHAT and reply.status == 200 and b'"cache_prompt":true' in ask.body.replace(b" ", b"")
    return edited(reply, all_but_one_cached) if hit else reply


def tells_the_key(ask: Ask, reply: Reply, key: str) -> Reply:
    return edited(reply, put(api_key=key)) if ask.path == "/props" and reply.status == 200 else reply


def fails_on(words: bytes) -> Callable[[Ask, Reply, str], Reply]:
    """A 500 to what has these words, written without spaces."""
    return lambda ask, reply, _: replace(reply, status=500) if words in ask.body.replace(b" ", b"") else reply


@dataclass(frozen=True)
class Broken:
    """A server with one thing wrong: its kind, what it is, which server it is in front of, who has to say so."""

    kind: str
    what: str
    server: Server
    breakage: Breakage = field(repr=False)
    caught_by: tuple[str, ...]
    """Subjects of promises: at least one promise of one of them is not kept."""


def _kind(kind: str, *rows: tuple[str, Server, Breakage, str]) -> list[Broken]:
    return [Broken(kind, what, server, breakage, tuple(by.split())) for what, server, breakage, by in rows]


def _starts(came: str | None, right: str, _ask: Ask) -> bool:
    return bool(came) and right.startswith(came or "")


TWINS = _kind(
    "A twins",
    ("a stream loses its second piece of content", "scripted", Stateful(loses(2, "content"), CHAT), "twins"),
    ("a stream loses its last thought", "scripted", Stateful(loses(60, "reasoning_content"), CHAT), "twins"),
    ("a stream says a piece twice", "scripted", Stateful(once_more("content"), CHAT), "twins"),
    (
        "every stream ends for `stop`",
        "scripted",
        Streams(each_choice(lambda c: c.update(finish_reason="stop") if c["finish_reason"] else None), CHAT),
        "twins",
    ),
    ("a streamed call has no index (llama.cpp#18591)", "calling", Streams(each_call(drop("index")), CHAT), "twins"),
    ("a streamed call has no id", "calling", Streams(each_call(drop("id")), CHAT), "twins"),
    ("a streamed call has no type", "calling", Streams(each_call(drop("type")), CHAT), "twins"),
    ("all streamed calls have index 0", "calling", Streams(each_call(put(index=0)), CHAT), "twins"),
    ("streamed calls share an id", "calling", Streams(each_call(put(id="call_0")), CHAT), "twins"),
    ("an unstreamed call has no id", "calling", Says(each_call(drop("id")), CHAT), "twins"),
    (
        "a stream counts a token too many",
        "scripted",
        Streams(inside("usage", add("completion_tokens", 1)), CHAT),
        "twins",
    ),
    (
        "a stream says its role twice",
        "scripted",
        Streams(each_choice(inside("delta", lambda d: d.setdefault("role", "assistant"))), CHAT),
        "twins",
    ),
    ("a stream never says its role", "scripted", Streams(each_choice(inside("delta", drop("role"))), CHAT), "twins"),
    (
        "a stream says [DONE] twice",
        "scripted",
        Bytes("data: [DONE]\n", "data: [DONE]\n\ndata: [DONE]\n", *APIS, streams=True),
        "twins",
    ),
    (
        "a completion's stream never says [DONE]",
        "scripted",
        Bytes("data: [DONE]\n", "", COMPLETIONS, streams=True),
        "twins",
    ),
    ("a stream names another model", "scripted", Streams(put(model="gpt-3.5-turbo"), CHAT, COMPLETIONS), "twins"),
    ("each chunk has an id of its own", "scripted", Stateful(new_ids, CHAT), "twins"),
    ("a chunk has no creation time", "scripted", Streams(drop("created"), CHAT), "twins"),
    ("a stream has no log-probabilities", "counting", Streams(each_choice(drop("logprobs")), CHAT), "twins"),
    (
        "a stream's log-probabilities are of another token",
        "counting",
        Bytes('"logprob":-0.5', '"logprob":-1.5', CHAT, streams=True),
        "twins",
    ),
    ("a stream of choices gives all the index 0", "counting", Streams(each_choice(put(index=0)), CHAT), "twins"),
    ("n is not heard", "counting", Asks(drop("n", "n_cmpl"), CHAT), "twins"),
    ("n choices are one choice n times", "counting", Says(same_choices, CHAT, among='"n":'), "twins"),
    ("n choices are cut to one", "counting", Says(cut_choices, CHAT, among='"n":'), "twins"),
    (
        "a response's stream completes with another text",
        "scripted",
        Bytes("(response.completed.*)forty-two", r"\1twelve", RESPONSES, streams=True, pattern=True),
        "twins",
    ),
    (
        "a response's stream completes without usage",
        "scripted",
        Streams(inside("response", drop("usage")), RESPONSES),
        "twins",
    ),
    (
        "a response's stream loses a delta",
        "scripted",
        Stateful(loses_first_of("response.output_text.delta"), RESPONSES),
        "twins",
    ),
    (
        "a response's stream loses its thought",
        "scripted",
        Streams(lambda e: "reasoning_text.delta" not in e["type"], RESPONSES),
        "twins",
    ),
    (
        "a response's call is streamed without its arguments",
        "calling",
        Streams(lambda e: "function_call_arguments" not in e["type"], RESPONSES),
        "twins",
    ),
    (
        "a message's stream stops for another reason",
        "scripted",
        Bytes('"stop_reason":"max_tokens"', '"stop_reason":"end_turn"', MESSAGES, streams=True),
        "twins",
    ),
    (
        "a message's stream counts no tokens",
        "scripted",
        Streams(inside("usage", put(output_tokens=0)), MESSAGES),
        "twins",
    ),
    (
        "a message's stream never closes a block",
        "scripted",
        Streams(lambda e: e["type"] != "content_block_stop", MESSAGES),
        "twins",
    ),
    (
        "a message's stream puts all blocks at index 0",
        "scripted",
        Streams(lambda e: e.update(index=0) if "index" in e else None, MESSAGES),
        "twins",
    ),
    (
        "a message's stream thinks aloud",
        "scripted",
        Bytes('"thinking_delta","thinking"', '"text_delta","text"', MESSAGES, streams=True),
        "twins",
    ),
    ("a message's streamed call has no id", "calling", Streams(inside("content_block", drop("id")), MESSAGES), "twins"),
    (
        "a completion's stream never says why it ended",
        "scripted",
        Streams(each_choice(put(finish_reason=None)), COMPLETIONS),
        "twins",
    ),
    ("a completion's stream has another object", "scripted", Streams(put(object="completion"), COMPLETIONS), "twins"),
    (
        "a stream's timings count otherwise",
        "scripted",
        Streams(inside("timings", add("predicted_n", 3)), CHAT),
        "twins",
    ),
    (
        "a response says less than a chat",
        "scripted",
        Says(
            lambda b: b["output"][-1].update(content=b["output"][-1]["content"] * 2) if b["output"] else None, RESPONSES
        ),
        "twins",
    ),
    ("a message is of an empty conversation", "scripted", Asks(messages(lambda m: m[-1:]), MESSAGES), "twins reading"),
    (
        "the route without /v1 does not hear max_tokens",
        "scripted",
        Asks(drop("max_tokens"), "/chat/completions"),
        "twins",
    ),
    ("max_completion_tokens is not heard", "scripted", Asks(drop("max_completion_tokens"), CHAT), "twins"),
    (
        "of a content's parts the first alone is read",
        "seeing",
        Asks(
            messages(
                lambda m: [{**x, "content": x["content"][:1]} if isinstance(x["content"], list) else x for x in m]
            ),
            CHAT,
        ),
        "twins reading",
    ),
)

KEYS = _kind(
    "D keys",
    ("takes a prefix of the key", "scripted", Lets(_starts), "auth"),
    ("takes the key and more", "scripted", Lets(lambda came, key, _: (came or "").startswith(key)), "auth"),
    ("takes the key in other case", "scripted", Lets(lambda came, key, _: (came or "").lower() == key.lower()), "auth"),
    ("takes the key with spaces around it", "scripted", Lets(lambda came, key, _: (came or "").strip() == key), "auth"),
    (
        "takes an empty key",
        "scripted",
        Lets(lambda came, _, ask: came == "" or ("Authorization", "Bearer") in ask.headers),
        "auth",
    ),
    (
        "takes any X-Api-Key",
        "scripted",
        Lets(lambda came, _, ask: came is None and any(n.lower() == "x-api-key" for n, _ in ask.headers)),
        "auth",
    ),
    ("does not take the key as X-Api-Key", "scripted", ForgetsHeader("x-api-key"), "auth"),
    (
        "takes any Basic credentials",
        "scripted",
        Lets(lambda _c, _k, ask: any(v.startswith("Basic ") for n, v in ask.headers if n.lower() == "authorization")),
        "auth",
    ),
    ("takes the key in the query", "scripted", Lets(lambda _c, key, ask: key in ask.path), "auth"),
    ("takes any key of the right length", "scripted", Lets(lambda came, key, _: len(came or "") == len(key)), "auth"),
    (
        "compares all but the last character",
        "scripted",
        Lets(lambda came, key, _: (came or "")[:-1] == key[:-1]),
        "auth",
    ),
    ("compares the first character", "scripted", Lets(lambda came, key, _: (came or "")[:1] == key[:1]), "auth"),
    ("finds the key anywhere in what came", "scripted", Lets(lambda came, key, _: key in (came or "")), "auth"),
    (
        "takes any scheme but Bearer",
        "scripted",
        Lets(lambda came, _, ask: came is None and any(n.lower() == "authorization" for n, _ in ask.headers)),
        "auth",
    ),
    ("/slots is open", "scripted", Lets(lambda _c, _k, ask: ask.path == "/slots"), "auth"),
    ("/metrics is open", "scripted", Lets(lambda _c, _k, ask: ask.path.startswith("/metrics")), "auth"),
    ("HEAD is open", "scripted", Lets(lambda _c, _k, ask: ask.method == "HEAD"), "auth"),
    ("a route with a query is open", "scripted", Lets(lambda _c, _k, ask: "?" in ask.path), "auth"),
    (
        "a doubled slash is open",
        "scripted",
        Changes(ask=lambda ask, key: replace(ask, path=ask.path[1:], key=key) if ask.path.startswith("//") else ask),
        "auth",
    ),
    (
        "a trailing slash is open",
        "scripted",
        Changes(ask=lambda ask, key: replace(ask, path=ask.path[:-1], key=key) if ask.path[1:].endswith("/") else ask),
        "auth",
    ),
    (
        "what begins with /health is open",
        "scripted",
        Changes(ask=lambda ask, key: replace(ask, path="/props", key=key) if ask.path.startswith("/health/") else ask),
        "auth",
    ),
    (
        "the browser's own requests need no key",
        "scripted",
        Lets(lambda _c, _k, ask: any(n.lower() == "origin" for n, _ in ask.headers)),
        "auth",
    ),
    (
        "its own machine needs no key",
        "scripted",
        Lets(lambda _c, _k, ask: any(n.lower() == "x-forwarded-for" for n, _ in ask.headers)),
        "auth",
    ),
    ("/props tells the key", "scripted", Changes(reply=tells_the_key), "auth"),
    (
        "a refused request is told the key",
        "scripted",
        Changes(reply=lambda _, reply, key: replace(reply, body=reply.body.replace(b"Invalid API Key", key.encode()))),
        "auth",
    ),
    ("one API of four is open", "scripted", Lets(lambda _c, _k, ask: ask.path == RESPONSES), "auth"),
)

STOPS = _kind(
    "G stops",
    (
        "a stop of several tokens is not found",
        "counting",
        Asks(stops(lambda s: [x for x in s if " " not in x.strip()])),
        "stops",
    ),
    (
        "the stop is in the text",
        "counting",
        Says(lambda b: b.update(content=b["content"] + b["stopping_word"]), NATIVE),
        "stops",
    ),
    (
        "the text goes on after the stop",
        "counting",
        Says(lambda b: b.update(content=b["content"] + "w9 ") if b["stopping_word"] else None, NATIVE),
        "stops",
    ),
    ("the stop word is not told", "counting", Says(put(stopping_word=""), NATIVE), "stops"),
    ("a stop word ends for `eos`", "counting", Says(when("stop_type", "word", put(stop_type="eos")), NATIVE), "stops"),
    (
        "a stop word ends for `length`",
        "counting",
        Says(each_choice(put(finish_reason="length")), CHAT, COMPLETIONS, among='"stop"'),
        "stops",
    ),
    ("of several stops the first alone is heard", "counting", Asks(stops(lambda s: s[:1])), "stops"),
    ("of several stops the last alone is heard", "counting", Asks(stops(lambda s: s[-1:])), "stops"),
    ("a long stop is not heard", "counting", Asks(stops(lambda s: [x for x in s if len(x) < 30])), "stops"),
    ("the limit is one off", "counting", Asks(add("n_predict", 1), NATIVE), "stops"),
    ("a chat's limit is one off", "counting", Asks(add("max_tokens", -1), CHAT), "stops chat twins"),
    ("a stop is found in any case", "counting", Asks(stops(lambda s: [*s, *(x.swapcase() for x in s)])), "stops"),
    ("a stop is trimmed", "counting", Asks(stops(lambda s: [x.strip() or x for x in s])), "stops"),
    (
        "a stop in thought is not heard",
        "scripted",
        Asks(lambda b: b.pop("stop", None) if "enable_thinking" not in str(b) else None, CHAT),
        "stops twins",
    ),
    ("a stop at the first token is not heard", "counting", Asks(stops(lambda s: [x for x in s if x != "w1"])), "stops"),
    ("a stop of one character is not heard", "counting", Asks(stops(lambda s: [x for x in s if len(x) > 1])), "stops"),
    ("ignore_eos is not heard", "counting", Asks(drop("ignore_eos")), "stops"),
    (
        "an answer that ends itself ends for `limit`",
        "counting",
        Says(when("stop_type", "eos", put(stop_type="limit")), NATIVE),
        "stops",
    ),
    ("a limit ends for `eos`", "counting", Says(when("stop_type", "limit", put(stop_type="eos")), NATIVE), "stops"),
    ("a message does not name its stop sequence", "counting", Says(put(stop_sequence=None), MESSAGES), "stops twins"),
    (
        "a filter is said to have stopped it",
        "counting",
        Says(each_choice(when("finish_reason", "length", put(finish_reason="content_filter"))), CHAT),
        "stops chat",
    ),
    ("stops are not heard by completions", "counting", Asks(drop("stop"), COMPLETIONS), "stops"),
    ("stops are not heard by responses", "counting", Asks(drop("stop"), RESPONSES), "stops"),
)

READ = _kind(
    "B reading",
    (
        "the system message is not read",
        "seeing",
        Asks(messages(lambda m: [x for x in m if x["role"] != "system"]), CHAT),
        "reading",
    ),
    ("earlier turns are not read", "seeing", Asks(messages(lambda m: m[-2:]), CHAT), "reading"),
    (
        "an earlier answer is not read",
        "seeing",
        Asks(
            messages(
                lambda m: [{**x, "content": "ok"} if x["role"] == "assistant" and x.get("content") else x for x in m]
            ),
            CHAT,
        ),
        "reading",
    ),
    (
        "a tool's result is not read",
        "seeing",
        Asks(messages(lambda m: [{**x, "content": "done"} if x["role"] == "tool" else x for x in m]), CHAT),
        "reading",
    ),
    (
        "a tool's description is not read",
        "seeing",
        Asks(lambda b: [t["function"].pop("description", None) for t in b.get("tools") or []], CHAT),
        "reading",
    ),
    (
        "a parameter's description is not read",
        "seeing",
        Asks(
            lambda b: [
                p.pop("description", None)
                for t in b.get("tools") or []
                for p in t["function"].get("parameters", {}).get("properties", {}).values()
            ],
            CHAT,
        ),
        "reading",
    ),
    (
        "a tool's enum is not read",
        "seeing",
        Asks(
            lambda b: [
                p.pop("enum", None)
                for t in b.get("tools") or []
                for p in t["function"].get("parameters", {}).get("properties", {}).values()
            ],
            CHAT,
        ),
        "reading",
    ),
    (
        "the second tool is not read",
        "seeing",
        Asks(lambda b: b.update(tools=b["tools"][:1]) if b.get("tools") else None, CHAT),
        "reading",
    ),
    (
        "a call's arguments are not read",
        "seeing",
        Asks(
            messages(
                lambda m: [
                    {
                        **x,
                        "tool_calls": [
                            {**c, "function": {**c["function"], "arguments": "{}"}} for c in x["tool_calls"]
                        ],
                    }
                    if x.get("tool_calls")
                    else x
                    for x in m
                ]
            ),
            CHAT,
        ),
        "reading",
    ),
    (
        "the second image is not read",
        "seeing",
        Asks(
            messages(
                lambda m: [
                    {**x, "content": [p for n, p in enumerate(x["content"]) if n < 2]}
                    if isinstance(x["content"], list) and len(x["content"]) > 2
                    else x
                    for x in m
                ]
            ),
            CHAT,
        ),
        "reading",
    ),
    (
        "images change places",
        "seeing",
        Asks(
            messages(
                lambda m: [{**x, "content": x["content"][::-1]} if isinstance(x["content"], list) else x for x in m]
            ),
            CHAT,
        ),
        "reading",
    ),
    ("a message's system is not read", "seeing", Asks(drop("system"), MESSAGES), "reading twins"),
    ("a response's instructions are not read", "seeing", Asks(drop("instructions"), RESPONSES), "reading twins"),
    ("a message's tools are not read", "seeing", Asks(drop("tools"), MESSAGES), "reading twins"),
    (
        "a message's tool_result is not read",
        "seeing",
        Asks(
            lambda b: [
                p.update(content="done")
                for m in b["messages"]
                if isinstance(m["content"], list)
                for p in m["content"]
                if p["type"] == "tool_result"
            ],
            MESSAGES,
        ),
        "reading twins",
    ),
    (
        "a response's tool output is not read",
        "seeing",
        Asks(
            lambda b: (
                [i.update(output="done") for i in b["input"] if "output" in i] if isinstance(b["input"], list) else None
            ),
            RESPONSES,
        ),
        "reading twins",
    ),
    (
        "prompt tokens are one short",
        "seeing",
        Says(inside("usage", add("prompt_tokens", -1)), CHAT, COMPLETIONS),
        "reading",
    ),
    ("count_tokens forgets the tools", "seeing", Asks(drop("tools"), "/v1/messages/count_tokens"), "reading"),
    ("/tokenize loses the last token", "seeing", Says(lambda b: b["tokens"].pop(), "/tokenize"), "reading tokens"),
    ("timings count the prompt wrong", "seeing", Says(inside("timings", add("prompt_n", 1)), CHAT), "reading"),
    (
        "cached tokens are made up",
        "seeing",
        Says(inside("usage", inside("prompt_tokens_details", put(cached_tokens=7))), CHAT),
        "reading state",
    ),
    ("the end of a text is trimmed", "seeing", Asks(texts(str.rstrip), CHAT, "/apply-template"), "reading"),
    ("a text is trimmed in chats alone", "seeing", Asks(texts(lambda t: " ".join(t.split())), CHAT), "reading"),
    (
        "newlines become spaces",
        "seeing",
        Asks(texts(lambda t: t.replace("\n", " ")), CHAT, "/apply-template"),
        "reading",
    ),
    ("case is lost", "seeing", Asks(texts(str.lower), CHAT), "reading"),
    ("template arguments are not heard", "scripted", Asks(drop("chat_template_kwargs"), CHAT), "reading thinking"),
    (
        "the template's last line is lost",
        "seeing",
        Says(lambda b: b.update(prompt=b["prompt"].rpartition("\n")[0]), "/apply-template"),
        "reading",
    ),
    (
        "a tool's result is rendered as a string of JSON",
        "seeing",
        Says(lambda b: b.update(prompt=b["prompt"].replace("INTEGER", "integer")), "/apply-template"),
        "reading",
    ),
    (
        "the order of turns is lost",
        "seeing",
        Asks(messages(lambda m: sorted(m, key=lambda x: x["role"] == "user")), CHAT, "/apply-template"),
        "reading",
    ),
    (
        "a seed's log-probabilities are rounded away",
        "seeing",
        Says(
            lambda b: [
                t.update(logprob=round(t["logprob"]))
                for c in b["choices"]
                for x in ((c.get("logprobs") or {}).get("content") or [])
                for t in x["top_logprobs"]
            ],
            CHAT,
        ),
        "reading vision",
    ),
)

STATE = _kind(
    "C state",
    ("a prompt is read behind another's", "seeing", Leaks(), "state"),
    ("a grammar sticks", "counting", Remembers("grammar"), "state"),
    ("a schema sticks", "counting", Remembers("response_format"), "state"),
    ("a bias sticks", "counting", Remembers("logit_bias"), "state"),
    ("stops stick", "counting", Remembers("stop"), "state"),
    ("a limit sticks", "counting", Remembers("max_tokens", "n_predict"), "state"),
    ("a temperature sticks", "counting", Remembers("temperature"), "state"),
    ("a seed sticks", "counting", Remembers("seed"), "state"),
    ("a thinking budget sticks", "scripted", Remembers("thinking_budget_tokens"), "state thinking"),
    ("template arguments stick", "scripted", Remembers("chat_template_kwargs"), "state thinking"),
    ("answers are kept by their messages", "counting", Answers1(lambda b: b.get("messages"), CHAT), "state sampling"),
    (
        "answers are kept by all but the seed",
        "counting",
        Answers1(lambda b: {n: v for n, v in b.items() if n != "seed"}, CHAT),
        "state sampling slots",
    ),
    (
        "answers are kept by a prompt's beginning",
        "seeing",
        Answers1(lambda b: [str(b.get("messages"))[:60], {n: v for n, v in b.items() if n != "messages"}], CHAT),
        "state reading",
    ),
    ("answers at the same time change places", "counting", MixesUp(), "state slots"),
    ("what was cancelled is in the next answer", "counting", AfterCancel(), "state"),
    ("every seventh answer is cut", "counting", EverySeventh(), "state stops sampling"),
    ("the prompt cache is always on", "seeing", Asks(drop("cache_prompt"), CHAT), "state"),
    ("the prompt cache is always off", "seeing", Asks(put(cache_prompt=False), CHAT), "state"),
    (
        "cached tokens are not told",
        "seeing",
        Says(inside("usage", inside("prompt_tokens_details", put(cached_tokens=0))), CHAT),
        "state",
    ),
    ("all of a new prompt is said to be cached", "seeing", Changes(reply=caches_all), "state"),
    ("id_slot is not heard", "seeing", Asks(drop("id_slot")), "state"),
)

SCHEMAS = _kind(
    "F schemas",
    *(
        (f"{words} is not enforced", "counting", Forgets(*words.split()), "schemas")
        for words in (
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "minLength",
            "maxLength",
            "pattern",
            "format",
            "enum",
            "const",
            "required",
            "additionalProperties",
            "prefixItems",
            "minItems",
            "maxItems",
            "items",
            "anyOf",
            "oneOf",
            "allOf",
            "$ref",
            "properties",
            "type",
        )
    ),
    ("a response_format is not heard", "counting", Asks(drop("response_format"), CHAT), "schemas sampling"),
    ("json_schema is not heard", "counting", Asks(drop("json_schema")), "schemas"),
)

CANCELLED = _kind(
    "H cancelling",
    *(
        (f"{route} works on for nobody", "counting", Drains(route), "slots")
        for route in (NATIVE, COMPLETIONS, CHAT, RESPONSES)
    ),
    ("a slot is busy long after", "counting", Slow(), "slots"),
)


def _halve(body: Any) -> None:
    for name in ("prompt",):
        if isinstance(body.get(name), list) and len(body[name]) > 1000:
            body[name] = body[name][: len(body[name]) // 2]


class RefusesNearlyFull(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path == NATIVE and ask.body.count(b",") > 4060:
            return replace(reply, status=400, body=b'{"error":{"code":400,"message":"too long","type":"invalid"}}')
        return reply


EDGES = _kind(
    "E edges",
    ("a long prompt is cut without a word", "counting", Asks(_halve, NATIVE), "edges"),
    ("a prompt that just fits is refused", "counting", RefusesNearlyFull(), "edges"),
    (
        "what is beyond the basic plane is lost",
        "model",
        Asks(texts(lambda t: re.sub(r"[^\u0000-\uffff]", "?", t)), "/tokenize"),
        "tokens",
    ),
    ("texts are composed", "model", Asks(texts(lambda t: unicodedata.normalize("NFC", t)), "/tokenize"), "tokens"),
    ("zero-width characters are lost", "model", Asks(texts(lambda t: t.replace("\u200d", "")), "/tokenize"), "tokens"),
    ("carriage returns are lost", "model", Asks(texts(lambda t: t.replace("\r", "")), "/tokenize"), "tokens"),
    ("NUL ends a text", "model", Asks(texts(lambda t: t.partition("\x00")[0]), "/tokenize"), "tokens"),
    (
        "a character is cut in a stream",
        "model",
        Bytes("[^\x00-\x7f]", "\ufffd", NATIVE, CHAT, streams=True, pattern=True),
        "edges tokens",
    ),
    ("/detokenize trims", "model", Says(lambda b: b.update(content=b["content"].strip()), "/detokenize"), "tokens"),
    ("an empty prompt is an error", "counting", Changes(reply=fails_on(b'"prompt":""')), "edges"),
    (
        "of very many messages the last hundred are read",
        "counting",
        Asks(messages(lambda m: m[-100:]), CHAT, "/apply-template"),
        "edges",
    ),
    ("n_predict beyond the context is an error", "counting", Changes(reply=fails_on(b'"n_predict":100000')), "edges"),
)

SETTINGS = _kind(
    "K settings",
    ("top_k is one more", "counting", Asks(add("top_k", 1)), "chance sampling"),
    ("top_p is larger", "counting", Asks(scale("top_p", 1.2)), "chance sampling"),
    ("temperature is doubled", "counting", Asks(scale("temperature", 2)), "chance sampling"),
    ("min_p is halved", "counting", Asks(scale("min_p", 0.5)), "chance sampling"),
    *(
        (f"{name} is not heard", "counting", Asks(drop(name)), "chance sampling")
        for name in (
            "typical_p",
            "repeat_penalty",
            "frequency_penalty",
            "presence_penalty",
            "top_n_sigma",
            "xtc_probability",
            "dry_multiplier",
            "samplers",
            "min_keep",
            "repeat_last_n",
        )
    ),
    ("presence_penalty has the wrong sign", "counting", Asks(scale("presence_penalty", -1)), "chance sampling"),
    (
        "a bias is halved",
        "counting",
        Asks(
            lambda b: (
                b.update(logit_bias=[[t, v / 2] for t, v in b["logit_bias"]])
                if isinstance(b.get("logit_bias"), list)
                else None
            )
        ),
        "chance sampling",
    ),
    (
        "one probability is missing",
        "counting",
        Says(
            lambda b: [
                t.get("top_probs", t.get("top_logprobs")).pop() for t in b.get("completion_probabilities") or []
            ],
            NATIVE,
        ),
        "chance sampling",
    ),
)

KINDS: list[Broken] = [*TWINS, *KEYS, *STOPS, *READ, *STATE, *SCHEMAS, *CANCELLED, *EDGES, *SETTINGS]
