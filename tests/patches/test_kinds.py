"""The kinds of patches that people carry, and what upstream does around them: synthetic trees, real git."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tasks.patches import read_series
from tasks.patches.classify import LEAN, classify
from tasks.patches.series import read_patch
from tasks.patches.trees import text_of
from tasks.release import PatchStatus, ReleaseNotes, UpstreamRelease
from tests.patches.conftest import World, tree_of
from tests.patches.test_classify import CHAT, HEAD, PATCHED, SIBLINGS, TAG, function

# -- what a patch file looks like ------------------------------------------------------------------

DIFF = """\
diff --git a/common/chat.cpp b/common/chat.cpp
index 1118f71..7d8b75e 100644
--- a/common/chat.cpp
+++ b/common/chat.cpp
@@ -1,3 +1,3 @@
 one
-two
+zwei

"""
BARE = re.sub(r"^(?:diff|index) .*\n", "", DIFF, flags=re.MULTILINE)
STYLES = {
    "under prose": f"A title\n\nWhy it is here.\n\n{DIFF}",
    "no prefix": DIFF.replace(" a/", " ").replace(" b/", " "),
    "mnemonic": DIFF.replace(" a/", " i/").replace(" b/", " w/"),
    "unified": BARE.replace("chat.cpp\n", "chat.cpp\t2026-11-01 10:00:00.000000000 +0100\n"),
    "two folders": "diff -ru llama.cpp.orig/common/chat.cpp llama.cpp/common/chat.cpp\n"
    + BARE.replace(" a/", " llama.cpp.orig/").replace(" b/", " llama.cpp/"),
    "orig": BARE.replace("--- a/common/chat.cpp", "--- common/chat.cpp.orig").replace(" b/", " "),
    "quilt": f"Why it is here.\n\nIndex: llama.cpp/common/chat.cpp\n{'=' * 67}\n{BARE}",
    "crlf": f"A title\n\n{DIFF}".replace("\n", "\r\n"),
    "quoted": re.sub(r"([ab]/common/chat.cpp)", r'"\1"', DIFF),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_a_diff_is_read_however_it_was_written(tmp_path: Path, style: str) -> None:
    path = tmp_path / "0001-x.patch"
    path.write_bytes(STYLES[style].encode())
    patch = read_patch(path)
    assert not patch.broken
    (file,) = patch.files
    assert (file.old, file.new) == (CHAT, CHAT)
    assert file.hunks[0].lines == (" one", "-two", "+zwei", " ")
    assert patch.diff.startswith(f"diff --git a/{CHAT} b/{CHAT}\n")


def test_line_ends_of_the_sources_stay_as_they_are(world: World) -> None:
    world.upstream(100, {"run.bat": "one\r\ntwo\r\nthree\r\n"})
    world.put("0001-x.patch", diff_of(world, 100, {"run.bat": "one\r\nzwei\r\nthree\r\n"}))
    placed = world.one(100)
    assert placed.result.status is PatchStatus.CLEAN
    assert text_of(world.sources, placed.tree, "run.bat") == "one\r\nzwei\r\nthree\r\n"


def diff_of(world: World, old: int, new: dict[str, str], *options: str) -> str:
    """A `git diff` of an upstream release and these files."""
    made = tree_of(world.sources, new)
    return world.sources.git("diff-tree", "-r", "-p", *options, world.trees[old], made, exact=True).stdout


# -- without a header -------------------------------------------------------------------------------


def test_a_plain_diff_is_of_the_build_whose_blobs_it_names(world: World) -> None:
    base = world.upstream(100, SIBLINGS)
    world.sources.keep("refs/upstream/b100", base, "b100")
    world.put("0001-x.patch", diff_of(world, 100, PATCHED))
    moved = {CHAT: "// a line\n" * 7 + SIBLINGS[CHAT]}
    world.upstream(101, moved)
    placed = world.one(101)
    assert placed.result.status is PatchStatus.REBASED
    assert "its lines are those of b100" in placed.result.evidence
    assert world.sources.read(placed.tree, CHAT) == "// a line\n" * 7 + PATCHED[CHAT]


@pytest.mark.parametrize("heading", ["private:", "", "public:"])
def test_a_heading_that_names_no_function_blocks_nothing(world: World, heading: str) -> None:
    only = {CHAT: HEAD + function("init_gemma4")}
    world.upstream(100, only)
    text = diff_of(world, 100, {CHAT: HEAD + function("init_gemma4", TAG)})
    text = re.sub(r"^(@@ .* @@).*$", rf"\1 {heading}".rstrip(), text, flags=re.MULTILINE)
    world.put("0001-x.patch", re.sub(r"^index .*\n", "", text, flags=re.MULTILINE))
    world.upstream(101, {CHAT: "// a line\n" + only[CHAT]})
    placed = world.one(101)
    assert placed.result.status is PatchStatus.REBASED
    assert TAG in world.sources.read(placed.tree, CHAT)


# -- whole files ------------------------------------------------------------------------------------

BENCH = {CHAT: SIBLINGS[CHAT], "bench/a.yml": "".join(f"line {n}\n" for n in range(20))}


def test_renames_deletions_new_files_and_binary_ones_are_built_with(world: World) -> None:
    world.upstream(100, BENCH)
    new = {CHAT: PATCHED[CHAT], "bench/a.yaml": BENCH["bench/a.yml"].replace("line 3\n", "line three\n")}
    world.put("0001-x.patch", diff_of(world, 100, new | {"bench/x.bin": "\0\1\2"}, "-M", "--binary"))
    world.upstream(101, BENCH | {"common/other.cpp": "int x;\n"})
    placed = world.one(101)
    assert placed.result.status is PatchStatus.CLEAN
    assert world.sources.files(placed.tree, "bench/*") == ["bench/a.yaml", "bench/x.bin"]
    assert "line three" in world.sources.read(placed.tree, "bench/a.yaml")


def test_a_mode_alone_is_a_change(world: World) -> None:
    world.upstream(100, BENCH)
    world.put("0001-x.patch", "diff --git a/bench/a.yml b/bench/a.yml\nold mode 100644\nnew mode 100755\n")
    placed = world.one(100)
    assert placed.result.status is PatchStatus.CLEAN
    assert "100755" in world.sources.git("ls-tree", "-r", placed.tree, "bench/a.yml").stdout


def test_a_file_that_upstream_changed_is_not_deleted_by_a_patch(world: World) -> None:
    world.upstream(100, BENCH)
    world.patch(100, {CHAT: BENCH[CHAT]})
    world.upstream(101, BENCH | {"bench/a.yml": "another\n"})
    assert world.one(101).result.status is PatchStatus.CONFLICT


def test_a_new_file_in_a_folder_that_is_gone_is_a_persons_business(world: World) -> None:
    world.upstream(100, BENCH)
    world.patch(100, BENCH | {"bench/b.yml": "mine\n"})
    world.upstream(101, {CHAT: BENCH[CHAT], "tools/bench/a.yml": BENCH["bench/a.yml"]})
    found = world.one(101).result
    assert found.status is PatchStatus.CONFLICT
    assert "into a folder that b101 does not have" in found.evidence


# -- another function ---------------------------------------------------------------------------------


def twins(name: str, extra: str = "") -> str:
    """Functions of one name with the same lines, told apart by what is around or behind the name."""
    return f"{name} {{\n    int a = 1;\n    call(a);\n{extra}    done(a);\n}}\n\n"


TWINS = {
    "template specialisation": ("template <> int f<4, X>(int n)", "template <> int f<8, X>(int n)", "a.cuh"),
    "operator": ("bool operator<(const A & a, const B & b)", "bool operator>(const A & a, const B & b)", "a.cpp"),
    "macro": ("MATMUL_IMPL(q4_0, 640)", "MATMUL_IMPL(q4_1, 640)", "a.c"),
    "kernel": ("static __global__ void __launch_bounds__(64) k_a(int n)", "static __global__ void k_b(int n)", "a.cu"),
    "lambda": ("auto get_a = [this](int n)", "auto get_b = [this](int n)", "a.cpp"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TWINS)
def test_a_hunk_does_not_land_in_the_twin_of_a_function_that_is_gone(world: World, kind: str) -> None:
    one, other, path = TWINS[kind]
    around = ("void routes() {\n", "}\n") if kind == "lambda" else ("", "")
    world.upstream(100, {path: around[0] + twins(one) + twins(other) + around[1]})
    world.patch(100, {path: around[0] + twins(one, "    extra();\n") + twins(other) + around[1]})
    world.upstream(101, {path: around[0] + twins(other) + around[1]})
    assert world.one(101).result.status is PatchStatus.CONFLICT
    world.upstream(102, {path: "// more\n" + around[0] + twins(other) + twins(one) + around[1]})
    placed = world.one(102)
    if placed.result.status.built_with:
        assert twins(one, "    extra();\n") in world.sources.read(placed.tree, path)


OTHERS = {
    "a.py": (
        "def f(self):\n    a = 1\n    call(a)\n{}    return a\n\n\n",
        "def g(self):\n    a = 1\n    call(a)\n    return a\n",
    ),
    "CMakeLists.txt": (
        "function(f)\n    set(a 1)\n    call(a)\n{}    more(a)\nendfunction()\n\n",
        "function(g)\n    set(a 1)\n    call(a)\n    more(a)\nendfunction()\n",
    ),
    "x.jinja": (
        "{{% macro f(a) %}}\n  {{{{ a }}}}\n  call\n{}  more\n{{% endmacro %}}\n\n",
        "{% macro g(a) %}\n  {{ a }}\n  call\n  more\n{% endmacro %}\n",
    ),
    "ns.cpp": (
        "namespace v1 {{\nvoid f(int a) {{\n    int b = a;\n    call(b);\n{}    more(b);\n}}\n}}\n\n",
        "namespace v2 {\nvoid f(int a) {\n    int b = a;\n    call(b);\n    more(b);\n}\n}\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", OTHERS)
def test_other_languages_and_namespaces_have_functions_too(world: World, path: str) -> None:
    first, second = OTHERS[path]
    world.upstream(100, {path: first.format("") + second})
    world.patch(100, {path: first.format("    extra(a)\n") + second})
    world.upstream(101, {path: second})
    assert world.one(101).result.status is PatchStatus.CONFLICT


def test_of_two_blocks_that_look_alike_in_one_function_none_is_taken_for_the_other(world: World) -> None:
    def cases(*names: str, extra: str = "") -> dict[str, str]:
        body = "".join(
            f"        case {name}:\n            slot = find(id);\n            if (!slot) {{\n"
            f"{extra if name == 'B' else ''}                break;\n            }}\n            use(slot);\n"
            for name in names
        )
        return {CHAT: f"void run(int id) {{\n    switch (id) {{\n{body}    }}\n}}\n"}

    world.upstream(100, cases("A", "B", "C"))
    world.patch(100, cases("A", "B", "C", extra="                error();\n"))
    world.upstream(101, cases("A", "C"))
    assert world.one(101).result.status is PatchStatus.CONFLICT
    world.upstream(102, {CHAT: "// a line\n" + cases("A", "B", "C")[CHAT]})
    assert world.one(102).result.status is PatchStatus.REBASED


SETUP = "".join(f"    step_number_{n}(params, {n});\n" for n in range(9))
GATE = """\
    auto check_key = [keys](const req & r) {{
        auto key = r.header("key");
{}        return keys.has(key);
    }};
"""
MINE = "        warn(key);  // mine\n"


def test_a_lambda_whose_function_was_split_is_still_itself(world: World) -> None:
    rest = "    return start(check_key);\n}\n"
    world.upstream(100, {CHAT: f"bool init(int params) {{\n{SETUP}{GATE.format('')}{rest}"})
    world.patch(100, {CHAT: f"bool init(int params) {{\n{SETUP}{GATE.format(MINE)}{rest}"})
    first = f"bool init(int params) {{\n{SETUP}    return listen(params);\n}}\n\n"
    world.upstream(101, {CHAT: f"{first}bool listen(int params) {{\n{GATE.format('')}{rest}"})
    placed = world.one(101)
    assert placed.result.status is PatchStatus.REBASED
    assert "the function around it is another one there: listen/check_key" in placed.result.evidence


def test_a_copy_of_a_function_is_not_its_heir(world: World) -> None:
    body = "".join(f"    step_number_{n}(params, {n});\n" for n in range(9))
    world.upstream(100, {CHAT: f"bool init(int params) {{\n{body}    return true;\n}}\n"})
    world.patch(100, {CHAT: f"bool init(int params) {{\n{body}    mine(params, 1);\n    return true;\n}}\n"})
    first = body.replace("step_number_8", "other_step_8")
    copy = f"bool init_copy(int params) {{\n{body}    return true;\n}}\n\n"
    world.upstream(101, {CHAT: f"{copy}bool init(int params) {{\n{first}    return true;\n}}\n"})
    placed = world.one(101)
    if placed.result.status.built_with:
        assert "mine" in world.sources.read(placed.tree, CHAT).split("bool init(")[1]


# -- what upstream has ----------------------------------------------------------------------------------

SERVER = """\
int llama_server(int argc) {{
    setup_locale(1);
{}
    // own arguments
    params p;
{}
    run(p);
    return 0;
}}

int other(int a) {{
{}    return a;
}}
"""
IGNORE = "    signal(SIGPIPE, SIG_IGN);\n"


def test_a_statement_that_upstream_has_a_few_lines_up_is_not_added_twice(world: World) -> None:
    world.upstream(100, {CHAT: SERVER.format("", "", "")})
    world.patch(100, {CHAT: SERVER.format("", IGNORE, "")})
    guarded = f"#ifndef _WIN32\n{IGNORE}#endif\n"
    world.upstream(101, {CHAT: SERVER.format(guarded, "", "")})
    found = world.one(101).result
    assert found.status is PatchStatus.UPSTREAMED
    assert "signal(SIGPIPE, SIG_IGN);" in found.evidence
    assert "its proof must agree" in found.evidence
    world.upstream(102, {CHAT: SERVER.format("", "", guarded)})
    placed = world.one(102)
    assert placed.result.status.built_with
    assert world.sources.read(placed.tree, CHAT) == SERVER.format("", IGNORE, guarded)


def test_a_removal_is_not_upstreamed_because_the_function_was_written_anew(world: World) -> None:
    world.upstream(100, {CHAT: SERVER.format("    old_guard(argc, 1);\n", "", "")})
    world.patch(100, {CHAT: SERVER.format("", "", "")})
    world.upstream(101, {CHAT: SERVER.format("    new_guard(argc, 2);\n    and_more(argc);\n", "", "")})
    assert world.one(101).result.status is PatchStatus.CONFLICT


def test_a_default_that_upstream_set_too_beside_another_change_is_upstreamed(world: World) -> None:
    options = 'option(BUILD_UI "llama: build the UI" {})\noption(USE_UI "llama: {}" ON)\n'
    world.upstream(100, {"CMakeLists.txt": options.format("ON", "prebuilt")})
    world.patch(100, {"CMakeLists.txt": options.format("OFF", "prebuilt")})
    world.upstream(101, {"CMakeLists.txt": options.format("OFF", "prebuilt UI when available")})
    assert world.one(101).result.status is PatchStatus.UPSTREAMED


def test_white_space_around_a_change_is_no_conflict(world: World) -> None:
    route = (
        '    http.get("/a",{0}a);\n    http.get("/b",{0}b);\n{1}    http.get("/c",{0}c);\n    http.get("/d",{0}d);\n'
    )
    text = "int main() {{\n{}}}\n"
    world.upstream(100, {CHAT: text.format(route.format(" ", ""))})
    world.patch(100, {CHAT: text.format(route.format(" ", '    http.get("/mine", m);\n'))})
    world.upstream(101, {CHAT: text.format(route.format("     ", ""))})
    placed = world.one(101)
    assert placed.result.status is PatchStatus.REBASED
    assert "only white space differs" in placed.result.evidence
    assert world.sources.read(placed.tree, CHAT) == text.format(route.format("     ", '    http.get("/mine", m);\n'))


# -- what is not there ----------------------------------------------------------------------------------


def test_a_file_that_a_lean_archive_lacks_was_not_removed(world: World) -> None:
    whole = SIBLINGS | {f"ggml/{n}.cu": f"int a{n};\n" for n in range(20)}
    world.upstream(100, whole)
    world.patch(100, whole | {"ggml/3.cu": "int mine;\n"})
    world.upstream(101, dict(list(whole.items())[:2]))
    found = world.one(101).result
    assert len(whole) * LEAN > 2
    assert found.status is PatchStatus.UNDECIDED
    assert "the archive of b101 is not whole: 2 files where b100 has 21" in found.evidence


def test_an_older_release_that_has_it_under_another_name_is_not_without_it(world: World) -> None:
    lines = "".join(f'    if (body.contains("field_{n}")) {{ throw_error({n}); }}\n' for n in range(8))
    head = "json server_convert(const json & body) {\n"
    world.upstream(100, {"tools/a.cpp": f"{head}{lines}    return 1;\n}}\n"})
    world.patch(100, {"tools/a.cpp": f"{head}{lines}    mine(body);\n    return 1;\n}}\n"})
    world.upstream(99, {"tools/b.cpp": f"json convert(const json & body) {{\n{lines}    return 1;\n}}\n"})
    found = world.one(99).result
    assert found.status is PatchStatus.SOURCE_MOVED
    assert "tools/b.cpp:2" in found.evidence


# -- the series -------------------------------------------------------------------------------------------


def test_of_two_patches_in_one_file_each_can_be_left_out(world: World) -> None:
    world.upstream(100, SIBLINGS)
    world.patch(100, PATCHED, "0001-tags.patch")
    both = {CHAT: PATCHED[CHAT].replace(function("init_qwen"), function("init_qwen", TAG))}
    first = tree_of(world.sources, PATCHED)
    world.patch(first, both, "0002-qwen.patch", "Exported-on: b100")
    (placed,) = classify(
        world.sources, read_series(world.folder), UpstreamRelease(build=100), world.trees[100], world.known,
        lambda low, high: ReleaseNotes(low=low, high=high, until=high, changes=()),
        chosen=["0002-qwen.patch"],
    )  # fmt: skip
    assert placed.result.status.built_with
    wanted = SIBLINGS[CHAT].replace(function("init_qwen"), function("init_qwen", TAG))
    assert world.sources.read(placed.tree, CHAT) == wanted


def test_a_patch_may_change_a_file_that_an_earlier_one_makes(world: World) -> None:
    world.upstream(100, SIBLINGS)
    made = SIBLINGS | {"common/new.cpp": "int one() {\n    return 1;\n}\n"}
    world.patch(100, made, "0001-new.patch")
    grown = made | {"common/new.cpp": "int one() {\n    return 1 + 0;\n}\n"}
    world.patch(tree_of(world.sources, made), grown, "0002-more.patch", "Exported-on: b100")
    world.upstream(101, {CHAT: "// a line\n" + SIBLINGS[CHAT]})
    for build in (100, 101):
        placed = world.place(build)
        assert all(p.result.status.built_with for p in placed), [p.result for p in placed]
        assert world.sources.read(placed[-1].tree, "common/new.cpp") == grown["common/new.cpp"]
