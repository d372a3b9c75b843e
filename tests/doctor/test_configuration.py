"""A configuration against real binaries of several ages: each fault made for real, and silence where all is well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from tasks import gguf_header
from tasks.contracts import projector
from tasks.contracts.scripted import TEMPLATE, build, thinks_forever
from tasks.doctor import Seen, Severity
from tasks.doctor.configuration import (
    GUIDES_KEY,
    Binary,
    api_key,
    architecture,
    binaries,
    binary_at,
    given,
    rendered,
    thinking,
    unknown_to,
)
from tasks.doctor.model import fits, whole
from tasks.preflight import bundle
from tasks.release import BadInput, Build, Recipe, ReleaseFailed, StagePointer
from tasks.settings import ServerSettings, Settings
from tasks.store import Store
from tests import ggufs

NAME = "DOCTOR_TEST_KEY"
SECRET = "a-key-that-nobody-may-see"


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(thinks_forever(), tmp_path_factory.mktemp("model") / "gemma4.gguf")


# -- the key --------------------------------------------------------------------------------------------------------


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.delenv(GUIDES_KEY, raising=False)
    return Settings(server=ServerSettings(api_key_env=NAME))


def test_a_key_that_is_set_is_well(keyed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, SECRET)
    assert api_key(keyed) == f"{NAME} is set"


@pytest.mark.parametrize("line", [f"{NAME}={SECRET}", f"export {NAME}='{SECRET}'  # the key"])
def test_a_key_that_only_the_env_file_has_is_a_warning_that_does_not_tell_it(line: str, keyed: Settings) -> None:
    Path(".env").write_text(f"OTHER=1\n{line}\n")
    seen = api_key(keyed)
    assert isinstance(seen, Seen)
    assert seen.severity is Severity.WARNING
    assert str(Path(".env").absolute()) in seen.evidence
    assert ". ./.env" in seen.todo
    assert SECRET not in seen.model_dump_json()


def test_the_key_under_the_guides_name_is_a_warning_that_names_the_setting(
    keyed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GUIDES_KEY, SECRET)
    seen = api_key(keyed)
    assert isinstance(seen, Seen)
    assert f'server.api_key_env = "{GUIDES_KEY}"' in seen.todo
    assert SECRET not in seen.model_dump_json()


def test_no_key_at_all_is_a_note_here_and_a_warning_on_modal(keyed: Settings) -> None:
    for platform, severity in (("local", Severity.NOTE), ("modal", Severity.WARNING)):
        seen = api_key(keyed.model_copy(update={"platform": platform}))
        assert isinstance(seen, Seen)
        assert seen.severity is severity


# -- the model ------------------------------------------------------------------------------------------------------


def test_a_whole_model_and_its_projector_are_well(gemma4: Path, tmp_path: Path) -> None:
    mmproj = projector.build(96, tmp_path / "mmproj.gguf")
    assert "gemma4.gguf 1 MB, gemma4; mmproj.gguf" in str(whole(ServerSettings(model=gemma4, mmproj=mmproj)))


def test_a_download_that_broke_off_is_found_without_reading_the_tensors(gemma4: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gemma4.read_bytes()[: gguf_header.read(gemma4).needed_bytes - 1])
    with pytest.raises(BadInput, match="is incomplete"):
        whole(ServerSettings(model=cut))


def test_model_and_projector_the_wrong_way_round_are_found(gemma4: Path, tmp_path: Path) -> None:
    mmproj = projector.build(96, tmp_path / "mmproj.gguf")
    for wrong in (ServerSettings(model=mmproj), ServerSettings(model=gemma4, mmproj=gemma4)):
        with pytest.raises(BadInput, match="is no m"):
            whole(wrong)


def test_a_part_that_is_not_there_is_named_and_one_that_broke_off_is_found(smollm2: Path, tmp_path: Path) -> None:
    first, second, third = ggufs.split(smollm2, tmp_path, 3)
    assert "00002-of-00003.gguf" in str(whole(ServerSettings(model=first)))
    second.rename(tmp_path / "away")
    with pytest.raises(BadInput, match="cannot be read") as refused:
        whole(ServerSettings(model=first))
    assert refused.value.evidence == f"server.model.2: {second} is not there"
    (tmp_path / "away").rename(second)
    third.write_bytes(third.read_bytes()[:-1000])
    with pytest.raises(BadInput, match=r"model.3 .* is incomplete"):
        whole(ServerSettings(model=first))


def test_an_adapter_in_the_models_place_and_a_model_in_an_adapters_are_found(gemma4: Path, tmp_path: Path) -> None:
    adapter = ggufs.lora(tmp_path / "lora.gguf")
    for wrong in (ServerSettings(model=adapter), ServerSettings(model=gemma4, lora=(gemma4,))):
        with pytest.raises(BadInput, match=r"is no (model|lora)"):
            whole(wrong)


# -- what the settings ask of the files -----------------------------------------------------------------------------


def settings_of(**server: object) -> Settings:
    return Settings(server=ServerSettings.model_validate(server))


def test_all_that_settings_ask_and_cannot_have_is_one_error(gemma4: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}\n{{ m.content }")
    asked = settings_of(
        model=gemma4, value_cache_type="q8_0", flash_attention="off", chat_template=template,
        api_key_file=tmp_path / "keys", slot_save_path=tmp_path / "slots", lora=[ggufs.lora(tmp_path / "lora.gguf")],
    )  # fmt: skip
    with pytest.raises(BadInput, match="what cannot be") as refused:
        fits(asked)
    values, keys, slots, reads, adapter = refused.value.evidence.splitlines()
    assert "q8_0 in the cache need flash attention" in values
    assert keys == f"server.api_key_file: {tmp_path / 'keys'} is not there"
    assert slots == f"server.slot_save_path: there is no folder {tmp_path / 'slots'}"
    assert "none for jinja2, line 2" in reads
    assert "for the architecture 'llama', the model is 'gemma4'" in adapter


@pytest.mark.parametrize("server", [{"embeddings": True}, {"rerank": True}, {"flags": ["--reranking"]}])
def test_a_server_that_answers_no_chat_is_refused_before_a_compile(server: dict[str, object], gemma4: Path) -> None:
    with pytest.raises(BadInput, match="can't be proved yet") as refused:
        fits(settings_of(model=gemma4, **server))
    assert "answers no chat" in refused.value.evidence


@pytest.mark.parametrize(
    "server",
    [
        {"value_cache_type": "q8_0"},
        {"key_cache_type": "q8_0", "flash_attention": "off"},
        {"gpu_layers": "auto"},
        {"chat_template": TEMPLATE},
        {"chat_template": "for training"},
        {"ctx_per_slot": 1 << 22, "flags": ["--rope-scale", "32"]},
    ],
)
def test_what_can_be_is_well(server: dict[str, object], gemma4: Path, tmp_path: Path) -> None:
    if server.get("chat_template") == "for training":
        (tmp_path / "t.jinja").write_text(
            "{% for m in messages %}{%- generation %}{{ m }}{% endgeneration -%}{% endfor %}"
        )
        server = {"chat_template": tmp_path / "t.jinja"}
    assert "gemma4" in str(fits(settings_of(model=gemma4, **server)))
    if "gpu_layers" in server:
        cuda = settings_of(model=gemma4, gpu_layers=9).model_copy(update={"recipe": Recipe(backend="cuda")})
        vulkan = cuda.model_copy(update={"recipe": Recipe(cmake={"GGML_VULKAN": "ON"})})
        assert isinstance(fits(cuda), str)
        assert isinstance(fits(vulkan), str)


def test_what_llama_server_would_quietly_do_otherwise_is_a_warning(gemma4: Path) -> None:
    seen = fits(settings_of(model=gemma4, gpu_layers=99, ctx_per_slot=1 << 22))
    assert isinstance(seen, Seen)
    assert seen.severity is Severity.WARNING
    assert "a slot gets no more" in seen.evidence
    assert "server.gpu_layers is 99, and the recipe builds for the CPU alone" in seen.evidence


# -- thinking -------------------------------------------------------------------------------------------------------


def test_the_models_own_template_hides_nothing(gemma4: Path) -> None:
    assert (
        thinking(ServerSettings(model=gemma4), ["--reasoning-format", "auto", "--jinja"])
        == "the template knows of thinking"
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--reasoning-format", "none"],
        ["--jinja", "--reasoning-budget", "0"],
        ["--chat-template-kwargs", json.dumps({"enable_thinking": False})],
        ["--no-jinja"],
    ],
)
def test_parameters_that_hide_thoughts_are_a_warning(argv: list[str], gemma4: Path) -> None:
    seen = thinking(ServerSettings(model=gemma4), argv)
    assert isinstance(seen, Seen)
    assert seen.severity is Severity.WARNING


def test_a_template_that_hides_what_the_models_own_would_show_is_a_warning(gemma4: Path, tmp_path: Path) -> None:
    plain, own = tmp_path / "plain.jinja", tmp_path / "own.jinja"
    plain.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    shutil.copy(TEMPLATE, own)
    seen = thinking(ServerSettings(model=gemma4, chat_template=plain), ())
    assert isinstance(seen, Seen)
    assert "plain.jinja knows nothing of thinking" in seen.evidence
    assert thinking(ServerSettings(model=gemma4, chat_template=own), ()) == "the template knows of thinking"


# -- real binaries --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old(base: Settings, build_at: Callable[[str], Build]) -> Binary:
    return binary_at(Store(base.store).build_dir(build_at("b8672").digest) / "llama-server", base.store)


@pytest.fixture(scope="module")
def new(base: Settings, build_at: Callable[[str], Build]) -> Binary:
    return binary_at(Store(base.store).build_dir(build_at("b11434").digest) / "llama-server", base.store)


@pytest.mark.real
def test_an_architecture_that_came_after_the_build_is_found_before_a_load(
    old: Binary, new: Binary, gemma4: Path, tmp_path: Path
) -> None:
    newer = tmp_path / "newer.gguf"  # hunyuan_vl came between b8672 and b11434
    writer = gguf.GGUFWriter(newer, "hunyuan_vl")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ReleaseFailed) as caught:
        architecture(ServerSettings(model=newer), [old])
    assert caught.value.evidence == "unknown model architecture: 'hunyuan_vl'"
    assert "hunyuan_vl is known" in str(architecture(ServerSettings(model=newer), [new]))
    assert "gemma4 is known" in str(architecture(ServerSettings(model=gemma4), [old, new]))


@pytest.mark.real
def test_every_known_architecture_is_told_from_words_that_only_look_like_one(new: Binary) -> None:
    known = [name for name in gguf.MODEL_ARCH_NAMES.values() if name not in ("clip", "mmproj")]
    assert [name for name in known[::9] if unknown_to(new, name)] == []
    assert [name for name in ("script", "content", "gemma9") if not unknown_to(new, name)] == []


@pytest.mark.real
def test_flags_of_another_build_are_named_with_what_they_are_called_here(old: Binary, new: Binary) -> None:
    with pytest.raises(BadInput) as caught:
        given(
            "llama-server --model m.gguf --flash-attn --no-mmap --mlock --draft-max 4 --ctx-size -1 --nonsense", [new]
        )
    said = caught.value.evidence.splitlines()
    assert len(said) == 5
    for line, here in zip(
        said, ("--flash-attn on", "--load-mode none", "--load-mode", "--spec-draft-n-max", ""), strict=True
    ):
        assert f"`{here}`" in line if here else line.endswith("invalid argument: --nonsense")
    with pytest.raises(BadInput) as caught:
        given("--load-mode none", [old])
    assert "here it is `--no-mmap`" in caught.value.evidence
    assert "takes it" in str(given("--model m.gguf --flash-attn on --no-mmap --mlock --draft-max 4", [old]))
    assert "takes it" in str(given("--model m.gguf --flash-attn on --load-mode none", [new]))


@pytest.mark.real
def test_the_settings_can_be_said_to_every_build(old: Binary, new: Binary, gemma4: Path) -> None:
    assert "memory_map is `--no-mmap` here" in str(rendered(ServerSettings(model=gemma4), [old]))
    assert "memory_map" not in str(rendered(ServerSettings(model=gemma4), [new]))


@pytest.mark.real
def test_settings_with_a_chat_template_can_be_said_too_though_a_binary_opens_it_at_once(
    old: Binary, new: Binary, gemma4: Path
) -> None:
    server = ServerSettings(model=gemma4, chat_template=TEMPLATE)
    for binary in (old, new):
        assert "takes" in str(rendered(server, [binary]))


@pytest.mark.real
def test_a_secret_in_a_refused_flag_is_not_told(new: Binary) -> None:
    with pytest.raises(BadInput) as caught:
        given(f"llama-server --api-key={SECRET} --no-mmap", [new])
    assert "--api-key=***" in caught.value.evidence
    assert SECRET not in str(caught.value)


@pytest.mark.real
@pytest.mark.usefixtures("build")
def test_the_binaries_asked_are_those_that_the_stages_serve(
    store_with: Store, older_build: Build, gemma4: Path
) -> None:
    newest = max(each.source.upstream.build for each in store_with.builds())
    assert [each.name.split()[0] for each in binaries(store_with)] == [f"b{newest}"]
    release, _ = bundle(store_with, older_build, ServerSettings(model=gemma4))
    store_with.save_release(release)
    store_with.save_pointer(StagePointer(stage="production", release=release.id))
    assert [each.name for each in binaries(store_with)] == [f"b11401 ({older_build.digest})"]
