"""Tool calls on real servers: what the promises catch, and the proof of patch 0002."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.contracts.probes import probes_of, run_probes, shows_fault
from tasks.contracts.promises import CONTRACTS
from tasks.contracts.scripted import FIRST, SECOND, Script, call
from tasks.contracts.scripted import build as build_model
from tasks.contracts.trials import with_model
from tasks.endpoint import Client, message
from tasks.platforms.local import LocalPlatform
from tasks.release import Endpoint, Release, Verdict
from tests.conftest import REPOSITORY
from tests.contracts.test_real import SHORTCOMINGS, names_of

pytestmark = pytest.mark.real
NAMED = {name.removeprefix("contracts.") for name in CONTRACTS if name.startswith("contracts.tools.named")}


def probes(patch: str) -> tuple[str, ...]:
    text = (REPOSITORY / "patches" / patch).read_text()
    return probes_of(next(li for li in text.splitlines() if li.startswith("Proved-by: ")).removeprefix("Proved-by: "))


def run(platform: LocalPlatform, release: Release, patch: str) -> dict[str, tuple[Verdict, bool]]:
    found = run_probes(platform, release, probes(patch))
    assert {v.release for v in found.values()} == {release.id}
    return {name: (v.verdict, shows_fault(v)) for name, v in found.items()}


NAMED_PATCH, THINKING_PATCH = "0002-honour-named-tool-choice.patch", "0001-gemma4-thinking-tags.patch"


def test_the_probes_of_0002_fail_without_it_and_nothing_else_does(
    platform: LocalPlatform, unpatched_release: Release
) -> None:
    assert set(probes(NAMED_PATCH)) == NAMED
    assert set(run(platform, unpatched_release, NAMED_PATCH).values()) == {(Verdict.FAILED, True)}
    others = run_probes(platform, unpatched_release, sorted(set(names_of("calling")) - NAMED - SHORTCOMINGS))
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
