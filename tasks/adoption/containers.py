"""`docker run` and `podman run`, and what the images of llama.cpp begin with."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tasks.adoption.launch import CALLER, Launch, Mount, Port, Variable, Word, given, words_of
from tasks.adoption.variables import docker_file, read_text
from tasks.adoption.words import Option, names, read_options
from tasks.release import BadInput

WORKDIR = PurePosixPath("/app")
"""Of upstream's images (.devops/*.Dockerfile)."""
_IMAGE = re.compile(r"(?:^|/)llama\.cpp(?::(?P<tag>[\w.-]+))?(?:@sha256:[0-9a-f]+)?$")
_HOST = Variable(name="LLAMA_ARG_HOST", value="0.0.0.0", where="the image of llama-server")
_ALONE = names(
    "-d --detach -i --interactive -t --tty -P --publish-all -q --quiet --rm --init --privileged --read-only "
    "--no-healthcheck --oom-kill-disable --sig-proxy --disable-content-trust --help --replace --rmi --no-hosts "
    "--no-hostname --tls-verify --http-proxy --rootfs --env-host --read-only-tmpfs --unsetenv-all"
)
"""Options without a value, but for one after `=`; every other option takes the next word (docker-run(1), podman-run(1),
pflag)."""
_READ = names(
    "-e --env --env-file -v --volume --mount -p --publish -w --workdir --network --net --entrypoint --gpus --device "
    "-i --interactive -t --tty -d --detach --rm -q --quiet"
)
_DROPPED = "of a container; llama-release runs and keeps the server on this machine itself"


def entered(image: str, words: Sequence[Word]) -> tuple[tuple[Word, ...], str]:
    """(the words with what the image begins them with, what to tell). Raises BadInput for one that is no server.

    `server` images begin with /app/llama-server, `full` ones with a script whose first word is --server or -s, `light`
    ones with llama-cli (upstream's .devops/cpu.Dockerfile and tools.sh).
    """
    server = words_of(["/app/llama-server"])
    kind = (_IMAGE.search(image) or {"tag": None})["tag"]
    kind = kind.split("-")[0] if kind else ""
    first = words[0].text if words else ""
    if kind == "server":
        return (*server, *words), ""
    if kind == "full" and first in ("--server", "-s"):
        return (*server, *words[1:]), ""
    if kind in ("full", "light"):
        raise BadInput(f"{image} starts no llama-server here", evidence=f"it begins with {first or 'nothing'}",
                       todo="name a container that runs llama-server")  # fmt: skip
    if not first or first.startswith("-"):
        return (*server, *words), f"{image}: taken to begin with llama-server, as it is given flags alone"
    return tuple(words), ""


def contained(launch: Launch, image: str, entrypoint: Sequence[Word] | None) -> Launch:
    """The same behind the container's own entrypoint, or the image's where none is said; `launch.words` are its
    arguments. An empty one clears the image's (docker-run(1), --entrypoint)."""
    if entrypoint is None:
        words, told = entered(image, launch.words)
    else:
        words, told = (*(word for word in entrypoint if word.text), *launch.words), ""
    if _IMAGE.search(image):
        launch = launch.model_copy(update={"variables": (_HOST, *launch.variables)})
    folder = launch.folder or WORKDIR
    return launch.model_copy(update={"words": words, "folder": folder, "contained": True, "image": image}).told(told)


def read_run(launch: Launch, caller: Mapping[str, str]) -> Launch:
    """What a container runs that is started by `docker run OPTIONS IMAGE ARGUMENTS`."""
    texts = [word.text for word in launch.words]
    where, outside = launch.words[0].where, launch.folder
    at = 1 + read_options(texts[1:], lambda name: name not in ("-D", "--debug"))[1]  # docker --context x run
    if texts[at : at + 1] == ["container"]:
        at += 1
    if texts[at : at + 1] not in (["run"], ["create"]):
        raise BadInput(f"`{' '.join(texts[: at + 1])}` starts no container", todo="give the line with `docker run`")
    options, count = read_options(texts[at + 1 :], lambda name: name not in _ALONE)
    at += 1 + count
    if at >= len(texts):
        raise BadInput("there is no image in this line", todo="give the whole line with `docker run`")
    image, arguments = texts[at], launch.words[at + 1 :]

    def said(*names: str) -> list[str]:
        return [option.value for option in options if option.name in names and option.value is not None]

    here = Path(outside or "/")
    known = {**caller, **{each.name: each.value for each in launch.variables}}
    workdir = said("-w", "--workdir")
    mounts = [*(bind(v, here) for v in said("-v", "--volume")), *(_mount(m, here) for m in said("--mount"))]
    inner = Launch(
        words=arguments,
        variables=_variables(options, known, here, where),
        folder=PurePosixPath(workdir[-1]) if workdir else None,
        mounts=tuple(filter(None, mounts)),
        ports=None if {"host"} & {*said("--network", "--net")} else tuple(published(said("-p", "--publish"))),
        notes=launch.notes,
    )  # fmt: skip
    inner = with_gpus(inner, _gpus(said("--gpus", "--device")), where)
    others = sorted({option.name for option in options} - _READ)
    inner = inner.told(f"{', '.join(others)}: dropped, {_DROPPED}" * bool(others))
    lost = sorted(each.name for each in launch.variables if each.where == CALLER and inner.value(each.name) is None)
    inner = inner.told(f"{', '.join(lost)} of your environment: dropped, no -e passes it on" * bool(lost))
    entrypoint = said("--entrypoint")[-1:]
    return contained(inner, image, words_of(entrypoint, where) if entrypoint else None)


def _variables(options: Sequence[Option], caller: Mapping[str, str], here: Path, where: str) -> tuple[Variable, ...]:
    """Files first: -e wins over --env-file wherever they stand (docker-run(1))."""
    found: dict[str, Variable] = {}
    for name, value in options:
        if name == "--env-file" and value:
            read = docker_file(read_text(here / value), caller)
            found |= {each.name: each for each in given(read, f"--env-file {value}")}
    for name, value in options:
        if name in ("-e", "--env") and value:
            variable, sign, text = value.partition("=")
            if sign or variable in caller:
                text = text if sign else caller[variable]
                found[variable] = Variable(name=variable, value=text, where=where or f"-e {variable}")
    return tuple(found.values())


def bind(volume: str, here: Path) -> Mount | None:
    """A `-v SOURCE:TARGET[:options]`; None for a volume without a name."""
    source, _, rest = volume.partition(":")
    target = rest.partition(":")[0]
    if not target:
        return None
    named = not source.startswith(("/", ".", "~"))
    return Mount(inside=PurePosixPath(target), outside=None if named else absolute(source, here))


def absolute(path: str, here: Path) -> Path:
    return Path(os.path.normpath(here / os.path.expanduser(path)))


def _mount(text: str, here: Path) -> Mount | None:
    """A `--mount type=bind,source=...,target=...` (docker's documentation, bind mounts)."""
    said = {}
    for field in next(csv.reader([text]), []):
        name, _, value = field.partition("=")
        said[{"src": "source", "dst": "target", "destination": "target"}.get(name, name)] = value
    if said.get("type", "volume") != "bind" or "source" not in said or "target" not in said:
        return None
    return Mount(inside=PurePosixPath(said["target"]), outside=absolute(said["source"], here))


def published(texts: Iterable[str]) -> list[Port]:
    """`-p [[address:]port:]port[/protocol]`; a port that docker chooses itself can't be kept and is left out."""
    found = []
    for text in texts:
        address, protocol = text.partition("/")[::2]
        *rest, inside = re.split(r":(?![^\[]*\])", address)
        if protocol in ("", "tcp") and rest and rest[-1]:
            found += ports(rest[0] if len(rest) > 1 else "", rest[-1], inside)
    return found


def ports(host: str, outside: str, inside: str) -> list[Port]:
    """The ports of one range, or of one port, that an address of this machine publishes; '' is all addresses."""
    host = host.strip("[]") or "0.0.0.0"
    return [Port(inside=i, outside=o, host=host) for i, o in zip(_range(inside), _range(outside), strict=False)]


def _range(text: str) -> range:
    low, _, high = text.partition("-")
    try:
        return range(int(low), int(high or low) + 1)
    except ValueError as error:
        raise BadInput(f"{text} is no port", todo="give a port, or two with a hyphen") from error


def _gpus(texts: Iterable[str]) -> list[str]:
    """The GPUs that `--gpus` or podman's `--device nvidia.com/gpu=` name; none named: all or none."""
    found: list[str] = []
    for text in texts:
        if named := re.search(r"device=([\w,-]+)", text):
            found += named[1].split(",")
        elif text.isdecimal():
            found += map(str, range(int(text)))
        elif (podman := re.fullmatch(r"nvidia\.com/gpu=([\w-]+)", text)) and podman[1] != "all":
            found.append(podman[1])
    return found


def with_gpus(launch: Launch, ids: Sequence[str], where: str) -> Launch:
    """The same with the variables by which CUDA sees just the GPUs that its container saw: `ids`, or those of
    NVIDIA_VISIBLE_DEVICES; its own CUDA_VISIBLE_DEVICES counts among these.

    A container's numbers are those of nvidia-smi, by PCI bus; CUDA's own order is the fastest first (CUDA C++
    Programming Guide, CUDA_DEVICE_ORDER).
    """
    asked = next((each for each in reversed(launch.variables) if each.name == "NVIDIA_VISIBLE_DEVICES"), None)
    launch = _without(launch, "NVIDIA_VISIBLE_DEVICES")
    if asked and not ids and asked.value != "all":
        where = asked.where
        ids = asked.value.split(",")
        if asked.value in ("", "none", "void"):  # NVIDIA Container Toolkit, "Environment variables"
            launch, ids = (
                launch.told(f"NVIDIA_VISIBLE_DEVICES={asked.value}: it sees no GPU, which is -1 to CUDA"),
                ["-1"],
            )
    if not ids:
        return launch
    if own := launch.value("CUDA_VISIBLE_DEVICES"):
        ids = [*_among(ids, own.split(","))] or ["-1"]
    launch = _without(launch, "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
    said = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(ids)}
    return launch.having(given(said, where or "the container's GPUs"))


def _without(launch: Launch, *names: str) -> Launch:
    return launch.model_copy(update={"variables": tuple(v for v in launch.variables if v.name not in names)})


def _among(ids: Sequence[str], chosen: Iterable[str]) -> Iterator[str]:
    """Those of a container's GPUs that CUDA chooses, up to the first that is not there (CUDA_VISIBLE_DEVICES)."""
    for each in map(str.strip, chosen):
        if not each.isdecimal() and not each.startswith("-"):  # by its UUID
            yield each
        elif each.isdecimal() and int(each) < len(ids):
            yield ids[int(each)]
        else:
            return
