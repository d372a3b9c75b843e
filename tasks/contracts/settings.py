"""Server settings: what argv asks for is what the server does."""

from __future__ import annotations

from tasks.contracts.chat import EXACT
from tasks.contracts.promises import Context, at, ctx_asked, expect, promise, slot_count, slot_tokens, slots_asked

_SOURCE = "llama.cpp tools/server/README.md options; guide 05: incidents must show whether flags were correct"


@promise("settings.alias", "a chat answer names the served alias as its model", f"{_SOURCE} (`--alias`)", must=True)
def alias(ctx: Context) -> str:
    model = at(ctx.client.chat("Hi", max_tokens=1).body, "model")
    expect(model == ctx.release.alias, f"the answer's model is {model!r}, not {ctx.release.alias!r}")
    return str(model)


@promise("settings.slots", "the server has the slots that argv asks for", f"{_SOURCE} (`--parallel`)", must=True)
def slots(ctx: Context) -> str:
    asked = slots_asked(ctx)
    if asked is None:
        return "argv leaves it to the server"
    props, listed = slot_count(ctx), ctx.client.get("/slots")
    expect(props == asked, f"/props says {props} slots, argv asks for {asked}")
    if listed.status == 200:
        expect(len(listed.body) == asked, f"/slots lists {len(listed.body)} slots, argv asks for {asked}")
    return f"{asked} slots"


@promise("settings.ctx_per_slot", "each slot has its share of the context", f"{_SOURCE} (`--ctx-size`)", must=True)
def ctx_per_slot(ctx: Context) -> str:
    asked = ctx_asked(ctx)
    if asked is None:
        return "argv leaves it to the server"
    has = slot_tokens(ctx)
    expect(has == asked, f"a slot has {has} tokens of context, argv asks for {asked}")
    return f"{has} tokens a slot"


@promise(
    "settings.ctx_is_enforced",
    "a prompt longer than a slot's context gets a 4xx",
    f"{_SOURCE} (`--ctx-size`)",
    must=True,
)
def ctx_is_enforced(ctx: Context) -> str:
    asked = ctx_asked(ctx)
    if asked is None:
        return "argv leaves it to the server"
    status = ctx.client.chat("river " * (asked + 64), max_tokens=1, **EXACT).status
    expect(400 <= status < 500, f"a prompt of more than {asked} tokens got {status}")
    return str(status)
