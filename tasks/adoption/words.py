"""A command line as people type it: llama-server behind env, nice, sudo, sh -c, docker run and the like."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from modal_app.redaction import redacted
from tasks.adoption.launch import CALLER, Launch, Variable, Word, given, of_caller, words_of
from tasks.adoption.shell import ASSIGNMENT, read_line
from tasks.release import BadInput

DEEPEST = 12
"""Programs that may stand around a llama-server."""


def names(text: str) -> frozenset[str]:
    """The options in a text."""
    return frozenset(text.split())


class Wrapper(NamedTuple):
    """A program that starts another one."""

    why: str
    """Why it is dropped."""
    takes: frozenset[str] = frozenset()
    """Its options whose value is the next word."""
    operands: int = 0
    """Its own words before the command, options apart."""


def _wrapper(why: str, takes: str = "", operands: int = 0) -> Wrapper:
    return Wrapper(why, names(takes), operands)


_PRIORITY = "llama-release starts the server with its own priority; --prio is llama-server's way to ask for one"
_CPUS = (
    "llama-release does not bind the server; --cpu-range, --cpu-mask and --numa are llama-server's ways to ask for it"
)
_USER = "llama-release runs the server as the user who starts it"
_KEEPS = "llama-release keeps the server running itself"
_NOTHING = "it changes nothing for the server"
WRAPPERS = {
    "nice": _wrapper(_PRIORITY, "-n --adjustment"),
    "ionice": _wrapper(_PRIORITY, "-c -n --class --classdata"),
    "chrt": _wrapper(_PRIORITY, "-T -P -D", operands=1),
    "taskset": _wrapper(_CPUS, operands=1),  # -c says how the mask is written: it takes no value (taskset(1))
    "numactl": _wrapper(_CPUS, "-i -p -P -N -m -C -w --interleave --preferred --cpunodebind --membind --physcpubind"),
    "sudo": _wrapper(_USER, "-u -g -h -p -C -r -t -T -U -D -R --user --group --host --prompt --chdir --chroot"),
    "doas": _wrapper(_USER, "-u -C"),
    "gosu": _wrapper(_USER, operands=1),
    "su-exec": _wrapper(_USER, operands=1),
    "setpriv": _wrapper(_USER),
    "nohup": _wrapper(_KEEPS),
    "setsid": _wrapper(_KEEPS),
    "screen": _wrapper(_KEEPS, "-S -c -e -h -s -T -t"),
    "tini": _wrapper(_KEEPS, "-p -e"),
    "dumb-init": _wrapper(_KEEPS, "-r --rewrite"),
    "timeout": _wrapper(_KEEPS, "-k -s --kill-after --signal", operands=1),
    "prlimit": _wrapper("llama-release starts the server with the limits of its own process"),
    "systemd-inhibit": _wrapper("while it serves, this machine may sleep", "--what --who --why --mode"),
    "caffeinate": _wrapper("while it serves, this machine may sleep", "-t -w"),
    "stdbuf": _wrapper(_NOTHING, "-i -o -e --input --output --error"),
    "time": _wrapper(_NOTHING, "-f -o --format --output"),
    "exec": _wrapper(_NOTHING, "-a"),
    "command": _wrapper(_NOTHING),
}  # fmt: skip


class Option(NamedTuple):
    name: str
    value: str | None


def read_options(words: Sequence[str], takes: Callable[[str], bool]) -> tuple[list[Option], int]:
    """(options before the first word that is none, how many words they are), as getopt and pflag read them."""
    found: list[Option] = []
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word = words[at]
        at += 1
        if word == "--":
            break
        if word.startswith("--"):
            name, sign, value = word.partition("=")
            if not sign and takes(name) and at < len(words):
                found.append(Option(name, words[at]))
                at += 1
            else:
                found.append(Option(name, value if sign else None))
            continue
        for n, letter in enumerate(word[1:], 2):
            if takes(f"-{letter}"):
                attached = word[n:].removeprefix("=") if word[n:] else None
                if attached is None and at < len(words):
                    attached = words[at]
                    at += 1
                found.append(Option(f"-{letter}", attached))
                break
            found.append(Option(f"-{letter}", None))
    return found, at


def program(word: str) -> str:
    """The name of a program by its path, of Windows too."""
    return word.replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe")


def is_server(word: str) -> bool:
    """Whether a word is llama-server; it was called `server` until June 2024 (upstream #7809)."""
    return program(word).startswith("llama-server") or program(word) == "server"


def read_words(words: Sequence[str], caller: Mapping[str, str], folder: PurePosixPath) -> Launch:
    """What a command line runs that is started in `folder` by somebody with these variables.

    Raises BadInput when it is no llama-server, or when only a shell could tell.
    """
    if words and words[0].startswith("-"):  # the program's name was left out
        return Launch(words=words_of(words), variables=of_caller(caller), folder=folder)
    return peel(Launch(words=words_of(words), variables=of_caller(caller), folder=folder), caller)


def peel(launch: Launch, caller: Mapping[str, str]) -> Launch:
    """The same without the program's name and without all that stands before it, which has had its effect."""
    for _ in range(DEEPEST):
        if not launch.words:
            raise BadInput("there is no llama-server in this", todo="give the line that starts it")
        first = launch.words[0].text
        name = program(first)
        if is_server(first):
            return launch.after(1)
        if name == "llama":
            return _served(launch)
        launch = _reader(name, first)(launch, caller)
    raise BadInput("too many programs stand before llama-server", todo="give the line that starts it")


def _served(launch: Launch) -> Launch:
    """`llama serve` of the newer single program; `server` is its other name (upstream's app/llama.cpp)."""
    verb = launch.words[1].text if len(launch.words) > 1 else ""
    if verb.removeprefix("--") not in ("serve", "server"):
        raise BadInput(f"`llama {verb}` is no server", todo="give a line with `llama serve` or llama-server")
    return launch.after(2)


Reader = Callable[[Launch, Mapping[str, str]], Launch]


def _reader(name: str, first: str) -> Reader:
    if ASSIGNMENT.fullmatch(first):
        return _assigned
    if name in WRAPPERS:
        return _wrapped
    if name == "env":
        return _env
    if name in ("sh", "bash", "dash", "ash", "zsh"):
        return _shell
    if name in ("docker", "podman", "nerdctl"):
        from tasks.adoption.containers import read_run

        return read_run
    raise BadInput(
        f"{first} is not llama-server, and what it starts is not known",
        evidence="known: llama-server, llama serve, docker run, podman run, env, sh -c, " + ", ".join(WRAPPERS),
        todo="give the line that starts llama-server itself: `llama-release import -- llama-server ...`",
    )


def _texts(words: Sequence[Word]) -> list[str]:
    return [word.text for word in words]


def _assigned(launch: Launch, _caller: Mapping[str, str]) -> Launch:
    """NAME=value words at the beginning."""
    count, found = 0, []
    for word in launch.words:
        if not (said := ASSIGNMENT.fullmatch(word.text)):
            break
        found.append(Variable(name=said["name"], value=said["value"], where=word.where))
        count += 1
    return launch.after(count).having(found)


def _wrapped(launch: Launch, _caller: Mapping[str, str]) -> Launch:
    name = program(launch.words[0].text)
    wrapper = WRAPPERS[name]
    options, count = read_options(_texts(launch.words[1:]), wrapper.takes.__contains__)
    count += 1 + wrapper.operands
    said = redacted(_texts(launch.words[:count]))
    if name == "sudo":
        launch = _through_sudo(launch, options)
    if wrapper.why != _NOTHING:
        launch = launch.told(f"`{said}`: dropped, {wrapper.why}")
    return launch.after(count)


def _through_sudo(launch: Launch, options: Sequence[Option]) -> Launch:
    """What sudo does to the environment and the folder: it passes nothing on but for -E (sudo(8), env_reset)."""
    names = {option.name for option in options}
    passed = {name for o in options if o.name == "--preserve-env" and o.value for name in o.value.split(",")}
    if "-E" not in names and not ("--preserve-env" in names and not passed):
        lost = [v.name for v in launch.variables if v.where == CALLER and v.name not in passed]
        kept = tuple(v for v in launch.variables if v.name not in lost)
        launch = launch.model_copy(update={"variables": kept})
        launch = launch.told(
            f"{', '.join(lost)} of your environment: dropped, sudo without -E does not pass it on" * bool(lost)
        )
    for option in options:
        if option.name in ("-D", "--chdir") and option.value:
            launch = launch.model_copy(update={"folder": PurePosixPath(option.value)})
    return launch


def _env(launch: Launch, _caller: Mapping[str, str]) -> Launch:
    """env(1): -i forgets all variables, -u one, -C changes the folder, -S splits a word."""
    takes = names("-u -C -S --unset --chdir --split-string")
    options, count = read_options(_texts(launch.words[1:]), takes.__contains__)
    where = launch.words[0].where
    launch = launch.after(count + 1)
    if launch.words and launch.words[0].text == "-":  # what -i was called
        launch, options = launch.after(1), [*options, Option("-i", None)]
    for name, value in options:
        if name in ("-i", "--ignore-environment"):
            launch = launch.model_copy(update={"variables": ()})
        elif name in ("-u", "--unset"):
            kept = tuple(each for each in launch.variables if each.name != value)
            launch = launch.model_copy(update={"variables": kept})
        elif name in ("-C", "--chdir") and value:
            launch = launch.model_copy(update={"folder": (launch.folder or PurePosixPath("/")) / value})
        elif name in ("-S", "--split-string") and value:
            split = words_of(shlex.split(value), where)
            launch = launch.model_copy(update={"words": (*split, *launch.words)})
    return _assigned(launch, {})


def _shell(launch: Launch, caller: Mapping[str, str]) -> Launch:
    """sh -c TEXT [NAME [ARGUMENTS]]."""
    options, count = read_options(_texts(launch.words[1:]), names("-o -O --rcfile").__contains__)
    rest = launch.words[1 + count :]
    where = launch.words[0].where
    if not any(option.name == "-c" for option in options) or not rest:
        raise BadInput(
            "a shell runs a script of its own here, and what that starts is not known",
            evidence=redacted(_texts(launch.words)[:4]),
            todo="give the line of the script that starts llama-server",
        )
    given_here = {each.name: each.value for each in launch.variables}
    known = given_here if launch.contained else {**caller, **given_here}
    line = read_line(rest[0].text, known)
    folder = launch.folder
    if line.folder:
        folder = (folder or PurePosixPath("/")) / os.path.expanduser(line.folder)
    words = words_of(line.words, where)
    # "$@" and $0 are what follows the text; without them in it the words are lost, as the shell loses them
    update = {"words": words, "folder": folder}
    why = "its server's log and its variables are llama-release's own"
    dropped = [f"`{each}`: dropped, {why}" for each in line.dropped]
    return launch.model_copy(update=update).having(given(line.variables, where)).told(*dropped)
