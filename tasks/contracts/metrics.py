"""GET /metrics: the counters that monitoring and the idle watch live on."""

from __future__ import annotations

import re
import time

from tasks.contracts.promises import Context, at, expect, promise

_SOURCE = "llama.cpp tools/server/README.md `GET /metrics`; guide 05: scrape /metrics for token counters"
_PROMPT = "<channel|>"  # the scripted model answers at once
_SETTLE_S = 2.0


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
    if "--metrics" not in ctx.release.argv:
        status = ctx.client.get("/metrics").status
        expect(status >= 400, f"/metrics answers {status} although the release does not ask for it")
        return "off, as the release's argv says"
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
