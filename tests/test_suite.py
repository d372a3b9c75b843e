"""The suite itself: a fixture that no test asks for is dead code, and no linter sees it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

Function = ast.FunctionDef | ast.AsyncFunctionDef
BY_NAME = ("usefixtures", "getfixturevalue")
"""What asks for fixtures by strings."""


@dataclass(frozen=True)
class Fixture:
    """A fixture, and the names that it asks for."""

    file: Path
    line: int
    name: str
    autouse: bool
    asks: frozenset[str]


@dataclass(frozen=True)
class Module:
    """What a file of tests has: its fixtures, and the names that its tests ask for."""

    fixtures: dict[str, Fixture]
    imported: dict[str, str]
    """Name -> dotted name of the module that it is from, for all that is imported."""
    asks: frozenset[str]


def module(file: Path) -> Module:
    """What is in a file. Strings of BY_NAME count as its tests', wherever they stand in it.

    What a test with a `request` may ask for is not seen in its body: all strings of its parameters count.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    fixtures: dict[str, Fixture] = {}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {each.asname or each.name: node.module or "" for node in imports for each in node.names}
    asks = {text for call in ast.walk(tree) if _called(call) in BY_NAME for text in _strings(call)}
    for node in ast.walk(tree):
        if isinstance(node, Function):
            parameters = {each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            if mark := next((each for each in node.decorator_list if _called(each) == "fixture"), None):
                options = {each.arg: each.value for each in mark.keywords} if isinstance(mark, ast.Call) else {}
                name = next(_strings(options["name"])) if "name" in options else node.name
                fixtures[name] = Fixture(file, node.lineno, name, "autouse" in options, frozenset(parameters))
            elif node.name.startswith("test_"):
                asks |= parameters - {text for each in node.decorator_list for text in _parametrized(each)}
                if "request" in parameters:
                    asks |= {text for each in node.decorator_list for text in _strings(each)}
    return Module(fixtures, imported, frozenset(asks))


def _called(node: ast.AST) -> str:
    """`fixture` of `pytest.fixture`, `@fixture` and `pytest.fixture(scope="module")`; '' of what is no name."""
    target = node.func if isinstance(node, ast.Call) else node
    return target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""


def _parametrized(decorator: ast.expr) -> Iterator[str]:
    """The parameters that get their values from a `pytest.mark.parametrize`, and so from no fixture."""
    if isinstance(decorator, ast.Call) and _called(decorator) == "parametrize":
        yield from _strings(decorator.args[0])


def _strings(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def dead_fixtures(root: Path) -> list[str]:
    """`file:line: name` of each fixture below a folder that no test gets, neither itself nor through another one."""
    modules = {file: module(file) for file in sorted(root.rglob("*.py"))}

    def given(name: str, file: Path, but: Fixture | None = None) -> Fixture | None:
        """The fixture that a file gets for a name: its own, one that it imports, or the nearest conftest.py's."""
        for place in (file, *(folder / "conftest.py" for folder in file.parents)):
            if place in modules:
                source = root.parent / (modules[place].imported.get(name, "").replace(".", "/") + ".py")
                found = modules[source if source in modules else place].fixtures.get(name)
                if found and found != but:
                    return found
        return None

    every = {fixture for each in modules.values() for fixture in each.fixtures.values()}
    wanted = [given(name, file) for file, each in modules.items() for name in each.asks]
    wanted += [fixture for fixture in every if fixture.autouse]
    alive: set[Fixture] = set()
    while wanted:
        fixture = wanted.pop()
        if fixture and fixture not in alive:
            alive.add(fixture)
            wanted += [given(name, fixture.file, fixture) for name in fixture.asks]
    return [
        f"{each.file.relative_to(root)}:{each.line}: {each.name}"
        for each in sorted(every - alive, key=lambda each: (each.file, each.line))
    ]


def test_every_fixture_is_asked_for() -> None:
    assert dead_fixtures(REPOSITORY / "tests") == []


def test_a_fixture_that_only_a_dead_one_or_a_test_elsewhere_asks_for_is_dead(tmp_path: Path) -> None:
    written(
        tmp_path / "conftest.py",
        "asked", "through(asked)", "overridden", "by_name", "always", "by_a_dead_one",
        "dead(by_a_dead_one)", "shadowed", "value",
    )  # fmt: skip
    written(tmp_path / "test_one.py", "local", "shadowed", "elsewhere")
    with (tmp_path / "test_one.py").open("a") as file:
        file.write("@pytest.mark.usefixtures('by_name')\n@pytest.mark.parametrize('value', [1])\n")
        file.write("def test_one(through, local, shadowed, value): ...\n")
    written(tmp_path / "inner" / "conftest.py", "overridden(overridden)")
    (tmp_path / "inner" / "test_two.py").write_text("async def test_two(overridden, elsewhere): ...\n")
    assert [line.partition(": ")[2] for line in dead_fixtures(tmp_path)] == [
        "by_a_dead_one", "dead", "shadowed", "value", "elsewhere",
    ]  # fmt: skip


def written(file: Path, *fixtures: str) -> None:
    """A file with these fixtures, `name` or `name(name)`; `always` is used by itself."""
    file.parent.mkdir(exist_ok=True)
    lines = ["import pytest"]
    for fixture in fixtures:
        lines.append("@pytest.fixture(autouse=True)" if fixture == "always" else "@pytest.fixture")
        lines.append(f"def {fixture if '(' in fixture else fixture + '()'}: ...")
    file.write_text("\n".join([*lines, ""]))
