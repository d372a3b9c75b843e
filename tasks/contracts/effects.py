"""What argv sets for requests that say nothing of it: each option has the effect that it is set for."""

from __future__ import annotations

from typing import Any

from tasks.contracts.promises import Context, at, expect, promise, slot_tokens
from tasks.contracts.sampling import NEUTRAL
from tasks.flags.words import values_of

_SOURCE = "llama.cpp tools/server/README.md options; guide 07: verify that parameters have effects"
_SHOWN = {
    "--temp": "temperature",
    "--top-k": "top_k",
    "--top-p": "top_p",
    "--min-p": "min_p",
    "--typical": "typical_p",
    "--top-nsigma": "top_n_sigma",
    "--xtc-probability": "xtc_probability",
    "--xtc-threshold": "xtc_threshold",
    "--repeat-last-n": "repeat_last_n",
    "--repeat-penalty": "repeat_penalty",
    "--presence-penalty": "presence_penalty",
    "--frequency-penalty": "frequency_penalty",
    "--dry-multiplier": "dry_multiplier",
    "--dry-base": "dry_base",
    "--dry-allowed-length": "dry_allowed_length",
    "--dry-penalty-last-n": "dry_penalty_last_n",
    "--dynatemp-range": "dynatemp_range",
    "--dynatemp-exp": "dynatemp_exponent",
    "--mirostat": "mirostat",
    "--mirostat-ent": "mirostat_tau",
    "--mirostat-lr": "mirostat_eta",
    "--keep": "n_keep",
}
"""Option -> what an answer calls it when it tells the settings that it was made with (server-task.cpp, `to_json`)."""
_CLOSE = 1e-4
"""Of a number: upstream keeps them in 32 bits."""
_ROOM = 16  # tokens: what is asked before an answer
_LONGEST = 256  # tokens: a longer answer is not waited for
_REPEATS = "1 2 3 4 5 6 7 8 " * 12
"""A text that any way of drafting goes on with."""
UNSAID = "argv leaves it to the server"


def given(ctx: Context) -> dict[str, str]:
    """First long name of an option -> its value in the release's argv."""
    return values_of(ctx.release.argv)


def _complete(ctx: Context, **params: Any) -> Any:
    answer = ctx.client.post("/completion", {"prompt": "1 2 3 4 ", "cache_prompt": False, **params})
    expect(answer.status == 200, f"/completion answered {answer.status}")
    return answer.body


@promise(
    "effects.samplers", "a request that names no sampler's value is answered with argv's", f"{_SOURCE} (`--temp` ...)"
)
def samplers(ctx: Context) -> str:
    argv = given(ctx)
    # what is less than 0 means something else to a server: all of the context, or a seed of its own
    asked = {_SHOWN[name]: float(value) for name, value in argv.items() if name in _SHOWN and float(value) >= 0}
    if not asked:
        return UNSAID
    shown = at(_complete(ctx, n_predict=1), "generation_settings")
    for name, value in asked.items():
        has = at(shown, name)
        expect(abs(float(has) - value) <= _CLOSE * max(1.0, abs(value)), f"{name} is {has}, argv asks for {value:g}")
    return ", ".join(f"{name} {value:g}" for name, value in asked.items())


@promise("effects.predict", "an answer without a limit of its own ends at argv's", f"{_SOURCE} (`--predict`)")
def predict(ctx: Context) -> str:
    asked = int(given(ctx).get("--predict", -1))
    if not 0 < asked <= _LONGEST:
        return UNSAID if asked < 0 else f"{asked} tokens are too many to wait for"
    if slot_tokens(ctx) < asked + _ROOM:
        return f"a slot has no room for {asked} tokens"
    told = at(_complete(ctx, ignore_eos=True, temperature=0), "tokens_predicted")
    expect(told == asked, f"it says {told} tokens, argv asks for {asked}")
    return f"{told} tokens"


@promise("effects.lora", "the adapters that argv names are loaded, with their scales", f"{_SOURCE} (`--lora`)")
def lora(ctx: Context) -> str:
    argv = given(ctx)
    asked = [1.0 for _ in filter(None, argv.get("--lora", "").split(","))]
    asked += [float(each.rpartition(":")[2]) for each in filter(None, argv.get("--lora-scaled", "").split(","))]
    if not asked:
        return UNSAID
    if argv.get("--lora-init-without-apply") == "on":
        asked = [0.0 for _ in asked]
    listed = ctx.client.get("/lora-adapters")
    expect(listed.status == 200, f"/lora-adapters answered {listed.status}")
    has = [float(at(each, "scale")) for each in listed.body]
    alike = len(has) == len(asked) and all(abs(a - b) <= _CLOSE for a, b in zip(has, asked, strict=True))
    expect(alike, f"adapters with scales {has} are loaded, argv asks for {asked}")
    return f"{len(has)} adapters"


@promise("effects.drafts", "tokens are drafted when argv asks for it", f"{_SOURCE} (`--spec-type`, `--model-draft`)")
def drafts(ctx: Context) -> str:
    argv = given(ctx)
    if argv.get("--spec-type", "none") == "none" and "--spec-draft-model" not in argv:
        return UNSAID
    # fewer than so many are not drafted at once, and no more than what is left of an answer
    least = max(int(argv.get(name, 0)) for name in ("--spec-draft-n-min", "--spec-ngram-mod-n-min"))
    says = max(48, 2 * least + 16)
    if says > _LONGEST or slot_tokens(ctx) < says + len(_REPEATS):
        return f"{says} tokens are too many to wait for, or for a slot"
    body = _complete(ctx, prompt=_REPEATS, n_predict=says, ignore_eos=True, **{**NEUTRAL, "temperature": 0})
    timings = at(body, "timings")
    drafted = int(timings.get("draft_n", 0))
    from_text = "--spec-draft-model" not in argv and "ngram" in argv["--spec-type"]
    if not drafted and from_text and not at(body, "content").startswith(_REPEATS[:40]):
        return "it does not go on as the text was: there is nothing to draft from"
    expect(drafted > 0, "no token was drafted in a text that goes on as it was")
    return f"{drafted} tokens drafted, {timings.get('draft_n_accepted', 0)} of them kept"


@promise("effects.cache_prompt", "no prompt is kept when argv forbids it", f"{_SOURCE} (`--no-cache-prompt`)")
def cache_prompt(ctx: Context) -> str:
    if given(ctx).get("--cache-prompt", "on") == "on":
        return UNSAID
    kept = [at(ctx.client.chat("Hi", max_tokens=1).body, "timings", "cache_n") for _ in range(2)]
    expect(kept[1] == 0, f"{kept[1]} tokens of the prompt were taken from before")
    return "read anew each time"


@promise(
    "effects.reasoning",
    "whether a model thinks, and where its thoughts stand, is as argv says",
    f"{_SOURCE} (`--reasoning`, `--reasoning-budget`, `--reasoning-format`)",
    server="set",
)
def reasoning(ctx: Context) -> str:
    argv = given(ctx)
    message = at(ctx.client.chat("Think.", max_tokens=64).body, "choices", 0, "message")
    apart, allowed = argv.get("--reasoning-format") != "none", argv.get("--reasoning-budget") != "0"
    if (apart and allowed) or "--reasoning-budget-message" in argv:
        return UNSAID
    thought = message.get("reasoning_content") or ""
    if not apart:
        expect(not thought, "thoughts stand apart, argv wants them in the content")
    else:
        expect(not thought.strip(), f"argv allows no thought, and it thinks {thought[:40]!r}")
    return "in the content" if not apart else "no thought"
