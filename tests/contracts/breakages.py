"""Servers with one thing wrong, and the promises that each of them breaks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from threading import Condition
from typing import Any

from tasks.contracts.projector import RED
from tasks.contracts.promises import Server
from tasks.contracts.scripted import FIRST, SECOND
from tests.contracts.breaking_proxy import ANY, Ask, Breakage, Reply

CHAT = "/v1/chat/completions"
LOADING = b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'


def resent(ask: Ask, edit: Callable[[Any], object]) -> Ask:
    """The request with its JSON body edited; as it was when it has none."""
    try:
        body = json.loads(ask.body)
    except ValueError:
        return ask
    if isinstance(body, dict):
        edit(body)
    return replace(ask, body=json.dumps(body).encode())


def edited(reply: Reply, edit: Callable[[Any], object]) -> Reply:
    body = json.loads(reply.body)
    edit(body)
    return replace(reply, body=json.dumps(body).encode())


class Drops(Breakage):
    """Does not hear fields of a request: those that hold this kind of value, at this path."""

    def __init__(self, *fields: str, only: type = object, at: str = "") -> None:
        self.fields, self.only, self.at = fields, only, at

    def __str__(self) -> str:
        return f"Drops {' and '.join(self.fields)}" + (f" at {self.at}" if self.at else "")

    def ask(self, ask: Ask) -> Ask:
        heard = self.at in ("", ask.path) and any(field.encode() in ask.body for field in self.fields)
        return resent(ask, self._drop) if heard else ask

    def _drop(self, body: Any) -> None:
        for field in self.fields:
            if isinstance(body.get(field), self.only):
                body.pop(field, None)


class DropsMaxTokens(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return replace(ask, body=re.sub(rb'"max_tokens": ?3\b,?', b"", ask.body))


class DropsTemplateArguments(Breakage):
    def ask(self, ask: Ask) -> Ask:
        if b"What is the answer?" not in ask.body:
            return ask
        return replace(ask, body=ask.body.replace(b"enable_thinking", b"thinks_enabled"))


class DropsZeroTemperature(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return resent(ask, self._drop)

    def _drop(self, body: Any) -> None:
        if "seed" in body and body.get("temperature") == 0:
            del body["temperature"]


class KnowsNobody(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return Reply(401, b"{}") if ask.path == CHAT and b'"Hi"' in ask.body else reply


class TakesAnyKey(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return replace(ask, key=self.right_key if ask.key else None)


class NeedsNoKey(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return replace(ask, key=ask.key or self.right_key)


class OpensOneRoute(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return replace(ask, key=self.right_key if ask.path == "/detokenize" else ask.key)


class ForgetsUsage(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, lambda body: body.pop("usage", None)) if ask.path == CHAT else reply


class ForgetsUsageInStreams(Breakage):
    def line(self, ask: Ask, line: bytes) -> bytes:
        return b"" if b'"usage"' in line and ask.path == CHAT else line


class Renames(Breakage):
    """Says one word for another in answers and streams."""

    def __init__(self, old: str, new: str, *, at: str = CHAT, among: str = "") -> None:
        self.old, self.new, self.at, self.among = old.encode(), new.encode(), at, among.encode()

    def __str__(self) -> str:
        return f"Says {self.new.decode()} for {self.old.decode()}".replace('"', "")

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path != self.at or self.among not in ask.body:
            return reply
        return replace(reply, body=reply.body.replace(self.old, self.new))

    def line(self, ask: Ask, line: bytes) -> bytes:
        return self.reply(ask, Reply(200, line)).body


class BuffersStreams(Breakage):
    buffers = True


class ChangesStreams(Breakage):
    def line(self, ask: Ask, line: bytes) -> bytes:
        return re.sub(rb'("content": ?")(\w)', rb"\1*\2", line) if b"rivers" in ask.body else line


class NeverSaysDone(Breakage):
    def line(self, _ask: Ask, line: bytes) -> bytes:
        return b"" if b"[DONE]" in line else line


class MixesStreams(Breakage):
    """Swaps words between two streams that run at the same time: the first word of each waits for another's.

    Only where there is a seed: any other stream may be alone, and its client gone.
    """

    def __init__(self) -> None:
        self.held: dict[int, bytes] = {}
        self.came = Condition()

    def line(self, ask: Ask, line: bytes) -> bytes:
        if b'"content":"w' not in line or b'"seed"' not in ask.body:
            return line
        with self.came:
            first, self.held[id(ask)] = id(ask) not in self.held, line
            self.came.notify_all()
            if first:
                self.came.wait_for(lambda: self._other(ask), 10.0)
            other = self._other(ask)
            return line if other is None else self.held[other]

    def _other(self, ask: Ask) -> int | None:
        return next((mine for mine in self.held if mine != id(ask)), None)

    def ended(self, ask: Ask) -> None:
        with self.came:
            self.held.pop(id(ask), None)


class NeverFreesSlots(Breakage):
    drains = ANY


class FreezesMetrics(Breakage):
    frozen: Reply | None = None

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path != "/metrics" or reply.status != 200:
            return reply
        self.frozen = self.frozen or reply
        return self.frozen


class RenamesOneMetric(Breakage):
    def reply(self, _ask: Ask, reply: Reply) -> Reply:
        return Reply(reply.status, reply.body.replace(b"requests_deferred", b"requests_waiting"))


class NamesAnotherModel(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return Reply(reply.status, reply.body.replace(b"smollm2", b"other")) if ask.path == "/v1/models" else reply


class ForgetsSlots(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, lambda body: body.update(total_slots=1)) if ask.path == "/props" and ask.key else reply


class FailsOnMalformedJson(Breakage):
    def reply(self, _ask: Ask, reply: Reply) -> Reply:
        return Reply(500, reply.body) if b"parse error" in reply.body else reply


class FailsOnBadRequests(Breakage):
    def reply(self, _ask: Ask, reply: Reply) -> Reply:
        return Reply(500, reply.body) if reply.status == 400 else reply


class IsIllAfterBadRequests(Breakage):
    ill = False

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        self.ill = self.ill or b"parse error" in reply.body
        return Reply(500, b"{}") if self.ill and ask.path == "/health" else reply


class KnowsEveryRoute(Breakage):
    def reply(self, _ask: Ask, reply: Reply) -> Reply:
        return Reply(200, reply.body) if reply.status == 404 else reply


class SpeaksOfNoError(Breakage):
    def reply(self, _ask: Ask, reply: Reply) -> Reply:
        return Reply(reply.status, b'{"detail": "no"}') if reply.status >= 400 else reply


class RefusesLargeBodies(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return Reply(500, b"{}") if len(ask.body) > 8 << 20 else reply


class LosesReasoning(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return replace(ask, body=ask.body.replace(b"reasoning_content", b"reasoning_forgotten"))


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


class ThinksAlways(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        wanted = b"enable_thinking" in ask.body or b"thinking_budget" in ask.body
        return edited(reply, self._think) if wanted else reply

    def _think(self, body: Any) -> None:
        body["choices"][0]["message"]["reasoning_content"] = "hm"


class StillLoading(Breakage):
    """Its first chat is answered as while the model loads, with this status: a real one may have loaded by then."""

    def __init__(self, status: int, healthy: bool) -> None:
        self.status, self.healthy, self.chats = status, healthy, 0

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        if ask.path == "/health" and self.healthy:
            return Reply(200, b'{"status":"ok"}')
        self.chats += ask.path == CHAT
        if ask.path == CHAT and (self.chats == 1 or reply.status == 503):
            return Reply(self.status, LOADING)
        return reply


class HealthyTooEarly(StillLoading):
    def __init__(self) -> None:
        super().__init__(503, healthy=True)


class FailsWhileLoading(StillLoading):
    def __init__(self) -> None:
        super().__init__(500, healthy=False)


class TakesLongPrompts(Breakage):
    def reply(self, _ask: Ask, reply: Reply) -> Reply:
        return Reply(200, reply.body) if b"exceed" in reply.body else reply


class CutsResponses(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, lambda body: body.update(output=[])) if self._hits(ask) else reply

    def _hits(self, ask: Ask) -> bool:
        return ask.path == "/v1/responses" and b'"max_output_tokens":8' in ask.body.replace(b" ", b"")


class StopsStreamsShort(Breakage):
    """Of messages and responses."""

    def line(self, _ask: Ask, line: bytes) -> bytes:
        return b"" if b"message_stop" in line or b"response.completed" in line else line


class CountsTokensWrong(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        wrong = ask.path == "/v1/messages/count_tokens" and reply.status == 200
        return edited(reply, lambda body: body.update(input_tokens=1)) if wrong else reply


class SwallowsImages(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return resent(ask, self._swallow) if ask.path == CHAT else ask

    def _swallow(self, body: Any) -> None:
        for message in body.get("messages", []):
            if isinstance(message["content"], list):
                message["content"] = [part for part in message["content"] if part["type"] == "text"]


class SwallowsImagesElsewhere(Breakage):
    """In messages and responses."""

    def ask(self, ask: Ask) -> Ask:
        return resent(ask, self._swallow) if ask.path in ("/v1/messages", "/v1/responses") else ask

    def _swallow(self, body: Any) -> None:
        (said,) = body.get("messages") or body["input"]
        said["content"] = [part for part in said["content"] if "image" not in part["type"]]


class SeesOneImageOnly(Breakage):
    def ask(self, ask: Ask) -> Ask:
        seen = re.sub(rb"(data:image/png;base64,)[^\"]+", rb"\1" + RED.encode(), ask.body)
        return replace(ask, body=seen)


class TakesNamesForAuto(Breakage):
    """What llama-server does without the patch."""

    def ask(self, ask: Ask) -> Ask:
        return resent(ask, self._auto)

    def _auto(self, body: Any) -> None:
        if isinstance(body.get("tool_choice"), dict):
            del body["tool_choice"]


class TakesNamesForRequired(Breakage):
    """The right status for a wrong object, and any function for a right one."""

    def ask(self, ask: Ask) -> Ask:
        named = SECOND.encode() in ask.body.split(b'"tool_choice"')[-1] and b"nonsense" not in ask.body
        return resent(ask, self._any if ask.path == "/v1/messages" else self._required) if named else ask

    def _required(self, body: Any) -> None:
        if "tool_choice" in body:
            body["tool_choice"] = "required"

    def _any(self, body: Any) -> None:
        if "tool_choice" in body:
            body["tool_choice"] = {"type": "any"}


class TakesRequiredForAuto(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return replace(ask, body=ask.body.replace(b'"required"', b'"auto"'))


class TakesNoneForAuto(Breakage):
    def ask(self, ask: Ask) -> Ask:
        return replace(ask, body=ask.body.replace(b'"none"', b'"auto"'))


class SwapsToolNames(Breakage):
    def reply(self, ask: Ask, reply: Reply) -> Reply:
        first, second = f'"{FIRST}"'.encode(), f'"{SECOND}"'.encode()
        swapped = reply.body.replace(first, b'"?"').replace(second, first).replace(b'"?"', second)
        return Reply(reply.status, swapped) if ask.path == CHAT else reply


class LosesArguments(Breakage):
    """`{}` instead of the arguments, in chat answers that are not streamed."""

    def reply(self, ask: Ask, reply: Reply) -> Reply:
        return edited(reply, self._empty) if ask.path == CHAT and reply.status == 200 else reply

    def _empty(self, body: Any) -> None:
        for one in body["choices"][0]["message"].get("tool_calls") or []:
            one["function"]["arguments"] = "{}"


class LosesResults(Breakage):
    """The model never gets to read what a tool found."""

    def ask(self, ask: Ask) -> Ask:
        return resent(ask, self._lose)

    def _lose(self, body: Any) -> None:
        for field in ("messages", "input"):
            if isinstance(body.get(field), list):
                body[field] = [item for item in body[field] if not self._is_result(item)]

    def _is_result(self, item: Any) -> bool:
        return item.get("role") in ("tool", "assistant") or "call_id" in item or "tool_result" in str(item)


class GarblesStreams(Breakage):
    def line(self, _ask: Ask, line: bytes) -> bytes:
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


BUDGETS = ("thinking.budget_0", "thinking.budget_1", "thinking.budget_2", "thinking.budget_6", "thinking.budget_large")
NAMED = ("tools.named", "tools.named_messages", "tools.named_responses")
REFUSED = ("tools.named_malformed", "tools.named_unknown")
LIVE = "chat.stream_live"  # on the release's model: the scripted ones are too fast for it

BROKEN: list[tuple[Breakage, Server, tuple[str, ...]]] = [
    (Breakage(), "scripted", ()),
    (TakesAnyKey(), "scripted", ("auth.every_way", "auth.models", "auth.spellings", "auth.wrong_key",
                               "errors.object")),
    (NeedsNoKey(), "scripted", ("auth.every_way", "auth.models", "auth.no_key", "auth.spellings")),
    (OpensOneRoute(), "scripted", ("auth.every_way", "auth.no_key", "auth.wrong_key")),
    (ForgetsUsage(), "scripted", ("chat.stream_usage", "chat.usage")),
    (ForgetsUsageInStreams(), "scripted", ("chat.stream_usage",)),
    (ChangesStreams(), "scripted", ("chat.stream_same_text",)),
    (NeverSaysDone(), "scripted", ("chat.stream_ends",)),
    (NamesAnotherModel(), "scripted", ("models.names_alias",)),
    (ForgetsSlots(), "scripted", ("settings.slots",)),
    (FailsOnMalformedJson(), "scripted", ("errors.malformed_json",)),
    (SpeaksOfNoError(), "scripted", ("errors.object", "errors.too_long", "vision.without_projector")),
    (RefusesLargeBodies(), "scripted", ("errors.large_body",)),
    (TakesLongPrompts(), "scripted", ("settings.ctx_is_enforced",)),
    (CutsResponses(), "scripted", ("responses.answers",)),
    (StopsStreamsShort(), "scripted", ("messages.streamed", "responses.streamed")),
    (KnowsNobody(), "scripted", ("auth.right_key", "errors.large_body", "errors.survives", "errors.wrong_tools",
                                 "settings.alias")),
    (Renames('"chat.completion"', '"text_completion"'), "scripted", ("chat.answers",)),
    (Renames("chat.completion.chunk", "chat.completion.piece"), "scripted", ("chat.stream_chunks",)),
    (Renames('"finish_reason":"length"', '"finish_reason":"stop"'), "scripted", ("chat.finish_length",)),
    (Renames('"finish_reason":"stop"', '"finish_reason":"length"'), "scripted",
     ("chat.finish_stop", "thinking.answer_after_budget")),
    (Renames('"model":"smollm2"', '"model":"other"'), "scripted", ("settings.alias",)),
    (Renames('"n_ctx":4096', '"n_ctx":2048', at="/props"), "scripted", ("errors.too_long", "settings.ctx_per_slot")),
    (FailsOnBadRequests(), "scripted", ("errors.malformed_json", "errors.missing_messages", "errors.object",
                                        "errors.wrong_type", "errors.wrong_value", "settings.ctx_is_enforced")),
    (IsIllAfterBadRequests(), "scripted", ("errors.survives", "health.ok")),
    (KnowsEveryRoute(), "scripted", ("errors.object", "errors.unknown_route")),
    (Drops("max_tokens", at="/v1/messages"), "scripted", ("messages.answers", "messages.max_tokens", "messages.usage")),
    (Drops("max_output_tokens"), "scripted", ("responses.max_output_tokens", "responses.usage")),
    (Drops("chat_template_kwargs", at="/v1/responses"), "scripted",
     ("responses.max_output_tokens", "responses.thinking_off")),
    (DropsItems(), "scripted", ("messages.answers", "messages.budget", "messages.stop_sequences", "messages.streamed",
                                "messages.thinking_off", "messages.thinking_parsed", "responses.answers",
                                "responses.budget", "responses.effort_none", "responses.max_output_tokens",
                                "responses.thinking_off", "responses.thinking_parsed")),
    (CountsTokensWrong(), "scripted", ("messages.count_tokens",)),
    (FreezesMetrics(), "scripted", ("metrics.predicted_tokens", "metrics.prompt_tokens")),
    (RenamesOneMetric(), "scripted", ("metrics.names",)),
    (LosesReasoning(), "scripted", ("template.keeps_reasoning", "template.of_release")),
    (Drops("thinking_budget_tokens"), "scripted", ("responses.budget", *BUDGETS)),
    (Drops("reasoning_budget_tokens"), "scripted", ("thinking.reasoning_budget",)),
    (Drops("reasoning_effort"), "scripted", ("thinking.effort_none",)),
    (Drops("reasoning"), "scripted", ("responses.effort_none",)),
    (Drops("thinking"), "scripted", ("messages.budget",)),
    (Drops("stop", "stop_sequences"), "scripted", ("chat.stop_sequence", "messages.stop_sequences")),
    (DropsMaxTokens(), "scripted", ("chat.max_tokens",)),
    (DropsTemplateArguments(), "scripted", ("thinking.can_be_turned_off",)),
    (LeaksThought(), "scripted", ("thinking.parsed",)),
    (LeaksThoughtInStreams(), "scripted", ("thinking.parsed_streamed",)),
    (Breakage(), "counting", ()),
    (Drops("seed"), "counting", ("sampling.seed", "slots.streams_do_not_mix")),
    (DropsZeroTemperature(), "counting", ("sampling.temperature",)),
    (ThinksAlways(), "counting", ("thinking.adaptive",)),
    (Drops("top_k"), "counting", ("sampling.top_k",)),
    (Drops("top_p"), "counting", ("sampling.top_p",)),
    (Drops("min_p"), "counting", ("sampling.min_p",)),
    (Drops("stop"), "counting", ("sampling.stop",)),
    (Drops("grammar"), "counting", ("sampling.grammar",)),
    (Drops("response_format"), "counting", ("sampling.json_object", "sampling.json_schema")),
    (Drops("logprobs", "top_logprobs"), "counting", ("sampling.logprobs",)),
    (Drops("logit_bias", only=dict), "counting", ("sampling.logit_bias", "sampling.repeats")),
    (Drops("presence_penalty"), "counting", ("sampling.repeats",)),
    (MixesStreams(), "counting", ("slots.streams_do_not_mix",)),
    (NeverFreesSlots(), "counting", ("slots.cancelled_anywhere",)),
    (FreezesMetrics(), "counting", ("metrics.processing",)),
    (Breakage(), "seeing", ()),
    (SwallowsImages(), "seeing", ("vision.broken_image", "vision.counts", "vision.sees")),
    (SwallowsImagesElsewhere(), "seeing", ("vision.messages", "vision.responses")),
    (Renames("forty-two", "twelve", among="image_url"), "seeing", ("vision.answers", "vision.broken_image")),
    (SeesOneImageOnly(), "seeing", ("vision.broken_image", "vision.sees")),
    (Breakage(), "calling", ()),
    (TakesNamesForAuto(), "calling", (*NAMED, *REFUSED)),
    (TakesNamesForRequired(), "calling", NAMED),
    (TakesRequiredForAuto(), "calling", ("tools.required", "tools.responses_required")),
    (TakesNoneForAuto(), "calling", ("tools.none", "tools.none_clean", "tools.responses_none")),
    (SwapsToolNames(), "calling", ("tools.called", "tools.named", "tools.parallel", "tools.required")),
    (LosesArguments(), "calling", ("tools.called", "tools.named", "tools.required")),
    (LosesResults(), "calling", ("tools.answered", "tools.messages_answered", "tools.responses_answered")),
    (GarblesStreams(), "calling", ("tools.streamed",)),
    (LeaksCalls(), "calling", ("tools.called",)),
    (Drops("parallel_tool_calls"), "calling", ("tools.parallel",)),
    (DropsItems(), "calling", ("tools.messages", "tools.messages_answered", "tools.named_messages",
                               "tools.named_responses", "tools.responses", "tools.responses_answered",
                               "tools.responses_required")),
]  # fmt: skip
"""(what is broken, the server it is in front of, the promises that it changes: not kept for that; where the intact
server does not keep one, kept)."""


def title(breakage: Breakage) -> str:
    """What is wrong, in a few words."""
    if isinstance(breakage, Drops | Renames):
        return str(breakage)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(breakage).__name__).capitalize()
