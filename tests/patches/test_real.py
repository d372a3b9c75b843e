"""The series on real upstream trees, ten of ten, beside what plain tools make of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.patches import place_series, read_series
from tasks.patches.export import refresh
from tasks.patches.scopes import Scopes, is_source
from tasks.release import PatchResult, PatchStatus
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.upstream import Upstream, find, history, open_upstream
from tasks.upstream.pypi import download
from tests.conftest import ends_within, long_but
from tests.patches.conftest import World

pytestmark = pytest.mark.real

THINKING = "0001-gemma4-thinking-tags.patch"
TOOLS = "0002-honour-named-tool-choice.patch"
FUNCTION = "common_chat_params_init_gemma4"
MOVED = f"source_moved: {FUNCTION} is in common/parsers/gemma4.cpp:151 now, not in common/chat.cpp"
END_TAG, END_TAGS = 'data.thinking_end_tag   = "<channel|>";', 'data.thinking_end_tags  = {"<channel|>"};'

EXPECTED = {
    "b8646": (PatchStatus.NOT_APPLICABLE, f"has no {FUNCTION} of common/chat.cpp"),
    "b8672": (PatchStatus.CLEAN, f"{FUNCTION} (common/chat.cpp:1080)"),
    "b8722": (PatchStatus.CLEAN, f"{FUNCTION} (common/chat.cpp:1080)"),
    "b8746": (PatchStatus.UPSTREAMED, f"common/chat.cpp:1088: {END_TAG}"),
    "b8863": (PatchStatus.UPSTREAMED, f"common/chat.cpp:1105: {END_TAG}"),
    "b9105": (PatchStatus.UPSTREAMED, f"common/chat.cpp:1094: {END_TAG}"),
    "b9611": (PatchStatus.UPSTREAMED, f"common/chat.cpp:1239: {END_TAG}"),
    "b10605": (PatchStatus.UPSTREAMED, f"common/chat.cpp:1524: {END_TAGS}"),
    "b11010": (PatchStatus.UPSTREAMED, f"common/parsers/gemma4.cpp:174: {END_TAGS}"),
    "b11434": (PatchStatus.UPSTREAMED, f"common/parsers/gemma4.cpp:174: {END_TAGS}"),
}
SHORT = {"b8646", "b8672", "b8863", "b11434"}
"""One tree of each kind: without the function, with the fault, with the fix, with the function elsewhere."""


@pytest.fixture(scope="module")
def sources(base: Settings) -> Sources:
    return Sources(base.cache)


@pytest.fixture(scope="module")
def upstream(base: Settings) -> Upstream:
    return open_upstream(base)


def only(base: Settings, folder: Path, name: str) -> Path:
    """A series with one of the product's patches."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(base.patches / name, folder / name)
    (folder / "series").write_text(f"{name}\n")
    return folder


def tree(sources: Sources, upstream: Upstream, tag: str) -> str:
    release = find(upstream.releases(), tag)
    return sources.upstream_tree(release.build) or sources.add(release, upstream.fetch(release))[1]


def result(sources: Sources, upstream: Upstream, folder: Path, tag: str) -> tuple[PatchResult, str]:
    release = find(upstream.releases(), tag)
    (placed,) = place_series(sources, read_series(folder), release, tree(sources, upstream, tag), upstream)
    return placed.result, placed.tree


@pytest.mark.parametrize("tag", long_but(SHORT, EXPECTED))
def test_the_thinking_tags_patch_has_its_true_status_and_the_line_that_shows_it(
    base: Settings, sources: Sources, upstream: Upstream, tmp_path: Path, tag: str
) -> None:
    status, line = EXPECTED[tag]
    found, made = result(sources, upstream, only(base, tmp_path, THINKING), tag)
    assert found.status is status
    assert line in found.evidence
    assert (MOVED in found.evidence) == (tag in ("b11010", "b11434"))
    assert (made != tree(sources, upstream, tag)) == status.built_with


@pytest.mark.parametrize("tag", ["b11401", "b11434"])
def test_the_tool_choice_patch_is_needed(
    base: Settings, sources: Sources, upstream: Upstream, tmp_path: Path, tag: str
) -> None:
    found, _ = result(sources, upstream, only(base, tmp_path, TOOLS), tag)
    assert found.status.built_with
    assert "oaicompat_chat_params_parse" in found.evidence


@pytest.mark.parametrize("name", [THINKING, TOOLS])
def test_the_products_patches_are_exported_as_anybody_would_export_them_again(
    base: Settings, sources: Sources, upstream: Upstream, tmp_path: Path, name: str
) -> None:
    (patch,) = read_series(only(base, tmp_path, name))
    release = find(upstream.releases(), f"b{patch.exported_on}")
    own = tree(sources, upstream, release.tag)
    told = refresh(sources, place_series(sources, [patch], release, own, upstream), own, release)
    assert told == [(patch.path, "the same already")]


# -- the hazard: the tags alone, whose context other parsers have too ------------------------------

ADDED = '    data.thinking_start_tag = "<|channel>thought";\n    data.thinking_end_tag   = "<channel|>";\n'
HAZARD = ("b8746", "b8863", "b9105", "b9611", "b10605")


@pytest.fixture(scope="module")
def tags_only(sources: Sources, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The patch with the tags alone, made on b8672: no Evidence trailer, three lines of context."""
    base = tree(sources, upstream, "b8672")
    text = sources.read(base, "common/chat.cpp")
    start = text.index(f"static common_chat_params {FUNCTION}(")
    at = text.index("    data.supports_thinking = true;\n", start) + len("    data.supports_thinking = true;\n")
    world = World(tmp_path_factory.mktemp("tags"), sources)
    small = world.upstream(8672, {"common/chat.cpp": text})
    world.patch(small, {"common/chat.cpp": text[:at] + ADDED + text[at:]}, "0001-tags.patch", "Exported-on: b8672")
    return world.folder


def landed_in(text: str) -> list[str]:
    """The functions of a file that got the tags."""
    scopes = Scopes("common/chat.cpp", text)
    lines = [text[: m.start()].count("\n") + 1 for m in re.finditer(re.escape(ADDED), text)]
    return [scope.name for line in lines if (scope := scopes.at(line))]


def plain(folder: Path, text: str, *words: str) -> tuple[bool, str]:
    """(whether a plain tool took the patch, the file afterwards)."""
    file = folder / "common" / "chat.cpp"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    return done.returncode == 0, file.read_text()


@pytest.mark.parametrize("tag", long_but(SHORT, HAZARD))
def test_plain_tools_put_the_tags_into_another_models_parser_and_ours_does_not(
    sources: Sources, upstream: Upstream, tags_only: Path, tmp_path: Path, tag: str
) -> None:
    patch = str(tags_only / "0001-tags.patch")
    before = sources.read(tree(sources, upstream, tag), "common/chat.cpp")
    wrong = []
    for words in (["patch", "-p1", "--batch", "-i", patch], ["git", "apply", "-C1", patch]):
        took, after = plain(tmp_path, before, *words)
        if took and (strayed := [name for name in landed_in(after) if name not in (*landed_in(before), FUNCTION)]):
            wrong.append((words[0], strayed))
    assert wrong, "the hazard is gone: find another one"
    found, made = result(sources, upstream, tags_only, tag)
    assert not found.status.built_with
    assert made == tree(sources, upstream, tag)


def test_a_reverse_apply_sees_the_fix_in_one_of_the_trees_that_have_it(
    base: Settings, sources: Sources, upstream: Upstream, tmp_path: Path
) -> None:
    having = [tag for tag, (status, _) in EXPECTED.items() if status is PatchStatus.UPSTREAMED]
    seen = []
    for tag in having:
        text = sources.read(tree(sources, upstream, tag), "common/chat.cpp")
        patch = str(base.patches / THINKING)
        if plain(tmp_path, text, "git", "apply", "--reverse", "--check", patch)[0]:
            seen.append(tag)
    assert seen == ["b8746"]


# -- heads of functions as upstream writes them --------------------------------------------------------

MAIN = "tools/server/server.cpp"
HEADED = (MAIN, "common/arg.cpp", "ggml/src/ggml-cuda/fattn-tile.cuh", "vendor/nlohmann/json.hpp")
"""Files with heads of all kinds: plain ones, templates, and those of macros, attributes and noexcept."""
BESIDE = (
    "const", "noexcept(true)", "&&", "GGML_API", "LLAMA_ATTRIBUTE_FORMAT(1, 2)", "XXH_FORCE_INLINE XXH_TARGET_AVX2",
    "__global__", "MATMUL_2D_REPACKED_IMPL(q4_1, 640)", "-> int", ": a(1), b{2}", "requires A<T>",
    "static void f(int a)",
)  # fmt: skip


def test_a_line_in_main_is_brought_to_where_main_is_now(sources: Sources, upstream: Upstream, tmp_path: Path) -> None:
    """A function that moved is sought in every file that has its name: of thousands of heads some never ended."""
    world = World(tmp_path, sources)
    text = sources.read(tree(sources, upstream, "b8672"), MAIN)
    small = world.upstream(8672, {MAIN: text})
    start = text.index("int main(")
    at = text.index("\n", text.index("{", start)) + 1
    world.patch(small, {MAIN: text[:at] + "    said();\n" + text[at:]}, "0001-said.patch", "Exported-on: b8672")
    with ends_within(120.0):
        found, _ = result(sources, upstream, world.folder, "b11434")
    assert found.status in (PatchStatus.SOURCE_MOVED, PatchStatus.CONFLICT)
    assert "main" in found.evidence


@pytest.fixture(scope="module")
def heads(sources: Sources, upstream: Upstream) -> list[str]:
    """The heads of the functions in those files, as they stand there."""
    own = tree(sources, upstream, "b11434")
    found = []
    for path in HEADED:
        lines = sources.read(own, path).split("\n")
        functions = [scope for scope in Scopes(path, "\n".join(lines)).found if scope.kind == "function"]
        found += ["\n".join(lines[each.first - 1 : each.last]).partition("{")[0] for each in functions]
    return sorted({head for head in found if ")" in head and "#" not in head})


@given(st.data())
def test_a_head_of_upstreams_with_anything_beside_it_is_read_in_time(heads: list[str], data: st.DataObject) -> None:
    head = data.draw(st.sampled_from(heads))
    parts = data.draw(st.lists(st.sampled_from([*BESIDE, *heads]), max_size=8))
    before = data.draw(st.lists(st.sampled_from(BESIDE[:8]), max_size=4))
    with ends_within(5.0):
        found = Scopes("x.cpp", f"{' '.join(before)} {head} {' '.join(parts)} {{\n}}\n").found
    assert len(found) <= 1


# -- what it stands on -------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", long_but(["b11434"], ["b8672", "b11434"]))
def test_every_source_file_of_upstream_is_read_for_functions(sources: Sources, upstream: Upstream, tag: str) -> None:
    own = tree(sources, upstream, tag)
    paths = [p for p in sources.files(own, "**/*") if is_source(p) and p.startswith(("common/", "tools/server/"))]
    assert len(paths) > 40
    for path in (*paths, "vendor/nlohmann/json.hpp"):
        with ends_within(20.0):
            Scopes(path, sources.read(own, path))


def test_histories_wheels_say_themselves_which_build_they_carry(base: Settings) -> None:
    wheel = download(history.PACKAGE, history.VERSIONS[8672], base.cache / "downloads", binary=True)
    changes = history.read_changes(wheel)
    assert changes[-1].build == 8672
    assert any(change.pull == 21418 for change in changes)
