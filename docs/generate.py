"""The parts of the pages that are made of the code, between `<!-- what -->` and `<!-- end -->`.

python docs/generate.py     writes them anew (`make docs` does); a test finds those that are not
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows.__main__ import INTERRUPTED, app
from flows.doctor import ONLY_WARNINGS
from flows.outcome import EXIT_CODES
from tasks.contracts.promises import CONTRACTS
from tasks.release import BadInput, ReleaseFailed, ToolingError
from tasks.runbook import NAME, Row, known
from tasks.runbook import load as load_runbook
from tasks.settings import Settings

REPOSITORY = Path(__file__).parent.parent
PART = re.compile(r"(<!-- (?P<what>[a-z]+)(?: (?P<which>[\w.-]+))? -->\n).*?(<!-- end -->)", re.DOTALL)
HOME = str(Path.home())


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose cells are Markdown: what stands in them is ours."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *(line(row) for row in rows)])


def pages() -> list[Path]:
    """Every page that a reader may open."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def sections() -> dict[str, type[BaseModel]]:
    """Section of the settings -> its model; '' is what stands in no section."""
    return {"": Settings} | {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def settings(which: str | None) -> str:
    """One section's settings as a table, or all of them."""
    known = sections()
    if which:
        return _section(known[which], f"{which}.")
    named = (f"## {name}\n\n{_section(model, f'{name}.')}" for name, model in known.items() if name)
    return "\n\n".join([_section(Settings, ""), *named])


def _section(model: type[BaseModel], prefix: str) -> str:
    fields = {name: field for name, field in model.model_fields.items() if prefix or name not in sections()}
    rows = ((f"`{prefix}{name}`", _default(field), _meaning(field)) for name, field in fields.items())
    return _table(("setting", "default", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "not set"
    shown = json.dumps(value, default=str) if isinstance(value, dict | list | tuple | bool) else str(value)
    return f"`{shown.replace(HOME, '~')}`"


def _meaning(field: FieldInfo) -> str:
    words = [field.description or ""]
    number = any(part in (int, float) for part in _parts(field.annotation))
    choices = [f"`{choice}`" for choice in _choices(field.annotation)]
    if choices:
        words.append(("a number or " if number else "one of " if len(choices) > 1 else "or ") + ", ".join(choices))
    return "; ".join(filter(None, words))


def _parts(annotation: Any) -> Iterator[Any]:
    """The types that a value may have: the members of a union, what stands in `Annotated`."""
    if get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _choices(annotation: Any) -> list[Any]:
    return [choice for part in _parts(annotation) if get_origin(part) is Literal for choice in get_args(part)]


def commands() -> str:
    """Every command of the command line, with its arguments and options."""
    return "\n\n".join(_commands(typer.main.get_command(app), ["llama-release"]))


def _commands(command: Any, words: list[str]) -> Iterator[str]:
    children = getattr(command, "commands", {})
    parameters = [p for p in command.params if p.name != "help"]
    if not children or parameters:
        arguments = "".join(f" {p.name.upper()}" for p in parameters if _is_argument(p))
        told = [
            f"## {' '.join(words[1:] or words)}",
            " ".join((command.help or "").split()),
            f"`{' '.join(words)}{arguments}`",
        ]
        rows = [(" ".join(f"`{o}`" for o in _names(p)), _told(p)) for p in parameters]
        yield "\n\n".join(filter(None, [*told, _table(("option", "meaning"), rows) if rows else ""]))
    for name, child in children.items():
        yield from _commands(child, [*words, name])


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _names(parameter: Any) -> list[str]:
    return [parameter.name.upper()] if _is_argument(parameter) else list(parameter.opts)


def _told(parameter: Any) -> str:
    needed = ["needed"] if parameter.required and not _is_argument(parameter) else []
    variable = [f"also `{parameter.envvar}`"] if parameter.envvar else []
    return "; ".join([parameter.help or "", *needed, *variable])


def exits() -> str:
    """What the command line's exit codes mean."""
    codes: dict[int, list[str]] = {}
    for kind, code in EXIT_CODES.items():
        codes.setdefault(code, []).append(kind.replace("_", " "))
    for problem in (ReleaseFailed, BadInput, ToolingError):
        codes.setdefault(problem.exit_code, []).append((problem.__doc__ or "").strip())
    codes[ONLY_WARNINGS] = ["doctor found nothing worse than a warning"]
    codes[INTERRUPTED] = ["interrupted; nothing is lost"]
    return _table(("exit code", "when"), ((code, ", ".join(when)) for code, when in sorted(codes.items())))


def promises() -> str:
    """Every promise, by subject."""
    rows = (
        (
            f"`{name.removeprefix('contracts.')}`", c.text, c.source, c.server,
            "always" if c.must else "if production does", c.known,
        )
        for name, c in CONTRACTS.items()
    )  # fmt: skip
    return _table(("promise", "what is promised", "why", "asked of", "must be kept", "known of upstream"), rows)


def breaks() -> str:
    """The broken servers that the tests put in front of the promises, by subject."""
    from tests.contracts.breakages import BROKEN, title
    from tests.contracts.broken_kinds import KINDS

    wrong: dict[str, list[str]] = {}
    for breakage, _, changed in BROKEN:
        for subject in {name.split(".")[0] for name in changed}:
            wrong.setdefault(subject, []).append(title(breakage))
    for each in KINDS:
        for subject in each.caught_by:
            wrong.setdefault(subject, []).append(each.what)
    return _table(
        ("subject", "what is wrong"), ((f"`{subject}`", "; ".join(wrong[subject])) for subject in sorted(wrong))
    )


def runbook() -> str:
    """Every symptom of the runbook, by area."""
    parts = []
    for area in dict.fromkeys(row.area for row in known()):
        parts += [f"## {area[0].upper()}{area[1:]}", *(_symptom(row) for row in known() if row.area == area)]
    return "\n\n".join(parts)


def _symptom(row: Row) -> str:
    caught = ", ".join(f"`{check.replace('contracts ', 'contracts.')}`" for check in row.checks)
    told = (("Cause", row.cause), ("Fix", row.fix), ("Whose", row.owner), ("Caught by", caught), ("Source", row.source))
    lines = [f"- {name}: {_plain(text)}" for name, text in told if text]
    said = [f"    {line}" for example in row.examples for line in example.splitlines()]
    return "\n".join([f"### {row.id}", "", f"**{_plain(row.symptom)}**", "", *said, "", *lines])


def _plain(text: str) -> str:
    """Text with no HTML in it; what stands in backquotes is none anyway. The names of words in it as capitals."""
    text = NAME.sub(lambda name: name[1].upper(), text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in re.split(r"(`[^`]*`)", text))


def collect() -> str:
    """What to collect when the runbook does not know a message."""
    return "\n".join(f"- {item}" for item in load_runbook().collect)


MADE: dict[str, Callable[[str | None], str]] = {
    "settings": settings,
    "commands": lambda _: commands(),
    "exits": lambda _: exits(),
    "promises": lambda _: promises(),
    "breaks": lambda _: breaks(),
    "runbook": lambda _: runbook(),
    "collect": lambda _: collect(),
}


def made(text: str) -> str:
    """A page with its generated parts as the code has them now."""

    def part(found: re.Match[str]) -> str:
        return f"{found[1]}\n{MADE[found['what']](found['which'])}\n\n{found[4]}"

    return PART.sub(part, text)


def main() -> None:
    sys.path.append(str(REPOSITORY))  # the tests are in no package that is installed
    os.environ.pop("XDG_CACHE_HOME", None)  # a default that it moves would be shown where it is on this machine
    for page in pages():
        before = page.read_text(encoding="utf-8")
        if (after := made(before)) != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
