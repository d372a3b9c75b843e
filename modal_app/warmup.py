"""What is done to a fresh llama-server before its snapshot, and asked of it after: is it that one, and as it was?

A boot can call itself restored, and a server that was restored can answer something else. Two records tell:

    a nonce       random text whose KV cells are in a slot. A server that has it takes the same text from its cache
                  (`timings.cache_n`, in b8672 as in b11434); one that booted cold has never seen it.
    answers       golden answers with their log-probabilities, asked REPEATS times so that their own noise is known.

All of this uses one slot, by `id_slot`. Whatever is asked there replaces what the slot holds, so the order is the
proof: the nonce is the last thing planted before the snapshot, and the first thing asked after it.

Answers are asked one request at a time, without the prompt cache: in the shape of the batch that one request makes,
here and when they are asked again. Another shape is another sum: on an H200 b11434 gave the same numbers to the last
bit over 296 distributions as long as the shape was the same, and was 0.02 nats off with the prompt cache or with four
requests at a time.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Self

import httpx

from modal_app.png import png

SLOT = 0
ANSWER_TOKENS = 8
"""Of a golden answer. Few, because a GPU is paid for while they are generated: five times 8 tokens cost what three
times 13 would. What was recorded before November 2026 has 12: as many as an answer has are asked again."""
REPEATS = 5
"""How often each golden prompt is asked before the snapshot."""
TOP = 5
NONCE_WORDS = 24
"""24 words of 4 characters are 60 to 120 tokens: much more than chance, and less than any sliding window, outside
of which KV cells are lost."""
TAIL_WORDS = 8
REQUEST_S = 300.0
"""How long one answer may take."""
RETRY_S = 0.2
"""How often a server that does not answer yet is asked again: by up to so much a first token after idle is told late,
which a restore of a few seconds must not drown in."""
TOLERANCE = 1e-3
"""The floor: by how much (nats) a log-probability may always differ. REPEATS askings that are all alike don't say that
the next one is."""
LOUD = 0.5
"""A server whose answers differ by more than this (nats) with nothing in between can't be compared with itself."""
LOWEST = -50.0
"""No log-probability counts as lower: below e^-50 there is nothing to tell apart, and a server writes the logarithm of
nothing as -3e38. So no two answers are further apart than -LOWEST, a number that JSON has (infinity it has not)."""
STARTING = (502, 503, 504)
"""What a proxy answers while there is no server behind it, or none yet: on Modal 503 without a live container, 502 and
broken connections in between."""
AGENT = "llama-release-probe"
"""The User-Agent of what we ask to measure: a proxy can tell it from users' requests."""
MEDIA_MARKER = "<__media__>"
"""Where the image stands in a prompt; newer builds have a marker of their own, in /props."""

TEXTS = (
    "The capital of France is",
    "1, 2, 3, 4, 5, 6,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "It was late in the year when the ship came in. Nobody on the quay had expected her before spring, and those who "
    "had laid money on it went home without a word. The captain asked for water, bread and the harbour master, in "
    "that order, and would not say where he had been. When at last he spoke, he said that",
)
IMAGE_TEXT = "The image shows"


class NoAnswer(Exception):
    """The server did not answer as it must; the message says what was asked and what came back.

    `status`: of the HTTP answer, if there was one that a server gave; None for what says that there was none
    (STARTING), for a connection that failed, and for an answer that took too long.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = None if status in STARTING else status


@dataclass(frozen=True)
class Token:
    """One generated token, and the most likely ones in its place with their log-probabilities (natural, <= 0)."""

    id: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Answer:
    """What a prompt was continued with at temperature 0."""

    prompt: str
    image: bool
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Golden:
    """What was recorded of one process before its snapshot. JSON, without secrets."""

    nonce: tuple[int, ...]
    """Random tokens that are in the slot."""
    tail: tuple[int, ...]
    """Tokens to ask behind a nonce. Longer than what a slot holds, a prompt needs nothing taken back out of the cache,
    which not every model can do (a sliding window in b8672 can't)."""
    repeats: tuple[tuple[Answer, ...], ...]
    """The answers to the same prompts, each time they were asked: how far they differ is the noise of this machine."""
    worker: str = ""
    """The kind of machine, where there may be several: another one may well answer otherwise."""

    @property
    def first(self) -> tuple[Answer, ...]:
        """The golden answers, of which what is said later may differ by the tolerance."""
        return self.repeats[0]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError for anything but what `to_json` gave. In a snapshot of before November 2026 there are two
        askings, by other names."""
        try:
            found = json.loads(text)
            repeats = found["repeats"] if "repeats" in found else [found["first"], found["second"]]
            if not repeats:
                raise ValueError("no golden answers: none was asked")
            return cls(
                tuple(found["nonce"]), tuple(found["tail"]), tuple(tuple(map(_answer_from, each)) for each in repeats),
                found.get("worker", ""),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no golden answers: {error!r}") from error


@dataclass(frozen=True)
class Asked:
    """One streamed request: a nonce and the tail."""

    nonce_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were not computed, as they were in the cache."""
    first_token_s: float
    """Seconds from sending the request to the first token; of the first after a boot, with the time that the server
    took to come up."""

    @property
    def found(self) -> bool:
        """Whether the server had the nonce. Some builds go back to a checkpoint a few tokens before its end."""
        return self.cached_tokens >= 0.9 * self.nonce_tokens


@dataclass(frozen=True)
class Seen:
    """What a server answered when it was asked what a golden record knows."""

    nonce: Asked
    """The nonce of the record: the very first request after the boot."""
    warm: Asked
    """A nonce that was planted a moment ago. The same work, and it must be found: else nothing is to be seen here."""
    control: Asked
    """A nonce that nobody has planted, and that must not be found."""
    answers: tuple[Answer, ...]


def warm_up(base_url: str, api_key: str | None, *, vision: bool, nonce: str = "", plant: bool = True) -> Golden:
    """Use every path of a fresh server once, so that kernels are loaded and buffers allocated, then `record` it.

    Raises NoAnswer. Nothing else may be asked of the server before its snapshot.
    """
    with _asking(base_url, api_key) as http:
        _use_every_path(http, vision)
    return record(base_url, api_key, vision=vision, nonce=nonce, plant=plant)


def nonce_of(*identity: str) -> str:
    """A nonce that several servers can be given apart from each other: it follows from what they are made for."""
    seed = json.dumps(identity)
    return " ".join(hashlib.sha256(f"{seed} {n}".encode()).hexdigest()[:4] for n in range(NONCE_WORDS))


def record(
    base_url: str, api_key: str | None, *, vision: bool, nonce: str = "", plant: bool = True,
    headers: Mapping[str, str] | None = None,
) -> Golden:  # fmt: skip
    """The golden answers of a running server, and a nonce that is in its slot from now on: this one, or a random one.

    Without `plant` it is not: this server is in no snapshot, and whoever asks it for the nonce must not find it.

    Raises NoAnswer, also when the server does not keep what it was asked: no nonce would prove anything then.
    """
    with _asking(base_url, api_key, headers=headers) as http:
        prompts = [(text, False) for text in TEXTS] + ([(IMAGE_TEXT, True)] if vision else [])
        first = tuple(_answer(http, *prompt) for prompt in prompts)
        tail = _random_tokens(http, TAIL_WORDS)
        rehearsal = _ask(http, _plant(http), tail)
        if not rehearsal.found:
            raise NoAnswer(f"of a nonce it was just asked, the server did not keep enough: {rehearsal}")
        # behind a nonce, as they will be asked again
        others = tuple(tuple(_answer(http, *prompt) for prompt in prompts) for _ in range(REPEATS - 1))
        planted = _plant(http, nonce if plant else "")
        return Golden(planted if plant else _tokens(http, nonce), tail, (first, *others))


def wait_until_up(
    base_url: str,
    api_key: str | None,
    *,
    patience_s: float = REQUEST_S,
    headers: Mapping[str, str] | None = None,
) -> float:
    """Wake a server with GET /health, which needs no slot, until it answers 200; the seconds that took.

    What says that there is none yet is asked again: 502, 503 and 504 of what stands before it, a refused connection and
    one that broke off. Raises NoAnswer when that takes longer than `patience_s`, and at once for what a starting server
    does not say, such as the 401 of a proxy.
    """
    start = time.monotonic()
    with _asking(base_url, api_key, patience_s, headers) as http:
        while not _is_up(http, patience_s - (time.monotonic() - start)):
            time.sleep(RETRY_S)
    return time.monotonic() - start


def _is_up(http: httpx.Client, left_s: float) -> bool:
    """Whether /health is 200. Raises NoAnswer, or what httpx raises, for what a starting server does not do, for an
    answer that takes longer than what is `left_s` of the patience, and at the last try, when nothing is."""
    last = left_s <= 0
    try:
        answer = http.get("/health", timeout=httpx.Timeout(max(left_s, RETRY_S), connect=10.0))
    except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout):
        if last:
            raise
        return False
    if answer.status_code in STARTING and not last:
        return False
    _said("/health", answer)
    return True


def ask_again(
    base_url: str,
    api_key: str | None,
    golden: Golden,
    *,
    patience_s: float = REQUEST_S,
    waited_s: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Seen:
    """Ask a server what a golden record knows. Raises NoAnswer, also when an answer takes longer than `patience_s`,
    and the first one, with the time that was waited for the server to come up, does.

    Ask once a boot, and before any other prompt: to ask for the nonce is to plant it. So it is asked of a server that
    is up (`waited_s`: by `wait_until_up`, which took so long; else it is waited for here), and never again once it may
    have been worked on: a 503 or a refused connection say that it was not, a 502 or a broken connection do not.
    """
    if waited_s is None:
        waited_s = wait_until_up(base_url, api_key, patience_s=patience_s, headers=headers)
    with _asking(base_url, api_key, patience_s, headers) as http:
        nonce = _ask(http, golden.nonce, golden.tail, waited_s=waited_s, patience_s=patience_s - waited_s)
        warm = _ask(http, _plant(http), golden.tail)
        control = _ask(http, _random_tokens(http, NONCE_WORDS), golden.tail)
        return Seen(nonce, warm, control, _answers(http, golden))


def answer_again(
    base_url: str,
    api_key: str | None,
    golden: Golden,
    *,
    patience_s: float = REQUEST_S,
    headers: Mapping[str, str] | None = None,
) -> tuple[Answer, ...]:
    """A server's answers to the golden prompts, and nothing of its nonce. Raises NoAnswer."""
    with _asking(base_url, api_key, patience_s, headers) as http:
        return _answers(http, golden)


def _answers(http: httpx.Client, golden: Golden) -> tuple[Answer, ...]:
    return tuple(_answer(http, each.prompt, each.image, len(each.tokens)) for each in golden.first)


def tolerances(golden: Golden) -> tuple[float, ...]:
    """By how much (nats) log-probabilities may differ, for each prompt: twice what any two askings of it did, and the
    floor. A noisy prompt, as one with an image may be, lends nothing to the others."""
    return tuple(
        max(TOLERANCE, 2 * max((_apart(*pair) for pair in combinations(asked, 2)), default=0.0))
        for asked in zip(*golden.repeats, strict=True)
    )


def tolerance(golden: Golden) -> float:
    """The largest tolerance of any prompt (nats)."""
    return max(tolerances(golden), default=TOLERANCE)


def differences(golden: Golden, answers: tuple[Answer, ...], limit: float | None = None) -> Iterator[str]:
    """One line for each answer that is not the golden one, within its prompt's tolerance (or the `limit`, nats)."""
    for before, after, own in zip(golden.first, answers, tolerances(golden), strict=True):
        allowed = own if limit is None else limit
        if (apart := _apart(before, after)) > allowed:
            tokens = [[token.id for token in answer.tokens] for answer in (before, after)]
            said = "the same tokens" if tokens[0] == tokens[1] else f"tokens {tokens[1]}, golden {tokens[0]}"
            yield f"{before.prompt[:40]!r}: log-probabilities {apart:.2g} apart, tolerance {allowed:.2g}; {said}"


def _apart(a: Answer, b: Answer) -> float:
    """The largest difference of two answers' log-probabilities, as far as they say the same.

    Where they part, how much less likely the other's token was: at a tie, nothing. As far as can be when one just ends.
    """
    largest = 0.0
    for mine, other in zip(a.tokens, b.tokens, strict=False):
        largest = max(largest, *(_gap(mine, other, token) for token, _ in (*mine.top, *other.top)))
        if mine.id != other.id:
            return max(largest, *(abs(_log(t, mine.id) - _log(t, other.id)) for t in (mine, other)))
    return largest if len(a.tokens) == len(b.tokens) else -LOWEST


def _gap(a: Token, b: Token, token: int) -> float:
    return abs(_log(a, token) - _log(b, token))


def _log(place: Token, token: int) -> float:
    """The log-probability of a token in a place; of one that is not among the most likely, that of the last of them."""
    top = dict(place.top)
    return max(LOWEST, top.get(token, min(top.values())))


def _use_every_path(http: httpx.Client, vision: bool) -> None:
    props = _get(http, "/props")
    slots, context = props["total_slots"], props["default_generation_settings"]["n_ctx"]

    def chat(text: str | list[dict[str, Any]], **more: Any) -> None:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "cache_prompt": False, **more}
        if body.get("stream"):
            list(_events(http, "/v1/chat/completions", body))
        else:
            _post(http, "/v1/chat/completions", body)

    chat("Say hello.")
    chat("Say hello.", stream=True)
    chat("Weather in Paris?", tools=[_TOOL])
    chat("What is 17 times 4?", chat_template_kwargs={"enable_thinking": True})
    # more than a whole physical batch of 512 tokens, where the context has the room
    words = _random_text(min(context // 8, 128))
    _post(http, "/completion", {"prompt": words, "n_predict": 1, "id_slot": SLOT, "cache_prompt": False})
    with ThreadPoolExecutor(slots) as pool:  # a batch of all slots
        list(pool.map(chat, ["Count to ten."] * slots))
    if vision:
        image = {"url": f"data:image/png;base64,{_png()}"}
        chat([{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": image}])


_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _answer(http: httpx.Client, text: str, image: bool, tokens: int = ANSWER_TOKENS) -> Answer:
    prompt: Any = text
    if image:
        marker = _get(http, "/props").get("media_marker", MEDIA_MARKER)
        prompt = {"prompt_string": f"{marker}\n{text}", "multimodal_data": [_png()]}
    said = _post(
        http,
        "/completion",
        {
            "prompt": prompt, "id_slot": SLOT, "cache_prompt": False, "temperature": 0.0, "seed": 1,
            "n_predict": tokens, "ignore_eos": True, "n_probs": TOP,
        },
    )  # fmt: skip
    return Answer(text, image, tuple(_token(each) for each in said["completion_probabilities"]))


def _plant(http: httpx.Client, text: str = "") -> tuple[int, ...]:
    """A new nonce (or this one), which the slot holds from now on, and nothing behind it."""
    nonce = _tokens(http, text) if text else _random_tokens(http, NONCE_WORDS)
    _post(http, "/completion", {"prompt": nonce, "n_predict": 0, "id_slot": SLOT, "cache_prompt": True})
    return nonce


def _ask(
    http: httpx.Client,
    nonce: tuple[int, ...],
    tail: tuple[int, ...],
    *,
    waited_s: float = 0.0,
    patience_s: float = 0.0,
) -> Asked:
    """`waited_s`: what had to be waited before, which a user would have waited too."""
    body = {
        "prompt": nonce + tail, "id_slot": SLOT, "cache_prompt": True, "temperature": 0.0,
        "n_predict": 4, "ignore_eos": True, "return_tokens": True, "stream": True,
    }  # fmt: skip
    start = time.monotonic() - waited_s
    first_token_s = None
    for event in _events(http, "/completion", body, patience_s):
        if first_token_s is None and event.get("tokens"):
            first_token_s = time.monotonic() - start
        if event.get("stop") and first_token_s is not None:
            return Asked(len(nonce), event["timings"]["cache_n"], first_token_s)
    raise NoAnswer("/completion: the stream broke off")


@contextmanager
def _asking(
    base_url: str, api_key: str | None, timeout_s: float = REQUEST_S, headers: Mapping[str, str] | None = None
) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=base_url,
        headers={"User-Agent": AGENT, **(headers or {})} | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
        timeout=httpx.Timeout(timeout_s, connect=10.0),
        # no connection may be open when the process is dumped
        limits=httpx.Limits(max_keepalive_connections=0),
        trust_env=False,
    ) as http:
        try:
            yield http
        except httpx.HTTPError as error:
            raise NoAnswer(f"{base_url}: {type(error).__name__}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise NoAnswer(f"{base_url} answers in another form: {error!r}") from error


def _get(http: httpx.Client, path: str) -> Any:
    return _said(path, http.get(path))


def _post(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    return _said(path, http.post(path, json=body))


def _said(path: str, answer: httpx.Response) -> Any:
    if answer.status_code != 200:
        raise NoAnswer(f"{path}: {answer.status_code} {answer.text[:400]}", answer.status_code)
    return answer.json()


def _events(http: httpx.Client, path: str, body: dict[str, Any], patience_s: float = 0.0) -> Iterator[Any]:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with http.stream("POST", path, json=body) as answer:
                if answer.status_code == 200:
                    for line in answer.iter_lines():
                        if line.startswith("data:") and not line.endswith("[DONE]"):
                            yield json.loads(line[5:])
                    return
                answer.read()
                if answer.status_code != 503 or time.monotonic() > deadline:
                    _said(path, answer)
        except httpx.ConnectError:
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)


def _token(said: dict[str, Any]) -> Token:
    return Token(said["id"], tuple((each["id"], each["logprob"]) for each in said["top_logprobs"]))


def _answer_from(found: dict[str, Any]) -> Answer:
    tokens = (Token(t["id"], tuple((n, p) for n, p in t["top"])) for t in found["tokens"])
    return Answer(found["prompt"], found["image"], tuple(tokens))


def _random_tokens(http: httpx.Client, words: int) -> tuple[int, ...]:
    return _tokens(http, _random_text(words))


def _tokens(http: httpx.Client, text: str) -> tuple[int, ...]:
    return tuple(_post(http, "/tokenize", {"content": text})["tokens"])


def _random_text(words: int) -> str:
    return " ".join(secrets.token_hex(2) for _ in range(words))


def _png(side: int = 64) -> str:
    """A square with a red and a green gradient, as base64."""
    return png(side, b"".join(bytes((4 * x, 4 * y, 128)) for y in range(side) for x in range(side)))
