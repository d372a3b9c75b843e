"""The guarded client against real llama-servers, with and without the patch that honours a named function."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator

import pytest

from tasks.contracts.scripted import FIRST, SECOND, SECOND_ARGUMENTS
from tasks.endpoint import Client, Patience, Rejected, content, message
from tasks.endpoint.guards import RAW_TOOL_TOKENS
from tasks.platforms.local import LocalPlatform
from tasks.release import BadInput, Build, Endpoint, Release
from tasks.settings import Settings
from tasks.sources import Sources
from tests.contracts.conftest import (
    calling_release,
    calling_server,
    platform,
    release,
    scripted_release,
    scripted_server,
    unpatched_release,
)
from tests.endpoint.conftest import AT_ONCE, Ask, Use
from tests.platforms.conftest import stand
from tests.platforms.stand import Stand, until

__all__ = [
    "calling_release", "calling_server", "platform", "release", "scripted_release", "scripted_server", "stand",
    "unpatched_release",
]  # fmt: skip
pytestmark = pytest.mark.real
TOOLS = [
    {"type": "function", "function": {"name": FIRST, "parameters": {"type": "object"}}},
    {
        "type": "function",
        "function": {
            "name": SECOND,
            "parameters": {"type": "object", "properties": {"hours": {"type": "integer"}}, "required": ["hours"]},
        },
    },
]
NAMED = {"type": "function", "function": {"name": SECOND}}


def test_every_raw_tool_token_stands_in_the_upstream_file_that_is_named_for_it(base: Settings, build: Build) -> None:
    sources = Sources(base.cache)
    missing = {
        token: file
        for token, file in RAW_TOOL_TOKENS.items()
        if token not in sources.read(build.source.upstream_tree, file)
    }
    assert missing == {}


@pytest.fixture(scope="module")
def unpatched_server(
    platform: LocalPlatform, unpatched_release: Release, calling_release: Release
) -> Iterator[Endpoint]:
    with platform.trial(unpatched_release.model_copy(update={"files": calling_release.files})) as endpoint:
        yield endpoint


@pytest.mark.parametrize("which", ["calling_server", "unpatched_server"])
def test_a_named_function_is_really_called_also_where_the_server_ignores_its_name(
    which: str, ask: Ask, request: pytest.FixtureRequest
) -> None:
    server: Endpoint = request.getfixturevalue(which)
    answer = ask(server, tools=TOOLS, tool_choice=NAMED, max_tokens=60)
    (call,) = message(answer)["tool_calls"]
    assert call["function"]["name"] == SECOND and json.loads(call["function"]["arguments"]) == SECOND_ARGUMENTS


def test_a_call_leaked_under_none_is_never_handed_out(ask: Ask, calling_server: Endpoint) -> None:
    with Client(calling_server) as client:
        assert "<|tool_call>" in content(client.chat("Hi", tools=TOOLS, tool_choice="none", max_tokens=60))
    with pytest.raises(Rejected, match=r"<\|tool_call>"):
        ask(calling_server, tools=TOOLS, tool_choice="none", max_tokens=60)


def test_a_thought_that_takes_all_tokens_is_said(ask: Ask, scripted_server: Endpoint) -> None:
    with pytest.raises(BadInput, match="thinking used up the tokens"):
        ask(scripted_server, max_tokens=8)
    assert content(ask(scripted_server, max_tokens=8, chat_template_kwargs={"enable_thinking": False}))


def test_a_server_that_comes_up_on_the_first_request_is_waited_for(stand: Stand, use: Use) -> None:
    endpoint = stand.serve(stand.first)
    assert stand.platform.idle("staging") == 0
    boots = len(stand.platform.boots("staging"))
    assert content(use(endpoint, lambda client: client.ask("Hello", max_tokens=4), timeout_s=0.01))
    assert len(stand.platform.boots("staging")) == boots + 1


def test_an_endpoint_that_is_gone_is_asked_until_it_is_back(stand: Stand) -> None:
    endpoint = stand.serve(stand.first)
    os.kill(stand.status().pid, signal.SIGKILL)
    assert until(lambda: stand.platform.status("staging") is None, 20.0)
    seen: list[str] = []

    class Reviver(logging.Handler):
        """Brings the endpoint back once an attempt has failed."""

        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())
            if len(seen) == 1:
                stand.platform.ensure("staging")

    log, reviver = logging.getLogger("tasks.endpoint"), Reviver()
    log.addHandler(reviver)
    log.setLevel(logging.INFO)
    try:
        with Client(endpoint, patience=Patience(cold_start_s=60, pause_s=AT_ONCE.pause_s)) as client:
            assert content(client.ask("Hello", max_tokens=4))
    finally:
        log.removeHandler(reviver)
        log.setLevel(logging.NOTSET)
    assert "ConnectError" in seen[0] and " 200 in " in seen[-1]
