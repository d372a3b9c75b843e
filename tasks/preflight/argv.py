"""The settings as an argv that one binary takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tasks.process import Output
from tasks.release import BadInput, Build, Release, ReleaseFailed
from tasks.settings import ServerSettings
from tasks.store import Store

Argv = tuple[str, ...]
Accepts = Callable[[Argv], str]
"""Gives the binary's own complaint about an argv; '' when it takes it."""


@dataclass(frozen=True)
class Want:
    """One setting, and its spellings in llama-server's history, newest first."""

    setting: str
    spellings: tuple[Argv, ...]


def wants(server: ServerSettings) -> list[Want]:
    """The settings as llama-server flags; `{model}` and the like stand for files.

    Sources: b10884 replaced --mmap/--no-mmap by --load-mode; --flash-attn needs a value since b6325 (guide, issue 4).
    """

    def one(setting: str, *argv: object) -> Want:
        return Want(setting, (tuple(map(str, argv)),))

    slots, context = server.slots, server.slots * server.ctx_per_slot
    found = [one("model", "--model", "{model}")]
    if server.mmproj:
        found.append(one("mmproj", "--mmproj", "{mmproj}"))
    if server.chat_template:
        found.append(one("chat_template", "--chat-template-file", "{chat_template}"))
    found += [
        one("jinja", "--jinja"),
        one("alias", "--alias", server.alias),
        one("ctx_per_slot", "--ctx-size", context),
        one("slots", "--parallel", slots),
        one("kv_cache_type", "--cache-type-k", server.kv_cache_type, "--cache-type-v", server.kv_cache_type),
        one("batch", "--batch-size", server.batch),
        one("ubatch", "--ubatch-size", server.ubatch),
        one("gpu_layers", "--n-gpu-layers", server.gpu_layers),
        Want("flash_attention", (("--flash-attn", server.flash_attention), *_bare_flash(server))),
        Want(
            "memory_map",
            (("--load-mode", "mmap"), ()) if server.memory_map else (("--load-mode", "none"), ("--no-mmap",)),
        ),
    ]
    if server.metrics:
        found.append(one("metrics", "--metrics"))
    if server.threads:
        found.append(one("threads", "--threads", server.threads))
    return found


def _bare_flash(server: ServerSettings) -> tuple[Argv, ...]:
    return {"on": (("--flash-attn",),), "off": ((),), "auto": ()}[server.flash_attention]


def spelled(server: ServerSettings) -> dict[str, Want]:
    """Flag -> the setting that it is, or was in an earlier spelling, the way to say."""
    return {word: want for want in wants(server) for s in want.spellings for word in s if word.startswith("-")}


def refusal(ask: Callable[..., Output], argv: Argv) -> str:
    """What a binary says against an argv, in its own words; '' when it takes it.

    llama-server reads its whole argv before `--version` ends it: the surest flag check there is. A chat template is
    the one file that it opens while it reads, so an empty one stands for ours, which need not be where it runs.
    """
    output = ask(*("/dev/null" if word == "{chat_template}" else word for word in argv), "--version")
    return "" if output.code == 0 else output.text[:600] or f"exit status {output.code}"


def complaint(store: Store, build: Build, argv: Argv) -> str:
    """What a build's binary says against an argv: see `refusal`."""
    return refusal(lambda *words: store.ask(build, *words), argv)


def render(server: ServerSettings, refuses: Accepts) -> tuple[Argv, list[str]]:
    """(argv that this binary understands, notes on settings that it spells differently from the newest way).

    Raises ReleaseFailed that names each setting it has no spelling for, with its own words.
    """
    found = wants(server)
    newest = tuple(word for want in found for word in want.spellings[0])
    if not refuses(newest):
        return newest, []
    argv: list[str] = []
    notes, refused = [], []
    for want in found:
        words = {spelling: refuses(spelling) for spelling in want.spellings}
        spelling = next((s for s, said in words.items() if not said), None)
        if spelling is None:
            refused.append(f"{want.setting}: `{' '.join(want.spellings[0])}`: {words[want.spellings[0]]}")
            continue
        if spelling != want.spellings[0]:
            notes.append(f"{want.setting} is `{' '.join(spelling) or 'the default'}` here")
        argv += spelling
    if said := (refused and "\n".join(refused)) or refuses(tuple(argv)):
        raise ReleaseFailed(
            "the candidate does not take our argv",
            evidence=said,
            todo="teach tasks/preflight/argv.py the flag's new name, or drop the setting",
        )
    return tuple(argv), notes


def bundle(store: Store, build: Build, server: ServerSettings) -> tuple[Release, list[str]]:
    """The release that these settings make of a build, and the notes of `render`.

    Raises BadInput without a model or when a file is not there, ReleaseFailed when the binary refuses the argv.
    """
    if server.model is None:
        raise BadInput("no model is set", todo="set server.model to a GGUF file")
    paths = {"model": server.model, "mmproj": server.mmproj, "chat_template": server.chat_template}
    argv, notes = render(server, lambda words: complaint(store, build, words))
    release = Release(
        upstream=build.source.upstream,
        tree=build.source.tree,
        build=build.digest,
        argv=argv,
        files={name: store.put_file(path) for name, path in paths.items() if path},
        alias=server.alias,
    )
    return release, notes
