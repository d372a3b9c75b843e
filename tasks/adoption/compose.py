"""A service of a compose file, as docker compose reads it: variables, env files, `extends`, anchors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from tasks.adoption.containers import absolute, bind, contained, ports, published, with_gpus
from tasks.adoption.launch import Launch, Mount, Port, Variable, Word, given, words_of
from tasks.adoption.variables import Unset, dotenv_file, interpolate, read_text
from tasks.adoption.words import peel, program
from tasks.release import BadInput

OVERRIDES = {
    "compose.yaml": "compose.override.yaml", "compose.yml": "compose.override.yml",
    "docker-compose.yml": "docker-compose.override.yml", "docker-compose.yaml": "docker-compose.override.yaml",
}  # fmt: skip
"""The second file that is read, too, when docker compose finds the first one by itself (compose-go, cli/options.go)."""
_READ = {
    "image", "command", "entrypoint", "environment", "env_file", "volumes", "ports", "working_dir", "network_mode",
    "deploy", "gpus", "extends", "secrets", "container_name", "expose", "profiles", "labels", "configs",
}  # fmt: skip
_REPLACED = {"command", "entrypoint"}
"""Lists that a later file replaces; others it adds to (compose-spec, 13-merge.md)."""
Tree = dict[str, Any]


class _AsText(yaml.SafeLoader):
    """Scalars are what stands there: `on` is no truth and 010 no 8. Go's YAML, which compose reads with, takes yes, no,
    on and off for text, too (go-yaml v3)."""


_AsText.yaml_implicit_resolvers = {
    first: kept
    for first, all_of_it in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [each for each in all_of_it if each[0] in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")])
}
_AsText.add_multi_constructor("!", lambda loader, suffix, node: _tagged(suffix, _plain(loader, node)))


class _Override(NamedTuple):
    """What replaces an earlier file's instead of being merged with it; None is `!reset` (compose-spec, 13-merge.md)."""

    value: Any


def _tagged(tag: str, value: Any) -> Any:
    return _Override(value) if tag == "override" else _Override(None) if tag == "reset" else value


def _within(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value that is changed, behind its tag."""
    return _Override(change(value.value)) if isinstance(value, _Override) else change(value)


def _plain(loader: _AsText, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)  # type: ignore[arg-type]  # of the three kinds it is the third


def read_compose(file: Path, service: str | None, caller: Mapping[str, str]) -> Launch:
    """What a service runs: the one that is a llama-server, unless it is named.

    Raises BadInput for a file or a service that can't be read, and when several are llama-servers.
    """
    try:
        return _read(file.absolute(), service, caller)
    except (TypeError, AttributeError, KeyError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{file} is not as compose has it", evidence=type(error).__name__,  # its text quotes the file's, keys too
            todo=f"check it: docker compose -f {file.name} config",
        ) from error  # fmt: skip


def _read(file: Path, service: str | None, caller: Mapping[str, str]) -> Launch:
    dotenv = file.parent / ".env"
    known = {**(dotenv_file(read_text(dotenv), caller, str(dotenv)) if dotenv.is_file() else {}), **caller}
    missing: dict[str, None] = {}

    def unset(name: str) -> str:
        missing[name] = None
        return ""

    services = _whole(file, known, unset)
    second = file.parent / OVERRIDES.get(file.name, "")
    notes = []
    if second.is_file():
        for name, body in _whole(second, known, unset).items():
            services[name] = _merged(services.get(name, {}), body)
        notes.append(f"{second.name}: read, too, as docker compose does")
    if missing:
        notes.append(f"{', '.join(missing)}: not set, and nothing to docker compose")
    bodies = {name: _merged({}, body) for name, body in services.items()}
    name = service or _the_server(bodies, file)
    if name not in bodies:
        raise BadInput(f"{file.name} has no service {name}", evidence=", ".join(bodies), todo="name one with --service")
    return _launched(name, bodies[name], file, known).told(*notes)


def _whole(file: Path, known: Mapping[str, str], unset: Unset) -> dict[str, Tree]:
    """A file's services with what they extend: each file's own, before files are merged (compose-go, loader)."""
    services = _services(file, known, unset)
    return {name: _extended(body, services, file.parent, known) for name, body in services.items()}


def _services(file: Path, known: Mapping[str, str], unset: Unset) -> dict[str, Tree]:
    try:
        tree = yaml.load(read_text(file), Loader=_AsText)
    except yaml.YAMLError as error:
        raise BadInput(f"{file} is no YAML", evidence=_problem(error), todo="mend it, or name another file") from error
    services = tree.get("services") if isinstance(tree, dict) else None
    if not isinstance(services, dict) or not services:
        raise BadInput(f"{file} has no services", todo="name a compose file")
    secrets = tree.get("secrets") or {}
    found = {}
    for name, body in services.items():
        body = dict(body or {})
        if "secrets" in body:
            body["secrets"] = _within(body["secrets"], partial(_files_of, declared=secrets, here=file.parent))
        found[name] = _rooted(_interpolated(body, known, unset, f"{file.name}: services.{name}"), file.parent)
    return found


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong with a file and where, without its text, which may hold a key."""
    problem = re.sub(
        r"(['\"]).*\1", "...", str(getattr(error, "problem", None) or type(error).__name__), flags=re.DOTALL
    )
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


def _rooted(body: Tree, here: Path) -> Tree:
    """The same with absolute paths: those of a file that is extended begin in its own folder."""
    found = dict(body)
    if "env_file" in body:
        found["env_file"] = _within(body["env_file"], partial(_env_files, here=here))
    found["volumes"] = _within(body.get("volumes"), lambda volumes: [*_mounts(volumes or (), here)])
    return found


def _env_files(files: Any, here: Path) -> list[Tree]:
    files = [files] if isinstance(files, str | dict) else files or ()
    each = [{"path": file} if isinstance(file, str) else file for file in files]
    return [{**file, "path": str(absolute(file["path"], here))} for file in each]


def _files_of(secrets: Any, declared: Mapping[str, Any], here: Path) -> list[dict[str, str]]:
    return [_file_of(each, declared, here) for each in secrets or ()]


def _file_of(secret: Any, declared: Mapping[str, Any], here: Path) -> dict[str, str]:
    """Where a secret lies here and in the container: /run/secrets/NAME (compose-spec, 09-secrets.md)."""
    name = secret["source"] if isinstance(secret, dict) else secret
    target = (secret.get("target") if isinstance(secret, dict) else None) or name
    path = (declared.get(name) or {}).get("file", "")
    return {"inside": str(PurePosixPath("/run/secrets") / target), "outside": str(absolute(path, here)) if path else ""}


def _interpolated(value: Any, known: Mapping[str, str], unset: Unset, where: str) -> Any:
    """The same with its variables filled in; `where` it stands is told of what can't be."""
    if isinstance(value, str):
        return interpolate(value, known, unset, where)
    if isinstance(value, _Override):
        return _Override(_interpolated(value.value, known, unset, where))
    if isinstance(value, dict):
        return {key: _interpolated(each, known, unset, f"{where}.{key}") for key, each in value.items()}
    if isinstance(value, list):
        return [_interpolated(each, known, unset, f"{where}[{at}]") for at, each in enumerate(value)]
    return value


def _merged(below: Tree, above: Tree) -> Tree:
    """A service with what a later file, or the service that extends it, says of it."""
    found = dict(below)
    for key, value in above.items():
        old = found.pop(key, None)
        if isinstance(value, _Override):
            if value.value is not None:
                found[key] = value.value
            continue
        if isinstance(old, _Override):
            old = old.value
        if key == "environment":
            value = _merged(_mapping(old), _mapping(value))
        elif isinstance(value, dict):
            value = _merged(old if isinstance(old, dict) else {}, value)
        elif isinstance(old, list) and isinstance(value, list) and key not in _REPLACED:
            value = [*old, *value]
        found[key] = value
    return found


def _extended(body: Tree, services: Mapping[str, Tree], here: Path, known: Mapping[str, str], depth: int = 0) -> Tree:
    extends = body.get("extends")
    if not extends or depth > 8:
        return body
    said = {"service": extends} if isinstance(extends, str) else extends
    if file := said.get("file"):
        here = absolute(file, here).parent
        services = _services(here / Path(file).name, known, lambda _name: "")
    if said["service"] not in services:
        raise BadInput(f"there is no service {said['service']} to extend", todo="mend `extends`")
    below = _extended(services[said["service"]], services, here, known, depth + 1)
    return _merged(below, {key: value for key, value in body.items() if key != "extends"})


def _mapping(environment: Any) -> Tree:
    """`environment` as a map or a list; None is a variable that is the caller's."""
    if isinstance(environment, dict):
        return environment
    pairs = (str(each).partition("=") for each in environment or ())
    return {name: value if sign else None for name, sign, value in pairs}


def _the_server(services: Mapping[str, Tree], file: Path) -> str:
    found = [name for name, body in services.items() if _is_server(body)]
    if len(found) == 1:
        return found[0]
    if not found and len(services) == 1:
        return next(iter(services))
    raise BadInput(
        f"{len(found) or 'none'} of the services of {file.name} are llama-servers" if len(found) != 1 else "",
        evidence=", ".join(found or services), todo="name one with --service",
    )  # fmt: skip


def _is_server(body: Tree) -> bool:
    words = [*_command(body.get("entrypoint")), *_command(body.get("command"))]
    said = " ".join((str(body.get("image", "")), *words))
    return (
        "llama.cpp" in said
        or "llama-server" in said
        or any(program(word) == "llama" for word in words)
        or any(name.startswith("LLAMA_ARG_") for name in _mapping(body.get("environment")))
    )


def _command(value: Any) -> list[str]:
    """A command as a list, or as text that is split like a shell's words, but run by none (compose-spec, command)."""
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise BadInput("a command is not understood", evidence=str(error), todo="mend its quotes") from error
    return [str(each) for each in value or ()]


def _launched(name: str, body: Tree, file: Path, known: Mapping[str, str]) -> Launch:
    at = f"{file.name}: services.{name}"
    launch = Launch(
        words=_words(body.get("command"), f"{at}.command"),
        variables=tuple(_variables(body, known, at)),
        folder=PurePosixPath(body["working_dir"]) if body.get("working_dir") else None,
        mounts=(*body.get("volumes", ()), *_secrets(body)),
        ports=None if body.get("network_mode") == "host" else tuple(_ports(body.get("ports") or ())),
    )
    launch = with_gpus(launch, _gpus(body), f"{at}.deploy")
    others = sorted(set(body) - _READ)
    kept = "of a container; llama-release runs and keeps the server on this machine itself"
    launch = launch.told(f"{', '.join(f'services.{name}.{key}' for key in others)}: dropped, {kept}" * bool(others))
    image = body.get("image") or ""
    launch = launch.told(f"{name} is built here: its Dockerfile is not read" * bool("build" in body))
    entrypoint = body.get("entrypoint")  # none is the image's, an empty one is none at all (compose-spec, entrypoint)
    words = None if entrypoint is None else _words(entrypoint, f"{at}.entrypoint")
    launch = contained(launch, image or f"the image of {name}", words)
    return peel(launch, known)


def _words(value: Any, where: str) -> tuple[Word, ...]:
    return words_of(_command(value), where)


def _variables(body: Tree, known: Mapping[str, str], at: str) -> Iterator[Variable]:
    """`env_file` first: `environment` wins (compose-spec, environment)."""
    for said in body.get("env_file") or ():
        path = Path(said["path"])
        if path.is_file() or said.get("required", "true") != "false":
            text = read_text(path)
            raw = said.get("format") == "raw"
            pairs = dict(_raw(text)) if raw else dotenv_file(text, known, path.name)
            yield from given(pairs, f"{path.name}, of {at}.env_file")
    for name, value in _mapping(body.get("environment")).items():
        if value is not None or name in known:
            yield Variable(name=name, value=str(known[name] if value is None else value), where=f"{at}.environment")


def _raw(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, sign, value = line.partition("=")
        if sign and not name.startswith("#"):
            yield name.strip(), value


def _mounts(volumes: Sequence[Any], here: Path) -> Iterator[Mount]:
    for each in volumes:
        if isinstance(each, str):
            if found := bind(each, here):
                yield found
        elif each.get("type") == "bind":
            yield Mount(inside=PurePosixPath(each["target"]), outside=absolute(each["source"], here))
        elif each.get("target"):
            yield Mount(inside=PurePosixPath(each["target"]), outside=None)


def _secrets(body: Tree) -> Iterator[Mount]:
    for secret in body.get("secrets") or ():
        if secret["outside"]:
            yield Mount(inside=PurePosixPath(secret["inside"]), outside=Path(secret["outside"]))


def _ports(said: Sequence[Any]) -> Iterator[Port]:
    for each in said:
        if isinstance(each, str):
            yield from published([each])
        elif each.get("published") and each.get("protocol", "tcp") == "tcp":
            yield from ports(each.get("host_ip") or "", each["published"], each["target"])


def _gpus(body: Tree) -> list[str]:
    """The GPUs that are named or counted; none named: all or none (compose-spec, deploy.md, devices)."""
    reserved = ((body.get("deploy") or {}).get("resources") or {}).get("reservations") or {}
    devices = [*(reserved.get("devices") or ())]
    devices += [each for each in (body.get("gpus") or ()) if isinstance(each, dict)]
    found: list[str] = []
    for device in devices:
        if ids := device.get("device_ids"):
            found += map(str, ids)
        elif str(device.get("count", "all")).isdecimal():
            found += map(str, range(int(device["count"])))
    return found
