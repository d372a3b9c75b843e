"""GET /health: what a load balancer and a restore probe rely on."""

from __future__ import annotations

import time

from tasks.contracts.promises import Context, at, expect, promise

START_TIMEOUT_S = 300.0
_POLL_S = 0.02
_SOURCE = "llama.cpp tools/server/README.md `GET /health`; guide 04: 503 while the server starts"


@promise(
    "health.loading",
    "while the model loads, a chat gets 503 with an error object",
    f"{_SOURCE}: clients retry a 503 after 5-15 seconds",
    server="starting",
)
def loading(ctx: Context) -> str:
    answer = ctx.client.chat("Hi", max_tokens=1)
    if answer.status == 200:
        return "it was loaded before the first question came: nothing to see"
    expect(answer.status == 503, f"a chat got {answer.status} while the model was loading")
    return f"503 {at(answer.body, 'error', 'message')}"


@promise(
    "health.never_early",
    "/health is 503 (or silent) until the server is usable; the first request after the first 200 works",
    _SOURCE,
    server="starting",
    must=True,
)
def never_early(ctx: Context) -> str:
    start = time.monotonic()
    seen: dict[int | None, int] = {}
    while (status := ctx.client.health()) != 200:
        seen[status] = seen.get(status, 0) + 1
        expect(time.monotonic() - start < START_TIMEOUT_S, f"/health was never 200 in {START_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)
    ctx.notes["health_before_200"] = {str(code or "no answer"): times for code, times in seen.items()}
    first = ctx.client.chat("Hi", max_tokens=1)
    expect(first.status == 200, f"/health was 200, yet the first request got {first.status}")
    odd = sorted(code for code in seen if code not in (None, 503))
    expect(not odd, f"/health answered {odd} while loading, not 503")
    return f"200 after {time.monotonic() - start:.1f} s, {seen.get(503, 0)} times 503 before; the first request worked"


@promise("health.ok", 'after loading, /health is 200 {"status":"ok"}, without a key', _SOURCE, must=True, anywhere=True)
def ok(ctx: Context) -> str:
    answer = ctx.client.get("/health", key=None)
    expect(answer.status == 200, f"/health answered {answer.status}")
    expect(answer.body == {"status": "ok"}, f"/health answered {answer.body!r}")
    return '200 {"status":"ok"}'
