"""Real builds compared: what is known to have changed between them is found, and nothing that we use is missed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.platforms.local import LocalPlatform
from tasks.preflight import bundle, bundle_or_explain, compare_with_production, differences, surface_of
from tasks.preflight.argv import complaint
from tasks.preflight.compare import Difference, What
from tasks.release import Build, Release, ReleaseFailed, Verdict
from tasks.settings import LocalSettings, ServerSettings, Settings
from tasks.store import Store, sha256_of

pytestmark = pytest.mark.real

TAGS = ("b8672", "b11434")


@pytest.fixture(scope="module")
def settings(base: Settings, smollm2: Path) -> Settings:
    server = ServerSettings(model=smollm2, alias="m", ctx_per_slot=1024, threads=1)
    return base.model_copy(update={"server": server, "local": LocalSettings(staging_port=0, production_port=0)})


@pytest.fixture(scope="module")
def platform(settings: Settings) -> LocalPlatform:
    return LocalPlatform(settings)


@pytest.fixture(scope="module")
def builds(build_at: Callable[[str], Build]) -> dict[str, Build]:
    return {tag: build_at(tag) for tag in TAGS}


@pytest.fixture(scope="module")
def releases(platform: LocalPlatform, settings: Settings, builds: dict[str, Build]) -> dict[str, Release]:
    return {tag: bundle(platform.store, build, settings.server)[0] for tag, build in builds.items()}


@pytest.fixture(scope="module")
def between(
    platform: LocalPlatform, settings: Settings, build_at: Callable[[str], Build]
) -> Callable[[str, str], dict[str, Difference]]:
    """Gives what changed from one build to another, by every name."""

    def named(old: str, new: str) -> dict[str, Difference]:
        built = {tag: build_at(tag) for tag in (old, new)}
        before, after = (bundle(platform.store, each, settings.server)[0] for each in built.values())
        found = differences(platform, settings, built[new], after, before)
        assert not [each for each in found if each.fails]
        return {name: each for each in found if each.what is not What.ADDED for name in each.names}

    return named


Between = Callable[[str, str], dict[str, Difference]]


@pytest.mark.long
def test_from_b8672_to_b9105_the_ollama_routes_went(between: Between) -> None:
    found = between("b8672", "b9105")
    for route in ("POST /api/show", "GET /api/tags", "POST /api/chat"):
        assert (found[route].what, found[route].gone) == (What.REMOVED, True)
    assert found["GET /api/tags"].after == "GET /v1/models"
    assert found["--draft-max"].after == "--spec-draft-n-max"
    assert "LLAMA_ARG_WEBUI" not in found
    assert "--timeout" not in found


@pytest.mark.long
def test_from_b9105_to_b10605_the_web_ui_was_renamed_and_models_closed(between: Between) -> None:
    found = between("b9105", "b10605")
    assert (found["--webui"].after, found["--webui"].gone) == ("--ui", False)
    assert (found["--webui-config"].after, found["--webui-config"].gone) == ("--ui-config", False)
    for old, new in (
        ("LLAMA_ARG_WEBUI", "LLAMA_ARG_UI"),
        ("LLAMA_ARG_WEBUI_CONFIG", "LLAMA_ARG_UI_CONFIG"),
        ("LLAMA_ARG_WEBUI_CONFIG_FILE", "LLAMA_ARG_UI_CONFIG_FILE"),
        ("LLAMA_ARG_WEBUI_MCP_PROXY", "LLAMA_ARG_UI_MCP_PROXY"),
        ("LLAMA_CHAT_TEMPLATE_KWARGS", "LLAMA_ARG_CHAT_TEMPLATE_KWARGS"),
        ("webui", "ui"),
        ("webui_settings", "ui_settings"),
    ):
        assert (found[old].what, found[old].after, found[old].gone) == (What.RENAMED, new, True)
    assert (found["--timeout"].before, found["--timeout"].after) == ("600", "3600")
    models = found["GET /v1/models, no key"]
    assert (models.what, models.before, models.after) == (What.STATUS_CHANGED, "200", "401")
    assert found["--no-mmap"].what is What.DEFAULT_CHANGED  # deprecated, and still taken


@pytest.mark.long
def test_from_b10605_to_b11434_no_mmap_went_for_load_mode_and_malformed_json_is_a_400(between: Between) -> None:
    found = between("b10605", "b11434")
    assert (found["--no-mmap"].after, found["--no-mmap"].gone) == ("--load-mode", True)
    assert found["LLAMA_ARG_MMAP"].after == "LLAMA_ARG_LOAD_MODE"
    json = found["POST /v1/chat/completions, malformed JSON"]
    assert (json.before, json.after) == ("500", "400")
    assert "contracts.errors.malformed_json" in json.used_by


def test_across_all_of_them_our_own_flag_shows_its_old_and_its_new_way(between: Between) -> None:
    found = between("b8672", "b11434")["--no-mmap"]
    assert (found.what, found.after) == (What.RENAMED, "--load-mode")
    assert found.used_by == ("setting memory_map, here `--load-mode none`",)


def test_a_build_observed_again_does_not_differ_from_itself(
    platform: LocalPlatform, settings: Settings, builds: dict[str, Build], store_with: Store
) -> None:
    first = surface_of(platform, settings, builds["b11434"])
    assert first.exchanges["GET /metrics"].keys["llamacpp:prompt_tokens_total"] == "counter"
    assert first.exchanges["POST /v1/chat/completions"].keys["choices[].message.reasoning_content"] == "string"
    elsewhere = LocalPlatform(settings.model_copy(update={"store": store_with.root}))
    assert surface_of(elsewhere, settings, builds["b11434"]) == first


def test_an_argv_in_force_that_the_candidate_has_not_fails_and_names_the_replacement(
    platform: LocalPlatform, settings: Settings, builds: dict[str, Build], releases: dict[str, Release]
) -> None:
    """The same argv with `--no-mmap` on both sides: as if the settings knew no newer spelling."""
    argv = tuple(w for w in releases["b8672"].argv)
    assert "--no-mmap" in argv
    kept = releases["b11434"].model_copy(update={"argv": argv})
    found = differences(platform, settings, builds["b11434"], kept, releases["b8672"])
    assert [str(d) for d in found if d.fails] == ["flag --mmap, --no-mmap renamed -> --load-mode"]
    assert found[0].used_by == ("setting memory_map, newly `--load-mode none`",)


def wrapped(store: Store, build: Build, edit_help: str, *cases: str) -> Build:
    """The same build behind a shell script that passes `--help` through sed, with further cases of its arguments."""
    real = store.build_dir(build.digest) / "llama-server"
    folder = store.build_dir("0" * 16)
    folder.mkdir()
    os.link(real, folder / "real")
    script = folder / "llama-server"
    script.write_text(
        f"#!/bin/sh\ncase \"$*\" in\n--help) '{folder}/real' --help | sed '{edit_help}';;\n"
        + "".join(f"{case};;\n" for case in cases)
        + f"*) exec '{folder}/real' \"$@\";;\nesac\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    files = {path.name: sha256_of(path) for path in (script, folder / "real")}
    hidden = build.model_copy(update={"digest": folder.name, "files": files})
    (folder / "manifest.json").write_text(hidden.model_dump_json())
    return hidden


def test_a_flag_of_ours_that_the_candidate_no_longer_lists_fails_the_release(
    settings: Settings, builds: dict[str, Build], store_with: Store
) -> None:
    build = builds["b11434"]
    platform = LocalPlatform(settings.model_copy(update={"store": store_with.root}))
    before, _ = bundle(store_with, build, settings.server)
    same = compare_with_production(platform, settings, build, before, before)
    assert (same.verdict, same.summary) == (Verdict.PASSED, "the API is production's")
    hidden = wrapped(store_with, build, "/^--metrics /d")
    release, _ = bundle(store_with, hidden, settings.server)
    found = compare_with_production(platform, settings, hidden, release, before)
    assert found.verdict is Verdict.FAILED
    assert found.summary.endswith("flag --metrics removed (setting metrics)")
    assert store_with.verification(release.id, "surface") == found
    assert compare_with_production(platform, settings, hidden, release, release) == found  # now in production


def test_a_flag_that_the_candidate_refuses_is_told_with_its_new_name(
    settings: Settings, builds: dict[str, Build], store_with: Store
) -> None:
    build = builds["b11434"]
    platform = LocalPlatform(settings.model_copy(update={"store": store_with.root}))
    before, _ = bundle(store_with, build, settings.server)
    refuses = "*--metrics*) echo 'error: invalid argument: --metrics' >&2; exit 1"
    renamed = wrapped(store_with, build, "s/^--metrics /--measures/", refuses)
    with pytest.raises(ReleaseFailed) as failed:
        bundle_or_explain(platform, settings, renamed, before)
    assert "metrics: `--metrics`: error: invalid argument: --metrics" in failed.value.evidence
    assert (
        "flag --metrics renamed -> --measures (setting metrics): the same variable LLAMA_ARG_ENDPOINT_METRICS"
        in failed.value.evidence
    )


def test_with_nothing_in_production_there_is_nothing_to_compare_and_the_surface_is_kept(
    settings: Settings, builds: dict[str, Build], store_with: Store
) -> None:
    platform = LocalPlatform(settings.model_copy(update={"store": store_with.root}))
    release, _ = bundle(store_with, builds["b11434"], settings.server)
    found = compare_with_production(platform, settings, builds["b11434"], release, None)
    assert (found.verdict, found.summary) == (Verdict.PASSED, "nothing to compare with")
    assert len(list((store_with.root / "surfaces").iterdir())) == 1


def test_a_variable_that_no_binary_reads_is_said(
    settings: Settings, builds: dict[str, Build], store_with: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGML_NO_SUCH_THING", "1")
    monkeypatch.setenv("GGML_SCHED_DEBUG", "0")
    platform = LocalPlatform(settings.model_copy(update={"store": store_with.root}))
    release, _ = bundle(store_with, builds["b11434"], settings.server)
    found = compare_with_production(platform, settings, builds["b11434"], release, None)
    assert found.summary == "nothing to compare with; GGML_NO_SUCH_THING set here is not read"


def test_a_variable_of_the_old_kind_does_not_decide_what_a_binary_takes(
    platform: LocalPlatform, builds: dict[str, Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CHAT_TEMPLATE_KWARGS", "no JSON")
    assert complaint(platform.store, builds["b8672"], ("--metrics",)) == ""
