"""The promises against a real llama-server, and against the same server with one thing broken."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tasks import contracts
from tasks.contracts.promises import CONTRACTS, verify
from tasks.contracts.scripted import build as build_model
from tasks.contracts.scripted import thinks_forever
from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform
from tasks.release import Endpoint, FileRef, Release, Verdict
from tests.contracts.breaking_proxy import Ask, Breakage, Reply, broken

pytestmark = pytest.mark.real
CHAT = "/v1/chat/completions"
OLD = 10605  # before it, malformed JSON is a 500


def edited(reply: Reply, edit: Any) -> Reply:
    body = json.loads(reply.body)
    edit(body)
    return Reply(reply.status, json.dumps(body).encode())


class DropsBudget(Breakage):
    def ask(self, ask: Ask, right_key: str) -> Ask:
        if b"thinking_budget_tokens" not in ask.body:
            return ask
        body = json.loads(ask.body)
        del body["thinking_budget_tokens"]
        return Ask(ask.method, ask.path, json.dumps(body).encode(), ask.key)


class DropsMaxTokens(Breakage):
    def ask(self, ask: Ask, right_key: str) -> Ask:
        return Ask(ask.method, ask.path, re.sub(rb'"max_tokens": ?3\b,?', b"", ask.body), ask.key)


class DropsTemplateArguments(Breakage):
    def ask(self, ask: Ask, right_key: str) -> Ask:
        if b"What is the answer?" not in ask.body:
            return ask
        return Ask(ask.method, ask.path, ask.body.replace(b"enable_thinking", b"thinks_enabled"), ask.key)


class TakesAnyKey(Breakage):
    def ask(self, ask: Ask, right_key: str) -> Ask:
        return Ask(ask.method, ask.path, ask.body, right_key if ask.key else None)


class NeedsNoKey(Breakage):
    def ask(self, ask: Ask, right_key: str) -> Ask:
        return Ask(ask.method, ask.path, ask.body, ask.key or right_key)


class ForgetsUsage(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, lambda body: body.pop("usage", None)) if ask.path == CHAT else reply


class BuffersStreams(Breakage):
    buffers = True


class ChangesStreams(Breakage):
    def line(self, ask: Ask, line: bytes) -> bytes:
        return re.sub(rb'("content": ?")(\w)', rb"\1*\2", line) if b"rivers" in ask.body else line


class NeverSaysDone(Breakage):
    def line(self, ask: Ask, line: bytes) -> bytes:
        return b"" if b"[DONE]" in line else line


class FreezesMetrics(Breakage):
    frozen: Reply | None = None

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path != "/metrics" or reply.status != 200:
            return reply
        self.frozen = self.frozen or reply
        return self.frozen


class NamesAnotherModel(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return Reply(reply.status, reply.body.replace(b"smollm2", b"other")) if ask.path == "/v1/models" else reply


class ForgetsSlots(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, lambda body: body.update(total_slots=1)) if ask.path == "/props" and ask.key else reply


class FailsOnMalformedJson(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return Reply(500, reply.body) if b"parse error" in reply.body else reply


class LeaksThought(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, self._leak) if ask.path == CHAT and reply.status == 200 else reply

    def _leak(self, body: Any) -> None:
        message = body["choices"][0]["message"]
        if thought := message.pop("reasoning_content", None):
            message["content"] = f"<|channel>thought\n{thought}<channel|>{message['content']}"


class LeaksThoughtInStreams(Breakage):
    def line(self, ask: Ask, line: bytes) -> bytes:
        return line.replace(b"reasoning_content", b"content") if ask.path == CHAT else line


class HealthyTooEarly(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return Reply(200, b'{"status":"ok"}') if ask.path == "/health" else reply


class TakesLongPrompts(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return Reply(200, reply.body) if b"exceed" in reply.body else reply


class CutsResponses(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, lambda body: body.update(output=[])) if self._hits(ask) else reply

    def _hits(self, ask: Ask) -> bool:
        return ask.path == "/v1/responses" and b'"max_output_tokens":8' in ask.body.replace(b" ", b"")


BUDGET = {"budget_0", "budget_1", "budget_2", "budget_6"}
LIVE = "chat.stream_live"  # the scripted model is too fast for it
BROKEN: list[tuple[Breakage, set[str]]] = [
    (Breakage(), set()),
    (TakesAnyKey(), {"auth.wrong_key"}),
    (NeedsNoKey(), {"auth.no_key", "auth.private_routes"}),
    (ForgetsUsage(), {"chat.usage"}),
    (ChangesStreams(), {"chat.stream_same_text"}),
    (NeverSaysDone(), {"chat.stream_ends"}),
    (NamesAnotherModel(), {"models.names_alias"}),
    (ForgetsSlots(), {"settings.slots"}),
    (FailsOnMalformedJson(), {"errors.malformed_json"}),
    (TakesLongPrompts(), {"settings.ctx_is_enforced"}),
    (CutsResponses(), {"responses.answers"}),
    (FreezesMetrics(), {"metrics.prompt_tokens", "metrics.predicted_tokens"}),
    (DropsBudget(), {f"thinking.{name}" for name in BUDGET}),
    (DropsMaxTokens(), {"chat.max_tokens"}),
    (DropsTemplateArguments(), {"thinking.can_be_turned_off"}),
    (LeaksThought(), {"thinking.parsed"}),
    (LeaksThoughtInStreams(), {"thinking.parsed_streamed"}),
]


def check(endpoint: Endpoint, release: Release, names: Iterable[str]) -> dict[str, str]:
    """Subject.promise -> summary of each of these promises that the endpoint does not keep."""
    every = [verify(CONTRACTS[f"contracts.{n}"], endpoint, release, subject=release, basis="0") for n in names]
    assert endpoint.api_key and endpoint.api_key not in "".join(v.model_dump_json() for v in every)
    return {v.name.removeprefix("contracts."): v.summary for v in every if v.verdict is not Verdict.PASSED}


@pytest.mark.parametrize(("breakage", "caught"), BROKEN, ids=[type(b[0]).__name__ for b in BROKEN])
def test_a_broken_server_breaks_its_promise_and_no_other(
    breakage: Breakage, caught: set[str], scripted_server: Endpoint, scripted_release: Release
) -> None:
    names = [c.name.removeprefix("contracts.") for c in CONTRACTS.values() if c.server in ("model", "scripted")]
    with broken(scripted_server, breakage) as endpoint:
        assert set(check(endpoint, scripted_release, set(names) - {LIVE})) == caught | _old(scripted_release)


def test_a_server_that_holds_its_streams_back_is_caught(platform: LocalPlatform, release: Release) -> None:
    names = [LIVE, "chat.stream_same_text"]
    with platform.trial(release) as server:
        with broken(server, Breakage()) as endpoint:
            assert check(endpoint, release, names) == {}
        with broken(server, BuffersStreams()) as endpoint:
            assert set(check(endpoint, release, names)) == {LIVE}


def test_a_server_that_is_healthy_too_early_is_caught(platform: LocalPlatform, release: Release) -> None:
    with platform.trial(release, wait=False) as loading, broken(loading, HealthyTooEarly()) as endpoint:
        summaries = check(endpoint, release, ["health.never_early"])
    assert list(summaries) == ["health.never_early"]
    assert "first request got" in summaries["health.never_early"]


def test_a_real_server_keeps_every_promise(platform: LocalPlatform, release: Release) -> None:
    told: list[tuple[int, int, str]] = []

    def scripted(of: Release, model: Path) -> Release:
        ref: FileRef = platform.store.put_file(model)
        return of.model_copy(update={"files": {"model": ref}})

    found = contracts.run_all(platform, release, scripted, lambda *step: told.append(step))
    assert tuple(v.name for v in found) == contracts.required()
    assert {v.name.removeprefix("contracts.") for v in found if v.verdict is not Verdict.PASSED} == _old(release)
    assert {v.release for v in found} == {release.id}
    assert told[-1][:2] == (len(found), len(found))


def test_thinking_for_ever_is_ended_by_a_budget_and_by_nothing_else(
    platform: LocalPlatform, release: Release, tmp_path: Path
) -> None:
    model = platform.store.put_file(build_model(thinks_forever(), tmp_path / "forever.gguf"))
    with platform.trial(release.model_copy(update={"files": {"model": model}})) as endpoint, Client(endpoint) as client:
        free = client.chat("Think.", max_tokens=300).body["choices"][0]
        bounded = client.chat("Think.", max_tokens=300, thinking_budget_tokens=6).body["choices"][0]
    assert (free["finish_reason"], free["message"]["content"]) == ("length", "")
    assert (bounded["finish_reason"], bounded["message"]["content"]) == ("stop", "The answer is forty-two.")
    assert len(bounded["message"]["reasoning_content"].split()) <= 6


def _old(release: Release) -> set[str]:
    return {"errors.malformed_json"} if release.upstream.build < OLD else set()
