import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tasks.preflight.compare import What
from tasks.process import Output, run
from tasks.release import Change, ToolingError
from tasks.settings import Settings
from tasks.sources import Sources
from tasks.upstream import treediff
from tasks.upstream.notes import assess
from tasks.upstream.ours import Ours
from tasks.upstream.risk import Risk
from tasks.upstream.sdist import FETCH_TIMEOUT_S
from tasks.upstream.treediff import TreeDiff, page
from tasks.upstream.treediff.compare import TreeChange
from tasks.upstream.treediff.cpp import Code
from tasks.upstream.treediff.defaults import Defaults
from tasks.upstream.treediff.facts import Files, Kind
from tests.upstream.labelled_trees import DECOY, Labelled, compared, judged, labelled, reference, tree_of

REPOSITORY = Path(__file__).parent.parent.parent
USED = Ours(
    backend="cuda",
    flags={"--cache-type-k": "kv_cache_type", "--flash-attn": "flash_attention", "--no-mmap": "memory_map"},
    options={"GGML_CUDA_FA_ALL_QUANTS": "ON", "LLAMA_BUILD_UI": "OFF"},
    promises={"/v1/models": "models", "temperature": "sampling"},
    answers={"webui": "settings"},
    variables=frozenset({"LLAMA_ARG_OLD"}),
    architecture="gemma4",
)
WHOLE = {"README.md": "llama.cpp\n"}
"""What a tree has that no packager thinned out."""
HEADER = """struct inner {
    int n_max = 16;
};
struct common_params {
    int timeout_read = 600; // seconds
    inner draft;
    bool webui = true;
};
"""
SERVER = """int serve(common_params & params) {
    return params.timeout_read + params.draft.n_max + params.n_old + params.type_k;
}
"""

Compare = Callable[..., TreeDiff]


@pytest.fixture
def between(tmp_path: Path) -> Compare:
    """What differs between two trees of these files, on top of what every tree has."""
    sources = Sources(tmp_path / "cache")

    def tree(files: Mapping[str, str], whole: bool) -> str:
        folder = tmp_path / "tree"
        for path, text in ({"tools/server/a.cpp": SERVER} | (WHOLE if whole else {}) | dict(files)).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        index = tmp_path / "index"
        sources.git("add", "--all", "--force", ".", index=index, work_tree=folder)
        found = sources.git("write-tree", index=index).stdout.strip()
        shutil.rmtree(folder)
        index.unlink()
        return found

    def compare(old: Mapping[str, str], new: Mapping[str, str], used: Ours = USED, lean: bool = False) -> TreeDiff:
        return treediff.read(sources, tree(old, True), tree(new, not lean), used)

    return compare


def option(names: str, help_: str, body: str = "", rest: str = "", value: str = ' "N",') -> str:
    return (
        f"    add_opt(common_arg(\n        {{{names}}},{value}\n        {help_},\n"
        f"        [](common_params & params, int value) {{\n            {body}\n        }}\n    ){rest});\n"
    )


def arguments(*options: str) -> dict[str, str]:
    body = "".join(options)
    return {"common/arg.cpp": f"void init(common_params & params) {{\n{body}}}\n", "common/common.h": HEADER}


def named(found: TreeDiff, name: str) -> TreeChange:
    return next(change for change in found.changes if name in change.name)


# -- flags and defaults -------------------------------------------------------------------------------

TIMEOUT = option(
    '"-to", "--timeout"',
    'string_format("read timeout (default: %d)", params.timeout_read)',
    "params.timeout_read = value;",
)
DRAFT = option(
    '"--draft-max"',
    'string_format("tokens to draft (default: %d)", params.draft.n_max)',
    "params.draft.n_max = value;",
    '.set_env("LLAMA_ARG_DRAFT_MAX")',
)
REFUSED = option(
    '"--draft-max"',
    '"the argument has been removed. use --spec-draft-n-max"',
    'arg_removed("use --spec-draft-n-max");',
    '.set_env("LLAMA_ARG_DRAFT_MAX")',
)
SPEC = option(
    '"--spec-draft-n-max"',
    'string_format("tokens to draft (default: %d)", params.draft.n_max)',
    "params.draft.n_max = value;",
    '.set_env("LLAMA_ARG_SPEC_DRAFT_N_MAX")',
)


def test_a_default_is_found_through_the_structs_of_the_parameters(between: Compare) -> None:
    later = HEADER.replace("600;", "3600;").replace("n_max = 16", "n_max = 3")
    found = between(arguments(TIMEOUT, SPEC), arguments(TIMEOUT, SPEC) | {"common/common.h": later})
    timeout, draft = named(found, "--timeout"), named(found, "--spec-draft-n-max")
    assert (timeout.what, timeout.was, timeout.now) == (What.DEFAULT_CHANGED, "600", "3600")
    assert (draft.was, draft.now) == ("16", "3")
    assert (timeout.at_old, timeout.at_new) == ("common/arg.cpp:3", "common/arg.cpp:3")
    assert not [change for change in found.changes if change.kind is Kind.DEFAULT]  # told once, by the flag


def test_a_flag_that_only_says_it_is_gone_is_gone_with_its_variable(between: Compare) -> None:
    found = between(arguments(DRAFT), arguments(REFUSED, SPEC))
    flag, variable = named(found, "--draft-max"), named(found, "LLAMA_ARG_DRAFT_MAX")
    assert flag.gone and flag.now == "--spec-draft-n-max"
    assert variable.gone and variable.kind is Kind.VARIABLE
    assert {flag.risk, variable.risk} == {Risk.MAY_BREAK}


def test_what_our_argv_has_could_break_us(between: Compare) -> None:
    mmap = option('"--no-mmap"', '"do not map the model"', "params.type_k = value;")
    (gone,) = between(arguments(mmap), arguments()).of(Risk.MAY_BREAK_US)
    assert gone.touches == ("setting memory_map (--no-mmap)",)
    assert gone.name == "--no-mmap"


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        ("params.timeout_read = value;", ".set_examples({LLAMA_EXAMPLE_TTS})"),
        ("params.vocoder.path = value;", ".set_examples({LLAMA_EXAMPLE_TTS, LLAMA_EXAMPLE_SERVER})"),
    ],
)
def test_flags_of_another_program_are_not_told(between: Compare, body: str, rest: str) -> None:
    other = option('"--model-vocoder"', '"of another program"', body, rest)
    assert not between(arguments(TIMEOUT, other), arguments(TIMEOUT)).changes


def test_another_name_for_the_same_flag_breaks_nobody(between: Compare) -> None:
    old = option('"--webui"', '"whether to serve the page"', "params.webui = value;")
    found = between(arguments(old), arguments(old.replace('"--webui"', '"--ui", "--webui"')))
    assert {change.risk for change in found.changes} <= {Risk.NONE}


def test_a_flag_whose_help_says_something_else_is_told(between: Compare) -> None:
    old = option('"--host"', '"address to listen on"', "params.timeout_read = value;")
    found = between(arguments(old), arguments(old.replace("address to", "addresses, comma-separated, to")))
    assert named(found, "--host").what is What.DESCRIBED


# -- requests and answers -----------------------------------------------------------------------------


def server(text: str, path: str = "tools/server/server-common.cpp") -> dict[str, str]:
    return {path: text}


STATUSES = (
    "json format(int type) {\n    switch (type) {\n        case ERROR_TYPE_INVALID_REQUEST:\n            code = 400;\n"
    "            break;\n        case ERROR_TYPE_SERVER:\n            code = 500;\n            break;\n    }\n}\n"
)


def throwing(type_: str, message: str, condition: str = "prompt.empty()", function: str = "parse") -> str:
    return f"""{STATUSES}void {function}() {{
    if ({condition}) {{
        throw std::{type_}("{message}");
    }}
}}
"""


def test_the_status_of_a_refusal_is_told_when_it_changes(between: Compare) -> None:
    old = server(throwing("runtime_error", "prompt must not be empty"))
    new = server(throwing("invalid_argument", "prompt must not be empty"))
    change = named(between(old, new), "prompt must not be empty")
    assert page.row(change)[2].startswith("500; when prompt.empty() -> 400")
    assert change.risk is Risk.MAY_BREAK


def test_a_refusal_that_moved_or_says_it_in_other_words_is_not_told(between: Compare) -> None:
    old = server(throwing("runtime_error", "the context does not logits computation"))
    moved = server(throwing("runtime_error", "the context does not logits computation"), "tools/server/server-chat.cpp")
    mended = server(throwing("runtime_error", "the context does not support logits computation"))
    for new in (moved, mended):
        assert not between(old, new).of(Risk.MAY_BREAK, Risk.MAY_BREAK_US)


def test_a_rule_over_our_settings_could_break_us_one_over_other_flags_not(between: Compare) -> None:
    kv = option('"--cache-type-k"', '"type of keys"', "params.type_k = value;")
    split = option('"--split-mode"', '"how to split"', "params.timeout_read = value;")
    before, after = "params.type_k == 1", "params.type_k >= 1"
    old = arguments(kv, split) | server(
        throwing("runtime_error", "K cache type is refused", before), "src/llama-context.cpp"
    )
    new = arguments(kv, split) | server(
        throwing("runtime_error", "K cache type is refused", after), "src/llama-context.cpp"
    )
    (rule,) = between(old, new).of(Risk.MAY_BREAK_US)
    assert rule.touches == ("setting kv_cache_type (--cache-type-k)",)
    also = {path: text.replace(after, f"{after} && params.timeout_read > 1") for path, text in new.items()}
    assert not between(old, also).of(Risk.MAY_BREAK_US)


def test_an_exception_that_becomes_another_status_is_told_for_every_route(between: Compare) -> None:
    catch = "catch (const std::exception & e) { error = ERROR_TYPE_SERVER; }"
    new = f"catch (const json_error & e) {{ error = ERROR_TYPE_INVALID_REQUEST; }} {catch}"
    old_, new_ = (f"{STATUSES}handler ex_wrapper(handler f) {{\n try {{ f(); }} {each}\n}}\n" for each in (catch, new))
    (change,) = between(server(old_), server(new_)).of(Risk.MAY_BREAK_US)
    assert (change.was, change.now, change.touches) == ("500", "400", ("every route",))


def test_a_path_that_asks_for_the_key_now_is_told(between: Compare) -> None:
    listed = """void init() {
    static const std::set<std::string> public_endpoints = {
        "/health",
        "/v1/models",
    };
}
"""
    (change,) = between(server(listed), server(listed.replace('        "/v1/models",\n', ""))).of(Risk.MAY_BREAK_US)
    assert (change.name, change.now, change.touches) == (
        "/v1/models without a key",
        "needs the key",
        ("contracts models",),
    )


def test_keys_of_an_answer_are_told_by_the_function_that_writes_them(between: Compare) -> None:
    answer = """json task::to_json() {
    return json {
        {"speculative.type", t},
        {"webui", w},
    };
}
"""
    renamed = answer.replace("speculative.type", "speculative.types").replace('        {"webui", w},\n', "")
    found = between(server(answer), server(renamed))
    assert named(found, "speculative.type of").now == "speculative.types of task::to_json"
    assert named(found, "webui of").touches == ("contracts settings (webui)",)
    split = answer.replace('{"webui", w},', "") + 'json more() {\n    return json {\n        {"webui", w},\n    };\n}\n'
    assert not between(server(answer), server(split)).of(Risk.MAY_BREAK_US)


FIELDS = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "stream", "n_probs", "n_keep", "n_cmpl")


def test_requests_that_get_a_schema_are_one_change(between: Compare) -> None:
    loose = "".join(f'    p = json_value(data, "{name}", 1);\n' for name in FIELDS)
    typed = "".join(f'    add((new field_num("{name}", p))->set_hard_limits(0, 9));\n' for name in FIELDS)
    old, new = (server(f"void parse() {{\n{text}}}\n", "tools/server/server-schema.cpp") for text in (loose, typed))
    (schema,) = between(old, new).of(Risk.MAY_BREAK_US)
    assert schema.name == "request schema" and "n_cmpl (hard limits 0, 9)" in schema.text
    assert "refused with 400" in schema.now
    narrower = {
        path: text.replace('"n_keep", p))->set_hard_limits(0', '"n_keep", p))->set_hard_limits(1')
        for path, text in new.items()
    }
    (limit,) = between(new, narrower).changes
    assert (limit.name, limit.was, limit.now) == ("n_keep", "num, hard limits 0, 9", "num, hard limits 1, 9")


def test_hooks_and_headers_of_the_http_server_are_told(between: Compare) -> None:
    old = """void init() {
    srv->set_logger(log_server_request);
    res.set_header("Access-Control-Allow-Headers", "*");
}
"""
    new = old.replace("    srv", "    // srv").replace('"*"', "params.cors_headers")
    found = between(server(old), server(new))
    assert named(found, "set_logger").gone
    assert named(found, "header Access-Control-Allow-Headers").now == "params.cors_headers"


def test_a_metric_that_is_built_elsewhere_is_not_gone(between: Compare) -> None:
    old = (
        'void get_metrics() {\n    json all = {{\n        {"name", "prompt_tokens_total"}, {"help", "x"}\n    }};\n}\n'
    )
    moved = 'void to_metrics() {\n    add("prompt_tokens_total", "x");\n}\n'
    assert not between(server(old), server(moved)).of(Risk.MAY_BREAK, Risk.MAY_BREAK_US)
    assert named(between(server(old), server("void to_metrics() {}\n")), "llamacpp:prompt_tokens_total").gone


# -- builds, files and models -------------------------------------------------------------------------


def test_options_of_the_build_are_told_where_they_matter(between: Compare) -> None:
    old = """option(GGML_CUDA_FA_ALL_QUANTS "all" OFF)
option(LLAMA_BUILD_UI "ui" ON)
option(LLAMA_BUILD_EXAMPLES "x" OFF) # Modified by build script
"""
    new = """option(LLAMA_BUILD_UI "ui" OFF)
option(LLAMA_BUILD_EXAMPLES "x" ON)
option(GGML_NEW_ON "new" ON)
option(GGML_NEW_OFF "new" OFF)
option(GGML_SYCL_FAST "sycl" ON)
"""
    found = between({"CMakeLists.txt": old}, {"CMakeLists.txt": new, "ggml/src/ggml-sycl/x.cpp": ""})
    assert named(found, "GGML_CUDA_FA_ALL_QUANTS").risk is Risk.MAY_BREAK_US
    assert named(found, "LLAMA_BUILD_UI").risk is Risk.MAY_BREAK  # the recipe says it itself
    assert named(found, "GGML_NEW_ON").risk is Risk.MAY_BREAK
    assert {named(found, name).risk for name in ("GGML_NEW_OFF", "GGML_SYCL_FAST")} == {Risk.NONE}
    assert "LLAMA_BUILD_EXAMPLES" not in {change.name for change in found.changes}


def test_what_a_lean_archive_left_out_is_unknown_and_never_gone(between: Compare) -> None:
    cuda = 'void init() {\n    if (getenv("GGML_CUDA_P2P") != nullptr) {\n        peer();\n    }\n}\n'
    old = {"ggml/src/ggml-cuda/ggml-cuda.cu": cuda, "tools/server/README.md": "`n_keep`: x. Default: `0`\n"}
    lean = between(old, {}, lean=True)
    assert not lean.changes
    assert lean.unknown == (
        "ggml/src/ggml-cuda/*.cu: not in the new archive",
        "tools/server/README.md: not in the new archive",
    )
    assert {change.name for change in between(old, {}).changes} >= {"GGML_CUDA_P2P", "n_keep"}
    fresh = between({}, server(throwing("invalid_argument", "a new refusal")), lean=True)
    assert named(fresh, "a new refusal").what is What.ADDED  # its folder has files of that kind


def test_a_variable_that_old_code_asks_for_now_is_told_one_of_new_code_is_not(between: Compare) -> None:
    asks = 'void init() {\n    if (getenv("GGML_CUDA_P2P") != nullptr) {\n        peer();\n    }\n}\n'
    path = "ggml/src/ggml-cuda/ggml-cuda.cu"
    assert named(between({path: "void init() {\n}\n"}, {path: asks}), "GGML_CUDA_P2P").risk is Risk.MAY_BREAK
    assert named(between({}, {path: asks}), "GGML_CUDA_P2P").risk is Risk.NONE
    elsewhere = Ours(backend="cpu")
    assert named(between({path: "void init() {\n}\n"}, {path: asks}, elsewhere), "GGML_CUDA_P2P").risk is Risk.NONE


def test_versions_of_saved_files_are_told(between: Compare) -> None:
    old = {"include/llama.h": "#define LLAMA_SESSION_VERSION 9\n#define LLAMA_VERSION_MINOR 1\n"}
    new = {"include/llama.h": "#define LLAMA_SESSION_VERSION 10\n#define LLAMA_VERSION_MINOR 2\n"}
    (change,) = between(old, new).changes
    assert (change.name, change.was, change.now, change.at_new) == (
        "LLAMA_SESSION_VERSION",
        "9",
        "10",
        "include/llama.h:1",
    )


def test_our_architecture_is_its_builder_and_never_a_word(between: Compare) -> None:
    old = {"src/models/gemma4.cpp": "graph a;\n", "src/models/llama.cpp": "graph b;\n"}
    found = between(old, {path: f"{text}more;\n" for path, text in old.items()})
    assert [c.touches for c in found.of(Risk.TOUCHES_US)] == [("model architecture gemma4",)]
    served = Ours(architecture="llama")
    for title in ("llama : remove the old API", "llama: rename the option --foo", "server : drop llama-cli's flags"):
        assert assess(Change(build=9000, title=title), served).risk is not Risk.MAY_BREAK_US
    assert served.serves("LLM_ARCH_LLAMA loses a tensor")
    assert Ours(architecture="gemma4").serves("chat : Gemma 4 parser")


def test_files_that_our_patches_change_are_told(between: Compare) -> None:
    used = Ours(files={"common/chat.cpp": "patch 0001.patch", "common/log.cpp": "patch 0002.patch"})
    old = {"common/chat.cpp": "a\n", "common/log.cpp": "a\n", "common/other.cpp": "a\n"}
    found = between(old, {"common/chat.cpp": "b\n"}, used)
    assert [(c.name, c.risk, c.touches) for c in found.changes if c.kind is Kind.PATCHED] == [
        ("common/log.cpp", Risk.MAY_BREAK_US, ("patch 0002.patch",)),
        ("common/chat.cpp", Risk.TOUCHES_US, ("patch 0001.patch",)),
    ]
    assert page.summary(found) == "2 differences in the two trees, 1 may break us (common/log.cpp), 0 others"


# -- reading C++ --------------------------------------------------------------------------------------


def test_code_is_read_as_it_is_laid_out() -> None:
    text = """void f(int a) { // if (x) {
    if (a > 1 && b("{")) {
        say("one "
            "two", R"x(raw)x");
    }
}
"""
    code = Code("a.cpp", text)
    place = text.index("say")
    assert code.conditions(place) == ('a > 1 && b("{")',)
    assert code.function(place) == "f"
    opens = text.index("(", place)
    assert [code.strings(*span) for span in code.arguments(opens)] == [["one two"], ["raw"]]
    assert code.at(place) == "a.cpp:3"


def test_blobs_are_read_together_whatever_is_in_them(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    texts = ["", "no end", "ä\n\n missing\n", "blob 3\n"]
    objects = [sources.git("hash-object", "-w", "--stdin", stdin=text).stdout.strip() for text in texts]
    assert list(sources.texts(objects).values()) == texts


# -- real trees ---------------------------------------------------------------------------------------


def by_pair() -> list[list[Labelled]]:
    pairs: dict[tuple[int, int], list[Labelled]] = {}
    for record in labelled():
        pairs.setdefault((record.low, record.high), []).append(record)
    return list(pairs.values())


@pytest.mark.real
@pytest.mark.long
def test_labelled_breaks_are_told_and_decoys_are_not() -> None:
    settings = reference(REPOSITORY / "patches", Settings().cache)
    verdicts = [
        v for records in by_pair() for v in judged(records, compared(settings, records[0].low, records[0].high))
    ]
    breaks = [v.right for v in verdicts if v.record.kind != DECOY]
    decoys = [v.shown for v in verdicts if v.record.kind == DECOY]
    assert sum(breaks) >= 0.95 * len(breaks)
    assert sum(decoys) <= 1


def test_structs_that_point_at_each_other_are_walked_once() -> None:
    circle = (
        "struct inner {\n    common_params * up;\n    int n = 3;\n};\nstruct common_params {\n    inner * down;\n};\n"
    )
    found = Defaults(Files({"common/common.h": circle})).walk("common_params", "params")
    assert [(way, member.value) for way, member in found] == [("params.down.n", "3")]


def test_a_tree_in_which_nothing_is_found_any_more_is_not_compared(between: Compare) -> None:
    flags = [option(f'"--flag-{n}"', '"help"') for n in range(25)]
    assert len(between(arguments(*flags), arguments(*flags[:-1])).changes) == 1
    with pytest.raises(ToolingError, match="no flags are found in one of the trees"):
        between(arguments(*flags), {"common/arg.cpp": "// they moved\n"})


@pytest.mark.real
@pytest.mark.long
def test_the_labels_are_true_of_the_trees() -> None:
    settings = Settings()
    sources = Sources(settings.cache)
    for record in labelled():
        for path, side, text in record.evidence:
            tree = tree_of(settings, record.low if side.endswith("from") else record.high)
            said = sources.git("cat-file", "blob", f"{tree}:{path}", check=False)
            assert (said.code == 0 and text in said.stdout) is not side.startswith("-"), (record.id, path, side)


@pytest.mark.real
def test_the_command_compares_two_builds_and_refuses_them_in_the_wrong_order(tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "series").touch()

    def asked(*words: str) -> Output:
        env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        program = (sys.executable, "-m", "flows", "upstream", "between", *words)
        return run(program, timeout_s=FETCH_TIMEOUT_S, cwd=tmp_path, env=env, check=False)

    said = asked("b11401", "b11434", "--json")
    assert said.code == 0, said.text
    told = json.loads(said.stdout)
    assert told["trees"]["changes"] and not told["trees"]["problem"]
    refused = asked("b11434", "b11401")
    assert (refused.code, "b11401 is not newer than b11434" in refused.text) == (2, True)
