"""Images: taken in, counted, and seen.

Checked on a scripted model with a projector of random weights (`projector`): it says its script whatever it sees, but
what it sees moves its log-probabilities.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tasks.contracts.chat import EXACT
from tasks.contracts.projector import BLUE, RED
from tasks.contracts.promises import Context, at, expect, promise
from tasks.contracts.reading import apart, image_part, measured, next_token
from tasks.contracts.thinking import ANSWER
from tasks.endpoint import Answer, content

_FEWEST = 16  # prompt tokens that an image is at least
_SOURCE = "OpenAI API `POST /v1/chat/completions`, image_url; llama.cpp docs/multimodal.md; guide 08: vision and text"


def _messages(image: str | None) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What is this?"}]
    if image:
        parts.append(image_part(image))
    return [{"role": "user", "content": parts}]


def _ask(ctx: Context, image: str | None, **params: Any) -> Answer:
    answer = ctx.client.chat(_messages(image), **{"max_tokens": 8, **EXACT, **params})
    expect(answer.status == 200, f"a chat with{'' if image else 'out'} an image answered {answer.status}")
    return answer


@promise("vision.answers", "a chat with an image in base64 is answered", _SOURCE, server="seeing")
def answers(ctx: Context) -> str:
    said = content(_ask(ctx, RED))
    expect(said == ANSWER, f"the answer is {said!r}, not {ANSWER!r}")
    return repr(said)


@promise("vision.counts", "an image counts in the prompt's tokens", f"{_SOURCE}; OpenAI API, usage", server="seeing")
def counts(ctx: Context) -> str:
    without, seen = (at(_ask(ctx, image).body, "usage", "prompt_tokens") for image in (None, RED))
    expect(seen >= without + _FEWEST, f"{without} prompt tokens without the image, {seen} with it")
    return f"{seen - without} tokens an image"


@promise(
    "vision.sees",
    "two different images give different log-probabilities, the same one the same",
    _SOURCE,
    server="seeing",
)
def sees(ctx: Context) -> str:
    red, near = measured(partial(next_token, ctx, _messages(RED)))
    moved = apart(red, next_token(ctx, _messages(BLUE)))
    expect(moved > near, f"two images give log-probabilities {moved:.4f} apart")
    return f"{moved:.1f} apart"


@promise("vision.broken_image", "what is no image gets a 4xx, and the server lives on", _SOURCE, server="seeing")
def broken_image(ctx: Context) -> str:
    status = ctx.client.chat(_messages("bm8gaW1hZ2U="), max_tokens=1).status
    expect(400 <= status < 500, f"what is no image got {status}")
    expect(content(_ask(ctx, BLUE)) == ANSWER, "the next image was not answered")
    return str(status)


@promise(
    "vision.messages", "an image of a message is seen too", "Anthropic API `POST /v1/messages`, image", server="seeing"
)
def messages(ctx: Context) -> str:
    source = {"type": "base64", "media_type": "image/png", "data": RED}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    body = {"model": ctx.release.alias, "max_tokens": 200, "messages": [{"role": "user", "content": parts}]}
    answer = ctx.client.post("/v1/messages", body)
    expect(answer.status == 200, f"/v1/messages answered {answer.status}")
    plain = ctx.client.post("/v1/messages", body | {"messages": [{"role": "user", "content": parts[1:]}]})
    without, seen = (_read(one) for one in (plain, answer))
    expect(seen >= without + _FEWEST, f"{without} tokens read without the image, {seen} with it")
    return f"{seen - without} tokens an image"


def _read(answer: Answer) -> int:
    usage = at(answer.body, "usage")
    return int(at(usage, "input_tokens")) + int(usage.get("cache_read_input_tokens") or 0)


@promise(
    "vision.responses",
    "an image of a response's input is seen too",
    "OpenAI API `POST /v1/responses`, input_image",
    server="seeing",
)
def responses(ctx: Context) -> str:
    parts = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{RED}"},
    ]
    body = {"model": ctx.release.alias, "max_output_tokens": 200, "input": [{"role": "user", "content": parts}]}
    answer = ctx.client.post("/v1/responses", body)
    expect(answer.status == 200, f"/v1/responses answered {answer.status}")
    plain = ctx.client.post("/v1/responses", body | {"input": [{"role": "user", "content": parts[:1]}]})
    without, seen = (at(one.body, "usage", "input_tokens") for one in (plain, answer))
    expect(seen >= without + _FEWEST, f"{without} input tokens without the image, {seen} with it")
    return f"{seen - without} tokens an image"


@promise(
    "vision.without_projector", "without a projector an image gets an error that says so", _SOURCE, server="scripted"
)
def without_projector(ctx: Context) -> str:
    answer = ctx.client.chat(_messages(RED), max_tokens=8)
    expect(answer.status >= 400, f"an image without a projector got {answer.status}")
    said = str(at(answer.body, "error", "message"))
    expect("image" in said or "mmproj" in said, f"the error speaks of no image: {said!r}")
    return f"{answer.status} {said}"
