"""What is read: all of a conversation, as it is written, and counted once.

Checked on a scripted model that attends: it says its script whatever it has read, but each token of it, and its place,
moves the log-probabilities of the next one.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from tasks import process
from tasks.contracts.conversations import bodies
from tasks.contracts.projector import BLUE, RED
from tasks.contracts.promises import Context, at, expect, promise
from tasks.contracts.twins import CHAT, MESSAGES, NATIVE, RESPONSES, ask

_SOURCE = "the model answers what it has read; llama.cpp tools/server/README.md `POST /v1/chat/completions`"
_ALIKE = 0.0003  # of log-probability: on a CPU, alone and without a cache, one request differs by 0 from itself
_NOISE = 0.05  # of log-probability: a server whose answers to one request are further apart is wrong
_SEEN = 150  # candidates told of the next token: nearly all that the scripted model has
_RENDER_CPU_S, _RENDER_S = 10, 120.0  # a busy machine may give it a tenth of its time
_NOT_OURS = re.compile(r"strftime_now|\{%[-+]?\s*generation\b")  # of llama.cpp's and transformers' alone
_EXACT: dict[str, Any] = {"temperature": 0, "seed": 1, "cache_prompt": False, "max_tokens": 1, "id_slot": 0}
ROOM = 768  # tokens: the conversation with its tools, and what is added to it

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather of some days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "days": {"type": "integer", "description": "how many days"},
                    "unit": {"type": "string", "description": "which unit", "enum": ["celsius", "kelvin"]},
                },
                "required": ["days"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "description": "Tells the time.",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": "of where"}}},
        },
    },
]


def image_part(data: str) -> dict[str, Any]:
    """The part of a chat's turn that is this PNG (base64)."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def conversation() -> list[dict[str, Any]]:
    """Turns with all that a chat can hold but images."""
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"days":3}'}}
    return [
        {"role": "system", "content": "Be brief and kind."},
        {"role": "user", "content": "How is the weather?\n\n  And the  rivers? "},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny, with wind"},
        {"role": "assistant", "content": "Sunny it is."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "the answer?"}]},
    ]


Edit = Callable[[list[dict[str, Any]], list[dict[str, Any]]], object]
_PROPERTIES = ("function", "parameters", "properties")


def _turn(number: int, **values: Any) -> Edit:
    return lambda turns, _: turns[number].update(values)


def _tool(number: int, *path: str, to: Any) -> Edit:
    def edit(_: Any, tools: list[dict[str, Any]]) -> None:
        found: Any = tools[number]
        for step in path[:-1]:
            found = found[step]
        found[path[-1]] = to

    return edit


def _arguments(text: str) -> Edit:
    return lambda turns, _: turns[2]["tool_calls"][0]["function"].update(arguments=text)


CHANGES: dict[str, Edit] = {
    "the system message": _turn(0, content="Be brief and kinD."),
    "the order of words in the system message": _turn(0, content="Be kind and brief."),
    "the first turn": _turn(1, content="How is the weather?\n\n  And the  lakes? "),
    "the case of a letter": _turn(1, content="how is the weather?\n\n  And the  rivers? "),
    "spaces inside": _turn(1, content="How is the weather?\n\n  And the rivers? "),
    "newlines inside": _turn(1, content="How is the weather?   And the  rivers? "),
    "an earlier call's arguments": _arguments('{"days":4}'),
    "a tool's result": _turn(3, content="sunny, with rain"),
    "an earlier answer": _turn(4, content="Sunny it was."),
    "the last turn": _turn(5, content="What is the question?"),
    "the second part of a turn": lambda turns, _: turns[5]["content"][1].update(text="the answer then?"),
    "an earlier turn left out": lambda turns, _: turns.pop(4),
    "no system message": lambda turns, _: turns.pop(0),
    "a tool's description": _tool(0, "function", "description", to="Tells the weather of some dayz."),
    "a tool's name": _tool(1, "function", "name", to="get_tide"),
    "a parameter's description": _tool(0, *_PROPERTIES, "days", "description", to="how many dayz"),
    "a parameter's type": _tool(0, *_PROPERTIES, "days", "type", to="number"),
    "a parameter's choices": _tool(0, *_PROPERTIES, "unit", "enum", to=["celsius", "kelvim"]),
    "what is required": _tool(0, "function", "parameters", "required", to=["unit"]),
    "the second tool": lambda _, tools: tools.pop(1),
    "the order of tools": lambda _, tools: tools.reverse(),
}


def next_token(ctx: Context, turns: Any, tools: Any = (), **params: Any) -> dict[int, float]:
    """Token id -> log-probability of the likeliest tokens to follow a chat."""
    asked = {"logprobs": True, "top_logprobs": _SEEN, **_given(tools), **_EXACT, **params}
    answer = ctx.client.chat(turns, **asked)
    expect(answer.status == 200, f"a chat answered {answer.status}")
    return _by_id(at(answer.body, "choices", 0, "logprobs", "content", 0, "top_logprobs"))


def _given(tools: Any) -> dict[str, Any]:
    return {"tools": tools} if tools else {}


def _by_id(told: Any) -> dict[int, float]:
    return {at(token, "id"): at(token, "logprob") for token in told}


def apart(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """By how much the log-probabilities of two answers to what comes next differ, at most."""
    shared = one.keys() & other.keys()
    expect(len(shared) > len(one) // 4, f"{len(shared)} of {len(one)} candidates are in both")
    return max(abs(one[token] - other[token]) for token in shared)


def measured(ask: Callable[[], dict[int, float]]) -> tuple[dict[int, float], float]:
    """(the answer to a request, how far from it an answer to the same is at most), the noise measured on this server.

    Raises Unmet when three answers to it are too far apart to be of one request.
    """
    answers = [ask() for _ in range(3)]
    noise = max(apart(one, other) for one, other in combinations(answers, 2))
    expect(noise < _NOISE, f"the same request three times is {noise:.4f} apart")
    return answers[0], max(_ALIKE, 3 * noise)


def shared_start(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items (characters, tokens) two sequences begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _prompt(ctx: Context, turns: Any, tools: Any = ()) -> str:
    """What /apply-template renders."""
    return str(at(ctx.client.post("/apply-template", {"messages": turns, **_given(tools)}).body, "prompt"))


def prompt_tokens(ctx: Context, turns: Any, tools: Any = ()) -> list[int]:
    """The tokens of a chat's prompt, by /apply-template and /tokenize."""
    whole = {"content": _prompt(ctx, turns, tools), "add_special": True, "parse_special": True}
    return list(at(ctx.client.post("/tokenize", whole).body, "tokens"))


@promise(
    "reading.all_of_it",
    "each part of a conversation changes what comes next, and nothing else does",
    _SOURCE,
    server="seeing",
    room=ROOM,
)
def all_of_it(ctx: Context) -> str:
    plain, near = measured(partial(next_token, ctx, conversation(), TOOLS))
    least, what_least = 99.0, ""
    for what, edit in CHANGES.items():
        turns, tools = conversation(), copy.deepcopy(TOOLS)
        edit(turns, tools)
        moved = apart(plain, next_token(ctx, turns, tools))
        expect(moved > near, f"{what} is not read: another one changes nothing")
        least, what_least = min((least, what_least), (moved, what))
    return f"{len(CHANGES)} changes seen, at least {least:.4f} apart ({what_least}); unchanged {near:.4f} at most"


@promise(
    "reading.images",
    "each of several images is read, and in its place",
    f"{_SOURCE}; llama.cpp docs/multimodal.md",
    server="seeing",
)
def images(ctx: Context) -> str:
    def seen(*parts: dict[str, Any]) -> dict[int, float]:
        return next_token(ctx, [{"role": "user", "content": [{"type": "text", "text": "Compare."}, *parts]}])

    red, blue = image_part(RED), image_part(BLUE)
    plain, near = measured(partial(seen, red, blue))
    for what, other in {
        "the second image": seen(red, red), "the first image": seen(blue, blue), "their order": seen(blue, red),
        "how many there are": seen(red),
    }.items():  # fmt: skip
        expect(apart(plain, other) > near, f"{what} changes nothing")
    return "two images, each in its place"


def _next_of_completion(ctx: Context, prompt: Any) -> dict[int, float]:
    asked = {"prompt": prompt, "n_predict": 1, "n_probs": _SEEN, "temperature": 0, "cache_prompt": False, "id_slot": 0}
    answer = ctx.client.post(NATIVE, asked)
    expect(answer.status == 200, f"{NATIVE} answered {answer.status}: {str(answer.body)[:120]}")
    return _by_id(at(answer.body, "completion_probabilities", 0, "top_logprobs"))


@promise(
    "reading.as_rendered",
    "a chat reads just what /apply-template renders: a completion of that goes on alike",
    "llama.cpp tools/server/README.md `POST /apply-template`",
    server="seeing",
    room=ROOM,
)
def as_rendered(ctx: Context) -> str:
    turns = conversation()
    some: dict[str, tuple[Any, Any]] = {
        "a conversation": (turns, TOOLS),
        "one turn": ([{"role": "user", "content": "How?\n  And so \u00e4? "}], []),
        "a result at the end": (turns[:4], TOOLS),
    }
    worst = 0.0
    for what, (given, tools) in some.items():
        chat, near = measured(partial(next_token, ctx, given, tools))
        moved = apart(chat, _next_of_completion(ctx, _prompt(ctx, given, tools)))
        expect(moved <= near, f"{what}: a completion of the rendered prompt goes on {moved:.3f} apart from the chat")
        worst = max(worst, moved)
    return f"{len(some)} conversations, {worst:.4f} apart at most"


@promise(
    "reading.images_as_rendered",
    "a chat reads its images where /apply-template puts them",
    "llama.cpp tools/server/README.md `POST /completion`, multimodal_data; docs/multimodal.md",
    server="seeing",
    known="b9105 and before: no images in what /apply-template renders, or none in a completion",
)
def images_as_rendered(ctx: Context) -> str:
    words = [{"type": "text", "text": text} for text in ("Compare ", " with ", ".")]
    turns = [{"role": "user", "content": [words[0], image_part(RED), words[1], image_part(BLUE), words[2]]}]
    prompt = _prompt(ctx, turns)
    marker = str(at(ctx.client.get("/props").body, "media_marker"))
    expect(prompt.count(marker) == 2, f"{prompt.count(marker)} of 2 images are in the rendered prompt")
    expect(f"Compare {marker} with {marker}." in prompt.replace("\n", ""), f"the images stand elsewhere: {prompt!r}")
    given = {"prompt_string": prompt, "multimodal_data": [RED, BLUE]}
    chat, near = measured(partial(next_token, ctx, turns))
    moved = apart(chat, _next_of_completion(ctx, given))
    expect(moved <= near, f"a completion of the rendered prompt goes on {moved:.3f} apart from the chat")
    return f"2 images, {moved:.4f} apart"


@promise(
    "reading.by_every_api",
    "the same conversation is read to the same tokens by each API, part by part",
    "guide 07: Cursor, Codex CLI and Claude Code talk to one model",
    server="seeing",
    room=ROOM,
)
def by_every_api(ctx: Context) -> str:
    turns = conversation()
    turns[1]["content"], turns[5]["content"] = "How is the weather? And the rivers?", "What is the answer?"
    whole = _read(ctx, bodies(turns, 1, TOOLS))
    longer: list[tuple[str, Any, Any]] = []
    for number, more in enumerate((" And long.", " And the lakes?", "", " and rain", " So it is.", " And why?")):
        if more:
            other = copy.deepcopy(turns)
            other[number]["content"] += more
            longer.append((f"turn {number}", other, TOOLS))
    longer += [("the tools", turns, TOOLS[:1]), ("no tools", turns, [])]
    for what, other, tools in longer:
        read = _read(ctx, bodies(other, 1, tools))
        expect(read != whole, f"{what} is not read by any API: {read} tokens with and without it")
    return f"{whole} tokens by each of 3 APIs, and {len(longer)} changes counted by each"


def _read(ctx: Context, asked: dict[str, dict[str, Any]]) -> int:
    found = {}
    for route in (CHAT, RESPONSES, MESSAGES):
        (said,) = ask(ctx, route, asked[route])
        found[route] = said.read
    expect(len(set(found.values())) == 1, f"one conversation is {found} tokens")
    return int(found[CHAT] or 0)


@promise(
    "reading.counted",
    "usage, timings, /tokenize and the token counters count one prompt alike",
    "llama.cpp tools/server/README.md `POST /apply-template`, `POST /tokenize`; Anthropic API, count_tokens",
    server="seeing",
    room=ROOM,
)
def counted(ctx: Context) -> str:
    turns, count = conversation(), 0
    for some, tools in ((turns[:2], []), (turns, TOOLS), ([{"role": "user", "content": "Hi"}], [])):
        asked = bodies(some, 1, tools, cache_prompt=False)
        answer = ctx.client.post(CHAT, asked[CHAT])
        expect(answer.status == 200, f"a chat answered {answer.status}")
        usage, timings = at(answer.body, "usage", "prompt_tokens"), at(answer.body, "timings")
        counts = {
            "usage": usage,
            "timings": at(timings, "prompt_n") + at(timings, "cache_n"),
            "/tokenize": len(prompt_tokens(ctx, some, tools)),
            "count_tokens": at(ctx.client.post(f"{MESSAGES}/count_tokens", asked[MESSAGES]).body, "input_tokens"),
        }
        expect(len(set(counts.values())) == 1, f"one prompt is {counts} tokens")
        cached = at(answer.body, "usage", "prompt_tokens_details", "cached_tokens")
        expect(cached == at(timings, "cache_n"), f"usage says {cached} cached tokens, timings {timings['cache_n']}")
        expect(cached == 0, f"{cached} tokens are said to be cached, with the cache off")
        count = usage
    return f"{count} tokens by usage, timings, /tokenize and count_tokens"


@promise(
    "reading.input_tokens",
    "/chat/completions/input_tokens and /responses/input_tokens count as usage does",
    "OpenAI API `POST /v1/responses/input_tokens`; llama.cpp tools/server/README.md",
    server="seeing",
    room=ROOM,
    known="the routes came after b9105",
)
def input_tokens(ctx: Context) -> str:
    asked = bodies(conversation(), 1, TOOLS)
    (said,) = ask(ctx, CHAT, asked[CHAT])
    whole = said.read
    for route in (CHAT, RESPONSES):
        counted = at(ctx.client.post(f"{route}/input_tokens", asked[route]).body, "input_tokens")
        expect(counted == whole, f"{route}/input_tokens says {counted} tokens, usage {whole}")
    return f"{whole} tokens"


def rendered(template: str, values: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(prompt, '') that this chat template makes of each of these by jinja2, or ('', why it makes none).

    In a process of its own, which is given so much memory and time (rendering.py). Raises ToolingError when that can't
    be started, or gets no time to run.
    """
    asked = json.dumps({"template": template, "values": values, "cpu_s": _RENDER_CPU_S})
    argv: list[str | Path] = [sys.executable, "-I", Path(__file__).with_name("rendering.py")]
    said = process.run(argv, timeout_s=_RENDER_S, stdin=asked, check=False)
    if said.code:
        return [("", f"it ended with {said.code}, within {_RENDER_CPU_S} s: {said.stderr[-200:]}")] * len(values)
    return [(str(prompt), str(why)) for prompt, why in json.loads(said.stdout)]


Case = tuple[Any, Any, dict[str, Any]]
"""Turns, tools, and what the template is told besides."""


def _values(case: Case, tokens: dict[str, str]) -> dict[str, Any]:
    turns, tools, more = copy.deepcopy(case)
    for turn in turns:
        for call in turn.get("tool_calls") or []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    told = {"messages": turns, "tools": tools or None, "add_generation_prompt": True, "enable_thinking": True}
    return told | tokens | more


def _ours(ctx: Context, cases: dict[str, Case]) -> dict[str, tuple[str, str]]:
    """Case -> what jinja2 makes of it by the server's own template."""
    props = ctx.client.get("/props").body
    template, tokens = str(at(props, "chat_template")), {n: str(at(props, n)) for n in ("bos_token", "eos_token")}
    if _NOT_OURS.search(template):
        return dict.fromkeys(cases, ("", "it asks for what jinja2 has not"))
    made = rendered(template, [_values(case, tokens) for case in cases.values()])
    return dict(zip(cases, made, strict=True))


def _renders_alike(ctx: Context, cases: dict[str, Case], ours: dict[str, tuple[str, str]]) -> str:
    tokens = [str(at(ctx.client.get("/props").body, name)) for name in ("bos_token", "eos_token")]
    for what, (turns, tools, values) in cases.items():
        kwargs = {"enable_thinking": True, **values}
        asked = {"messages": turns, "chat_template_kwargs": kwargs, **_given(tools)}
        answer = ctx.client.post("/apply-template", asked)
        expect(answer.status == 200, f"/apply-template answered {answer.status} to {what}")
        prompt = str(at(answer.body, "prompt"))
        mine = _without_ends(ours[what][0], prompt, *tokens)
        place = shared_start(prompt, mine)
        near = slice(max(0, place - 20), place + 30)
        expect(prompt == mine, f"{what}: the server renders {prompt[near]!r}, jinja2 {mine[near]!r}")
    return f"{len(cases)} conversations rendered as jinja2 does"


def _without_ends(ours: str, prompt: str, bos: str, eos: str) -> str:
    """Ours without the tokens that the server puts there when it tokenizes, and so leaves out of its text."""
    ours = ours if prompt.startswith(bos) else ours.removeprefix(bos)
    return ours if prompt.endswith(eos) else ours.removesuffix(eos)


def _simple_cases() -> dict[str, Case]:
    user = {"role": "user", "content": "How? <b>&amp; \"quotes\" 'single' \\ \n\n  {{ x }} {% y %} \u00e4\U0001f600"}
    answer = {"role": "assistant", "content": "So. "}
    return {
        "one turn": ([{"role": "user", "content": "Hi"}], [], {}),
        "a system message": ([{"role": "system", "content": "Be brief."}, user], [], {}),
        "several turns": ([user, answer, {"role": "user", "content": " And? "}], [], {}),
        "many turns": ([user, answer] * 20 + [user], [], {}),
        "an empty turn": ([{"role": "user", "content": ""}], [], {}),
    }


@promise(
    "reading.template",
    "the prompt is the chat template's own rendering (jinja2) of the conversation",
    "Jinja 3; transformers docs, chat templates",
    server="seeing",
)
def template(ctx: Context) -> str:
    turns = conversation()
    turns[5]["content"] = "What is the answer? "  # of parts, builds before b11401 make lines
    cases = _simple_cases() | {
        "no thinking": ([{"role": "user", "content": "Hi"}], [], {"enable_thinking": False}),
        "tools": (turns[:2], TOOLS, {}), "a call and its result": (turns, TOOLS, {}),
        "a result at the end": (turns[:4], TOOLS, {}),
    }  # fmt: skip
    ours = _ours(ctx, cases)
    for what, (_, why) in ours.items():
        expect(not why, f"{what}: jinja2 does not render the server's chat template: {why}")
    return _renders_alike(ctx, cases, ours)


@promise(
    "reading.template_of_release",
    "so is the prompt of the release's own template, where jinja2 renders it",
    "Jinja 3; transformers docs, chat templates",
)
def template_of_release(ctx: Context) -> str:
    cases = _simple_cases()
    try:
        ours = _ours(ctx, cases)
    except process.TimedOut as error:
        return f"nothing to compare: {error.what}"
    some = {what: case for what, case in cases.items() if _is_whole(case, *ours[what])}
    if not some:
        return f"jinja2 does not render it, nothing to compare: {next(iter(ours.values()))[1]}"
    return _renders_alike(ctx, some, ours)


def _is_whole(case: Case, prompt: str, why: str) -> bool:
    """Whether a template renders all that is said, as it is given.

    Where it does not, llama.cpp gives it something else (common/chat.cpp, b11434): a system message becomes part of the
    next turn, a text a list of parts.
    """
    return not why and all(turn["content"].strip() in prompt for turn in case[0])
