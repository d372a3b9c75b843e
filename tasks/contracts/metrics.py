"""GET /metrics: the counters that monitoring and the idle watch live on."""

from __future__ import annotations

import re
import time

from tasks.contracts.promises import Context, Unmet, at, expect, promise
from tasks.contracts.slots import endless, until_idle

_SOURCE = "llama.cpp tools/server/README.md `GET /metrics`; guide 05: scrape /metrics for token counters"
_PROMPT = "<channel|>"  # the scripted model answers at once
_SETTLE_S = 2.0
_TRIES = 3  # on a busy machine a request may be over before it is looked at
OFF = "off, as the release's argv says"


NAMES = (
    "prompt_tokens_total", "prompt_seconds_total", "tokens_predicted_total", "tokens_predicted_seconds_total",
    "n_decode_total", "n_tokens_max", "n_busy_slots_per_decode", "prompt_tokens_seconds", "predicted_tokens_seconds",
    "requests_processing", "requests_deferred",
)  # fmt: skip
"""What llama-server has told from b8672 to b11434."""


def is_on(ctx: Context) -> bool:
    """Whether the release asks for /metrics. Raises Unmet when it does not and /metrics answers all the same."""
    if "--metrics" in ctx.release.argv:
        return True
    status = ctx.client.get("/metrics").status
    expect(status >= 400, f"/metrics answers {status} although the release does not ask for it")
    return False


def counter(ctx: Context, name: str) -> float:
    """The value of one counter of /metrics. Raises Unmet when it is not there."""
    answer = ctx.client.get("/metrics")
    expect(answer.status == 200, f"/metrics answered {answer.status}")
    found = re.search(rf"^llamacpp:{name}(?:\{{.*\}})? (\S+)$", str(answer.body), re.MULTILINE)
    if found is None:
        expect(False, f"/metrics has no llamacpp:{name}")
        return 0.0
    return float(found[1])


def _moves(ctx: Context, name: str, usage_field: str) -> str:
    if not is_on(ctx):
        return OFF
    before = counter(ctx, name)
    answer = ctx.client.post("/v1/completions", {"prompt": _PROMPT, "max_tokens": 32, "cache_prompt": False})
    said = at(answer.body, "usage", usage_field)
    deadline = time.monotonic() + _SETTLE_S
    while (moved := counter(ctx, name) - before) != said and time.monotonic() < deadline:
        time.sleep(0.2)
    expect(moved == said, f"{name} moved by {moved:g}, usage says {said} {usage_field}")
    return f"moved by {moved:g}"


@promise("metrics.prompt_tokens", "prompt_tokens_total moves by what usage says", _SOURCE, server="scripted")
def prompt_tokens(ctx: Context) -> str:
    return _moves(ctx, "prompt_tokens_total", "prompt_tokens")


@promise("metrics.predicted_tokens", "tokens_predicted_total moves by what usage says", _SOURCE, server="scripted")
def predicted_tokens(ctx: Context) -> str:
    return _moves(ctx, "tokens_predicted_total", "completion_tokens")


@promise("metrics.names", "/metrics has every name that monitoring may use", _SOURCE)
def names(ctx: Context) -> str:
    if not is_on(ctx):
        return OFF
    found = set(re.findall(r"^llamacpp:(\w+)", str(ctx.client.get("/metrics").body), re.MULTILINE))
    missing = [name for name in NAMES if name not in found]
    expect(not missing, f"/metrics has no {', '.join(missing)}")
    return f"{len(NAMES)} names" + (f", and {', '.join(sorted(found - set(NAMES)))}" if found - set(NAMES) else "")


@promise("metrics.processing", "requests_processing counts what is under way", _SOURCE, server="counting")
def processing(ctx: Context) -> str:
    if not is_on(ctx):
        return OFF
    for _ in range(_TRIES):
        with ctx.client.open_stream("Count.", **endless(ctx)) as lines:
            next(lines)
            during = counter(ctx, "requests_processing")
        until_idle(ctx)
        after = counter(ctx, "requests_processing")
        if (during, after) == (1, 0):
            return "1 during a request, 0 after it"
    raise Unmet(f"requests_processing is {during:g} during a request and {after:g} after it")
