"""A server that answers at an address: what it says of itself and, where it is of this machine, how it was started."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from pydantic import BaseModel, RootModel, SecretStr, StrictInt, ValidationError

from tasks.adoption.launch import Launch, Secret, Word, concerns, given, words_of
from tasks.adoption.words import is_server, peel, program
from tasks.endpoint import Client, base_url
from tasks.platforms.local.proc import listener
from tasks.release import BadInput, Endpoint

_TIMEOUT_S = 10.0
_SAMPLING = {
    "temperature": "--temp", "top_k": "--top-k", "top_p": "--top-p", "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty", "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
}  # fmt: skip
"""What /props tells of sampling -> the flag that sets it."""
Document = Mapping[str, Any]


def read_running(url: str, key: str) -> Launch:
    """What runs at an address. The key goes there and nowhere else.

    Where a process of this machine listens there, its own words and variables count; elsewhere, or where it is another
    user's, only what /props, /v1/models and /slots tell: that is said. Raises ToolingError when nothing answers,
    BadInput for another key, an address that is none, and a server that is no llama-server.
    """
    url = base_url(url)
    props, models, slots = _asked(Endpoint(base_url=url, api_key=key or None))
    address = httpx.URL(url)
    secrets = (Secret(variable="LLAMA_API_KEY", value=SecretStr(key), said="--key"),) if key else ()
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    pid = listener(port) if _is_local(address.host) else None
    launch = _of_process(pid, port) if pid else None
    if launch is None:
        launch = _of_answers(props, models, slots, address.host, port)
    return launch.model_copy(update={"secrets": secrets}).told(*_doubts(launch, props))


def _asked(endpoint: Endpoint) -> tuple[Document, Document, list[Document]]:
    """(/props, /v1/models, /slots); the last is empty where the server keeps it to itself."""
    with Client(endpoint, timeout_s=_TIMEOUT_S) as client:
        props, models, slots = (client.get(path) for path in ("/props", "/v1/models", "/slots"))
    if {401, 403} & {props.status, models.status}:
        raise BadInput(f"{endpoint.base_url} wants another key", evidence=f"/props answered {props.status}",
                       todo="give --key")  # fmt: skip
    if props.status != 200 or not (_is(_Props, props.body) and _is(_Models, models.body) and _is(_Slots, slots.body)):
        raise BadInput(
            f"{endpoint.base_url} is no llama-server",
            evidence=f"/props answered {props.status}: {str(props.body)[:200]}",
            todo="give the base URL of a llama-server, or its command line",
        )  # fmt: skip
    return props.body, models.body, slots.body if isinstance(slots.body, list) else []


class _Generation(BaseModel):
    n_ctx: StrictInt | None = None
    params: dict[str, float | str | bool | list[Any] | dict[str, Any] | None] | None = None


class _Props(BaseModel):
    default_generation_settings: _Generation
    total_slots: StrictInt | None = None
    model_path: str | None = None


class _Models(BaseModel):
    data: list[dict[str, Any]] | None = None


class _Slots(RootModel[list[_Generation] | dict[str, Any] | None]):
    """A list, or why the server keeps it to itself."""


def _is(kind: type[BaseModel], body: Any) -> bool:
    """Whether an answer has the form that llama-server's has."""
    try:
        kind.model_validate(body)
    except ValidationError:
        return False
    return True


def _is_local(host: str) -> bool:
    """Whether an address is this machine's: something can be bound to it."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
        except OSError:
            continue
    return False


def _of_process(pid: int, port: int) -> Launch | None:
    """What /proc says of a process; None where it says nothing of it (proc(5)). Raises BadInput for docker's proxy."""
    folder = Path("/proc", str(pid))
    words = [word.decode(errors="replace") for word in _read(folder / "cmdline").split(b"\0")[:-1]]
    if not words:
        return None
    if program(words[0]) in ("docker-proxy", "rootlessport", "conmon", "slirp4netns", "pasta"):
        raise BadInput(
            f"a container serves port {port}", evidence=f"pid {pid}: {program(words[0])}",
            todo="give its compose file (--compose) or the line that starts it (-- docker run ...)",
        )  # fmt: skip
    if not is_server(words[0]) and program(words[0]) != "llama":
        return None
    where = f"process {pid}"
    launch = Launch(words=words_of(words, where), folder=_folder(folder), contained=_elsewhere(folder))
    lines = [line.decode(errors="replace").partition("=") for line in _read(folder / "environ").split(b"\0")]
    launch = launch.having(
        given({n: value for n, sign, value in lines if sign and concerns(n)}, f"environment of process {pid}")
    )
    if not any(line[1] for line in lines):
        launch = launch.told(f"the variables of process {pid} can't be read: it is another user's. What it was told by "
                             "LLAMA_ARG_* is not known: be that user, or add them here")  # fmt: skip
    return peel(launch, {})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _folder(process: Path) -> PurePosixPath | None:
    try:
        return PurePosixPath(os.readlink(process / "cwd"))
    except OSError:
        return None


def _elsewhere(process: Path) -> bool:
    """Whether a process sees other files than we do, as in a container."""
    try:
        return os.readlink(process / "ns/mnt") != os.readlink("/proc/self/ns/mnt")
    except OSError:
        return False


def _of_answers(props: Document, models: Document, slots: list[Document], host: str, port: int) -> Launch:
    """What a server says of itself, as words: what it does not tell is left to llama-server."""
    launch = Launch(words=tuple(_words(props, models, slots)), contained=not _is_local(host))
    launch = launch.model_copy(update={"words": (*launch.words, *words_of(["--port", str(port)], "its address"))})
    if _count(props, slots) == _BY_ITSELF:
        launch = launch.told(f"{_BY_ITSELF} slots are what llama-server has by itself, and they share the context: "
                             f"--parallel is left unsaid. Say server.slots if it was started with it")  # fmt: skip
    return launch.told(
        "only what the server tells of itself is known: GPU layers, batches, cache types, threads and whatever else it "
        "was started with are not. Give its command line, compose file or unit to have them"
    )


_BY_ITSELF = 4
"""Slots where --parallel is not said: all of them share one K/V cache, and each has the whole context."""


def _count(props: Document, slots: list[Document]) -> int:
    return props.get("total_slots") or len(slots) or 1


def _words(props: Document, models: Document, slots: list[Document]) -> Iterator[Word]:
    count = _count(props, slots)
    context = props["default_generation_settings"].get("n_ctx") or (slots[0].get("n_ctx") if slots else None)
    said: list[tuple[str, Any, str]] = [("--model", props.get("model_path"), "/props: model_path")]
    said.append(("--alias", props.get("model_alias") or _name(models), "/props: model_alias"))
    if context and count == _BY_ITSELF:
        said.append(("--ctx-size", context, "/props: n_ctx"))
    elif context:  # what each slot has is kept: /props does not say whether they share it
        said += [("--ctx-size", context * count, "/props: n_ctx"), ("--parallel", count, "/props: total_slots")]
    sampling = props["default_generation_settings"].get("params") or {}
    said += [(flag, _number(sampling.get(name)), f"/props: {name}") for name, flag in _SAMPLING.items()]
    for flag, value, where in said:
        if value not in (None, ""):
            yield from words_of([flag, str(value)], where)
    for name, flag in (("endpoint_metrics", "--metrics"), ("endpoint_props", "--props")):
        if props.get(name) is True:
            yield from words_of([flag], f"/props: {name}")


def _number(value: Any) -> Any:
    """A float of llama-server, which it keeps in 32 bits, as somebody wrote it: 0.800000011920929 is 0.8."""
    return f"{value:.7g}" if isinstance(value, float) else value


def _name(models: Document) -> str:
    data = models.get("data") or [{}]
    return str(data[0].get("id", ""))


def _doubts(launch: Launch, props: Document) -> Iterator[str]:
    build = props.get("build_info")
    yield f"it is {build}" * bool(build)
    words = [word.text for word in launch.words]
    path = str(props.get("model_path") or "")
    if path and words and not any(Path(word).name == Path(path).name for word in words) and "-hf" not in words:
        yield f"it serves {path}, which its words do not name"
