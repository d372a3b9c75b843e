"""Blocking Modal calls in async code (guide, issue 5), found in the source before they stop an event loop.

Modal warns of them at run time (AsyncUsageWarning). What blocks is asked of the installed SDK itself: each method that
has an `.aio` twin does, unless that twin is called.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tasks.doctor import Check
from tasks.release import BadInput
from tasks.settings import Settings

OURS = Path(__file__).parents[2] / "modal_app"
_ONLY_MODALS = {"remote", "remote_gen"}
"""Methods by which a Modal function is known wherever it was imported from."""


def checks(settings: Settings, code: Sequence[Path]) -> Iterator[Check]:
    """The check of our own Modal code, of evals.tasks, and of the files and folders in `code`."""
    tasks = [Path(task.partition("@")[0]) for task in settings.evals.tasks]
    yield "event loop", lambda: examine([OURS, *(path for path in tasks if path.is_file()), *code])


def examine(paths: Sequence[Path]) -> str:
    """What was read. Raises BadInput that names each blocking call, and for what cannot be read."""
    files = [file for path in paths for file in ([path] if path.suffix == ".py" else sorted(path.rglob("*.py")))]
    if lost := [str(path) for path in paths if not path.exists()]:
        raise BadInput(f"there is no {', '.join(lost)}", todo="give Python files or folders of them")
    found = []
    for file in files:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        except (SyntaxError, UnicodeDecodeError) as error:
            raise BadInput(f"{file} cannot be read", evidence=str(error), todo="correct it") from error
        found += [f"{file}:{line}: {call}" for line, call in blocking_calls(tree)]
    if found:
        raise BadInput(
            "blocking Modal calls stop the event loop",
            evidence="\n".join(found),
            todo="await the same method's .aio: `await f.remote.aio(...)`",
        )
    return f"{len(files)} files, no blocking Modal call in an async function"


def blocking_calls(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, call) of each blocking Modal call in an async function of a module, in order."""
    names, foreign = _modal_names(tree), _imports(tree, "ray")
    found = []
    for call in _calls_in_async(tree):
        method = call.func
        if not isinstance(method, ast.Attribute) or method.attr == "aio":
            continue
        known = _root(method) in names and method.attr in _blocking()
        if known or (method.attr in _ONLY_MODALS and not foreign):
            found.append((call.lineno, ast.unparse(call)))
    return sorted(found)


@cache
def _blocking() -> frozenset[str]:
    """The methods that block in each class that has them: `from_name`, say, does in one only."""
    import modal  # takes a second to load

    kinds = [kind for name in modal.__all__ if isinstance(kind := getattr(modal, name), type)]
    waits: set[str] = set()
    not_all: set[str] = set()
    for kind in kinds:
        for name in filter(lambda name: not name.startswith("_"), dir(kind)):
            (waits if hasattr(getattr(kind, name, None), "aio") else not_all).add(name)
    return frozenset(waits - not_all)


def _modal_names(tree: ast.Module) -> set[str]:
    """The names that stand for Modal or something of it: imported, decorated with it, or made of it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] == "modal"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "modal":
            names |= {a.asname or a.name for a in node.names}
    before = -1
    while len(names) > before:  # what is made of a name may be made into another
        before = len(names)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if any(_root(decorator) in names for decorator in node.decorator_list):
                    names.add(node.name)
            elif isinstance(node, ast.Assign) and _root(node.value) in names:
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.withitem) and _root(node.context_expr) in names:
                names |= {node.optional_vars.id} if isinstance(node.optional_vars, ast.Name) else set()
    return names


def _imports(tree: ast.Module, module: str) -> bool:
    return any(isinstance(n, ast.Import) and any(a.name == module for a in n.names) for n in ast.walk(tree))


def _root(node: ast.expr) -> str | None:
    """The name that a chain of attributes, calls, subscripts and awaits begins with."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute | ast.Subscript | ast.Await):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return None
    return node.id


def _calls_in_async(node: ast.AST, inside: bool = False) -> Iterator[ast.Call]:
    """Calls whose nearest function is async: what a plain function or a lambda in it does is its caller's business."""
    for child in ast.iter_child_nodes(node):
        here = inside
        if isinstance(child, ast.AsyncFunctionDef):
            here = True
        elif isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            here = False
        if isinstance(child, ast.Call) and inside:
            yield child
        yield from _calls_in_async(child, here)
