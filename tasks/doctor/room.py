"""Whether this machine has room for the next release: on the disk, and in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tasks import gguf_header
from tasks.doctor import Seen, warning
from tasks.doctor.model import is_gguf
from tasks.platforms.local.control import Control
from tasks.preflight.argv import files
from tasks.release import StageName, ToolingError
from tasks.settings import Settings

_WORK_BYTES = 2_000_000_000  # an estimate: a source tree, its objects, and what they are linked to
_SURELY_BYTES = 300_000_000
"""No release does with less: a source tree is 180 MB (b11434), with its objects and the build behind it."""
_SURELY_FILES = 10_000
"""A source tree has 3,000, git's objects and the compiler cache as many again."""
_CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
_ELEMENT_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32}
"""Of one element of the KV cache, with its share of a block's scale (ggml-common.h); other types: less than q5_0."""


def nearest(path: Path) -> Path:
    """The folder that is there already, of a path and those above it."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


# -- the disk ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """What the next release writes below one folder, bytes: about so much, and surely so much."""

    folder: Path
    about: int
    surely: int


def disk(settings: Settings, *, compiles: bool = True) -> str | Seen:
    """The disk has room for the next build and, where servers are snapshotted, for one more snapshot.

    What is about enough is well, what may not be is a warning. Raises ToolingError for what is surely not.
    """
    said: list[str] = []
    short: list[str] = []
    todo = f"free some, or set store to a larger disk; {settings.cache} may go"
    for use in _together(_uses(settings, compiles)):
        free = shutil.disk_usage(use.folder).free
        told = (
            f"{free / 1e9:.1f} GB free at {use.folder}, the next build and snapshot take about {use.about / 1e9:.1f} GB"
        )
        if free < use.surely:
            raise ToolingError("the disk has no room for a release", evidence=told, todo=todo)
        if (files := os.statvfs(use.folder)).f_files and files.f_favail < _SURELY_FILES:
            told = f"{files.f_favail} more files fit on the disk at {use.folder} (`df -i`)"
            raise ToolingError("the disk has no room for a release's files", evidence=told, todo=todo)
        (said if free > use.about else short).append(told)
    return warning("; ".join(short), todo) if short else "; ".join(said)


def _uses(settings: Settings, compiles: bool) -> list[Use]:
    root = settings.store.absolute()
    found = _there(settings)
    snapshot = _weights(found) if settings.platform == "local" else 0
    build = max((_size(folder) for folder in (root / "builds").glob("*")), default=0)
    store = nearest(root)
    copies = sum(path.stat().st_size for path in found.values() if _is_copied(path, root, store))
    uses = [Use(store, build + snapshot + copies, copies + _SURELY_BYTES // 3)]
    if compiles:
        uses.append(Use(nearest(settings.cache), _WORK_BYTES, _SURELY_BYTES))
    return uses


def _there(settings: Settings) -> dict[str, Path]:
    """Those files of a release that are here."""
    return {name: path for name, path in files(settings.server).items() if path.is_file()}


def _weights(found: Mapping[str, Path]) -> int:
    """Bytes of those files that a server keeps in memory."""
    return sum(path.stat().st_size for name, path in found.items() if is_gguf(name))


def _is_copied(path: Path, root: Path, store: Path) -> bool:
    """Whether a file that a release names will take room in the store: no link leads to another disk."""
    return path.stat().st_dev != store.stat().st_dev and not any(root.glob(f"files/*/{path.name}"))


def _together(uses: list[Use]) -> list[Use]:
    """One use for each disk."""
    found: dict[int, Use] = {}
    for use in uses:
        disk = use.folder.stat().st_dev
        other = found.get(disk, Use(use.folder, 0, 0))
        found[disk] = Use(other.folder, other.about + use.about, other.surely + use.surely)
    return list(found.values())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(settings: Settings) -> str | Seen:
    """Two servers fit side by side, as they are during a promotion: model and KV cache, a bound from above.

    Raises ToolingError when not even the weights of one do.
    """
    server = settings.server
    weights = _weights(_there(settings))
    if not weights:
        return "no model is there to reckon with"
    if server.gpu_layers and (server.gpu_layers != "auto" or settings.recipe.backend != "cpu"):
        return "the model is on the GPU: its memory is not reckoned here"
    total, available = _memory()
    if weights > total and not server.memory_map:
        raise ToolingError(
            "the model does not fit into this machine's memory",
            evidence=f"{weights / 1e9:.1f} GB of weights, {total / 1e9:.1f} GB of memory and swap",
            todo="take a smaller quantization, a larger machine, or server.memory_map = true (slow, and no snapshots)",
        )
    one, up = weights + kv_cache_bytes(settings), _servers_up(settings)
    needed = one * (2 - up)
    said = (
        f"{available / 1e9:.1f} GB of memory can be had, a server takes about {one / 1e9:.1f} GB, "
        f"a promotion has two side by side ({up} up now)"
    )
    return (
        said
        if needed <= available
        else warning(said, "less context (server.slots, server.ctx_per_slot), or more memory")
    )


def kv_cache_bytes(settings: Settings) -> int:
    """Bytes of the KV cache at most: every layer keeps every token. 0 for a model whose header does not tell."""
    server = settings.server
    values = gguf_header.before_vocabulary(server.model) if server.model else {}
    kind = values.get("general.architecture")

    def value(name: str) -> int:
        return int(values.get(f"{kind}.{name}", 0))

    heads = value("attention.head_count_kv") or value("attention.head_count")
    width = value("embedding_length") // (value("attention.head_count") or 1)
    lengths = (value("attention.key_length") or width, value("attention.value_length") or width)
    types = [kind or "f16" for kind in server.cache_types]  # llama-server's default
    row = sum(
        length * _ELEMENT_BYTES.get(kind, _ELEMENT_BYTES["q5_0"]) for length, kind in zip(lengths, types, strict=True)
    )
    return int(value("block_count") * heads * row * (server.context_tokens or value("context_length")))


def _servers_up(settings: Settings) -> int:
    found = 0
    for stage in get_args(StageName):
        with Control(settings.store.absolute(), stage) as control:
            status = control.running()
            found += bool(status and status.server_pid)
    return found


def _memory() -> tuple[int, int]:
    """(all memory and swap, what can be had of it now), bytes, for this process: a container may have less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    found = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    total, available = found["MemTotal"] + found.get("SwapTotal", 0), found["MemAvailable"]
    for limit, used in _limits():
        total, available = min(total, limit), min(available, limit - used)
    return total, available


def _limits() -> list[tuple[int, int]]:
    """(limit, used) of the cgroup that this process sees as its root (cgroup v2, then v1)."""
    found = []
    for folder, names in zip(
        _CGROUPS, (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")), strict=True
    ):
        try:
            limit, used = (folder.joinpath(name).read_text().strip() for name in names)
        except OSError:
            continue
        if limit.isdecimal():
            found.append((int(limit), int(used)))
    return found
