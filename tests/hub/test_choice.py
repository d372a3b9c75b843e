"""Which files of a repository are served: as llama-server b11434 chooses (common/download.cpp, common/arg.cpp)."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.hub.choice import Chosen, HubFile, Pin, choose
from tasks.release import BadInput, now
from tasks.settings import ServerSettings

QUANTS = ("m-BF16.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-UD-Q4_K_XL.gguf")


def a_pin(*paths: str, preset: bool = False) -> Pin:
    files = tuple(HubFile(path=path, sha256=f"{n:064x}", size_bytes=n) for n, path in enumerate(paths, 1))
    return Pin(repo="u/m-GGUF", commit="c" * 40, files=files, preset=preset, at=now())


def chosen(paths: tuple[str, ...], tag: str = "", **server: Any) -> Chosen:
    return choose(a_pin(*paths), ServerSettings(hub_model="u/m-GGUF" + (f":{tag}" if tag else ""), **server))


def model(paths: tuple[str, ...], tag: str = "") -> str:
    (file,) = chosen(paths, tag).model
    return file.path


def test_a_tag_is_found_in_any_case_and_ends_where_it_ends() -> None:
    assert model(QUANTS, "q8_0") == "m-Q8_0.gguf"
    assert model(QUANTS, "UD-Q4_K_XL") == "m-UD-Q4_K_XL.gguf"
    assert model(("m-Q4_K_M.gguf", "m-Q4_K.gguf"), "Q4_K") == "m-Q4_K.gguf"
    assert model(("F16/m.gguf", "m-F16.gguf"), "F16") == "m-F16.gguf"
    assert model(("F16-x/m.gguf", "m-F16.gguf"), "F16") == "F16-x/m.gguf", "the whole path is looked at"


def test_without_a_tag_q4_k_m_then_q8_0_then_the_first() -> None:
    assert model(QUANTS) == "m-Q4_K_M.gguf"
    assert model(("m-BF16.gguf", "m-Q8_0.gguf")) == "m-Q8_0.gguf"
    assert model(("mmproj-F16.gguf", "imatrix.gguf", "mtp-m.gguf", "eagle3-m.gguf", "m-BF16.gguf")) == "m-BF16.gguf"


def test_a_tag_that_is_not_there_is_refused_with_what_there_is() -> None:
    with pytest.raises(BadInput, match="no GGUF file of the quantization Q5_K_M") as refused:
        chosen(QUANTS, "Q5_K_M")
    assert all(name in refused.value.evidence for name in QUANTS)
    with pytest.raises(BadInput, match="u/m-GGUF has no GGUF file\n") as refused:
        chosen(("mmproj-F16.gguf",))
    assert "none at all" in refused.value.evidence


def test_a_split_model_is_all_of_its_parts_in_their_order() -> None:
    paths = tuple(f"Q8_0/m-Q8_0-0000{n}-of-00003.gguf" for n in (2, 3, 1))
    other = ("Q8_0/m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00003.gguf")
    found = chosen((*paths, *other), "Q8_0").model
    assert [file.path for file in found] == sorted(paths)
    with pytest.raises(BadInput, match="not all parts of Q8_0/m-Q8_0-00001-of-00003.gguf") as refused:
        chosen(paths[1:], "Q8_0")
    assert refused.value.evidence == "missing: 00002-of-00003"


def test_the_projector_comes_along_the_deepest_then_the_nearest_by_bits() -> None:
    paths = ("mmproj-F32.gguf", "mmproj-F16.gguf", "mmproj-Q8_0.gguf", "m-Q4_K_M.gguf", "x/mmproj-Q4_0.gguf")
    assert chosen(paths).beside["mmproj"].path == "mmproj-Q8_0.gguf"
    assert (
        chosen(("mmproj-Q4_0.gguf", "x/mmproj-F16.gguf", "x/m-Q4_0.gguf")).beside["mmproj"].path == "x/mmproj-F16.gguf"
    )
    assert chosen(("mmproj-F16.gguf", "mmproj-BF16.gguf", "m-Q4_0.gguf")).beside["mmproj"].path == "mmproj-F16.gguf"


@pytest.mark.parametrize(
    "server", [{"mmproj": "p.gguf"}, {"flags": ("--no-mmproj",)}, {"env": {"LLAMA_ARG_MMPROJ_AUTO": "0"}}]
)
def test_no_projector_comes_along_where_one_is_set_or_none_is_wanted(server: dict[str, Any]) -> None:
    paths = ("mmproj-F16.gguf", "m-Q4_0.gguf")
    assert chosen(paths).beside
    assert not chosen(paths, **server).beside


def test_what_drafts_comes_along_when_it_is_asked_for() -> None:
    paths = ("m-Q4_0.gguf", "mtp-m-Q8_0.gguf", "mtp-m-Q4_0.gguf", "eagle3-m.gguf")
    assert not chosen(paths).beside
    assert chosen(paths, "Q4_0", speculation="draft-mtp").beside["draft_model"].path == "mtp-m-Q4_0.gguf"
    assert (
        chosen(paths, flags=("--spec-type", "draft-eagle3,draft-mtp")).beside["draft_model"].path == "mtp-m-Q4_0.gguf"
    )
    assert chosen(paths, speculation="draft-eagle3").beside["draft_model"].path == "eagle3-m.gguf"
    assert not chosen(paths, speculation="draft-mtp", draft_model="d.gguf").beside
    assert not chosen(paths, speculation="draft-dflash").beside


def test_a_router_and_a_file_without_a_digest_are_refused() -> None:
    with pytest.raises(BadInput, match="repository of presets"):
        choose(a_pin(*QUANTS, preset=True), ServerSettings(hub_model="u/m-GGUF"))
    pin = a_pin("m.gguf")
    bare = pin.model_copy(update={"files": (pin.files[0].model_copy(update={"sha256": ""}),)})
    with pytest.raises(BadInput, match=r"says no digest of m\.gguf"):
        choose(bare, ServerSettings(hub_model="u/m-GGUF"))


@pytest.mark.parametrize("name", ["../x", "u/..", "u/m/x", "u", "u/m:", "u--x/m", "/m", "u/m:Q4/../x", "u/m:Q*"])
def test_a_setting_that_names_no_repository_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="hub_model"):
        ServerSettings(hub_model=name)
