"""The files that a release is made of, and what the settings ask of them: what their headers tell, in a second."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tasks import gguf_header
from tasks.doctor import Seen, note, warning
from tasks.gguf_header import Header
from tasks.preflight.argv import files, not_yet
from tasks.release import BadInput
from tasks.settings import ServerSettings, Settings

_PLAIN = ("f32", "f16", "bf16")
_GPU = re.compile(r"GGML_(CUDA|HIP|VULKAN|SYCL|METAL|OPENCL|CANN|MUSA|WEBGPU|RPC)")
"""CMake options that make a build which computes elsewhere than on the CPU."""
_GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
"""A tag of Hugging Face's trainers, which llama.cpp passes over (common/jinja/parser.cpp)."""
_STRETCH = ("--rope-", "--yarn-", "--override-kv")
"""Options that change how far a model can look, or what its file says of it."""


def whole(server: ServerSettings) -> str | Seen:
    """Every file that the settings name is there, is what it should be, and is whole. Raises BadInput."""
    named = files(server)
    readable(named)
    if server.hub_model:
        return note(f"the files of {server.hub_model} are not on this machine", "`llama-release upgrade` fetches them")
    if server.model is None:
        return note("no model is set", "set server.model to a GGUF file, or server.hub_model")
    return "; ".join(_told(name, path) for name, path in named.items() if is_gguf(name))


def readable(named: dict[str, Path]) -> None:
    """Raises BadInput that names each of these files which is not there, or not for this user."""
    wrong = [
        f"server.{name}: {path} {'cannot be read by this user' if path.exists() else 'is not there'}"
        for name, path in named.items()
        if not (path.is_file() and os.access(path, os.R_OK))
    ]
    if wrong:
        raise BadInput("a file cannot be read", evidence="\n".join(wrong), todo="correct its path in the settings")


def is_gguf(name: str) -> bool:
    """Whether a file by this placeholder is one that a server keeps in memory; a template or a grammar is none."""
    return name.partition(".")[0] in ("model", "mmproj", "draft_model", "lora")


def _told(name: str, path: Path) -> str:
    header, size = gguf_header.read(path), path.stat().st_size
    if size < header.needed_bytes:
        raise BadInput(
            f"the {name} {path} is incomplete",
            evidence=f"{size} bytes, its last tensor ends at {header.needed_bytes}",
            todo="fetch it again, and compare its sha256",
        )
    is_part = name.startswith("model.")  # which says nothing of the model
    if not is_part and (wrong := _mistaken(name, header)):
        raise BadInput(
            f"{path} is no {name}",
            evidence=wrong,
            todo="server.model takes the language model, server.mmproj its projector (architecture clip), "
            "server.lora adapters (general.type adapter)",
        )
    return f"{path.name} {size / 1e6:.0f} MB" + ("" if is_part else f", {header.architecture}")


def _mistaken(name: str, header: Header) -> str:
    """What a file is, if it is not what its setting takes."""
    adapter = header.values.get("general.type") == "adapter"
    if adapter is not (name.partition(".")[0] == "lora"):
        return f"its general.type is {header.values.get('general.type')!r}"
    if not adapter and (header.architecture == "clip") is not (name == "mmproj"):
        return f"its architecture is {header.architecture!r}"
    return ""


def fits(settings: Settings) -> str | Seen:
    """What the settings ask is what model, files and recipe can give.

    What can't be is a BadInput that names all of it; what llama-server would silently do otherwise is a warning.
    """
    server = settings.server
    if lines := not_yet(server):
        raise BadInput(
            "releases of this server can't be proved yet",
            evidence="\n".join(lines),
            todo="leave these options out, or go on running it by hand",
        )
    if server.model is None or not server.model.is_file():
        return note("no model is there to reckon with")
    header = gguf_header.read(server.model)
    wrong = [*_settings(settings), *_template(server), *_adapters(server, header)]
    if wrong:
        raise BadInput(
            "the settings ask for what cannot be",
            evidence="\n".join(wrong),
            todo="correct them, or take another file",
        )
    doubts = [*_context(server, header), *_layers(settings)]
    if doubts:
        return warning("; ".join(doubts), "correct them: llama-server would say so in its log only")
    return f"{header.architecture}, {header.values.get(f'{header.architecture}.context_length', '?')} tokens of context"


def _settings(settings: Settings) -> Iterator[str]:
    server = settings.server
    values = server.cache_types[1]
    if values and values not in _PLAIN and server.flash_attention == "off":  # llama-context.cpp, llama_init_from_model
        yield f"values of type {values} in the cache need flash attention, and server.flash_attention is off"
    if server.api_key_file and not server.api_key_file.is_file():
        yield f"server.api_key_file: {server.api_key_file} is not there"
    if server.slot_save_path and not server.slot_save_path.is_dir():
        yield f"server.slot_save_path: there is no folder {server.slot_save_path}"
    if settings.platform == "modal" and (server.api_key_file or server.slot_save_path):
        yield "server.api_key_file and server.slot_save_path are of this machine: a container has neither"


def _layers(settings: Settings) -> Iterator[str]:
    server, recipe = settings.server, settings.recipe
    elsewhere = recipe.backend != "cpu" or any(
        _GPU.fullmatch(name) and value.upper() in ("ON", "1", "TRUE", "YES") for name, value in recipe.cmake.items()
    )
    # on a Mac ggml computes with Metal unless it is told not to (GGML_METAL)
    if (
        server.gpu_layers not in (0, "auto")
        and not elsewhere
        and settings.platform == "local"
        and sys.platform == "linux"
    ):
        yield (
            f"server.gpu_layers is {server.gpu_layers}, and the recipe builds for the CPU alone, which ignores it: "
            'recipe.backend = "cuda" builds for the GPU'
        )


def _template(server: ServerSettings) -> Iterator[str]:
    from jinja2 import TemplateSyntaxError  # a tenth of a second to load
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not server.chat_template or not server.jinja:
        return
    try:
        ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(
            _GENERATION.sub("", server.chat_template.read_text(encoding="utf-8"))
        )
    except TemplateSyntaxError as error:
        yield f"the chat template {server.chat_template} is none for jinja2, line {error.lineno}: {error.message}"
    except (OSError, ValueError) as error:
        yield f"the chat template {server.chat_template} cannot be read: {error}"


def _adapters(server: ServerSettings, header: Header) -> Iterator[str]:
    for path in server.lora:
        if path.is_file() and (other := gguf_header.read(path).architecture) != header.architecture:
            yield f"the adapter {path} is for the architecture {other!r}, the model is {header.architecture!r}"


def _context(server: ServerSettings, header: Header) -> Iterator[str]:
    has = int(header.values.get(f"{header.architecture}.context_length", 0))
    stretched = any(word.startswith(_STRETCH) for word in server.flags)
    if (
        has
        and not stretched
        and server.context_tokens
        and isinstance(server.ctx_per_slot, int)
        and server.ctx_per_slot > has
    ):
        yield f"server.ctx_per_slot is {server.ctx_per_slot}, the model was trained for {has}: a slot gets no more"
