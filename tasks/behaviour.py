"""What code does, as a digest: a verification rests on it, and is stale once it changes."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

from tasks.release import digest_of

_READ = (".py", ".jinja")
_SAYS_NOTHING = frozenset({"kind", "type_comment"})


@cache
def digest_of_code(*paths: Path) -> str:
    """12 hex characters over these Python modules and Jinja templates, and those in these folders.

    Comments, docstrings and formatting are not in it: to tidy them makes nothing stale. The same on every Python.
    """
    files = (path for each in paths for path in (each.iterdir() if each.is_dir() else (each,)))
    found = {f"{path.parent.name}/{path.name}": path for path in files}
    return digest_of({name: _behaviour(path) for name, path in found.items() if path.suffix in _READ})[:12]


def _behaviour(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return _syntax(ast.parse(text)) if path.suffix == ".py" else text


def _syntax(node: Any) -> Any:
    """The tree as JSON, without what is empty: later Pythons have fields that earlier ones have not."""
    if isinstance(node, list):
        return [_syntax(each) for each in node if not _is_text_alone(each)]
    if isinstance(node, ast.JoinedStr):  # Python 3.12 ends some with an empty string
        node.values = [each for each in node.values if not (isinstance(each, ast.Constant) and each.value == "")]
    if isinstance(node, ast.AST):
        fields = {name: _syntax(value) for name, value in ast.iter_fields(node) if name not in _SAYS_NOTHING}
        return [type(node).__name__, {name: value for name, value in fields.items() if value not in (None, [])}]
    return node if node is None else repr(node)


def _is_text_alone(node: Any) -> bool:
    """A statement that is a string: a docstring, of whatever it stands under."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
