"""The environment of children: only what is on a list, and from one module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from modal_app.child import COMPILERS, DEVICES, PIP, PREFECT, PYTHON, environment, serving
from tasks.process import run

REPOSITORY = Path(__file__).parent.parent
PRODUCT = [path for name in ("flows", "tasks", "modal_app") for path in sorted((REPOSITORY / name).rglob("*.py"))]
MAKES_THEM = ("modal_app/child.py", "modal_app/redaction.py", "modal_app/wall.py")
STARTS = {"run", "Popen", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SOMETHING_OF_OURS": "1", "LLAMA_ARG_CTX_SIZE": "1", "GITHUB_TOKEN": "planted-4711", "CXXFLAGS": "-O1",
        "CUDA_VISIBLE_DEVICES": "1", "CUDA_SECRET": "planted-4711", "CMAKE_PREFIX_PATH": "/opt/x",
        "CCACHE_REMOTE_STORAGE": "redis://ada:planted-4711@host", "PIP_INDEX_URL": "https://ada:planted-4711@host/",
        "LLAMA_RELEASE_STORE": "/s", "LLAMA_RELEASE_API_KEY": "planted-4711", "LD_LIBRARY_PATH": "/opt/cuda",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def test_a_program_is_given_what_is_on_its_lists_and_no_secret_unless_the_list_is_of_one_that_has_them() -> None:
    assert {"SOMETHING_OF_OURS", "CXXFLAGS", "GITHUB_TOKEN"}.isdisjoint(environment())
    built = environment(COMPILERS)
    assert (built["CXXFLAGS"], built["CMAKE_PREFIX_PATH"]) == ("-O1", "/opt/x")
    assert {"CUDA_SECRET", "CCACHE_REMOTE_STORAGE", "LLAMA_ARG_CTX_SIZE"}.isdisjoint(built)
    assert environment(PIP)["PIP_INDEX_URL"].startswith("https://ada:")
    ours = environment(PYTHON, DEVICES, PREFECT)
    assert (ours["LLAMA_RELEASE_STORE"], ours["CUDA_VISIBLE_DEVICES"]) == ("/s", "1")
    assert {"LLAMA_RELEASE_API_KEY", "PIP_INDEX_URL"}.isdisjoint(ours)


def test_a_server_looks_for_its_own_libraries_first() -> None:
    assert serving(Path("/b"))["LD_LIBRARY_PATH"] == "/b:/opt/cuda"
    assert "CXXFLAGS" not in serving(Path("/b"))


def test_a_command_is_given_nothing_else_unless_it_is_told() -> None:
    assert "planted-4711" not in run(["env"], timeout_s=30).stdout
    assert run(["env"], env={"A": "b", "PATH": "/usr/bin:/bin"}, timeout_s=30).stdout.splitlines() == [
        "A=b",
        "PATH=/usr/bin:/bin",
    ]


def processes(path: Path) -> Iterator[tuple[int, bool]]:
    """(line, whether an environment is given) of each process that a file starts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="subprocess"), attr=name)) if name in STARTS:
                yield node.lineno, any(word.arg == "env" for word in node.keywords)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr=name)) if name.startswith(
                ("system", "popen", "posix_spawn", "spawn", "exec")
            ):
                yield node.lineno, name.endswith("e")
            case ast.Call(func=ast.Attribute(attr="create_subprocess_exec" | "create_subprocess_shell")):
                yield node.lineno, any(word.arg == "env" for word in node.keywords)


def test_every_process_that_the_product_starts_is_given_an_environment() -> None:
    found = {f"{path.relative_to(REPOSITORY)}:{line}": given for path in PRODUCT for line, given in processes(path)}
    assert len(found) > 15
    bare = [place for place, given in found.items() if not given and not place.startswith("modal_app/wall.py")]
    assert bare == []


def test_no_module_but_one_takes_the_whole_environment() -> None:
    whole = []
    for path in PRODUCT:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "environ" and not _is_for_one(parents[node]):
                whole.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert [place for place in whole if not place.startswith(MAKES_THEM)] == []


def _is_for_one(parent: ast.AST) -> bool:
    """Whether it is about single variables, or the names of some."""
    match parent:
        case ast.Subscript() | ast.Compare() | ast.comprehension():
            return True
        case ast.Attribute(attr="get" | "pop" | "setdefault"):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="demonstration"), attr="configure")):
            return True
    return False
