"""A wall around a program of upstream's: behind it there is no network, and no folder or file that holds keys.

`behind` makes the argv of a program behind the wall. This file is what that argv runs first, alone and with the
standard library: it takes namespaces of its own (unshare(2), with or without root), lays empty folders over what is
hidden, gives up what could take them away again, and becomes the program, with the same pid. Of other processes of the
same user it then sees no environment, no open file and no folder either: that takes the same user namespace.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

TRY_S = 20.0
UNBUILT, UNUSABLE, MISSING = NOT_STARTED = (125, 126, 127)
"""Exit codes: the wall can't be built; the program can't be run, is not there (as a shell has it)."""
NO_WALL = "no wall can be built"
SCRATCH = "size=256m,mode=0755"
"""A hidden folder is an empty one that may be written: a program's own files there are gone with it."""

NAMED = "LLAMA_RELEASE_HIDDEN"
"""The variable that tells a process of ours what variables of ours said, when it has not got those."""
HERE = (".env", "llama-release.toml")
KEYS = (
    ".ssh", ".gnupg", ".aws", ".azure", ".oci", ".kube", ".docker", ".config", ".netrc", ".git-credentials", ".pypirc",
    ".pip", ".npmrc", ".modal.toml", ".prefect", ".huggingface", ".cache/huggingface/token", ".vault-token", ".pgpass",
    ".password-store", ".cargo/credentials.toml", ".local/share", ".local/state", ".terraform.d", ".env",
    ".bash_history", ".zsh_history",
)  # fmt: skip
"""Of a home folder, where something in it is needed and the rest is not hidden with it."""
SYSTEM = (
    "/etc/ssh", "/etc/ssl/private", "/etc/shadow", "/etc/pip.conf", "/etc/xdg/pip", "/run/secrets", "/run/credentials",
    "/run/user", "/run/docker.sock", "/run/podman", "/run/containerd", "/var/lib/cloud", "/var/run/secrets",
)  # fmt: skip
HOMES = ("/home", "/root", "/Users")
NEEDED = (".nv", ".ccache", ".cache/ccache")
"""Of a home folder: caches of compilers."""
_NOT_NEEDED = re.compile(r"HOME|XDG_\w+")
_NAMES_KEYS = re.compile(
    r"(?i)\w*(KEY|TOKEN|SECRET|PASS|PASSWD|CREDENTIAL|AUTH)\w*|\w*CONFIG(_?FILE|_PATH|_DIR)?|NETRC|GNUPGHOME|PREFECT_HOME"
)
_TRY = 'cd "$0" && test ! -e hidden/key && test -s hidden/kept/file && test ! -s file'
_PATHS = re.compile(r"/[^\s:;=,\"']+")


Walled = Callable[[Sequence[str | Path], Mapping[str, str]], list[str]]
"""The argv that runs a program with this environment behind a wall: `behind` with the rest given."""


def behind(
    argv: Sequence[str | Path],
    env: Mapping[str, str],
    *,
    hide: Iterable[Path] = (),
    keep: Iterable[Path] = (),
    network: bool = False,
) -> list[str]:
    """The argv that runs a program with this environment behind the wall; the same argv where none can stand.

    Hidden are all home folders, the places of keys (KEYS, SYSTEM, HERE, and where variables here say that they are) and
    `hide`. What of that the program needs stays seen: `keep`, what its argv and environment name, this Python.
    """
    words = [str(word) for word in argv]
    program = shutil.which(words[0], path=env.get("PATH"))
    if program is None or standing(network):  # who starts it says best that it is not there
        return words
    seen = [*keep, *_needed(words, env), *_around(program), *map(Path, (sys.prefix, sys.base_prefix))]
    return _argv(words, [*hidden(env), *hide], seen, network)


@cache
def standing(network: bool) -> str:
    """Why no wall can stand here, in one line; '' where it stands. Tried once, with all that it is made of."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    with tempfile.TemporaryDirectory(prefix="llama-release-") as name:
        folder = Path(name)
        for path in ("hidden/key", "hidden/kept/file", "file"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("key")
        argv = _argv(
            ["/bin/sh", "-c", _TRY, name], [folder / "hidden", folder / "file"], [folder / "hidden/kept"], network
        )
        try:
            done = subprocess.run(argv, env={}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TRY_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def hidden(env: Mapping[str, str] = {}) -> list[Path]:
    """What is hidden from a program that has this environment, of what is there."""
    homes = [Path.home(), *map(Path, HOMES)]
    places = (
        *(home for home in homes if home != Path("/")), *(homes[0] / name for name in KEYS), *map(Path, SYSTEM),
        Path(os.environ.get("XDG_CONFIG_HOME") or homes[0] / ".config"),
        *(Path.cwd() / name for name in HERE), *named(env), *Path("/tmp").glob("ssh-*"),
    )  # fmt: skip
    return [place for place in dict.fromkeys(places) if os.path.exists(place)]


def named(env: Mapping[str, str] = {}) -> list[Path]:
    """Where variables here say that a key is: those that a program with this environment has no need of."""
    told = os.environ.get(NAMED, "").split(os.pathsep)
    mine = (value for name, value in os.environ.items() if name not in env and _NAMES_KEYS.fullmatch(name))
    return [Path(value) for value in (*told, *mine) if value.startswith("/") and not _holds_programs(value)]


def _holds_programs(folder: str) -> bool:
    return any(_below(path, os.path.realpath(folder)) for path in ("/usr/bin", "/bin/sh", sys.executable))


def _needed(words: Sequence[str], env: Mapping[str, str]) -> Iterator[Path]:
    """The paths that a program's argv and environment name, with what lies around the programs among them."""
    yield from (Path(path) for word in words[1:] for path in _PATHS.findall(word))
    yield from (Path(word) for word in words[1:] if os.path.isfile(word))
    for name, value in env.items():
        if not _NOT_NEEDED.fullmatch(name):
            for path in _PATHS.findall(value):
                yield from _around(path)
    yield from (Path.home() / name for name in NEEDED)


def _around(path: str) -> Iterator[Path]:
    """A path, and what a program there needs beside it: its folder, or what its `bin` stands in."""
    yield Path(path)
    folder = Path(path) if os.path.isdir(path) else Path(path).parent
    yield folder.parent if folder.name in ("bin", "sbin") else folder


def _argv(words: list[str], hide: Iterable[Path], keep: Iterable[Path], network: bool) -> list[str]:
    covers = {os.path.realpath(path) for path in hide}
    # both ways to a file: below an empty folder there are no links any more
    seen = {way for path in keep for way in (os.path.abspath(path), os.path.realpath(path)) if os.path.exists(way)}
    needless = {path for path in seen if path in covers or not any(_below(path, cover) for cover in covers)}
    order = {"hide": sorted(covers), "keep": sorted(seen - needless), "network": network}
    return [sys.executable, "-I", "-S", "-B", os.path.abspath(__file__), json.dumps(order), *words]


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


# -- in the process that becomes the program ------------------------------------------------------------------------

_NEWNS, _NEWUSER, _NEWNET = 0x00020000, 0x10000000, 0x40000000
_NOSUID, _NODEV, _BIND, _REC, _PRIVATE = 2, 4, 0x1000, 0x4000, 1 << 18
_SET_PDEATHSIG, _GET_PDEATHSIG, _CAPBSET_DROP = 1, 2, 24
_GIVEN_UP = (2, 8, 12, 16, 17, 18, 19, 21, 27, 38, 39, 40)
"""Capabilities that see through the wall or take it down, by number (capabilities(7)): DAC_READ_SEARCH, SETPCAP,
NET_ADMIN, SYS_MODULE, SYS_RAWIO, SYS_CHROOT, SYS_PTRACE, SYS_ADMIN, MKNOD, PERFMON, BPF, CHECKPOINT_RESTORE. Root keeps
what lets it read and write files of other users: a build may lie there."""
_CAPABILITIES_3 = 0x20080522


def main() -> None:
    """Build the wall that the first argument orders, and become the program that the others are."""
    order, words = json.loads(sys.argv[1]), sys.argv[2:]
    try:
        _build(order["hide"], order["keep"], order["network"])
    except OSError as error:
        sys.exit(_say(f"{NO_WALL}: {error}", UNBUILT))
    try:
        os.execvp(words[0], words)
    except OSError as error:
        sys.exit(_say(f"{words[0]}: {error.strerror}", MISSING if isinstance(error, FileNotFoundError) else UNUSABLE))


def _say(words: str, code: int) -> int:
    print(words, file=sys.stderr)
    return code


def _build(hide: Sequence[str], keep: Sequence[str], network: bool) -> None:
    folder, parent = os.getcwd(), os.getppid()
    tied = ctypes.c_int()
    _libc("prctl", _GET_PDEATHSIG, ctypes.byref(tied))
    _separate(_NEWNS | (0 if network else _NEWNET))
    _libc("mount", None, b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None)
    kept = {path: os.open(path, os.O_PATH) for path in keep}
    covered: list[str] = []
    for path in sorted({*hide, *kept}, key=lambda path: path.count("/")):  # what lies deeper has the last word
        if path not in kept:
            _cover(path)
            covered.append(path)
        elif any(_below(path, cover) for cover in covered):
            _show(path, kept[path])
    # the folder itself would still be the one that was hidden
    os.chdir(folder if os.path.isdir(folder) else "/")
    _give_up()
    # new namespaces and capabilities untie it from its parent's life (prctl(2), PR_SET_PDEATHSIG)
    _libc("prctl", _SET_PDEATHSIG, ctypes.c_ulong(tied.value))
    if tied.value and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _separate(flags: int) -> None:
    """In a user namespace: of all processes outside of it nobody in it may ask for more than their names (ptrace(2)).

    As root every user is mapped as it is, so that other users' files can still be read and written. Only who is outside
    may write such a map (user_namespaces(7)), so a child does.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        _libc("unshare", flags | _NEWUSER)
        _map("self", {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"})
        return
    ready, go = os.pipe()
    if not (child := os.fork()):
        os.close(go)
        os._exit(0 if os.read(ready, 1) and _mapped_as_it_is(os.getppid()) else 1)
    _libc("unshare", flags | _NEWUSER)
    os.write(go, b"1")
    if os.waitpid(child, 0)[1]:
        raise PermissionError("the users of this machine can't be mapped into a user namespace")


def _mapped_as_it_is(pid: int) -> bool:
    try:
        for name in ("uid_map", "gid_map"):
            rows = (line.split() for line in Path("/proc/self", name).read_text().splitlines())
            _map(str(pid), {name: "".join(f"{first} {first} {count}\n" for first, _, count in rows)})
    except OSError:
        return False
    return True


def _map(process: str, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        Path("/proc", process, name).write_text(text)


def _cover(path: str) -> None:
    if os.path.isdir(path):
        data = ctypes.c_char_p(SCRATCH.encode())
        _libc("mount", b"none", os.fsencode(path), b"tmpfs", ctypes.c_ulong(_NOSUID | _NODEV), data)
    elif os.path.exists(path):  # not so where it lies in a folder that was covered before
        _libc("mount", b"/dev/null", os.fsencode(path), None, ctypes.c_ulong(_BIND), None)


def _show(path: str, descriptor: int) -> None:
    if os.path.isdir(f"/proc/self/fd/{descriptor}"):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).touch()
    source = f"/proc/self/fd/{descriptor}".encode()
    _libc("mount", source, os.fsencode(path), None, ctypes.c_ulong(_BIND | _REC), None)


def _give_up() -> None:
    """Nobody behind the wall can mount or trace, root included, not even through a program that root may run."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())  # before Linux 5.8 there is none above 37
    for number in _GIVEN_UP:
        if number <= last:
            _libc("prctl", _CAPBSET_DROP, ctypes.c_ulong(number))
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _libc("capget", header, data)
    for number in _GIVEN_UP:
        for kind in range(3):  # effective, permitted, inheritable: of capabilities 0 to 31, then of the others
            data[3 * (number // 32) + kind] &= ~(1 << number % 32)
    _libc("capset", header, data)


def _libc(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
