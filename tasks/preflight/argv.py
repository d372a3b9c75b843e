"""The settings as an argv that one binary takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.flags.history import history
from tasks.flags.table import Table, known
from tasks.flags.words import CUMULATIVE, Reading, option_of, read, same_names, split
from tasks.process import Output
from tasks.release import BadInput, Build, Release, ReleaseFailed
from tasks.settings import ServerSettings, Settings
from tasks.store import Store

Argv = tuple[str, ...]
Accepts = Callable[[Argv], str]
"""Gives the binary's own complaint about an argv; '' when it takes it."""

TYPED: Mapping[str, str] = {
    "jinja": "--jinja",
    "alias": "--alias",
    "ctx_per_slot": "--ctx-size",
    "slots": "--parallel",
    "kv_cache_type": "--cache-type-k",
    "batch": "--batch-size",
    "ubatch": "--ubatch-size",
    "gpu_layers": "--n-gpu-layers",
    "flash_attention": "--flash-attn",
    "memory_map": "--load-mode",
    "metrics": "--metrics",
    "threads": "--threads",
    "threads_batch": "--threads-batch",
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "predict": "--predict",
    "reasoning": "--reasoning",
    "reasoning_format": "--reasoning-format",
    "reasoning_budget": "--reasoning-budget",
    "template_arguments": "--chat-template-kwargs",
    "cache_prompt": "--cache-prompt",
    "cache_ram": "--cache-ram",
    "cache_reuse": "--cache-reuse",
    "context_shift": "--context-shift",
    "slot_save_path": "--slot-save-path",
    "embeddings": "--embedding",
    "rerank": "--rerank",
    "pooling": "--pooling",
    "speculation": "--spec-type",
    "draft_max": "--spec-draft-n-max",
    "draft_min": "--spec-draft-n-min",
    "draft_gpu_layers": "--spec-draft-ngl",
    "split_mode": "--split-mode",
    "tensor_split": "--tensor-split",
    "main_gpu": "--main-gpu",
    "devices": "--device",
    "cpu_moe_layers": "--n-cpu-moe",
    "override_tensor": "--override-tensor",
    "timeout_s": "--timeout",
    "api_key_file": "--api-key-file",
}
"""Setting -> today's name of llama-server's option that it is, in the order of an argv: that is in the identity of
every release. kv_cache_type is two (`_of_cache`)."""
NEGATIVE: Mapping[str, str] = {
    "jinja": "--no-jinja",
    "cache_prompt": "--no-cache-prompt",
    "context_shift": "--no-context-shift",
}
"""Setting -> what says no, of a switch that is on without a word, or was."""
LEFT_OPEN = frozenset(("slots", "batch", "ubatch", "gpu_layers"))
"""Settings whose `auto` is not said: llama-server has its own default."""
FILES: Mapping[str, str] = {
    "model": "--model",
    "mmproj": "--mmproj",
    "chat_template": "--chat-template-file",
    "draft_model": "--spec-draft-model",
    "lora": "--lora",
}
"""Setting that names files of a release -> the option that it is."""
FREE_FILES = (
    "--control-vector", "--control-vector-scaled", "--grammar-file", "--json-schema-file", "--lookup-cache-static",
    "--ui-config-file",
)  # fmt: skip
"""Options without a setting of their own whose value is files that llama-server reads: parts of the release. Several
with commas between them; of those with a scale it stands behind a colon."""
OWNED: Mapping[str, str] = {
    "--host": "local.host says where servers listen",
    "--port": "local.production_port and local.staging_port say where servers listen",
    "--reuse-port": "it would share the port with whoever asks for it",
    "--api-key": "the key comes from the variable that server.api_key_env names: an argv is read by everybody",
    "--hf-token": "a token comes from the variable HF_TOKEN: an argv is read by everybody",
    "--hf-repo": "server.hub_model names a repository",
    "--hf-repo-draft": "set server.draft_model to a file: what is served is fetched before, and known by its digest",
    "--hf-file": "set server.model to a file, or server.hub_model to user/repository:quant",
    "--model-url": "set server.model to a file: what is served is fetched before, and known by its digest",
    "--mmproj-url": "set server.mmproj to a file: what is served is fetched before, and known by its digest",
    "--docker-repo": "set server.model to a file: what is served is fetched before, and known by its digest",
    "--sleep-idle-seconds": "local.idle_s and modal.idle_s stop an idle server, and it comes back from a snapshot",
    "--api-prefix": "clients, probes and the activator would have to know it: have a proxy in front of the port do it",
    "--mcp-servers-json": "it holds other servers' tokens, and an argv is read by everybody",
    "--mcp-servers-config": "it names other servers with their tokens, which a release would keep",
    "--help": "it ends the server", "--version": "it ends the server", "--list-devices": "it ends the server",
    "--completion-bash": "it ends the server", "--cache-list": "it ends the server",
}  # fmt: skip
"""Options that are llama-release's own to say, or that no release can have -> what to do instead."""
WHOLE_MODEL = re.compile(r"--(?!spec-default).+-(default|spec)")
"""Options that choose a model and all that is set for it, and download that (`--gpt-oss-20b-default`)."""
_FILE_OPTIONS: Mapping[str, str] = {
    **{flag: setting for setting, flag in FILES.items()}, "--lora-scaled": "lora", "--api-key-file": "api_key_file",
    "--slot-save-path": "slot_save_path",
}  # fmt: skip
"""Options that name files and have a setting of their own, in which a file is known by its content."""
_TLS = "TLS ends before llama-server: have a proxy in front of the port do it, and leave these out"
_ROUTER = "a router serves several models, and a release is of one: give each a store and a port of its own"
_CHAT = "it answers no chat, and contracts, evals and the restore probe ask for chats"
NOT_YET: Mapping[str, str] = {
    "--ssl-key-file": _TLS, "--ssl-cert-file": _TLS, "--models-dir": _ROUTER, "--models-preset": _ROUTER,
    "--embedding": _CHAT, "--rerank": _CHAT,
}  # fmt: skip
"""Options of servers that are taken over as they are, and whose releases can't be proved yet -> why."""


@dataclass(frozen=True)
class Want:
    """One setting, and its spellings in llama-server's history, newest first."""

    setting: str
    spellings: tuple[Argv, ...]

    @property
    def is_free(self) -> bool:
        """Whether it is one of `server.flags`, in llama-server's own words."""
        return self.setting.startswith("flags ")


_PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""How a part of a split GGUF is called (llama.cpp, llama_split_path)."""


def parts(model: Path) -> list[Path]:
    """The files of a model in their order: its parts when it is split, else itself. They need not be there.

    Raises BadInput for a part that is not the first, which llama-server does not take.
    """
    found = _PART.fullmatch(model.name)
    if not found or int(found["count"]) < 2:
        return [model]
    count = int(found["count"])
    names = [f"{found['name']}-{number:05}-of-{found['count']}.gguf" for number in range(1, count + 1)]
    if model.name != names[0]:
        raise BadInput(f"{model} is not the first part of its model", todo=f"set server.model to {names[0]}")
    return [model.with_name(name) for name in names]


def files(server: ServerSettings) -> dict[str, Path]:
    """Placeholder -> file, of every file that a release of these settings consists of. Those of `server.hub_model` are
    among them once it is resolved: see tasks/hub."""
    found: dict[str, Path] = {}
    if server.model:
        first, *more = parts(server.model)
        found = {"model": first} | {f"model.{number}": part for number, part in enumerate(more, 2)}
    for name in ("mmproj", "chat_template", "draft_model"):
        if path := getattr(server, name):
            if len(parts(path)) > 1:
                raise BadInput(f"server.{name} is a split file", todo="merge it with llama-gguf-split --merge")
            found[name] = path
    found |= {_numbered("lora", at): path for at, path in enumerate(server.lora, 1)}
    for group in _free_words(server):
        found |= dict(_files_of(group))
    return found


def _files_of(group: Argv) -> Iterator[tuple[str, Path]]:
    """(placeholder, file) of each file that an option in llama-server's own words names."""
    flag = known().find(group[0])
    if flag is None or flag.main not in FREE_FILES or len(group) < 2:
        return
    for number, item in enumerate(group[1].split(","), 1):
        path = item.rpartition(":")[0] if flag.main.endswith("-scaled") else item
        yield _numbered(flag.main.strip("-").replace("-", "_"), number), Path(path)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}.{number}"


def wants(server: ServerSettings) -> list[Want]:
    """The settings as llama-server flags; `{model}` and the like stand for files.

    Sources: b10884 replaced --mmap/--no-mmap by --load-mode; --flash-attn needs a value since b6325 (guide, issue 4).
    Earlier names: tasks/flags/history.toml.
    """
    found = [Want(setting, (words,)) for setting, words in _of_files(server)]
    typed = ((setting, words) for each in TYPED for setting, words in _of_setting(server, each))
    found += [Want(setting, (words, *_earlier(words))) for setting, words in typed]
    groups = free(server)
    beside = [" ".join(group) for group in groups]
    return found + [Want(f"flags {group[0]}", (group, *_earlier(group, beside))) for group in groups]


def _earlier(words: Argv, beside: Sequence[str] = ()) -> list[Argv]:
    """The same in other builds' words. What an option of today said by default once need not be said at all."""
    found = [*dict.fromkeys((*history().spellings(words, beside), *same_names(words)))]
    return [(), *found] if words in (("--flash-attn", "off"), ("--load-mode", "mmap")) else found


def _of_files(server: ServerSettings) -> Iterator[tuple[str, Argv]]:
    for setting in ("model", "mmproj", "chat_template", "draft_model"):
        if getattr(server, setting):
            yield setting, (FILES[setting], f"{{{setting}}}")
    if server.hub_model:
        yield "hub_model", ("--hf-repo", server.hub_model)
    names = [f"{{{_numbered('lora', at)}}}" for at in range(1, len(server.lora) + 1)]
    if server.lora_scale:
        scaled = [f"{name}:{_text(scale)}" for name, scale in zip(names, server.lora_scale, strict=True)]
        yield "lora", ("--lora-scaled", ",".join(scaled))
    elif names:
        yield "lora", ("--lora", ",".join(names))


def _of_setting(server: ServerSettings, setting: str) -> Iterator[tuple[str, Argv]]:
    """A setting with its words; nothing where llama-server is to decide."""
    flag, value = TYPED[setting], getattr(server, setting)
    if setting == "kv_cache_type":
        yield from _of_cache(*server.cache_types)
    elif setting == "ctx_per_slot":
        if total := server.context_tokens:
            yield setting, (flag, str(total))
    elif setting == "memory_map":
        if value != "auto":
            yield setting, (flag, "mmap" if value else "none")
    elif value is False:
        if setting in NEGATIVE:
            yield setting, (NEGATIVE[setting],)
    elif value is True:
        yield setting, (flag,)
    elif value is not None and value != () and not (value == "auto" and setting in LEFT_OPEN):
        yield setting, (flag, _text(value))


def _of_cache(keys: str | None, values: str | None) -> Iterator[tuple[str, Argv]]:
    if keys and keys == values:
        yield "kv_cache_type", ("--cache-type-k", keys, "--cache-type-v", values)
        return
    if keys:
        yield "key_cache_type", ("--cache-type-k", keys)
    if values:
        yield "value_cache_type", ("--cache-type-v", values)


def _text(value: object) -> str:
    if isinstance(value, Path):
        return str(value.absolute())  # who starts the server may be elsewhere
    if isinstance(value, float):
        text = f"{value:.12g}"
        return f"{text}.0" if text.lstrip("-").isdecimal() else text
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def free(server: ServerSettings) -> list[Argv]:
    """The options that the settings name in llama-server's own words, each with its values, files as placeholders."""
    groups = []
    for group in _free_words(server):
        words = list(group)
        for name, path in _files_of(group):
            items = [item.replace(str(path), f"{{{name}}}", 1) if item.startswith(str(path)) else item
                     for item in words[1].split(",")]  # fmt: skip
            words[1] = ",".join(items)
        groups.append(tuple(words))
    return groups


def _free_words(server: ServerSettings) -> list[Argv]:
    """The options among the variables, and those of `flags`."""
    options = {name: value for name, value in server.env.items() if option_of(name)}
    return [*(each.words for each in read((), known(), options).said), *split(server.flags, known())]


def variables(server: ServerSettings) -> dict[str, str]:
    """What a server sees in its environment by the settings; options among them go into its argv."""
    return {name: value for name, value in sorted(server.env.items()) if not option_of(name)}


def shown(settings: Settings) -> Argv:
    """The argv of llama-server that the settings come to, in the words of the newest build that is known, with the
    settings' own paths: for a person to compare with theirs. A release's own argv is what its binary takes."""
    named = {f"{{{name}}}": str(path) for name, path in files(settings.server).items()}
    argv = [word for want in wants(settings.server) for word in want.spellings[0]]
    words = [re.sub(r"\{[a-z_]+(\.\d+)?\}", lambda m: named.get(m[0], m[0]), word) for word in argv]
    return (*words, "--host", settings.local.host, "--port", str(settings.local.production_port))


def spelled(server: ServerSettings) -> dict[str, Want]:
    """Flag -> the setting that it is, or was in an earlier spelling, the way to say."""
    return {word: want for want in wants(server) for s in want.spellings for word in s if word.startswith("-")}


def wrong(server: ServerSettings, table: Table) -> list[str]:
    """One line for each setting that a build's llama-server would refuse, not understand, or take from another one."""
    understood = [(want, [read(spelling, table) for spelling in want.spellings]) for want in wants(server)]
    typed = {main: want.setting for want, readings in understood if not want.is_free for main in _mains(readings)}
    lines: list[str] = []
    seen: set[str] = set()
    for want, readings in understood:
        if all(reading.refused for reading in readings):
            lines.append(f"server.{want.setting}: " + "; ".join(map(str, readings[0].refused)))
        for main in _mains(readings) if want.is_free else ():
            if instead := _owned(main, table):
                lines.append(f"server.flags: `{main}`: {instead}")
            elif main in typed:
                lines.append(f"server.flags: `{main}`: server.{typed[main]} says it, too; leave one of them out")
            elif main in seen and main not in CUMULATIVE:
                lines.append(f"server.flags: `{main}` stands there twice: llama-server would take the last one only")
            seen.add(main)
    for name in filter(lambda each: option_of(each, table), server.env):
        reading = read((), table, {name: server.env[name]})
        if reading.unread or reading.refused:
            lines += [f"server.env: {said}" for said in (*reading.unread, *map(str, reading.refused))]
    return lines


def not_yet(server: ServerSettings) -> list[str]:
    """One line for each option because of which no release of these settings can be proved yet."""
    found = (read(want.spellings[0], known()).said for want in wants(server))
    return [f"{said.said}: {NOT_YET[said.main]}" for each in found for said in each if said.main in NOT_YET]


def _owned(main: str, table: Table) -> str:
    """Why an option can't be one of `flags`; '' where it can."""
    if setting := next((name for word, name in _FILE_OPTIONS.items() if table.main(word) == main), ""):
        return f"server.{setting} names its file, so that it is known by its content and is where the server runs"
    if WHOLE_MODEL.fullmatch(main):
        return "it downloads a model of its own: set server.model, and what it sets by itself"
    return next((why for word, why in OWNED.items() if table.main(word) == main), "")


def _mains(readings: Sequence[Reading]) -> list[str]:
    """The options that a setting comes to in the first of its spellings that is understood."""
    return [said.main for said in next((each.said for each in readings if not each.refused), ())]


UNASKED = ("--json-schema-file", "--ui-config-file", "--mcp-servers-config", "--api-key-file")
"""Options whose file is read, and has to make sense, while the argv is read: the file is not where the binary is asked,
so these are left out of the question."""


def refusal(ask: Callable[..., Output], argv: Argv) -> str:
    """What a binary says against an argv, in its own words; '' when it takes it.

    llama-server reads its whole argv before `--version` ends it: the surest flag check there is. A chat template and a
    grammar are opened meanwhile, so an empty one stands for ours, which need not be where it runs.
    """
    groups = (group for group in split(argv, known()) if known().main(group[0]) not in UNASKED)
    words = ("/dev/null" if word in _EMPTY else word for group in groups for word in group)
    output = ask(*words, "--version")
    return "" if output.code == 0 else output.text[:600] or f"exit status {output.code}"


_EMPTY = ("{chat_template}", "{grammar_file}")


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
            todo="correct the setting; if upstream has renamed it, tasks/flags/history.toml is to learn the new name",
        )
    return tuple(argv), notes


def bundle(store: Store, build: Build, server: ServerSettings) -> tuple[Release, list[str]]:
    """The release that these settings make of a build, and the notes of `render`.

    Raises BadInput without a model, with one of the Hub that is not here, or when a file is not there, ReleaseFailed
    when the binary refuses the argv.
    """
    if server.hub_model:
        raise BadInput(
            f"the files of {server.hub_model} are not on this machine",
            todo="`llama-release upgrade` fetches them, `llama-release plan` says which they are",
        )
    if server.model is None:
        raise BadInput("no model is set", todo="set server.model to a GGUF file")
    argv, notes = render(server, lambda words: complaint(store, build, words))
    release = Release(
        upstream=build.source.upstream,
        tree=build.source.tree,
        build=build.digest,
        argv=argv,
        env=variables(server),
        files={name: store.put_file(path) for name, path in files(server).items()},
        alias=server.alias,
    )
    return release, notes
