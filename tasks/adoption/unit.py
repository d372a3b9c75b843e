"""A unit of systemd: its ExecStart= as systemd splits and fills it, its variables, its drop-ins."""

from __future__ import annotations

import glob
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tasks.adoption.launch import Launch, Variable, words_of
from tasks.adoption.variables import read_text, systemd_file
from tasks.adoption.words import peel
from tasks.release import BadInput

_PREFIXES = "@-:+!|"
_DROPPED = {
    "Restart": "llama-release keeps the server running itself", "User": "llama-release runs the server as its own user",
    "Group": "llama-release runs the server as its own user",
    "DynamicUser": "llama-release runs the server as its own user",
    "Nice": "--prio is llama-server's way to ask for it",
    "CPUAffinity": "--cpu-range is llama-server's way to ask for it",
    "NUMAPolicy": "--numa is llama-server's way to ask for it",
    "ExecStartPre": "llama-release starts the server alone", "ExecStartPost": "llama-release starts the server alone",
    "LimitMEMLOCK": "the limits are those of llama-release's process: --load-mode mlock needs it there",
    "MemoryMax": "the limits are those of llama-release's process",
    "LoadCredential": "it is systemd's: give the file's path",
}  # fmt: skip
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
Lines = list[tuple[str, str, str]]
"""(key, value, file) of each line of [Service]."""


class _Place(NamedTuple):
    """What specifiers stand for (systemd.unit(5), SPECIFIERS)."""

    name: str
    file: Path
    user: bool
    """Whether it is a unit of a user's own manager."""

    @property
    def instance(self) -> str | None:
        stem = self.name.removesuffix(".service")
        return stem.partition("@")[2] if "@" in stem else None

    def specifiers(self) -> dict[str, str]:
        stem = self.name.removesuffix(".service")
        prefix = stem.partition("@")[0]
        home = str(Path.home()) if self.user else "/root"
        run = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
        found = {
            "%": "%", "n": self.name, "N": stem, "p": prefix, "P": _unescaped(prefix),
            "f": f"/{_unescaped(self.instance or prefix)}", "j": prefix.rpartition("-")[2],
            "H": socket.gethostname(), "l": socket.gethostname().partition(".")[0], "v": os.uname().release,
            "h": home, "u": Path(home).name, "s": os.environ.get("SHELL", "/bin/sh") if self.user else "/bin/sh",
            "U": str(os.getuid() if self.user else 0), "G": str(os.getgid() if self.user else 0),
            "t": run if self.user else "/run", "T": "/tmp", "V": "/var/tmp",
            "S": f"{home}/.local/state" if self.user else "/var/lib",
            "C": f"{home}/.cache" if self.user else "/var/cache",
            "L": f"{home}/.local/state/log" if self.user else "/var/log",
            "E": f"{home}/.config" if self.user else "/etc",
            "y": str(self.file), "Y": str(self.file.parent),
        }  # fmt: skip
        if self.instance:
            found |= {"i": self.instance, "I": _unescaped(self.instance)}
        return found


def _unescaped(text: str) -> str:
    """`systemd-escape --unescape`: - is /, \\x2d is its byte."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda hex_: chr(int(hex_[1], 16)), text.replace("-", "/"))


def read_unit(file: Path, caller: Mapping[str, str]) -> Launch:
    """What a unit starts; of the caller's variables only those that PassEnvironment= names.

    Raises BadInput for a file that can't be read, and for one that starts no llama-server or several programs.
    """
    file = file.absolute()
    lines = [*_lines(_template(file))]
    for folder in _folders(file):
        for more in sorted(folder.glob("*.conf")):
            lines += _lines(more)
    place = _Place(
        file.name, file, user="/systemd/user" in str(file) or str(file).startswith(str(Path.home() / ".config"))
    )
    service = _settled(lines)
    started = service.get("ExecStart", [])
    if not started and re.search(r"^\s*\[Container\]", read_text(_template(file)), re.MULTILINE):
        raise BadInput(
            f"{file.name} is a quadlet: podman makes a unit of it, and its [Container] is not read",
            evidence=f"the line that starts it is ExecStart= of {file.stem}.service in /run/systemd/generator",
            todo=f"give its line with `podman run` after --: `systemctl cat {file.stem}.service` shows it "
            "(`systemctl --user cat`, and $XDG_RUNTIME_DIR/systemd/generator, for one of a user)",
        )
    if len(started) != 1:
        raise BadInput(
            f"{file.name} has {len(started) or 'no'} ExecStart=",
            evidence="\n".join(where for _, where in started) or f"looked for in [Service] of {file}",
            todo="give the line that starts llama-server: `llama-release import -- llama-server ...`",
        )
    variables = tuple(_variables(lines, place, caller))
    value, where = started[0]
    words = _command(value, place, {each.name: each.value for each in variables})
    dropped = [f"{key}=: dropped, {why}" for key, why in _DROPPED.items() if service.get(key)]
    dropped += [f"EnvironmentFile={path}: not read, it is not there" for path in _absent(service, place)]
    launch = Launch(
        words=words_of(words, f"{where}: ExecStart="), variables=variables, folder=_folder(service, place)
    ).told(*dropped)  # fmt: skip
    return peel(launch, {})


def _template(file: Path) -> Path:
    """llama@.service for llama@big.service, as systemd looks for it where the instance has no file of its own."""
    template = file.with_name(re.sub(r"@.*\.service$", "@.service", file.name))
    return file if file.is_file() or not template.is_file() else template


def _folders(file: Path) -> Iterator[Path]:
    """Drop-ins: of the template and of the unit, beside it and, for one of the distribution's, where people put theirs
    (systemd.unit(5))."""
    template = re.sub(r"@.*\.service$", "@.service", file.name)
    above = [file.parent]
    if str(file.parent) in ("/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system"):
        above += [Path("/run/systemd/system"), Path("/etc/systemd/system")]
    for folder in above:
        for name in dict.fromkeys((template, file.name)):
            yield folder / f"{name}.d"


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    """(key, value, file's name) of each line of [Service]; a backslash at a line's end is a blank, and comments between
    such lines are none of it (systemd.syntax(7))."""
    section, joined = "", ""
    for line in read_text(file).splitlines():
        if line.lstrip().startswith(("#", ";")):
            continue
        joined += line
        if joined.endswith("\\"):
            joined = f"{joined[:-1]} "
            continue
        text, joined = joined.strip(), ""
        if text.startswith("["):
            section = text
        elif section == "[Service]" and "=" in text:
            key, _, value = text.partition("=")
            yield key.strip(), value.strip(), file.name


def _settled(lines: Sequence[tuple[str, str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Key -> its values and their files; an empty value forgets those before it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for key, value, where in lines:
        found[key] = [*found.get(key, []), (value, where)] if value else []
    return found


def _folder(service: Mapping[str, Sequence[tuple[str, str]]], place: _Place) -> PurePosixPath:
    """WorkingDirectory=, / or, of a user's manager, the home."""
    said = service.get("WorkingDirectory") or [("", "")]
    text = _filled(said[-1][0].removeprefix("-"), place)
    user = (service.get("User") or [("", "")])[-1][0]
    if text == "~":
        return PurePosixPath(os.path.expanduser(f"~{user}"))
    return PurePosixPath(text or (str(Path.home()) if place.user else "/"))


def _filled(text: str, place: _Place) -> str:
    known = place.specifiers()

    def one(found: re.Match[str]) -> str:
        if found[1] in known:
            return known[found[1]]
        if found[1] in "iI":
            raise BadInput(
                f"{place.name} is a template, and its instance is not known", evidence=f"%{found[1]}",
                todo="name it as it is started, such as llama@big.service: the file need not be there",
            )  # fmt: skip
        return found[0]

    return re.sub(r"%([%A-Za-z])", one, text)


def _variables(lines: Sequence[tuple[str, str, str]], place: _Place, caller: Mapping[str, str]) -> Iterator[Variable]:
    """Environment=, then EnvironmentFile= and PassEnvironment=, which win in this order (systemd.exec(5))."""
    settled = _settled(lines)
    gone = {name for value, _ in settled.get("UnsetEnvironment", []) for name in value.split()}
    found = []
    for value, where in settled.get("PassEnvironment", []):
        found += [(n, caller[n], f"{where}: PassEnvironment=") for n in value.split() if n in caller]
    for value, where in settled.get("Environment", []):
        pairs = (word.partition("=") for word in split(_filled(value, place)))
        found += [(name, text, f"{where}: Environment=") for name, sign, text in pairs if sign]
    for value, _where in settled.get("EnvironmentFile", []):
        path = _filled(value, place)
        files = sorted(glob.glob(path.removeprefix("-")))
        if not files and (not path.startswith("-") or _is_hidden(path.removeprefix("-"))):
            raise BadInput(f"EnvironmentFile={path} is not there", todo=f"mend {place.name}, or be a user who sees it")
        for file in files:
            found += [(name, text, file) for name, text in systemd_file(read_text(Path(file)), file).items()]
    for name, text, where in found:
        if name not in gone:
            yield Variable(name=name, value=text, where=where)


def _absent(service: Mapping[str, Sequence[tuple[str, str]]], place: _Place) -> Iterator[str]:
    """The optional files of variables that are not there."""
    for value, _where in service.get("EnvironmentFile", []):
        path = _filled(value, place)
        if path.startswith("-") and not glob.glob(path[1:]):
            yield path


def _is_hidden(path: str) -> bool:
    """Whether it can't be told if a file is there, as this user may not look."""
    folder = path
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    try:
        os.stat(path) if folder == path else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return False


def split(text: str) -> list[str]:
    """Words as systemd splits them: quotes of both kinds, escapes of C in and outside of them, an escape that it does
    not know stays as it is (systemd.syntax(7), Quoting; src/basic/extract-word.c).

    Raises BadInput for a quote that is not closed.
    """
    words: list[str] = []
    word: str | None = None
    quote, at = "", 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "\\" and at < len(text):
            piece, at = _escaped(text, at)
            word = (word or "") + piece
        elif quote:
            quote, word = ("", word) if character == quote else (quote, (word or "") + character)
        elif character in "'\"":
            quote, word = character, word or ""
        elif character.isspace():
            words += [word] if word is not None else []
            word = None
        else:
            word = (word or "") + character
    if quote:
        raise BadInput("a quote is not closed", todo="mend the unit: systemd refuses this line, too")
    return [*words, word] if word is not None else words


def _escaped(text: str, at: int) -> tuple[str, int]:
    """(what an escape stands for, where the text goes on); `at` is behind the backslash."""
    letter = text[at]
    if letter in _ESCAPES:
        return _ESCAPES[letter], at + 1
    if found := re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})").match(text, at):
        return chr(int(found[1] or found[2] or found[3], 16)), found.end()
    if found := re.compile(r"[0-3][0-7]{2}").match(text, at):
        return chr(int(found[0], 8)), found.end()
    return (letter if letter in "\\'\";" else f"\\{letter}"), at + 1


def _command(value: str, place: _Place, known: Mapping[str, str]) -> list[str]:
    """The words that are run. Raises BadInput where `;` makes them several commands."""
    bare = value.lstrip(_PREFIXES)
    prefixes = value[: len(value) - len(bare)]
    words = split(bare)
    if ";" in words:
        raise BadInput(f"{place.name} starts several programs in one line", todo="give the line of llama-server")
    if "@" in prefixes:  # the second word is what it calls itself
        words = [*words[:1], *words[2:]]
    words = [_filled(word, place) for word in words]
    if "|" in prefixes:  # systemd 258: through the user's shell
        return ["sh", "-c", bare]
    return words if ":" in prefixes else [each for word in words for each in _substituted(word, known)]


def _substituted(word: str, known: Mapping[str, str]) -> list[str]:
    """${VAR} is its value wherever it stands, $VAR only as a word of its own, and then split into words; $$ is a dollar
    (systemd.service(5), COMMAND LINES)."""
    if alone := re.fullmatch(r"\$([A-Za-z_]\w*)", word):
        return split(known.get(alone[1], ""))

    def one(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else known.get(found[1], "")

    return [re.sub(r"\$\$|\$\{([A-Za-z_]\w*)\}", one, word)]
