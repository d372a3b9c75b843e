"""Tool calls on real servers: what the promises catch, and the proof of patch 0002."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts.probes import probes_of, run_probes, shows_fault
from tasks.contracts.promises import CONTRACTS
from tasks.contracts.scripted import FIRST, SECOND, Script, call
from tasks.contracts.scripted import build as build_model
from tasks.endpoint import Client, message
from tasks.platforms.local import LocalPlatform
from tasks.preflight import with_model
from tasks.release import Endpoint, Release, Verdict
from tests.conftest import REPOSITORY
from tests.contracts.breaking_proxy import Ask, Breakage, Reply, broken
from tests.contracts.test_real import check, edited

pytestmark = pytest.mark.real
CHAT = "/v1/chat/completions"
ALL = [name.removeprefix("contracts.") for name, c in CONTRACTS.items() if c.server == "calling"]
NAMED = {name for name in ALL if name.startswith("tools.named")}


def resent(ask: Ask, edit: Any) -> Ask:
    if not ask.body:
        return ask
    body = json.loads(ask.body)
    edit(body)
    return Ask(ask.method, ask.path, json.dumps(body).encode(), ask.key)


class TakesNamesForAuto(Breakage):
    """What llama-server does without the patch."""

    def ask(self, ask: Ask, right_key: str) -> Ask:
        return resent(ask, self._auto)

    def _auto(self, body: Any) -> None:
        if isinstance(body.get("tool_choice"), dict):
            del body["tool_choice"]


class TakesNamesForRequired(Breakage):
    """The right status for a wrong object, and any function for a right one."""

    def ask(self, ask: Ask, right_key: str) -> Ask:
        named = SECOND.encode() in ask.body.split(b'"tool_choice"')[-1] and b"nonsense" not in ask.body
        return resent(ask, self._any if ask.path == "/v1/messages" else self._required) if named else ask

    def _required(self, body: Any) -> None:
        if "tool_choice" in body:
            body["tool_choice"] = "required"

    def _any(self, body: Any) -> None:
        if "tool_choice" in body:
            body["tool_choice"] = {"type": "any"}


class TakesRequiredForAuto(Breakage):
    def ask(self, ask: Ask, right_key: str) -> Ask:
        return Ask(ask.method, ask.path, ask.body.replace(b'"required"', b'"auto"'), ask.key)


class TakesNoneForAuto(Breakage):
    def ask(self, ask: Ask, right_key: str) -> Ask:
        return Ask(ask.method, ask.path, ask.body.replace(b'"none"', b'"auto"'), ask.key)


class LosesArguments(Breakage):
    """`{}` instead of the arguments, in chat answers that are not streamed."""

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, self._empty) if ask.path == CHAT and reply.status == 200 else reply

    def _empty(self, body: Any) -> None:
        for one in body["choices"][0]["message"].get("tool_calls") or []:
            one["function"]["arguments"] = "{}"


class GarblesStreams(Breakage):
    def line(self, ask: Ask, line: bytes) -> bytes:
        return line.replace(b'\\"days\\"', b'\\"days')


class LeaksCalls(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, self._leak) if ask.path == CHAT and reply.status == 200 else reply

    def _leak(self, body: Any) -> None:
        message = body["choices"][0]["message"]
        if message.get("tool_calls"):
            message["content"] = "<|tool_call>"


class DropsItems(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        field = {"/v1/responses": "output", "/v1/messages": "content"}.get(ask.path)
        return edited(reply, lambda body: body.update({field: []})) if field and reply.status == 200 else reply


CHAT_CALLS = {"tools.called", "tools.required", "tools.named"}
OTHERS = {"tools.responses", "tools.messages", "tools.named_responses", "tools.named_messages"}
BROKEN: list[tuple[Breakage, set[str]]] = [
    (Breakage(), set()),
    (TakesNamesForAuto(), NAMED),
    (TakesNamesForRequired(), {"tools.named", "tools.named_responses", "tools.named_messages"}),
    (TakesRequiredForAuto(), {"tools.required"}),
    (TakesNoneForAuto(), {"tools.none"}),
    (LosesArguments(), CHAT_CALLS),
    (GarblesStreams(), {"tools.streamed"}),
    (LeaksCalls(), {"tools.called"}),
    (DropsItems(), OTHERS),
]


@pytest.mark.parametrize(("breakage", "caught"), BROKEN, ids=[type(b[0]).__name__ for b in BROKEN])
def test_a_broken_server_breaks_its_promise_and_no_other(
    breakage: Breakage, caught: set[str], calling_server: Endpoint, calling_release: Release
) -> None:
    with broken(calling_server, breakage) as endpoint:
        assert set(check(endpoint, calling_release, ALL)) == caught


def probes(patch: str) -> tuple[str, ...]:
    text = (REPOSITORY / "patches" / patch).read_text()
    return probes_of(next(li for li in text.splitlines() if li.startswith("Proved-by: ")).removeprefix("Proved-by: "))


def run(platform: LocalPlatform, release: Release, patch: str) -> dict[str, tuple[Verdict, bool]]:
    found = run_probes(platform, release, probes(patch), lambda of, model: with_model(platform.store, of, model))
    assert {v.release for v in found.values()} == {release.id}
    return {name: (v.verdict, shows_fault(v)) for name, v in found.items()}


NAMED_PATCH, THINKING_PATCH = "0002-honour-named-tool-choice.patch", "0001-gemma4-thinking-tags.patch"


def test_the_probes_of_0002_fail_without_it_and_nothing_else_does(
    platform: LocalPlatform, unpatched_release: Release
) -> None:
    assert set(probes(NAMED_PATCH)) == NAMED
    assert set(run(platform, unpatched_release, NAMED_PATCH).values()) == {(Verdict.FAILED, True)}
    others = run_probes(
        platform, unpatched_release, sorted(set(ALL) - NAMED), lambda of, model: with_model(platform.store, of, model)
    )
    assert {v.verdict for v in others.values()} == {Verdict.PASSED}


@pytest.mark.parametrize("which", ["release", "older_release"])
def test_the_probes_of_0002_pass_with_it(platform: LocalPlatform, which: str, request: pytest.FixtureRequest) -> None:
    release: Release = request.getfixturevalue(which)
    assert set(run(platform, release, NAMED_PATCH).values()) == {(Verdict.PASSED, False)}


def test_the_probes_of_0001_pass_on_todays_upstream_without_it(
    platform: LocalPlatform, unpatched_release: Release
) -> None:
    assert set(run(platform, unpatched_release, THINKING_PATCH).values()) == {(Verdict.PASSED, False)}


def test_a_named_function_is_called_once_by_a_model_that_never_stops_calling(
    platform: LocalPlatform, release: Release, tmp_path: Path
) -> None:
    for_ever = f"model\n{call(FIRST, {'days': 3})}<|tool_call>"
    model = build_model(Script((for_ever,), instead=("<tool_call|><turn|>",)), tmp_path / "for-ever.gguf")
    tools = [{"type": "function", "function": {"name": FIRST, "parameters": {"type": "object"}}}]
    choice = {"type": "function", "function": {"name": FIRST}}
    with platform.trial(with_model(platform.store, release, model)) as endpoint, Client(endpoint) as client:
        free = client.chat("Go.", tools=tools, tool_choice="required", parallel_tool_calls=True, max_tokens=30)
        once = client.chat("Go.", tools=tools, tool_choice=choice, parallel_tool_calls=True, max_tokens=30)
    assert len(message(free)["tool_calls"]) > 1
    assert len(message(once)["tool_calls"]) == 1
    assert once.body["usage"]["completion_tokens"] < 30


def test_a_model_still_thinks_before_a_named_call(platform: LocalPlatform, release: Release, tmp_path: Path) -> None:
    thinks = f"model\n<|channel>thought\nt1 t2 t3 t4 t5 t6<channel|>{call(FIRST, {'days': 3})}<turn|>"
    model = build_model(Script((thinks,), instead=(call(SECOND, {"hours": 24}),)), tmp_path / "thinks.gguf")
    tools = [{"type": "function", "function": {"name": n, "parameters": {"type": "object"}}} for n in (FIRST, SECOND)]
    choice = {"type": "function", "function": {"name": SECOND}}
    thoughts = []
    with platform.trial(with_model(platform.store, release, model)) as endpoint, Client(endpoint) as client:
        for more in ({}, {"thinking_budget_tokens": 3}, {"chat_template_kwargs": {"enable_thinking": False}}):
            said = message(client.chat("Go.", tools=tools, tool_choice=choice, max_tokens=60, **more))
            assert [one["function"]["name"] for one in said["tool_calls"]] == [SECOND]
            thoughts.append(len((said.get("reasoning_content") or "").split()))
    assert thoughts == [6, 2, 0]


def test_the_named_function_alone_is_in_the_prompt(calling_server: Endpoint) -> None:
    tools = [{"type": "function", "function": {"name": n, "parameters": {"type": "object"}}} for n in (FIRST, SECOND)]
    choice = {"type": "function", "function": {"name": SECOND}}
    with Client(calling_server) as client:
        asked = {"messages": [{"role": "user", "content": "Hi"}], "tools": tools, "tool_choice": choice}
        prompt = client.post("/apply-template", asked).body["prompt"]
    assert f"declaration:{SECOND}" in prompt and f"declaration:{FIRST}" not in prompt


@pytest.mark.parametrize("choice", ["auto", "required", "none", None, "nonsense"])
def test_strings_mean_what_they_meant_without_the_patch(
    choice: str | None, platform: LocalPlatform, unpatched_release: Release, calling_server: Endpoint,
    calling_release: Release,
) -> None:  # fmt: skip
    tools = [{"type": "function", "function": {"name": FIRST, "parameters": {"type": "object"}}}]
    asked = {"tools": tools, "max_tokens": 30} | ({"tool_choice": choice} if choice else {})
    unpatched = unpatched_release.model_copy(update={"files": calling_release.files})
    seen = []
    with platform.trial(unpatched) as endpoint:
        for server in (calling_server, endpoint):
            with Client(server) as client:
                answer = client.chat("Hi", **asked)
            said = json.loads(json.dumps(message(answer)))
            for made in said.get("tool_calls") or []:
                del made["id"]
            seen.append((answer.status, said, answer.body.get("error")))
    assert seen[0] == seen[1]
