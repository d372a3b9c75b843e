"""The API surface of one build: what people and programs may ask of it, read from its binary and its source."""

from __future__ import annotations

import re

from pydantic import Field as Described

from tasks.flags.flag import Flag, flags_of_help, flags_of_readme
from tasks.release import Build, Model, ToolingError
from tasks.sources import Sources
from tasks.store import Store

SERVER = "tools/server"
README = f"{SERVER}/README.md"


class Route(Model):
    """One HTTP route, as the source registers it."""

    method: str
    path: str
    handler: str = Described(description="the function behind it: two routes with one handler do the same")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Exchange(Model):
    """What one request was answered."""

    status: int = Described(description="HTTP status; 0 for no answer in time")
    keys: dict[str, str] = Described(default={}, description="key path in the body -> JSON type; metric name -> type")


class Surface(Model):
    """What may be asked of one build."""

    build: str = Described(description="build digest")
    tag: str
    flags: tuple[Flag, ...]
    readme: tuple[str, ...] = Described(default=(), description="where --help and the tree's README disagree")
    variables: tuple[str, ...] = Described(default=(), description="environment names that stand in the binary")
    routes: tuple[Route, ...]
    fields: tuple[str, ...] = Described(description="request fields that the source reads")
    mentioned: tuple[str, ...] = Described(default=(), description="all words in quotes in the server's source")
    exchanges: dict[str, Exchange] = Described(default={}, description="request -> answer; see observe.py")

    def reads(self, variable: str) -> bool:
        """Whether this build can know an environment variable."""
        return variable in self.variables or any(variable in flag.variables for flag in self.flags)


def read(store: Store, sources: Sources, build: Build, tree: str) -> Surface:
    """The surface of a build as its binary and its source tree tell it, without what a running server shows.

    Raises ToolingError when one of its parts is not found where it is looked for.
    """
    code = {path: sources.read(tree, path) for path in sources.files(tree, f"{SERVER}/*.cpp")}
    flags = flags_of_help(store.ask(build, "--help").stdout)
    surface = Surface(
        build=build.digest,
        tag=build.tag,
        flags=flags,
        readme=disagreements(flags, flags_of_readme(sources.read(tree, README))),
        variables=store.search(build, _VARIABLE),
        routes=routes_of("\n".join(code.values())),
        fields=fields_of("\n".join(code.values())),
        mentioned=tuple(sorted({word for text in code.values() for word in re.findall(r'"([\w.]+)"', text)})),
    )
    if empty := [part for part in ("flags", "routes", "fields", "variables") if not getattr(surface, part)]:
        raise ToolingError(
            f"no {' and no '.join(empty)} found in {build.tag}",
            evidence=f"{build.recipe.target} --help, {README}, {SERVER}/*.cpp of tree {tree}",
            todo="upstream writes them in another way now: teach tasks/preflight/surface.py",
        )
    return surface


def disagreements(listed: tuple[Flag, ...], documented: tuple[Flag, ...]) -> tuple[str, ...]:
    """One line for each flag that `--help` and the README do not tell in the same way."""
    there = {name: flag for flag in documented for name in flag.names}
    known = {name for flag in listed for name in flag.names}
    lines = [f"{flag.main}: in the README only" for flag in documented if not known & set(flag.names)]
    for flag in listed:
        other = next((there[name] for name in flag.names if name in there), None)
        if other is None:
            lines.append(f"{flag.main}: not in the README")
            continue
        for what in ("names", "value", "env", "default"):
            here, said = (_words(getattr(each, what)) for each in (flag, other))
            if here != said:
                lines.append(f"{flag.main}: {what} {here or 'none'} in --help, {said or 'none'} in the README")
    return tuple(lines)


def _words(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


_VARIABLE = rb"\0((?:LLAMA|GGML|MTMD)_[A-Z0-9_]+)(?=\0)"
"""Names of environment variables of llama.cpp's own that stand in a build's files as strings. More than are read (a few
macros look the same), never fewer: a name that is not there cannot be read."""
_ROUTE = re.compile(r'ctx_http\.(get|post|del)\s*\(\s*"(/[^"]*)",\s*ex_wrapper\(([\w.>-]+)')
_FIELD = re.compile(
    r"""
      json_value\( \s* \w*(?:data|body|request) \s*,\s* "([\w.]+)"
    | \b\w*(?:data|body) \.(?:contains|at|find)\( \s* "([\w.]+)"
    | \bnew\s+field_\w+\( \s* "([\w.]+)"
    | \badd_alias\( \s* "([\w.]+)"
    """,
    re.VERBOSE,
)
_METHODS = {"get": "GET", "post": "POST", "del": "DELETE"}


def routes_of(code: str) -> tuple[Route, ...]:
    """The routes that the server's source registers, whatever they are registered under, by path and method."""
    found = {
        (path, _METHODS[method]): re.split(r"\.|->", handler)[-1]
        for method, path, handler in _ROUTE.findall(_without_comments(code))
        if handler != "res_403"
    }
    return tuple(Route(method=m, path=p, handler=handler) for (p, m), handler in sorted(found.items()))


def fields_of(code: str) -> tuple[str, ...]:
    """The request fields that the server's source reads: from its schema, or by json_value, contains and at."""
    return tuple(sorted({name for found in _FIELD.findall(_without_comments(code)) for name in found if name}))


def _without_comments(code: str) -> str:
    return re.sub(r"^[^\S\n]*//.*$|\s//\s.*$", "", code, flags=re.MULTILINE)
