"""What systemd, docker, compose and a shell do with the details of a set-up, and what is said of the unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.adoption.adopt import Adopted, adopt
from tasks.adoption.compose import _problem
from tasks.adoption.launch import Launch
from tasks.adoption.read import Source, read_source
from tasks.adoption.running import _is, _of_answers, _Props, _Slots
from tasks.adoption.shell import read_line
from tasks.adoption.variables import dotenv_file, interpolate, systemd_file
from tasks.flags.table import known
from tasks.release import BadInput
from tasks.settings import SETTINGS_FILE

IMAGE = "ghcr.io/ggml-org/llama.cpp:server"
MODEL = ("-m", "/m/a.gguf")


def read_line_of(*words: str, here: Path, maps: tuple[str, ...] = (), **environment: str) -> Launch:
    return read_source(Source(words=words, maps=maps), environment, here)


def adopted(*words: str, here: Path) -> Adopted:
    return adopt(read_line_of("llama-server", *words, here=here), known(), here)


def composed(here: Path, **files: str) -> Launch:
    """What compose.yaml comes to, beside files whose names have _ for a dot."""
    for name, text in files.items():
        (here / name.replace("_", ".")).write_text(text)
    return read_source(Source(compose=Path("compose.yaml")), {}, here)


def united(here: Path, text: str, name: str = "llama.service") -> Launch:
    (here / name).write_text(text)
    return read_source(Source(unit=Path(name)), {}, here)


def service(body: str) -> str:
    return f"services:\n  llm:\n    image: {IMAGE}\n    command: -m /m/a.gguf\n{body}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ALIAS=Bob's\nKEY=abc'def\n", {"ALIAS": "Bob's", "KEY": "abc'def"}),
        ('X={"enable_thinking":false}', {"X": '{"enable_thinking":false}'}),
        ("ALIAS=Bob's", {"ALIAS": "Bob's"}),
        ("""A='a'"b" c"d"\nB=""", {"A": 'abc"d"', "B": ""}),
        ("# it's\nA='two\nB=lines'\nC=x\\\n y  \n", {"A": "two\nB=lines", "C": "x y"}),
    ],
)
def test_a_quote_of_systemd_is_one_at_a_value_s_beginning_only(text: str, expected: dict[str, str]) -> None:
    assert systemd_file(text) == expected


def test_a_quote_of_systemd_that_is_not_closed_is_refused_without_what_follows() -> None:
    with pytest.raises(BadInput, match="a quote of A is not closed") as caught:
        systemd_file("A='b\nKEY=sekritABCDE")
    assert "sekrit" not in str(caught.value)


UNIT = "[Service]\nEnvironmentFile=-{file}\nExecStart=/usr/bin/llama-server -m /m/a.gguf\n"


def test_an_optional_file_of_variables_that_is_not_read_is_told(tmp_path: Path) -> None:
    notes = united(tmp_path, UNIT.format(file=tmp_path / "gone.env")).notes
    assert any("gone.env: not read" in note for note in notes)


@pytest.mark.parametrize("name", ["loop/llama.env", "loop/*.env"])
def test_an_optional_file_of_variables_that_can_not_be_looked_for_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")  # as a folder that may not be entered, for root too
    with pytest.raises(BadInput, match="EnvironmentFile="):
        united(tmp_path, UNIT.format(file=tmp_path / name))


@pytest.mark.parametrize("words", [("--api-key",), ("--api-key", ""), ("--api-key", "--metrics"), ("--api-key=",)])
def test_a_key_without_a_value_is_refused_and_not_dropped(words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        adopted(*MODEL, *words, here=tmp_path)
    assert "`--api-key`: it needs a value" in caught.value.evidence


def test_an_empty_variable_of_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        adopt(read_line_of("llama-server", *MODEL, here=tmp_path, LLAMA_API_KEY=""), known(), tmp_path)
    assert "LLAMA_API_KEY" in caught.value.evidence


def test_a_mistyped_flag_does_not_show_the_key_behind_its_sign(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        adopted(*MODEL, "--api-kye=sekritABCDE", here=tmp_path)
    assert "`--api-kye`" in caught.value.evidence and "sekrit" not in str(caught.value)


def test_an_error_in_a_file_names_the_place_and_never_its_text(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        composed(tmp_path, compose_yaml=service("    environment: {LLAMA_API_KEY: *sekritABCDE}\n"))
    assert "line 5, column 34" in caught.value.evidence and "sekrit" not in str(caught.value)
    with pytest.raises(BadInput) as caught:
        composed(tmp_path, compose_yaml=service("    environment: {LLAMA_API_KEY: 'sekrit${ABCDE'}\n"))
    assert caught.value.evidence == "compose.yaml: services.llm.environment.LLAMA_API_KEY"
    with pytest.raises(BadInput) as caught:
        dotenv_file("LLAMA_API_KEY=ab${sekrit!x}", {}, "llm.env")
    assert caught.value.evidence == "LLAMA_API_KEY, of llm.env"
    with pytest.raises(BadInput) as caught:
        interpolate("${A:?sekrit}", {})
    assert "sekrit" not in str(caught.value)
    with pytest.raises(BadInput) as caught:
        composed(tmp_path, compose_yaml=service("    deploy: sekritABCDE\n"))
    assert "sekrit" not in str(caught.value)


def test_a_problem_of_yaml_without_a_place_is_told() -> None:
    assert _problem(yaml.YAMLError()) == "YAMLError"


def test_a_long_port_keeps_its_address_and_one_of_udp_is_none(tmp_path: Path) -> None:
    ports = (
        "    ports:\n"
        "      - {target: 8080, published: 1, protocol: udp}\n"
        "      - {target: 8080, published: 9000, host_ip: '::1'}\n"
    )
    found = composed(tmp_path, compose_yaml=service(ports)).ports or ()
    assert [(each.host, each.outside, each.inside) for each in found] == [("::1", 9000, 8080)]


def test_of_two_mounts_to_one_place_the_later_wins(tmp_path: Path) -> None:
    above = "services: {llm: {volumes: ['/new:/m']}}"
    found = composed(tmp_path, compose_yaml=service("    volumes: ['/old:/m']\n"), compose_override_yaml=above)
    assert found.outside("/m/a.gguf") == Path("/new/a.gguf")
    found = composed(tmp_path, compose_override_yaml="services: {llm: {volumes: ['named:/m']}}")
    assert found.outside("/m/a.gguf") is None, "the place of a volume is docker's"
    words = ("docker", "run", "-v", "/old:/m", IMAGE, *MODEL)
    assert read_line_of(*words, here=tmp_path, maps=("/m=/mine",)).outside("/m/a.gguf") == Path("/mine/a.gguf")


def test_a_later_file_replaces_and_removes(tmp_path: Path) -> None:
    body = (
        "    volumes: ['/old:/m']\n    ports: ['1:8080']\n    environment: {LLAMA_ARG_THREADS: 1, LLAMA_ARG_SEED: 2}\n"
    )
    above = (
        "services:\n  llm:\n    volumes: !override ['/new:/n']\n    ports: !reset []\n"
        "    environment: {LLAMA_ARG_SEED: !reset null}\n"
    )
    found = composed(tmp_path, compose_yaml=service(body), compose_override_yaml=above)
    assert [str(each.inside) for each in found.mounts] == ["/n"] and found.ports == ()
    assert (found.value("LLAMA_ARG_THREADS"), found.value("LLAMA_ARG_SEED")) == ("1", None)


def test_a_tag_in_the_only_file_is_its_value(tmp_path: Path) -> None:
    found = composed(tmp_path, compose_yaml=service("    ports: !override ['1:8080']\n    volumes: !reset null\n"))
    assert len(found.ports or ()) == 1 and found.mounts == ()


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        (("-e", "NVIDIA_VISIBLE_DEVICES=1"), "1"),
        (("-e", "NVIDIA_VISIBLE_DEVICES=all"), None),
        (("-e", "NVIDIA_VISIBLE_DEVICES=none"), "-1"),
        (("--gpus", "device=2,3", "-e", "CUDA_VISIBLE_DEVICES=1"), "3"),
        (("--gpus", "device=2,3", "-e", "CUDA_VISIBLE_DEVICES=7"), "-1"),
        (("--gpus", "all", "-e", "CUDA_VISIBLE_DEVICES=1"), "1"),
        (("-e", "NVIDIA_VISIBLE_DEVICES=GPU-a,GPU-b", "-e", "CUDA_VISIBLE_DEVICES=1,0"), "GPU-b,GPU-a"),
    ],
)
def test_cuda_sees_what_it_saw_in_the_container(options: tuple[str, ...], gpus: str | None, tmp_path: Path) -> None:
    found = read_line_of("docker", "run", *options, IMAGE, *MODEL, here=tmp_path)
    assert found.value("CUDA_VISIBLE_DEVICES") == gpus and found.value("NVIDIA_VISIBLE_DEVICES") is None
    assert any("sees no GPU" in note for note in found.notes) is ("NVIDIA_VISIBLE_DEVICES=none" in options)


@pytest.mark.parametrize(
    ("image", "words", "told"),
    [
        (IMAGE, (), "set cuda"),
        (IMAGE, ("-ngl", "0"), ""),
        (f"{IMAGE}-cuda", (), ""),
        (f"{IMAGE}-vulkan", ("-ngl", "9"), "recipe.cmake"),
    ],
)
def test_what_is_not_known_of_the_backend_is_told(
    image: str, words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    launch = read_line_of("docker", "run", "-v", "/m:/m", image, *MODEL, *words, here=tmp_path)
    notes = [note for note in adopt(launch, known(), tmp_path).settled.notes if "recipe." in note]
    assert len(notes) == bool(told) and all(told in note for note in notes)


def told_by(total: int) -> list[str]:
    props = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": total, "model_path": "/m/a.gguf"}
    launch = _of_answers(props, {}, [], "127.0.0.1", 8080)
    assert any("share the context" in note for note in launch.notes) is (total == 4)
    return [word.text for word in launch.words]


def test_the_slots_that_a_server_has_by_itself_share_its_context() -> None:
    assert "--parallel" not in told_by(4) and told_by(4)[told_by(4).index("--ctx-size") + 1] == "4096"
    assert told_by(2)[told_by(2).index("--ctx-size") + 1] == "8192" and "--parallel" in told_by(2)


@pytest.mark.parametrize(
    "body",
    [
        {"default_generation_settings": None},
        {"default_generation_settings": {}, "total_slots": "4"},
        {"default_generation_settings": {"n_ctx": "x"}},
        {"default_generation_settings": {"params": [1]}},
    ],
)
def test_an_answer_of_another_form_is_no_llama_server_s(body: dict[str, Any]) -> None:
    assert not _is(_Props, body) and not _is(_Slots, ["x"])
    assert _is(_Props, {"default_generation_settings": {"n_ctx": 1, "params": {"a": [1], "b": 0.5}}, "more": 1})
    assert _is(_Slots, {"error": {"code": 501}}) and _is(_Slots, [{"id": 0, "n_ctx": 1}]) and _is(_Slots, None)


def test_several_files_of_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        adopted(*MODEL, "--api-key-file", "/a", "--api-key-file", "/b", here=tmp_path)
    assert "put all keys into one file" in caught.value.evidence
    assert adopted(*MODEL, "--api-key-file", "/a", here=tmp_path).settled.server["api_key_file"] == "/a"


def test_a_shell_s_home_is_filled_in() -> None:
    line = read_line("M=~/n srv ~/m.gguf a~b '~/c' --x=~/d $M", {"HOME": "/h", "M": "~"})
    assert line.words == ["srv", "/h/m.gguf", "a~b", "~/c", "--x=~/d", "~"] and line.variables == {"M": "/h/n"}


@pytest.mark.parametrize("text", ["srv -m *.gguf", "srv -m m?.gguf", "srv -m [ab].gguf", "srv -m {a,b}.gguf"])
def test_what_a_shell_would_look_up_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="only a shell"):
        read_line(text, {})
    assert read_line(f"srv '{text}' ${{A}}", {"A": "b"}).words == ["srv", text, "b"]


def test_a_comma_in_a_file_s_name_stays(tmp_path: Path) -> None:
    words = ("--path", "a,b", "--control-vector", "c,d")
    flags = adopted(*MODEL, *words, here=tmp_path).settled.server["flags"]
    assert f"{tmp_path}/a,b" in flags and f"{tmp_path}/c,{tmp_path}/d" in flags


def test_a_relative_source_of_a_mount_begins_here(tmp_path: Path) -> None:
    words = ("docker", "run", "--mount", "type=bind,source=models,target=/m", IMAGE, *MODEL)
    assert read_line_of(*words, here=tmp_path).outside("/m/a.gguf") == tmp_path / "models/a.gguf"


def test_a_file_that_can_not_be_looked_for_is_told_as_such(tmp_path: Path) -> None:
    name = str(tmp_path / ("a" * 300))
    found = adopted("-m", name, "--mmproj", "/m/gone.gguf", here=tmp_path)
    assert found.unseen == (Path(name),) and found.missing == (Path("/m/gone.gguf"),)


@pytest.mark.parametrize("text", ["server = 1\n", "recipe = 1\n", 'server = {model = "/old.gguf"}\n'])
def test_settings_of_another_form_are_others(text: str, tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text(text)
    found = adopted(*MODEL, here=tmp_path)
    assert found.changes and 'model = "/m/a.gguf"' in found.text


def test_an_empty_entrypoint_clears_the_image_s(tmp_path: Path) -> None:
    words = ("docker", "run", "--entrypoint", "", IMAGE, "/app/llama-server", *MODEL)
    assert tuple(word.text for word in read_line_of(*words, here=tmp_path).words) == MODEL
    text = service("    entrypoint: ''\n").replace("-m /m", "/app/llama-server -m /m")
    assert tuple(word.text for word in composed(tmp_path, compose_yaml=text).words) == MODEL


def test_a_quadlet_says_where_its_line_is(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="quadlet") as caught:
        united(tmp_path, f"[Container]\nImage={IMAGE}\n[Service]\nRestart=always\n", "llm.container")
    assert "llm.service" in caught.value.evidence and "systemctl cat llm.service" in caught.value.todo


def test_that_an_idle_server_stops_is_told(tmp_path: Path) -> None:
    assert any("local.idle_s" in note for note in adopted(*MODEL, here=tmp_path).settled.notes)


def test_llama_server_s_own_files_of_settings_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".config/llama.cpp/config.ini"
    assert not any(str(file) in note for note in adopted(*MODEL, here=tmp_path).settled.notes)
    file.parent.mkdir(parents=True)
    file.touch()
    assert any(str(file) in note for note in adopted(*MODEL, here=tmp_path).settled.notes)
