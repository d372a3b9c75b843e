"""A build is tried before it is published: what dies or counts wrongly here is no build, and it is told whose fault."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from modal_app.selftest import BOUND, CASE, MODEL, Case
from tasks import selftest
from tasks.platforms.local.compile import build as compile_build
from tasks.release import Build, Recipe, Release, ReleaseFailed, SourceTree, StagePointer, ToolingError
from tasks.settings import Settings
from tasks.store import Store, sha256_of
from tests.tiny import MAIN, that_counts_wrongly, that_dies, tiny


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return Settings(store=tmp_path / "store", cache=tmp_path / "cache")


RECIPE = Recipe()


def made(settings: Settings, source: SourceTree, recipe: Recipe = RECIPE) -> Build:
    return compile_build(source, recipe, Store(settings.store), settings, lambda *_: None)


def in_production(settings: Settings, build: Build) -> None:
    store = Store(settings.store)
    release = Release(
        upstream=build.source.upstream, tree=build.source.tree, build=build.digest, argv=(), files={}, alias="a"
    )
    store.save_release(release)
    store.save_pointer(StagePointer(stage="production", release=release.id))


# -- the case ---------------------------------------------------------------------------------------------------------


def test_the_case_is_the_same_whenever_it_is_made_and_is_written_once(tmp_path: Path) -> None:
    first = selftest.prepare(tmp_path / "a", ("F16", "Q4_K"))
    assert selftest.prepare(tmp_path / "a", ("F16", "Q4_K")) == first
    stamp = (first / CASE).stat().st_mtime_ns
    assert selftest.prepare(tmp_path / "a", ("F16", "Q4_K")) == first
    assert (first / CASE).stat().st_mtime_ns == stamp
    again = selftest.prepare(tmp_path / "b", ("F16", "Q4_K"))
    assert (again / MODEL).read_bytes() == (first / MODEL).read_bytes()
    assert (again / CASE).read_text() == (first / CASE).read_text()


def test_each_distribution_is_one_and_no_two_are_alike(tmp_path: Path) -> None:
    case = Case.from_json((selftest.prepare(tmp_path, ("F16",)) / CASE).read_text())
    for values in case.logprobs.values():
        assert np.exp(values).sum() == pytest.approx(1.0)
    spread = [max(values) - min(values) for values in case.logprobs.values()]
    assert min(spread) > 4, "garbage could not be told from it"
    first, second = (case.logprobs[n] for n in case.alone[:2])
    assert np.abs(np.subtract(first, second)).max() > 4 * BOUND


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ3_S", "MXFP4", "F16"])
def test_every_block_matters_to_the_answer(kind: str, tmp_path: Path) -> None:
    weights = selftest.write_model(tmp_path / "m.gguf", ("F16", kind))
    tokens = np.arange(3, 40)
    whole = selftest.forward(weights, tokens)
    without = selftest.Weights((weights.blocks[0],), weights.embedding, weights.output)
    assert np.abs(selftest.forward(without, tokens) - whole).max() > 4 * BOUND


def test_the_types_of_the_served_model_are_tried_too(tmp_path: Path) -> None:
    selftest.write_model(tmp_path / "m.gguf", ("IQ3_S", "Q5_K"))
    assert selftest.types_of(tmp_path / "m.gguf") == (*selftest.USUAL, "IQ3_S", "F32")
    assert selftest.types_of(None) == selftest.USUAL
    assert selftest.untried(tmp_path / "m.gguf") == ()


def test_what_is_there_and_not_whole_is_made_again(tmp_path: Path) -> None:
    folder = selftest.prepare(tmp_path, ("F16",))
    whole = (folder / MODEL).read_bytes()
    for name, left in ((MODEL, whole[:-100]), (CASE, b"")):
        (folder / name).write_bytes(left)
        assert selftest.prepare(tmp_path, ("F16",)) == folder
        assert (folder / MODEL).read_bytes() == whole
        assert Case.from_json((folder / CASE).read_text()).model_sha256 == sha256_of(folder / MODEL)


# -- builds -----------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_what_passes_is_published_with_what_it_said(settings: Settings, tmp_path: Path) -> None:
    build = made(settings, tiny(settings, tmp_path))
    assert "log-probabilities within 0.0" in build.selftest
    assert "on 1 thread" in build.selftest
    assert "Q4_K" in build.selftest


@pytest.mark.real
@pytest.mark.parametrize(
    ("by", "at"),
    [
        (signal.SIGSEGV, "at the first token"),
        (signal.SIGILL, "at load"),
        (signal.SIGBUS, "at a later answer"),
        (signal.SIGABRT, "at load"),
    ],
)
def test_a_build_that_dies_is_none_and_the_error_names_signal_and_moment(
    by: signal.Signals, at: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ToolingError, match=f"killed by {by.name} {at}") as failed:
        made(settings, tiny(settings, tmp_path, cmake=that_dies(by, at=at)))
    assert "whose fault it is could not be told" in failed.value.what
    if at != "at load":
        assert "ggml: about to compute" in failed.value.evidence
    assert "without native code: " in failed.value.evidence
    assert Store(settings.store).builds() == []


@pytest.mark.real
def test_a_build_that_counts_wrongly_is_none(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ToolingError, match=r"log-probabilities are off by 0\.40"):
        made(settings, tiny(settings, tmp_path, cmake=that_counts_wrongly(0.4)))
    assert Store(settings.store).builds() == []
    assert "within 0.10" in made(settings, tiny(settings, tmp_path, cmake=that_counts_wrongly(0.1))).selftest


@pytest.mark.real
def test_what_only_native_code_dies_of_has_a_way_round(settings: Settings, tmp_path: Path) -> None:
    source = tiny(settings, tmp_path, cmake=that_dies(signal.SIGILL, native=True))
    with pytest.raises(ToolingError, match="without native code it is right") as failed:
        made(settings, source)
    assert "whose fault it is could not be told" in failed.value.what
    assert 'set recipe.cmake = { GGML_NATIVE = "OFF" }' in failed.value.todo
    assert made(settings, source, Recipe(cmake={"GGML_NATIVE": "OFF"})).selftest


@pytest.mark.real
def test_further_flags_reach_the_code_that_is_made_for_this_cpu(settings: Settings, tmp_path: Path) -> None:
    source = tiny(settings, tmp_path, cmake=that_dies(signal.SIGILL, native=True))
    assert made(settings, source, Recipe(cpu_flags=("-UTINY_NATIVE",))).selftest


@pytest.mark.real
def test_where_productions_build_is_right_here_upstream_changed_it(settings: Settings, tmp_path: Path) -> None:
    in_production(settings, made(settings, tiny(settings, tmp_path, build=9998)))
    with pytest.raises(ReleaseFailed, match="production's b9998 is right on this machine") as failed:
        made(settings, tiny(settings, tmp_path, cmake=that_dies(signal.SIGSEGV)))
    assert "production's b9998: right" in failed.value.evidence


@pytest.mark.real
def test_where_productions_build_was_made_otherwise_nobody_is_blamed(settings: Settings, tmp_path: Path) -> None:
    in_production(settings, made(settings, tiny(settings, tmp_path, build=9998), Recipe(build_type="Debug")))
    with pytest.raises(ToolingError, match="whose fault it is could not be told") as failed:
        made(settings, tiny(settings, tmp_path, cmake=that_dies(signal.SIGSEGV)))
    assert "production's b9998 (made otherwise: recipe): right" in failed.value.evidence


@pytest.mark.real
def test_what_somebody_killed_says_nothing_of_the_release(settings: Settings, tmp_path: Path) -> None:
    in_production(settings, made(settings, tiny(settings, tmp_path, build=9998)))
    with pytest.raises(ToolingError, match="killed by SIGKILL.*which says nothing of the release") as failed:
        made(settings, tiny(settings, tmp_path, cmake=that_dies(signal.SIGKILL)))
    assert "without native code" not in failed.value.evidence, "nothing is to be found out"


@pytest.mark.real
def test_what_fails_once_and_is_right_when_asked_again_is_nobodys_fault(settings: Settings, tmp_path: Path) -> None:
    in_production(settings, made(settings, tiny(settings, tmp_path, build=9998)))
    done = tmp_path / "done"
    once = f'if (access("{done}", F_OK)) {{ fclose(fopen("{done}", "w")); raise(SIGSEGV); }}'
    source = tiny(settings, tmp_path, MAIN.replace("answers++;", f"answers++; {once}"))
    with pytest.raises(ToolingError, match="asked again it was right"):
        made(settings, source)
    assert made(settings, source).selftest


@pytest.mark.real
def test_a_self_test_that_was_cut_short_is_made_again(settings: Settings, tmp_path: Path) -> None:
    folder = selftest.prepare(settings.cache, selftest.USUAL)
    (folder / MODEL).write_bytes((folder / MODEL).read_bytes()[:-100])
    assert made(settings, tiny(settings, tmp_path)).selftest
    (folder / CASE).write_text("")
    assert made(settings, tiny(settings, tmp_path, build=9998)).selftest
    assert not [path for path in folder.parent.iterdir() if path != folder]


@pytest.mark.real
def test_where_productions_build_fails_here_too_the_release_is_not_called_bad(
    settings: Settings, tmp_path: Path
) -> None:
    build = made(settings, tiny(settings, tmp_path, build=9998))
    in_production(settings, build)
    # the machine changes under it: the same file now dies
    dying = tiny(settings, tmp_path, cmake=that_dies(signal.SIGILL), build=9998)
    folder = Store(settings.store).build_dir(build.digest)
    with pytest.raises(ReleaseFailed):
        made(settings, dying)
    out = settings.cache / "compile" / "out" / "bin" / "llama-server"
    (folder / "llama-server").unlink()
    (folder / "llama-server").write_bytes(out.read_bytes())
    (folder / "llama-server").chmod(0o755)
    store = Store(settings.store)
    files = {"llama-server": sha256_of(folder / "llama-server")}
    store.save_build(build.model_copy(update={"files": files}))
    with pytest.raises(ToolingError, match="production's b9998 fails here too"):
        made(settings, tiny(settings, tmp_path, cmake=that_dies(signal.SIGSEGV)))


@pytest.mark.real
def test_the_real_build_was_tried_before_it_was_published(build: Build) -> None:
    for kind in selftest.USUAL:
        assert kind in build.selftest
