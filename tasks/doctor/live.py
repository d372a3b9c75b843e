"""A running server, asked as its clients ask it. It costs up to 12 requests of at most a few hundred tokens each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from modal_app.redaction import redact
from tasks.contracts import auth, thinking
from tasks.contracts.promises import Context, Recorder, Unmet, at, expect
from tasks.contracts.responses import output_text
from tasks.contracts.scripted import FIRST
from tasks.contracts.toolbox import TOOLS, arguments_of, chat_calls, respond, response_calls
from tasks.doctor import Check, Seen, note, warning
from tasks.doctor.configuration import template_thinks
from tasks.endpoint import Answer
from tasks.release import BadInput, Endpoint, Release, ReleaseFailed, UpstreamRelease

QUESTION = "What is 17 times 23? Think it through step by step, then say the number."
WEATHER = f"How will the weather be in the next 3 days, in metric units? Use {FIRST}."
BUDGET = 8
LIMIT = 400  # tokens
TIMEOUT_S = 300.0
_MARKS = ("<|channel>", "<channel|>", "<think>", "</think>")


def checks(endpoint: Endpoint, wait_s: float) -> Iterator[Check]:
    """The checks of a live server, most basic first; none follows on one that nothing can follow on.

    The server is woken when it sleeps, and waited for up to `wait_s`.
    """
    passed: list[str] = []

    def basic(name: str, look: Callable[[], str]) -> Check:
        def looked() -> str:
            said = look()
            passed.append(name)
            return said

        return name, looked

    with Recorder(endpoint, timeout_s=TIMEOUT_S) as client:
        yield basic("health", lambda: _health(client, wait_s))
        if not passed:
            return
        yield basic("key", lambda: _key(client))
        if "key" not in passed:
            return
        context = cache(lambda: Context(client, _served(client)))
        looks: tuple[tuple[str, Callable[[Context], str | Seen]], ...] = (
            ("thoughts", thoughts),
            ("budget", budget),
            ("responses", responses),
        )
        for name, look in looks:
            yield name, lambda look=look: _kept(look, context())  # type: ignore[misc]


def _health(client: Recorder, wait_s: float) -> str:
    """It answers. One that slept is woken by this, and may hold the request until it is up, or say 503 meanwhile."""
    answer = client.request("GET", "/health", timeout_s=wait_s)
    waited = answer.seconds + (client.wait_healthy(wait_s) if answer.status != 200 else 0)
    return f"{client.endpoint.base_url} answers" + (f" after {waited:.0f} s" if waited > 1 else "")


def _key(client: Recorder) -> str:
    """The right key is taken, and no other. One request each; auth.wrong_key asks every route."""
    key = client.endpoint.api_key
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    answer = client.post("/v1/chat/completions", body)
    if answer.status == 401:
        raise BadInput(
            "the server refuses this shell's API key" if key else "the server wants an API key, and none is set here",
            evidence=redact(str(answer.body), key)[:300],
            todo="`set -a; . ./.env; set +a`, or set the variable that server.api_key_env names; after a change of the "
            "key `llama-release redeploy`",
        )
    if answer.status != 200:
        raise ReleaseFailed(
            f"a chat is answered with {answer.status}",
            evidence=redact(str(answer.body), key)[:300],
            todo="`llama-release explain` with what the server's log says",
        )
    stranger = client.post("/v1/chat/completions", body, key=auth.WRONG_KEY).status
    if key and stranger != 401:
        raise ReleaseFailed(
            "the server answers without the key",
            evidence=f"a chat with a wrong key got {stranger}",
            todo="start it with --api-key, or `llama-release redeploy`",
        )
    return "taken, and a wrong one refused" if key else "none is needed"


def _served(client: Recorder) -> Release:
    """What is known from outside of what it serves, as a release: enough for promises."""
    props = client.get("/props").body
    models = client.get("/v1/models").body
    told = str(props.get("build_info", "")) if isinstance(props, dict) else ""
    digits = "".join(filter(str.isdigit, told.partition("-")[0])) or "1"
    return Release(
        upstream=UpstreamRelease(build=int(digits) or 1), tree="", build="", argv=(), files={},
        alias=str(at(models, "data", 0, "id")),
    )  # fmt: skip


def _kept(look: Callable[[Context], str | Seen], ctx: Context) -> str | Seen:
    try:
        return look(ctx)
    except Unmet as unmet:
        last = ctx.client.exchanges[-1] if ctx.client.exchanges else {}
        evidence = json.dumps(redact(last.get("response", ""), ctx.client.endpoint.api_key))[:300]
        raise ReleaseFailed(str(unmet), evidence=evidence, todo=_TODO[look.__name__]) from unmet


_TODO = {
    "thoughts": "serve with --jinja and the model's own template, without --reasoning-format none",
    "budget": "`llama-release upgrade` to b8744 or newer, or build with patch 0001 (llama.cpp PR 21697)",
    "responses": "`llama-release upgrade`: agents need a build whose /v1/responses round trip is whole",
}


# -- thinking -------------------------------------------------------------------------------------------------------


def _think(ctx: Context, **params: Any) -> tuple[str, str]:
    """(thought, content) of the answer to the question."""
    answer = ctx.client.chat(QUESTION, max_tokens=LIMIT, temperature=0, **params)
    expect(answer.status == 200, f"a chat with {params or 'no parameters'} answered {answer.status}")
    message = at(answer.body, "choices", 0, "message")
    return message.get("reasoning_content") or "", message.get("content") or ""


def thoughts(ctx: Context) -> str | Seen:
    """What the model thinks is visible, apart from its answer (guide, issue 2); else what hides it."""
    thought, content = _think(ctx)
    if thought:
        return f"{len(thought.split())} words of thought, apart from the answer"
    if marks := [mark for mark in _MARKS if mark in content]:
        return warning(f"thoughts stand in the content, with {marks[0]}", f"{_TODO['thoughts']}")
    if _think(ctx, chat_template_kwargs={"enable_thinking": True})[0]:
        return warning(
            "it thinks only when asked to: the server's --chat-template-kwargs turn thinking off",
            'drop them, or ask with chat_template_kwargs {"enable_thinking": true}',
        )
    if _think(ctx, thinking_budget_tokens=LIMIT)[0]:
        return warning("it thinks only with a budget of its own: --reasoning-budget 0", "drop --reasoning-budget")
    if not template_thinks(str(at(ctx.client.get("/props").body, "chat_template"))):
        return warning("its chat template knows nothing of thinking", "serve the model's own template, with --jinja")
    return note("the model did not think, and it need not (thinking is adaptive)")


def budget(ctx: Context) -> str | Seen:
    """thinking_budget_tokens has an effect (guide, issue 8): the same question, with a small budget and without."""
    free, bounded = (_think(ctx, **params)[0].split() for params in ({}, {"thinking_budget_tokens": BUDGET}))
    if len(free) <= BUDGET:
        return note(f"{len(free)} words of thought without a budget: nothing can be told of one")
    return thinking.bounds(free, bounded, BUDGET, "thinking_budget_tokens")


# -- /v1/responses --------------------------------------------------------------------------------------------------


def responses(ctx: Context) -> str | Seen:
    """A tool round trip as an agent makes it (guide, issue 9): the call, then the whole conversation with its result.

    The server's own items are sent back as they came, as Codex CLI does, and the call is asked for as a stream too.
    """
    asked = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": WEATHER}]}]
    first = _first_call(ctx, asked)
    if first is None:
        return warning("the model calls no tool, neither here nor in a chat", "agents need a model that calls tools")
    choice, output = first
    call = next(item for item in output if item.get("type") == "function_call")
    result = {"type": "function_call_output", "call_id": at(call, "call_id"), "output": "sunny, 21 degrees"}
    second = _respond(ctx, [*asked, *output, result])
    expect(output_text(second.body).strip() or response_calls(second), "the tool's result was answered with nothing")
    streamed = _streamed_call(_respond(ctx, asked, stream=True, tool_choice=choice))
    return f"{at(call, 'name')} called, also as a stream ({streamed}), and its result answered"


def _respond(ctx: Context, conversation: list[Any], **params: Any) -> Answer:
    answer = respond(ctx, input=conversation, max_output_tokens=LIMIT, temperature=0, **params)
    expect(answer.status == 200, f"/v1/responses answered {answer.status} to a conversation with tools")
    return answer


def _first_call(ctx: Context, asked: list[Any]) -> tuple[str, list[Any]] | None:
    """(tool_choice, output items) of the first answer with a call; None when a chat has none either.

    A model may choose to make no call, and what it is forced to (tool_choice required) may be unreadable: neither is
    the server's fault. That a chat calls and a response does not is.
    """
    free = _respond(ctx, asked, tool_choice="auto")
    if response_calls(free):
        return "auto", list(at(free.body, "output"))
    chat = ctx.client.chat(WEATHER, tools=TOOLS, max_tokens=LIMIT, temperature=0)
    called = [name for name, _ in chat_calls(chat)] if chat.status == 200 else []
    expect(not called, f"a chat calls {called}, /v1/responses calls nothing")
    forced = _respond(ctx, asked, tool_choice="required")
    try:
        return ("required", list(at(forced.body, "output"))) if response_calls(forced) else None
    except Unmet:
        return None


def _streamed_call(answer: Answer) -> str:
    """The number of events. Raises Unmet unless they hold a whole call and end with response.completed."""
    lines = [line[5:] for line in str(answer.body).splitlines() if line.startswith("data:") and "[DONE]" not in line]
    events = [arguments_of(line) for line in lines]
    items = [at(event, "item") for event in events if event.get("type") == "response.output_item.done"]
    calls = [item for item in items if item.get("type") == "function_call"]
    expect(calls, "the stream holds no whole function_call")
    expect(at(calls[0], "call_id") and at(calls[0], "name"), "the streamed call has no call_id or no name")
    arguments_of(at(calls[0], "arguments"))
    expect(events[-1].get("type") == "response.completed", f"the stream ends with {events[-1].get('type')!r}")
    return f"{len(events)} events"
