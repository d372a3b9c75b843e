"""Which files of a repository llama-server would take for `-hf user/repository:quant`.

As b11434 does it: common/download.cpp (find_best_model, get_split_files, find_best_sibling) and common/arg.cpp
(common_models_handler_init and _apply).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import Field

from tasks.flags.table import known
from tasks.flags.words import Said, read
from tasks.preflight.argv import wants
from tasks.release import BadInput, Model
from tasks.settings import ServerSettings

DEFAULT_TAGS = ("Q4_K_M", "Q8_0")
"""What is looked for where the setting names no quantization; then any (find_best_model)."""
SIDECARS: Mapping[str, str] = {
    "draft-mtp": "mtp-",
    "draft-dflash": "dflash-",
    "draft-eagle3": "eagle3-",
    "draft-dspark": "dspark-",
}
"""Kind of speculation -> the word in the name of the file that drafts for it. The first that is there is taken."""
_NO_MODEL = ("mmproj", "imatrix", *SIDECARS.values())
_SPLIT = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.IGNORECASE | re.ASCII)
_TAG = re.compile(r"[-.]([A-Z0-9_]+)$", re.IGNORECASE | re.ASCII)
PRESET = "preset.ini"
"""A repository that has it is a router's: llama-server reads it and takes no model."""


class HubFile(Model):
    """One GGUF file of a repository."""

    path: str
    sha256: str = Field(description="as the Hub says; '' where it does not say (a file that is not in LFS or Xet)")
    size_bytes: int


class Pin(Model):
    """A repository as of one commit: what its name stands for until somebody updates it."""

    repo: str
    commit: str
    files: tuple[HubFile, ...] = Field(description="its GGUF files, in the order in which they were listed")
    preset: bool = Field(default=False, description=f"it has a {PRESET}")
    gated: bool = Field(default=False, description="its files are for those who accepted its terms")
    told_by_hub: bool = Field(
        default=True, description="else by a cache on this machine, which may have less: the pin is provisional"
    )
    at: datetime


@dataclass(frozen=True)
class Chosen:
    """The files of one server: the model, in one or several parts, and what goes with it by its setting."""

    model: tuple[HubFile, ...]
    beside: Mapping[str, HubFile] = field(default_factory=dict)

    @property
    def files(self) -> tuple[HubFile, ...]:
        return (*self.model, *self.beside.values())


def tag_of(hub_model: str) -> str:
    """The quantization that a setting names; '' for none."""
    return hub_model.partition(":")[2]


def choose(pin: Pin, server: ServerSettings) -> Chosen:
    """The files that llama-server would serve for `server.hub_model`.

    Raises BadInput when there are none such, a part is missing, or the Hub says no digest of one.
    """
    assert server.hub_model
    tag = tag_of(server.hub_model)
    if pin.preset:
        raise BadInput(
            f"{pin.repo} is a repository of presets",
            evidence=f"it has a {PRESET}: llama-server would be a router of several models",
            todo="set server.hub_model to one of the models that it names: a router can't be released yet",
        )
    model = _parts(pin, _model(pin, tag))
    chosen = Chosen(model, dict(_beside(pin.files, model[0].path, tag, server)))
    if unknown := [file.path for file in chosen.files if not file.sha256]:
        raise BadInput(
            f"the Hub says no digest of {', '.join(unknown)}",
            evidence="a file that is not kept in LFS or Xet has none: a release is known by its digests",
            todo="download it, look at it, and set server.model to it",
        )
    return chosen


def is_offline(server: ServerSettings) -> bool:
    """Whether llama-server would not ask the Hub (b11434: `--offline` in common/arg.cpp)."""
    offline = _said(server).get("--offline")
    return offline is not None and offline.value == "on"


def _model(pin: Pin, tag: str) -> HubFile:
    """find_best_model. A tag is looked for in the whole path, in any case, and its dots are any character."""
    firsts = [file for file in pin.files if _is_model(file.path) and _split(file.path)[1] == 1]
    for wanted in [tag] if tag else DEFAULT_TAGS:
        pattern = re.compile(wanted + "[.-]", re.IGNORECASE)
        if found := next((file for file in firsts if pattern.search(file.path)), None):
            return found
    if firsts and not tag:
        return firsts[0]
    known_by = "the Hub" if pin.told_by_hub else "the cache here, as the Hub can't be asked"
    there = ", ".join(file.path for file in firsts)
    raise BadInput(
        f"{pin.repo} has no GGUF file" + (f" of the quantization {tag}" if tag else ""),
        evidence=f"at commit {pin.commit[:12]}, by {known_by}: {there or 'none at all'}",
        todo="set server.hub_model to one that it has; if it was added since, `llama-release hub update`"
        if there
        else "set server.hub_model to a repository with GGUF files: its name mostly ends with -GGUF",
    )


def _parts(pin: Pin, first: HubFile) -> tuple[HubFile, ...]:
    """get_split_files, in order. Raises BadInput when one is missing, with which llama-server would not come up."""
    prefix, _, count = _split(first.path)
    if count == 1:
        return (first,)
    of_it = [(number, file) for file in pin.files for p, number, c in [_split(file.path)] if (p, c) == (prefix, count)]
    by_number = dict(of_it)
    if lacking := [number for number in range(1, count + 1) if number not in by_number]:
        raise BadInput(
            f"{pin.repo} has not all parts of {first.path}",
            evidence=f"missing: {', '.join(f'{number:05}-of-{count:05}' for number in lacking)}",
            todo="set server.hub_model to another quantization, or ask who keeps the repository",
        )
    return tuple(by_number[number] for number in range(1, count + 1))


def _beside(files: Sequence[HubFile], model: str, tag: str, server: ServerSettings) -> Iterable[tuple[str, HubFile]]:
    """The projector, unless one is set or `--no-mmproj` said, and what drafts, when a kind of speculation asks for it
    and no draft model is set."""
    said = _said(server)
    auto = said.get("--mmproj-auto")
    if server.mmproj is None and not (auto and auto.off) and (found := _sibling(files, model, "mmproj", "")):
        yield "mmproj", found
    kinds = said["--spec-type"].value.split(",") if "--spec-type" in said else []
    if server.draft_model is None:
        words = [word for kind, word in SIDECARS.items() if kind in kinds]
        if drafting := next(filter(None, (_sibling(files, model, word, tag) for word in words)), None):
            yield "draft_model", drafting


def _said(server: ServerSettings) -> dict[str, Said]:
    """Option -> what the settings say by it, in typed settings, flags and variables."""
    words = [word for want in wants(server) for word in want.spellings[0]]
    return {each.main: each for each in read(words, known()).effective}


def _sibling(files: Sequence[HubFile], model: str, word: str, tag: str) -> HubFile | None:
    """find_best_sibling: the file with this word in its path, in the model's folder or one above it; the deepest, then
    one that is called by the tag, then the nearest by bits, then the first."""
    folder = model.split("/")[:-1]
    bits = _bits(tag) if tag else _bits(_tag_in(model))
    best: tuple[int, bool, int] | None = None
    found = None
    for file in files:
        there = file.path.split("/")[:-1]
        if not file.path.endswith(".gguf") or word not in file.path or folder[: len(there)] != there:
            continue
        exact = bool(tag) and f"-{tag.upper()}." in file.path.upper()
        rank = (len(there), exact, -abs(_bits(_tag_in(file.path)) - bits))
        if best is None or rank > best:
            best, found = rank, file
    return found


def _is_model(path: str) -> bool:
    """gguf_filename_is_model."""
    name = path.rpartition("/")[2]
    return name.endswith(".gguf") and not any(word in name for word in _NO_MODEL)


def _split(path: str) -> tuple[str, int, int]:
    """get_gguf_split_info: (path without its part, number, count) of what may be a part of a model."""
    bare = path.removesuffix(".gguf")
    part = _SPLIT.fullmatch(bare)
    return (part["prefix"], int(part["number"]), int(part["count"])) if part else (bare, 1, 1)


def _tag_in(path: str) -> str:
    found = _TAG.search(_split(path)[0])
    return found[1] if found else ""


def _bits(tag: str) -> int:
    """extract_quant_bits: the first number in a tag, 0 where there is none."""
    found = re.search(r"\d+", tag)
    return int(found[0]) if found else 0
