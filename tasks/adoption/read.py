"""Wherever a person has it: the one launch that is read, with its secrets apart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from tasks.adoption.compose import read_compose
from tasks.adoption.launch import Launch, apart, mapped
from tasks.adoption.running import read_running
from tasks.adoption.unit import read_unit
from tasks.adoption.words import read_words
from tasks.release import BadInput, Model


class Source(Model):
    """Where a person has what is run: one of these."""

    words: tuple[str, ...] = ()
    compose: Path | None = None
    service: str | None = None
    unit: Path | None = None
    url: str | None = None
    key: str = ""
    maps: tuple[str, ...] = ()


def read_source(source: Source, caller: Mapping[str, str], here: Path) -> Launch:
    """The launch that a source tells, with its secrets apart; of a command line with the caller's own variables.

    Raises BadInput for none or several sources, and what their readers raise.
    """
    sources = [bool(source.words), source.compose is not None, source.unit is not None, source.url is not None]
    if sum(sources) != 1:
        raise BadInput(
            "import reads one thing",
            evidence=f"{sum(sources)} were given" if any(sources) else "nothing was given",
            todo="give `-- llama-server ...`, or --compose FILE, or --unit FILE, or --url URL",
        )
    if source.service and source.compose is None:
        raise BadInput("--service names a service of a compose file", todo="give --compose FILE, too")
    launch = _read(source, caller, here)
    if not launch.contained:
        launch = launch.told(*_of_files())
    return apart(launch.model_copy(update={"mounts": (*launch.mounts, *mapped(source.maps))}))


def _of_files() -> Iterator[str]:
    """llama-server's own files of settings, where this machine has them (b11434, common/arg.cpp)."""
    for file in (Path("/etc/llama.cpp/config.ini"), Path.home() / ".config/llama.cpp/config.ini"):
        if os.path.exists(file):
            yield f"{file}: not taken over. llama-server reads it before variables and flags: say here what it says"


def _read(source: Source, caller: Mapping[str, str], here: Path) -> Launch:
    if source.compose:
        return read_compose(here / source.compose, source.service, caller)
    if source.unit:
        return read_unit(here / source.unit, caller)
    if source.url:
        return read_running(source.url, source.key)
    return read_words(source.words, caller, PurePosixPath(here))
