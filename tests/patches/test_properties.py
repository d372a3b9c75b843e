"""Code moved, reindented, renamed and copied around a patch: what is built with never landed elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tasks.patches.series import positions, read_diff
from tasks.patches.trees import diff
from tasks.release import PatchStatus
from tasks.sources import Sources
from tests.patches.conftest import World

FILE = "common/chat.cpp"
MINE = "init_gemma4"
OTHERS = ("init_gpt_oss", "init_qwen", "init_mistral", "init_kimi")
ADDED = '    data.thinking_end_tag = "<channel|>";\n'
CHANGED = "    data.supports_thinking  = true;\n"


def body(lead: int, tail: int, extra: str) -> str:
    """What siblings have in common: the same lines, and so the same context, in each of them."""
    return (
        "    params data;\n"
        + "".join(f"    step({n});\n" for n in range(lead))
        + "    data.prompt = apply(t);\n    data.format = PEG;\n    data.supports_thinking = true;\n\n"
        + extra
        + "    data.preserved = {\n        1,\n    };\n"
        + "".join(f"    after({n});\n" for n in range(tail))
        + "    return data;\n"
    )


def function(name: str, lines: str) -> str:
    return f"static params {name}(const tmpl & t) {{\n{lines}}}\n\n"


def functions(text: str) -> dict[str, list[str]]:
    """Each function's lines, by a reading that shares nothing with ours: these files keep to column 0."""
    return {
        name: lines.split("\n")
        for name, lines in re.findall(r"^static params (\w+)\(.*?\{\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL)
    }


def lines_of(target: dict[str, list[str]], name: str) -> list[str]:
    return target.get(name, [])


move = st.sampled_from(
    ["insert above", "insert inside", "rename mine", "rename other", "swap", "drop mine", "drop other", "copy mine",
     "reindent mine", "reindent others", "patch other", "patch mine", "change context", "into a namespace"]
)  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> tuple[str, str, str]:
    """(the file when the patch was exported, with the patch, the file on the target)."""
    lead, tail = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    names = draw(st.permutations([MINE, *draw(st.lists(st.sampled_from(OTHERS), min_size=1, max_size=3, unique=True))]))
    plain = body(lead, tail, "")
    base = dict.fromkeys(names, plain)
    patched = dict(base)
    patched[MINE] = plain.replace("    data.supports_thinking = true;\n", CHANGED + ADDED)
    target = list(base.items())
    above = ""
    wrapped = False
    for what in draw(st.lists(move, max_size=4)):
        at = draw(st.integers(0, max(0, len(target) - 1)))
        mine = next((n for n, (name, _) in enumerate(target) if name == MINE), None)
        others = [n for n, (name, _) in enumerate(target) if name != MINE]
        if what == "insert above":
            above += "// a line\n" * draw(st.integers(1, 9))
        elif what == "insert inside" and target:
            name, lines = target[at]
            target[at] = name, "    more();\n" + lines
        elif what == "rename mine" and mine is not None:
            target[mine] = "init_gemma_four", target[mine][1]
        elif what == "rename other" and others:
            target[others[0]] = "init_renamed", target[others[0]][1]
        elif what == "swap" and len(target) > 1:
            target.append(target.pop(0))
        elif what == "drop mine" and mine is not None:
            target.pop(mine)
        elif what == "drop other" and others:
            target.pop(others[-1])
        elif what == "copy mine" and mine is not None:
            target.insert(at, ("init_copy", target[mine][1]))
        elif what == "reindent mine" and mine is not None:
            target[mine] = MINE, re.sub(r"^    ", "\t", target[mine][1], flags=re.MULTILINE)
        elif what == "reindent others":
            target = [(n, t if n == MINE else re.sub(r"^    ", "  ", t, flags=re.MULTILINE)) for n, t in target]
        elif what == "patch other" and others:
            name, lines = target[others[0]]
            target[others[0]] = name, lines.replace("    data.supports_thinking = true;\n", CHANGED + ADDED)
        elif what == "patch mine" and mine is not None:
            target[mine] = MINE, target[mine][1].replace("    data.supports_thinking = true;\n", CHANGED + ADDED)
        elif what == "change context" and target:
            name, lines = target[at]
            target[at] = name, lines.replace("data.format = PEG;", "data.format = PEG2;")
        elif what == "into a namespace":
            wrapped = True
    text = above + "".join(function(*pair) for pair in target)
    text = f"namespace x {{\n{text}}}\n" if wrapped else text
    return "".join(function(*p) for p in base.items()), "".join(function(*p) for p in patched.items()), text


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=histories(), known=st.sampled_from([True, True, False]))
def test_what_is_built_with_changed_its_own_function_and_no_other(
    sources: Sources, tmp_path: Path, history: tuple[str, str, str], known: bool
) -> None:
    base, patched, target = history
    world = World(tmp_path, sources)
    world.upstream(100, {FILE: base})
    world.patch(100, {FILE: patched})
    world.upstream(101, {FILE: target})
    if not known:
        del world.trees[100]
    placed = world.one(101)
    status = placed.result.status
    event(f"{status}, {'both trees' if known else 'the target alone'}")
    result = sources.read(placed.tree, FILE)
    if not status.built_with:
        assert result == target
        return
    before, after = functions(target), functions(result)
    assert {name for name in after if lines_of(before, name) != after[name]} == {MINE}
    assert ADDED.rstrip("\n") in after[MINE]
    assert set(before) == set(after)
    if status is PatchStatus.CLEAN:
        (patch,) = (world.folder / "0001-x.patch",)
        assert positions(read_diff(diff(sources, world.trees[101], placed.tree, 0))) == positions(
            read_diff(patch.read_text())
        )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=histories())
def test_upstreamed_is_said_only_of_a_function_that_has_the_lines(
    sources: Sources, tmp_path: Path, history: tuple[str, str, str]
) -> None:
    base, patched, target = history
    world = World(tmp_path, sources)
    world.upstream(100, {FILE: base})
    world.patch(100, {FILE: patched}, "0001-x.patch", r"Evidence: common/*.cpp :: ^\s*data\.thinking_end_tag = ")
    world.upstream(101, {FILE: target})
    has_it = ADDED.strip() in [line.strip() for line in functions(target).get(MINE, [])]
    assert (world.one(101).result.status is PatchStatus.UPSTREAMED) == has_it
