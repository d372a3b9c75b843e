"""A launch as settings: each with what it came from, what was dropped and why, and what can't be taken over."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modal_app.redaction import redact
from tasks.adoption.launch import SECRET_FLAGS, Launch, Variable
from tasks.flags.flag import Flag
from tasks.flags.table import Table
from tasks.flags.words import NO, YES, Reading, Refused, Said, option_of, read, split
from tasks.preflight.argv import FILES, NOT_YET, OWNED, TYPED, wants, wrong
from tasks.settings import ServerSettings

NOT_SAID = "not said: llama-server decides"
_PORT = 8080
_HOST = "127.0.0.1"
"""llama-server's own (common/common.h, common_params)."""
_PATHS = frozenset({"FNAME", "FILE", "PATH", "DIR", "JINJA_TEMPLATE_FILE", "FNAME:SCALE,..."})
"""How --help calls a value that is a path."""
_PATH_SETTINGS = frozenset(("model", "mmproj", "chat_template", "draft_model", "slot_save_path", "api_key_file"))
_ANY_FLAG = {**dict.fromkeys(YES, "on"), **dict.fromkeys(NO, "off"), "-1": "auto"}
"""What upstream takes for on, off and auto (common_arg_utils)."""


@dataclass(frozen=True)
class Line:
    """One setting, and what it came from."""

    section: str
    key: str
    value: Any
    comment: str


@dataclass(frozen=True)
class Free:
    """One option that stays in llama-server's own words."""

    words: tuple[str, ...]
    comment: str


@dataclass(frozen=True)
class Note:
    """What was dropped and why, or what a person should know."""

    text: str


Piece = Line | Free | Note | Refused


@dataclass(frozen=True)
class Settled:
    """All of it."""

    launch: Launch
    reading: Reading
    lines: tuple[Line, ...]
    free: tuple[Free, ...]
    notes: tuple[str, ...]
    exports: tuple[tuple[str, str], ...] = ()
    """(variable, where its value stands) of each that is to be exported, since no file holds it."""

    @property
    def server(self) -> dict[str, Any]:
        """`[server]` as it is written."""
        found = {line.key: line.value for line in self.lines if line.section == "server"}
        if self.free:
            found["flags"] = [word for each in self.free for word in each.words]
        if env := {line.key: line.value for line in self.lines if line.section == "server.env"}:
            found["env"] = env
        return found

    def section(self, name: str) -> dict[str, Any]:
        """Another section as it is written."""
        return {line.key: line.value for line in self.lines if line.section == name}


@dataclass
class _Taken:
    """The options that were said, each taken once."""

    launch: Launch
    reading: Reading
    table: Table
    left: dict[str, list[Said]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wheres = _wheres(self.launch, self.table)
        for said in self.reading.effective:
            self.left.setdefault(said.main, []).append(said)

    def take(self, name: str) -> list[Said]:
        return self.left.pop(self.table.main(name), [])

    def said(self, name: str) -> list[Said]:
        """All that counts of an option, taken or not."""
        return [each for each in self.reading.effective if each.main == self.table.main(name)]

    def origin(self, *said: Said) -> str:
        """`from --ctx-size 4096 (compose.yaml: services.llm.command)`."""
        where = dict.fromkeys(filter(None, (self.wheres.get(each.said, "") for each in said)))
        return " ".join(("from", ", ".join(each.said for each in said), *(f"({each})" for each in where)))


def settle(launch: Launch, table: Table) -> Settled:
    """The settings that say the same to llama-server as a launch does.

    Raises NotTaken for all that a build does not take, or that no release can have.
    """
    words = [word.text for word in launch.words]
    options, others = _variables(launch, table)
    reading = read(words, table, {each.name: each.value for each in options})
    taken = _Taken(launch, reading, table)
    pieces = [*_pieces(taken), *_environment(others, launch), *_told(launch, reading, options, table)]
    keys = list(ServerSettings.model_fields)
    lines = [piece for piece in pieces if isinstance(piece, Line)]
    lines.sort(key=lambda line: keys.index(line.key) if line.section == "server" else len(keys))
    found = Settled(
        launch=launch,
        reading=reading,
        lines=tuple(lines),
        free=tuple(piece for piece in pieces if isinstance(piece, Free)),
        notes=(*launch.notes, *(piece.text for piece in pieces if isinstance(piece, Note))),
        exports=tuple(_exports(launch)),
    )
    refused = [piece for piece in pieces if isinstance(piece, Refused)]
    refused = [*reading.refused, *refused]
    if not refused:
        refused = [*_invalid(found, table)]
    if refused:
        raise NotTaken(refused)
    return found


class NotTaken(Exception):
    """What of a launch can't be taken over; `refused` names each, with its reason."""

    def __init__(self, refused: Sequence[Refused]) -> None:
        self.refused = tuple(dict.fromkeys(refused))
        super().__init__("\n".join(map(str, self.refused)))


def _invalid(found: Settled, table: Table) -> Iterator[Refused]:
    try:
        server = ServerSettings.model_validate(found.server)
    except ValidationError as error:
        yield from (Refused("server." + ".".join(map(str, e["loc"])), e["msg"]) for e in error.errors())
        return
    for each in found.free:
        if redact(list(each.words)) != list(each.words):
            yield Refused(
                each.words[0], "its value holds a secret, which no file may: have it read one (--api-key-file)"
            )
    for line in wrong(server, table):
        yield Refused(line.partition(": ")[0], line.partition(": ")[2])


def _variables(launch: Launch, table: Table) -> tuple[list[Variable], list[Variable]]:
    """(those that are options, the others), each name once with the value that wins."""
    last = {each.name: each for each in launch.variables}
    if launch.ports is not None:  # the container's own address is not this machine's
        last.pop("LLAMA_ARG_HOST", None)
    options = [each for each in last.values() if option_of(each.name, table)]
    return options, [each for each in last.values() if each not in options]


def _wheres(launch: Launch, table: Table) -> dict[str, str]:
    """What was said -> where."""
    words = [word.text for word in launch.words]
    found, at = {}, 0
    for group in split(words, table):
        found[" ".join(group)] = launch.words[at].where
        at += len(group)
    return found | {f"{each.name}={each.value}": each.where for each in launch.variables}


def _pieces(taken: _Taken) -> Iterator[Piece]:
    yield from _model(taken)
    yield from _sizes(taken)
    yield from _cache_types(taken)
    yield from _lora(taken)
    yield from _address(taken)
    yield from _keys(taken)
    owned = {taken.table.main(name): why for name, why in OWNED.items()}
    not_yet = {taken.table.main(name): why for name, why in NOT_YET.items()}
    settings = {taken.table.main(name): setting for setting, name in {**TYPED, **FILES}.items()}
    for main in list(taken.left):
        said = taken.take(main)
        if main in owned:
            yield from _owned(main, said, owned[main], taken)
        elif setting := settings.get(main):
            yield from _typed(setting, said, taken)
        else:
            yield from (_free(each, taken) for each in said)
        if why := not_yet.get(main):
            yield from (Note(f"{each.said}: kept, but no release can be made of it yet: {why}") for each in said)
    yield from _unsaid(taken)


def _place(said: Said, path: str, taken: _Taken) -> Path | Refused:
    """A path of theirs as this machine has it."""
    if found := taken.launch.outside(path):
        return found
    why = "no mount leads there from this machine" if taken.launch.contained else "its folder is not known"
    return Refused(said.said, f"{why}: say where {path} is with --map {Path(path).parent}=/folder/of/this/machine")


def _model(taken: _Taken) -> Iterator[Piece]:
    model, hub = taken.take("--model"), taken.take("--hf-repo")
    router = next((said for main in ("--models-dir", "--models-preset") for said in taken.left.get(main, [])), None)
    alias = taken.take("--alias")
    name = hub[0].value if hub else model[0].value if model else ""
    if hub:
        yield from _typed("hub_model", hub, taken)
        yield from (Note(f"{each.said}: dropped, --hf-repo wins") for each in model)
    elif model:
        found = _place(model[0], model[0].value, taken)
        yield found if isinstance(found, Refused) else Line("server", "model", str(found), taken.origin(*model))
    elif router is None and not {"--model-url", "--docker-repo"} & set(taken.left):
        yield Refused("--model", "none is named: llama-server would be a router, which can't be released yet")
    if alias:
        yield from _typed("alias", alias, taken)
    elif name:  # server.cpp: params.model.get_name()
        yield Line("server", "alias", name, "not said: so llama-server calls it")


def _sizes(taken: _Taken) -> Iterator[Piece]:
    """Context and slots: llama-server has the context of all slots together."""
    context, slots = taken.take("--ctx-size"), taken.take("--parallel")
    count = _number(slots[0].value) if slots else None
    total = _number(context[0].value) if context else None
    if slots and count and 1 <= count <= 256:
        yield Line("server", "slots", count, taken.origin(*slots))
    else:
        yield Line("server", "slots", "auto", NOT_SAID if not slots else taken.origin(*slots))
        if slots and count != -1:
            yield _free(slots[0], taken)
    if total and count and 1 <= count <= 256 and total % count == 0 and total // count >= 256:
        share = taken.origin(*context) + (f" for {count} slots" if count > 1 else "")
        yield Line("server", "ctx_per_slot", total // count, share)
        return
    yield Line("server", "ctx_per_slot", "auto", "all slots together have --ctx-size" if context else NOT_SAID)
    if context:
        yield _free(context[0], taken)


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _cache_types(taken: _Taken) -> Iterator[Piece]:
    keys, values = taken.take("--cache-type-k"), taken.take("--cache-type-v")
    if keys and values and keys[0].value == values[0].value:
        yield Line("server", "kv_cache_type", keys[0].value, taken.origin(*keys, *values))
        return
    yield Line("server", "kv_cache_type", "auto", NOT_SAID if not keys and not values else "each by itself")
    for setting, said in (("key_cache_type", keys), ("value_cache_type", values)):
        if said:
            yield Line("server", setting, said[0].value, taken.origin(*said))


def _lora(taken: _Taken) -> Iterator[Piece]:
    """All adapters in the order in which they were said."""
    said = [each for each in taken.reading.effective if each.main in ("--lora", "--lora-scaled")]
    scaled = bool(taken.take("--lora-scaled"))
    taken.take("--lora")
    paths, scales = [], []
    for each in said:
        for item in each.value.split(","):
            path, _, scale = item.rpartition(":") if each.main == "--lora-scaled" else (item, "", "1")
            found = _place(each, path, taken)
            if isinstance(found, Refused):
                yield found
                continue
            paths.append(str(found))
            scales.append(_as_written(scale))
    if paths:
        yield Line("server", "lora", paths, taken.origin(*said))
    if scaled:
        yield Line("server", "lora_scale", scales, taken.origin(*said))


def _address(taken: _Taken) -> Iterator[Piece]:
    """Where clients reach it: what a container publishes, else what it listens on."""
    host, port = taken.take("--host"), taken.take("--port")
    yield from (Note(f"{each.said}: dropped, no other process shares the port") for each in taken.take("--reuse-port"))
    inside = _number(port[0].value) if port else _PORT
    if inside is None or not 0 <= inside <= 65535:
        yield Refused(port[0].said, "it is no port")
        return
    address, number = host[0].value if host else _HOST, inside
    host_from = taken.origin(*host) if host else "not said: llama-server's own"
    port_from = taken.origin(*port) if port else "not said: llama-server's own"
    if "," in address or address.endswith(".sock"):
        yield Refused(host[0].said, "llama-release listens on one TCP address")
    if taken.launch.ports is not None:
        published = next((each for each in taken.launch.ports if each.inside == inside), None)
        address, number = (published.host, published.outside) if published else (_HOST, inside)
        host_from = port_from = f"from the published port of the container's {inside}"
        if not published:
            host_from = port_from = "the container publishes no port"
            yield Note(f"port {inside} of the container was not published: other containers reached it by its name")
    yield Line("local", "host", address, host_from)
    yield Line("local", "production_port", number, port_from)
    yield Line("local", "staging_port", _beside(number), "beside production's")


def _beside(port: int) -> int:
    """Another port than production's."""
    return 0 if port == 0 else port + 1 if port < 65535 else port - 1


def _keys(taken: _Taken) -> Iterator[Piece]:
    """The variable of the API key: llama-server takes several keys, llama-release sends one."""
    said = [each for each in taken.launch.secrets if each.variable == "LLAMA_API_KEY"]
    keys = [key for each in said for key in each.value.get_secret_value().split(",") if key]
    for each in taken.launch.secrets:
        if not each.value.get_secret_value().strip(",") and (each in said or each.said.startswith("-")):
            yield Refused(each.said, "it needs a value: without one nobody knows which key it has")
    if keys:
        first = said[0]
        variable = "LLAMA_API_KEY" if first.said.startswith("LLAMA_API_KEY") else _OUR_KEY
        yield Line("server", "api_key_env", variable, f"the key of {first.said}; it is not written anywhere")
    if len(keys) > 1:
        yield Note(f"{len(keys)} API keys were given: the first one is used, clients with another one are refused")


_OUR_KEY = "LLAMA_RELEASE_API_KEY"


def _exports(launch: Launch) -> Iterator[tuple[str, str]]:
    for variable in ("LLAMA_API_KEY", "HF_TOKEN"):
        if said := next((each.said for each in launch.secrets if each.variable == variable), None):
            named = _OUR_KEY if variable == "LLAMA_API_KEY" and not said.startswith(variable) else variable
            yield named, said


def _owned(main: str, said: Sequence[Said], why: str, taken: _Taken) -> Iterator[Piece]:
    """What is llama-release's own to say, or can't be released."""
    for each in said:
        seconds = _number(each.value)
        if main == "--sleep-idle-seconds" and seconds == -1:
            yield Note(f"{each.said}: dropped, local.idle_s stops an idle server")
        elif main == "--sleep-idle-seconds" and seconds:
            yield Line("local", "idle_s", float(seconds), taken.origin(each))
        else:
            yield Refused(each.said, why)


def _typed(setting: str, said: Sequence[Said], taken: _Taken) -> Iterator[Piece]:
    """A typed setting where it says exactly this, else the words as they are."""
    last = said[-1]
    if setting in _PATH_SETTINGS:
        if len(said) > 1:  # --api-key-file
            yield Refused(last.said, "several are said, which add up, and one can be kept: put all keys into one file")
            return
        found = _place(last, last.value, taken)
        yield found if isinstance(found, Refused) else Line("server", setting, str(found), taken.origin(last))
        return
    value = _value_of(setting, said)
    if value is not None:
        yield Line("server", setting, value, taken.origin(*said))
    elif setting == "hub_model":
        yield Refused(last.said, "it is no user/repository:quant")
    else:
        yield from (_free(each, taken) for each in said)


def _value_of(setting: str, said: Sequence[Said]) -> Any:
    """The value with which a typed setting says exactly what was said; None where it can't."""
    last = said[-1]
    text = ",".join(each.value for each in said)
    if not last.flag.takes:
        raw: Any = not last.off
    elif reader := _READERS.get(setting):
        raw = reader(text)
    elif last.flag.value in ("N", "P"):
        raw = _as_written(text)
    else:
        raw = _ANY_FLAG.get(text, text) if {"on", "off"} <= last.flag.choices else text
    try:
        made = ServerSettings.model_validate({setting: raw})
    except ValidationError:
        return None
    value = made.model_dump(mode="python")[setting]
    if not _is_toml(value):
        return None
    rendered = next((want.spellings[0] for want in wants(made) if want.setting == setting), None)
    if rendered is None:  # left to llama-server, or a switch that is off without a word
        return value if value == "auto" or (value is False and last.off) else None
    if not last.flag.takes:
        return value if (rendered[0] in last.flag.negative) is last.off else None
    return value if alike(rendered[1], text) else None


def _as_written(text: str) -> Any:
    """A number as it is written, 1 or 1.0; what is none stays text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _json(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if _is_toml(found) else None


def _is_toml(value: Any) -> bool:
    """Whether TOML has it as JSON writes it: it knows no null, and NaN by another name."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_toml, value.values()))
    return all(map(_is_toml, value)) if isinstance(value, list | tuple) else value is not None


_READERS: Mapping[str, Callable[[str], Any]] = {
    "memory_map": lambda text: {"none": False, "mmap": True}.get(text),
    "template_arguments": _json,
    "tensor_split": lambda text: [_as_written(each) for each in text.split(",")],
    "devices": lambda text: text.split(","),
    "override_tensor": lambda text: text.split(","),
}


def alike(ours: str, theirs: str) -> bool:
    """Whether two values mean the same to llama-server."""
    if ours == theirs or _ANY_FLAG.get(ours, ours) == _ANY_FLAG.get(theirs, theirs):
        return True
    try:
        return float(ours) == float(theirs)
    except ValueError:
        found = _json(ours)
        return isinstance(found, dict) and found == _json(theirs)


def _free(said: Said, taken: _Taken) -> Free | Refused:
    """An option in llama-server's own words, its paths as this machine has them."""
    name, *values = said.words
    if said.flag.takes == 1 and is_path(said.flag):
        items = values[0].split(",") if said.main in _SEVERAL_FILES else values
        scaled = said.flag.value.startswith("FNAME:")
        placed = []
        for item in items:
            path, colon, scale = item.rpartition(":") if scaled else (item, "", "")
            found = _place(said, path, taken)
            if isinstance(found, Refused):
                return found
            placed.append(f"{found}{colon}{scale}")
        values = [",".join(placed)]
    return Free((name, *values), taken.origin(said))


_SEVERAL_FILES = ("--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled")
"""What takes several files with commas between them (common/arg.cpp): a comma of others is the name's."""


def is_path(flag: Flag) -> bool:
    """Whether an option's value is a path, or several with commas between them."""
    return flag.value in _PATHS


def _unsaid(taken: _Taken) -> Iterator[Piece]:
    """What leaves to llama-server what nobody said, where a setting has another default."""
    for setting in ("batch", "ubatch", "gpu_layers", "flash_attention", "memory_map"):
        if not (said := taken.said(TYPED[setting])):
            yield Line("server", setting, "auto", NOT_SAID)
        elif setting != "flash_attention" and _value_of(setting, said) is None:
            yield Line("server", setting, "auto", "see flags")
    if not taken.said("--metrics"):
        yield Line("server", "metrics", False, "not said: llama-server's own default")
    if not taken.said("--jinja"):
        yield Line("server", "jinja", True, "not said: llama-server's own default")
    if taken.launch.backend:
        yield Line("recipe", "backend", taken.launch.backend, f"from the image {taken.launch.image}")
    elif [each.value for each in taken.said("--n-gpu-layers")] != ["0"]:
        yield Note(_computed(taken.launch.image))
    yield Note("an idle server is stopped after local.idle_s and comes back on the next request")
    if not taken.said("--load-mode"):
        yield Note("the model file is mapped, as llama-server does: for snapshots set server.memory_map = false")


def _computed(image: str) -> str:
    """What a person must say of the backend, where import does not know it."""
    if other := re.search(r"llama\.cpp:\w+-(vulkan|rocm|intel|musa)", image):
        return (f"{image} computes with {other[1]}, which recipe.backend can't say (cpu or cuda): "
                "recipe.cmake has further definitions of CMake, and is the way")  # fmt: skip
    return "layers may go to a GPU, and with what is not known: recipe.backend is cpu unless you set cuda"


def _environment(variables: Sequence[Variable], launch: Launch) -> Iterator[Piece]:
    for each in variables:
        value = each.value
        if each.name in ("LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE") and launch.contained:
            found = launch.outside(value)
            if found is None:
                yield Note(f"{each.name}: dropped, {value} is inside the container")
                continue
            value = str(found)
        try:
            ServerSettings.model_validate({"env": {each.name: value}})
        except ValidationError:
            yield Note(f"{each.name}: dropped, server.env takes what llama-server and drivers read")
            continue
        yield Line("server.env", each.name, value, f"from {each.where or 'the command line'}")


def _told(launch: Launch, reading: Reading, options: Sequence[Variable], table: Table) -> Iterator[Note]:
    for each in reading.overridden:
        yield Note(f"{each.said}: dropped, it is said again later, and llama-server takes the last")
    mains = {each.main for each in reading.said}
    given = {each.said for each in reading.said}
    for option in options:
        flag = table.of_variable(option.name)
        if flag and flag.main in mains and f"{option.name}={option.value}" not in given:
            yield Note(f"{option.name}: dropped, {flag.main} is said, too, and wins")
    for text in reading.defaults:
        yield Note(f"{text}: dropped, llama-server does it by default now")
    for text in reading.unread:
        yield Note(f"{text}. Dropped: it changed nothing")
    for secret in launch.secrets:
        if secret.variable not in SECRET_FLAGS.values():
            unread = read((), table, {secret.variable: "x"}).unread
            yield Note(f"{' '.join(unread) or secret.variable}. Dropped: it is a secret, and changed nothing")
    if any(each.variable == "LLAMA_ARG_API_KEY" for each in launch.secrets):
        yield Note("so this server has had no API key: it reads LLAMA_API_KEY")
