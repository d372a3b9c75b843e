"""Options set in each way that settings know, on a real server: they are shown to have their effect, and to lack it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.contracts import effects
from tasks.contracts.promises import CONTRACTS, Recorder, verify
from tasks.contracts.trials import trial_release
from tasks.platforms.local import LocalPlatform
from tasks.preflight.argv import bundle
from tasks.release import Build, Endpoint, Release, Verdict, Verification
from tasks.settings import ServerSettings
from tests import ggufs

pytestmark = pytest.mark.real
SAID = {"effects.samplers": "temperature 0.7", "effects.predict": "40 tokens", "effects.lora": "2 adapters",
        "effects.drafts": "tokens drafted", "effects.cache_prompt": "read anew"}  # fmt: skip
OTHERWISE = {
    "effects.samplers": ("--temp", "0.7", "0.8"),
    "effects.predict": ("--predict", "40", "41"),
    "effects.lora": ("--lora-scaled", "{lora}:0.8,{lora.2}:1.0", "{lora}:1.0,{lora.2}:1.0"),
}


@pytest.fixture(scope="module")
def every(platform: LocalPlatform, build: Build, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("files")
    first, *_ = ggufs.split(smollm2, folder, 3)
    server = ServerSettings(
        model=first, slots="auto", ctx_per_slot="auto", kv_cache_type="auto", value_cache_type="q8_0", threads=1,
        lora=(ggufs.lora(folder / "one.gguf"), ggufs.lora(folder / "two.gguf", rank=2)), lora_scale=(0.8, 1.0),
        temperature=0.7, top_k=20, min_p=0.02, repeat_penalty=1.1, predict=40, cache_prompt=False,
        speculation="ngram-mod", flags=("-c", "5000", "-np", "3", "--dry-multiplier", "0.3"),
        env={"GGML_LOG_LEVEL": "2", "LLAMA_ARG_TOP_P": "0.9"},
    )  # fmt: skip
    return bundle(platform.store, build, server)[0]


@pytest.fixture(scope="module")
def endpoint(platform: LocalPlatform, every: Release) -> Iterator[Endpoint]:
    with platform.trial(every) as found:
        yield found


def asked(endpoint: Endpoint, release: Release, name: str) -> Verification:
    with Recorder(endpoint) as client:
        return verify(CONTRACTS[f"contracts.{name}"], client, release, subject=release, basis="0")


def test_every_file_is_a_part_of_the_release_by_its_content(every: Release) -> None:
    assert set(every.files) == {"model", "model.2", "model.3", "lora", "lora.2"}
    assert len({ref.sha256 for ref in every.files.values()}) == 5
    assert every.env == {"GGML_LOG_LEVEL": "2"}
    assert every.argv[every.argv.index("--top-p") + 1] == "0.9"


@pytest.mark.parametrize("name", sorted(SAID))
def test_what_argv_sets_has_its_effect(name: str, every: Release, endpoint: Endpoint) -> None:
    found = asked(endpoint, every, name)
    assert found.verdict is Verdict.PASSED
    assert SAID[name] in found.summary


@pytest.mark.parametrize("name", sorted(OTHERWISE))
def test_a_server_on_which_it_has_none_is_caught(name: str, every: Release, endpoint: Endpoint) -> None:
    flag, value, other = OTHERWISE[name]
    argv = list(every.argv)
    assert argv[argv.index(flag) + 1] == value
    argv[argv.index(flag) + 1] = other
    assert asked(endpoint, every.model_copy(update={"argv": tuple(argv)}), name).verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("name", "more"),
    [("effects.cache_prompt", ("--no-cache-prompt",)), ("effects.drafts", ("--spec-type", "ngram-mod"))],
)
def test_a_server_that_never_heard_of_it_is_caught(
    name: str, more: tuple[str, ...], platform: LocalPlatform, build: Build, smollm2: Path
) -> None:
    plain, _ = bundle(platform.store, build, ServerSettings(model=smollm2, threads=1))
    with platform.trial(plain) as endpoint:
        assert asked(endpoint, plain, name).summary == effects.UNSAID
        told = plain.model_copy(update={"argv": (*plain.argv, *more)})
        assert asked(endpoint, told, name).verdict is Verdict.FAILED


@pytest.mark.parametrize("more", [("--reasoning-budget", "0"), ("--reasoning-format", "none")])
def test_a_server_that_thinks_otherwise_than_argv_says_is_caught_and_all_else_is_kept(
    more: tuple[str, str], release: Release, scripted_release: Release, scripted_server: Endpoint,
    platform: LocalPlatform, tmp_path: Path,
) -> None:  # fmt: skip
    told = scripted_release.model_copy(update={"argv": (*scripted_release.argv, *more)})
    assert asked(scripted_server, scripted_release, "effects.reasoning").summary == effects.UNSAID
    assert asked(scripted_server, told, "effects.reasoning").verdict is Verdict.FAILED
    thinks = release.model_copy(update={"argv": (*release.argv, *more)})
    runs = trial_release(platform.store, thinks, "set", tmp_path)
    with platform.trial(runs) as endpoint:
        assert asked(endpoint, runs, "effects.reasoning").verdict is Verdict.PASSED
    assert trial_release(platform.store, thinks, "scripted", tmp_path).argv == scripted_release.argv
