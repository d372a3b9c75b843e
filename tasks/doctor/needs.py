"""What a release needs from this machine, all of it looked at before anything is fetched or started.

    tools.py      compilers, git, what came as wheels, CUDA
    packages.py   what they are called on this system
    room.py       disk and memory

`doctor` shows each as a line, `plan` as a row; an upgrade and its like end with one error that names all of it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from tasks.doctor import Check, Seen, Severity, warning
from tasks.doctor.model import fits, whole
from tasks.doctor.packages import Kind, NotInstalled, system
from tasks.doctor.room import disk, memory, nearest
from tasks.doctor.tools import cuda, git, toolchain, wheels
from tasks.patches.series import read_series
from tasks.platforms.local.control import Control, load_deployment
from tasks.platforms.local.proc import bind, holder
from tasks.release import BadInput, Problem, StageName, ToolingError
from tasks.settings import Settings

Look = Callable[[Settings], str | Seen]
"""Gives the evidence that a need is met, or what may turn out not to be; raises a Problem for what is missing."""
Needs = Sequence[tuple[str, Look]]
_TRIED_BYTES = 65_536


def folders(settings: Settings) -> str:
    """Store, cache and the temporary folder can be written, and what is built there can be run. Raises ToolingError."""
    store, cache = settings.store, settings.cache
    wrong = [*_unwritable("store", store), *_unwritable("cache", cache), *_unusable_temporary()]
    if wrong:
        raise ToolingError(
            "a folder cannot be used",
            evidence="\n".join(wrong),
            todo="mend it, or set another one (`store`, `cache`, the variable TMPDIR)",
        )
    return f"{settings.store.absolute()}, {settings.cache} and {tempfile.gettempdir()} can be written"


def _unwritable(name: str, folder: Path) -> Iterator[str]:
    there = nearest(folder)
    if not there.is_dir():
        yield f"{name}: {there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"{name}: {there} cannot be written by this user"
    elif os.statvfs(there).f_flag & os.ST_NOEXEC:
        yield f"{name}: {there} is mounted noexec: no server built there would start"


def _unusable_temporary() -> Iterator[str]:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(_TRIED_BYTES))
    except OSError as error:
        yield f"temporary folder: {error}"


def ports(settings: Settings) -> str | Seen:
    """The port of each stage is free, or its own activator has it. Raises BadInput that names who has it.

    A llama-server that somebody runs by hand has production's until production has a release: that is a warning, since
    it is to answer until a person has approved the first one.
    """
    local, said, wrong, by_hand = settings.local, [], [], []
    wanted = dict(zip(get_args(StageName), (local.staging_port, local.production_port), strict=True))
    if 0 != local.staging_port == local.production_port:
        wrong.append(f"local.staging_port and local.production_port are both {local.staging_port}")
    for stage, port in wanted.items():
        root = settings.store.absolute()
        with Control(root, stage) as control:
            running = control.running()
        kept = load_deployment(root, stage)
        if running:
            said.append(f"{stage} answers on {running.port}")
        elif port := port or (kept.port if kept else 0):
            taken = [*_taken(stage, local.host, port)]
            server = "" if kept or stage != "production" else _server_by_hand(port)
            by_hand += [f"{server} has port {port}, which production is to have"] if taken and server else []
            wrong += [] if server else taken
            said += [] if taken else [f"{port} is free for {stage}"]
        else:
            said.append(f"any for {stage}")
    if wrong:
        raise BadInput(
            "a port is taken",
            evidence="\n".join(wrong),
            todo="stop that process, or set another port (local.staging_port, local.production_port; 0: any)",
        )
    if by_hand:
        return warning(by_hand[0], "stop it when you are asked to approve the first release, just before you do")
    return ", ".join(said)


def _server_by_hand(port: int) -> str:
    """`pid 7 (llama-server)`, when that has a port, or what has it for a container; '' for anybody else."""
    who = holder(port)
    return who if re.search(r"\((?:llama|docker-pr|conmon|rootlessp|podman)", who) else ""


def _taken(stage: str, host: str, port: int) -> Iterator[str]:
    try:
        bind(host, port).close()  # as the stage's activator will
    except BadInput as problem:
        yield f"{stage}: {problem.what}, {problem.evidence}"


def served(settings: Settings) -> str | Seen:
    """The files that servers are given are there and whole, and can give what the settings ask. Raises BadInput."""
    seen, server = fits(settings), settings.server
    if server.model is None and server.hub_model is None:
        raise BadInput("no model is set", todo="set server.model to a GGUF file, or server.hub_model")
    told = whole(server)
    if isinstance(told, Seen):
        return f"{server.hub_model} (the upgrade fetches it)"
    return seen if isinstance(seen, Seen) else f"{told}; {seen}"


def series(settings: Settings) -> str:
    """The series of patches can be read. Raises BadInput."""
    try:
        return f"{len(read_series(settings.patches))} in {settings.patches.absolute()}"
    except OSError as error:
        raise BadInput("the patches cannot be read", evidence=str(error), todo="mend that, or set `patches`") from error


COMPILING: Needs = (
    ("toolchain", toolchain),
    ("git", git),
    ("wheels", wheels),
    ("cuda", cuda),
)
SERVING: Needs = (
    ("folders", folders),
    ("memory", memory),
    ("ports", ports),
)
GIVEN: Needs = (
    ("files", served),
    ("series", series),
)

MACHINE: Needs = (*COMPILING, *SERVING, ("disk", disk))
"""Whatever release it will be."""
UPGRADE: Needs = (*MACHINE, *GIVEN)
REDEPLOY: Needs = (*SERVING, ("disk", partial(disk, compiles=False)))
"""Of a release that is in the store: nothing is compiled, and its files are there."""


def require(settings: Settings, needs: Needs) -> list[str]:
    """Look at all of these needs; what may turn out to be missing, one line each, is no reason to stop.

    Nothing is looked at where servers are elsewhere. Raises one Problem for everything that is missing: what,
    the evidence of each, and one command that installs all of it.
    """
    if settings.platform != "local":
        return []
    missing: list[tuple[str, Problem]] = []
    doubtful = []
    for name, look in needs:
        try:
            seen = look(settings)
        except Problem as problem:
            missing.append((name, problem))
            continue
        if isinstance(seen, Seen) and seen.severity is Severity.WARNING:
            doubtful.append(f"{name}: {seen.evidence}; {seen.todo}")
    if missing:
        raise _in_one(missing)
    return doubtful


def summary(settings: Settings) -> str:
    """What `plan` says: that all is there, or what is missing or doubtful."""
    try:
        return "; ".join(require(settings, UPGRADE)) or "all that it needs is here"
    except Problem as problem:
        return "; ".join(filter(None, (problem.what, *problem.evidence.splitlines(), problem.todo)))


def checks(settings: Settings) -> Iterator[Check]:
    """All that this machine must have, as checks of `doctor`, which has others for what is set."""
    for name, look in MACHINE:
        yield name, partial(look, settings)


def _in_one(missing: Sequence[tuple[str, Problem]]) -> Problem:
    if len(missing) == 1:
        return missing[0][1]
    kind = BadInput if all(isinstance(problem, BadInput) for _, problem in missing) else ToolingError
    return kind(
        f"{len(missing)} things that a release needs are missing here",
        evidence="\n".join(_line(name, problem) for name, problem in missing),
        todo="\n".join(_todos([problem for _, problem in missing])),
    )


def _line(name: str, problem: Problem) -> str:
    return f"{name}: {problem.what}" + "".join(f"\n  {line}" for line in problem.evidence.splitlines())


def _todos(problems: Iterable[Problem]) -> Iterator[str]:
    """One command for all packages, then what else is to be done."""
    others: list[str] = []
    packages: list[Kind] = []
    for problem in problems:
        if isinstance(problem, NotInstalled) and problem.packages:
            packages += problem.packages
        elif problem.todo not in others:
            others.append(problem.todo)
    if packages:
        yield system().install(packages)
    yield from others
