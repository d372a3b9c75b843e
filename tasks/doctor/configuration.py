"""Settings, model and argv against the binary, before anything is loaded."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from dotenv import dotenv_values

from modal_app.redaction import redacted
from tasks import gguf_header
from tasks.doctor import Check, Seen, note, warning
from tasks.doctor.model import fits, whole
from tasks.flags.flag import Flag, flags_of_help
from tasks.flags.table import known
from tasks.flags.words import split
from tasks.preflight.argv import Argv, refusal, render, spelled
from tasks.process import Output, ask
from tasks.release import BadInput, Build, ReleaseFailed, StageName, ToolingError
from tasks.settings import ServerSettings, Settings
from tasks.store import Store

GUIDES_KEY = "GEMMA4_API_KEY"
"""What the guide calls the variable."""
ENV_FILE = ".env"
_UNKNOWN = re.compile(r"(unknown|unsupported) model architecture[^\n]*")
_THINKS = re.compile(r"enable_thinking|reasoning|<think>|<\|channel>|thinking")
"""What stands in a chat template that knows of thinking."""


@dataclass(frozen=True)
class Binary:
    """A llama-server that can be asked things which end it at once."""

    name: str
    ask: Callable[..., Output]


def binary_at(path: Path, store: Path) -> Binary:
    """The llama-server at a path, which sees no setting and no secret. Raises BadInput when it is no file."""
    if not path.is_file():
        raise BadInput(f"there is no binary {path}", todo="give the path of a llama-server")
    return Binary(path.name, lambda *argv: ask(path, *argv, hide=[store]))


def binaries(store: Store) -> list[Binary]:
    """The binaries that the stages serve; when there are none, the newest build's."""
    served = [store.release(release) for stage in get_args(StageName) if (release := store.pointer(stage).release)]
    found = [build for release in served if release and (build := store.build(release.build))] or store.builds()[:1]
    return [_of(store, build) for build in {build.digest: build for build in found}.values()]


def _of(store: Store, build: Build) -> Binary:
    return Binary(f"{build.tag} ({build.digest})", lambda *argv: store.ask(build, *argv))


def checks(settings: Settings, binaries: Callable[[], Sequence[Binary]], argv: str | None) -> Iterator[Check]:
    """The checks of a configuration against these binaries; `argv` is checked instead of the settings' own."""
    yield "API key", lambda: api_key(settings)
    yield "model", lambda: whole(settings.server)
    yield "fit", lambda: fits(settings)
    yield "architecture", lambda: architecture(settings.server, binaries())
    yield "argv", lambda: given(argv, binaries()) if argv else rendered(settings.server, binaries())
    yield "thinking", lambda: thinking(settings.server, shlex.split(argv) if argv else ())


# -- the key --------------------------------------------------------------------------------------------------------


def api_key(settings: Settings) -> str | Seen:
    """The variable is set in this shell; or a `.env` here would set it (guide, issue 3). No value is ever told."""
    name = settings.server.api_key_env
    if settings.api_key is not None:
        return f"{name} is set"
    inside = dotenv_values(ENV_FILE) if Path(ENV_FILE).is_file() else {}
    if inside.get(name):
        return warning(
            f"{name} is not set in this shell, and {Path(ENV_FILE).absolute()} has it", "`set -a; . ./.env; set +a`"
        )
    if name != GUIDES_KEY and (os.environ.get(GUIDES_KEY) or inside.get(GUIDES_KEY)):
        where = "this shell" if os.environ.get(GUIDES_KEY) else str(Path(ENV_FILE).absolute())
        return warning(
            f"{name} is not set, and {where} has {GUIDES_KEY}", f'`server.api_key_env = "{GUIDES_KEY}"` in the settings'
        )
    if settings.platform == "modal":
        return warning(f"{name} is not set", f"set it to the key in the Modal Secret {settings.modal.secret}")
    return note(f"{name} is not set: servers here answer without a key", f"`export {name}=...` to protect them")


# -- the model ------------------------------------------------------------------------------------------------------


def architecture(server: ServerSettings, found: Sequence[Binary]) -> str | Seen:
    """Each binary knows the model's architecture (guide, issue 1): it is asked with a header and nothing behind it."""
    if server.model is None or not found:
        return note("no model is here" if server.model is None else "there is no build to ask yet")
    name = gguf_header.read(server.model).architecture
    for binary in found:
        if said := unknown_to(binary, name):
            raise ReleaseFailed(
                f"{binary.name} does not know the architecture {name} of {server.model.name}",
                evidence=said,
                todo="`llama-release upgrade` to a build that does: upstream's notes name it",
            )
    return f"{name} is known to {', '.join(binary.name for binary in found)}"


def unknown_to(binary: Binary, name: str) -> str:
    """What a binary says against an architecture; '' when it knows it.

    It reads the architecture before anything else, and ends by itself, as the rest of the file is not there. A search
    for the name in the binary would be no proof: words like `script` stand in there too.
    """
    with tempfile.TemporaryDirectory(prefix="llama-release-") as folder:
        bare = gguf_header.write_bare(Path(folder, "header.gguf"), name)
        said = binary.ask("--model", str(bare), "--host", "127.0.0.1", "--port", "0")
    if not (words := _UNKNOWN.search(said.text)) and name not in said.text:
        raise ToolingError(f"{binary.name} does not say whether it knows {name}", evidence=said.text[-600:])
    return words[0] if words else ""


# -- the argv -------------------------------------------------------------------------------------------------------


def rendered(server: ServerSettings, found: Sequence[Binary]) -> str | Seen:
    """The settings can be said to each binary, in the flags of its day (guide, issue 4)."""
    if not found:
        return note("there is no build to ask yet")
    told = []
    for binary in found:
        argv, notes = render(server, lambda words: refusal(binary.ask, words))  # noqa: B023
        told.append(f"{binary.name} takes {sum(word.startswith('--') for word in argv)} flags")
        told += notes
    return "; ".join(told)


def given(argv: str, found: Sequence[Binary]) -> str | Seen:
    """A command line that somebody has: each flag that a binary does not take, in its own words, and its new name."""
    if not found:
        return note("there is no build to ask yet", "give --binary PATH")
    words = shlex.split(argv)
    words = words[1:] if words and not words[0].startswith("-") else words
    wrong = [f"{binary.name}: {line}" for binary in found for line in refused(binary, words)]
    if wrong:
        raise BadInput("flags of another build", evidence="\n".join(wrong), todo="write them as this build does")
    return f"{', '.join(binary.name for binary in found)} takes it"


def refused(binary: Binary, words: Sequence[str]) -> list[str]:
    """One line for each flag that the binary does not take, with what it is called there as far as that can be told."""
    flags = flags_of_help(binary.ask("--help").stdout)
    there = [flag for flag in flags if not flag.removed]
    lines = []
    for group in split(words, known()):
        if not (said := refusal(binary.ask, group)):
            continue
        said = next((line for line in said.splitlines() if line.strip()), said)
        if (shown := redacted(group)) != " ".join(group):
            said = "it is refused"  # the binary's words could repeat the secret
        lines.append(f"`{shown}`: {said}{_instead(binary, group[0], there)}")
    return lines


def _instead(binary: Binary, flag: str, there: Sequence[Flag]) -> str:
    """What a refused flag is called here: as our settings spell it, by its name, or where the help speaks of it."""
    want = spelled(ServerSettings()).get(flag)
    for spelling in want.spellings if want else ():
        if spelling and not refusal(binary.ask, spelling):
            return f"; here it is `{' '.join(spelling)}`"
    names = [name for each in there for name in each.names]
    if flag in names:
        return ""
    if near := difflib.get_close_matches(flag, names, n=1, cutoff=0.75):
        return f"; there is `{near[0]}`"
    word = re.compile(rf"\b{re.escape(flag.lstrip('-').removeprefix('no-'))}\b")
    told = [each.main for each in there if word.search(each.text)]
    return f"; see `{told[0]}`" if told else ""


# -- thinking -------------------------------------------------------------------------------------------------------


def template_thinks(template: str) -> bool:
    """Whether a chat template knows of thinking."""
    return _THINKS.search(template) is not None


def thinking(server: ServerSettings, argv: Sequence[str]) -> str | Seen:
    """Neither template nor parameters hide what the model thinks (guide, issue 2)."""
    hides = [why for group in split(argv, known()) if (why := _hides(group))]
    own = gguf_header.read(server.model).chat_template if server.model and server.model.is_file() else ""
    replaced = server.chat_template.read_text() if server.chat_template and server.chat_template.is_file() else ""
    if replaced and not template_thinks(replaced) and template_thinks(own):
        hides.append(f"{server.chat_template} knows nothing of thinking, and the model's own template does")
    if hides:
        return warning("; ".join(hides), "leave it out: by default thoughts come as reasoning_content")
    if not (replaced or own):
        return note("no chat template to read")
    if template_thinks(replaced or own):
        return "the template knows of thinking"
    return note("the template knows nothing of thinking")


def _hides(group: Argv) -> str:
    flag, value = group[0], " ".join(group[1:])
    if flag == "--chat-template-kwargs":
        try:
            off = json.loads(value).get("enable_thinking") is False
        except (ValueError, AttributeError):
            off = False
        return f"{flag} turns enable_thinking off for every request" if off else ""
    hidden = {
        ("--reasoning-format", "none"): "leaves thoughts in the content, with their marks",
        ("--reasoning-budget", "0"): "allows no thought",
        ("--reasoning", "off"): "turns thinking off",
        ("-rea", "off"): "turns thinking off",
        ("--no-jinja", ""): "takes no notice of the model's template",
    }
    why = hidden.get((flag, value))
    return f"{flag} {value} {why}".replace("  ", " ") if why else ""
