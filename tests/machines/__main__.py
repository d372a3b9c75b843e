"""The command line of tests.machines."""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import tests.machines
from tests.machines import pip_settings

REPOSITORY = Path(__file__).parents[2]
SUITE = "trixie"
PACKAGES = ("ca-certificates", "python3", "python3-venv", "git", "make", "g++")
"""What README names; without the first no index is reached."""
USER = "llama-release-plain"
APPROVER = "machines"
CLEAN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEMO_APPROVER": APPROVER}
INSIDE = "TESTS_MACHINES_INSIDE"


def main() -> int:
    """The exit code: 1 when something failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.machines",
        description=tests.machines.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("machine", choices=MACHINES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", nargs="*", choices=["venv", "demo", "test", []])
    given = parser.parse_args()
    if not os.environ.get(INSIDE):
        return _in_namespaces()
    make = MACHINES[given.machine](given.folder.absolute())
    codes = [_timed(given.machine, what, make) for what in given.what or ("demo", "test")]
    return int(any(codes))


def _in_namespaces() -> int:
    """This command again in a mount and a pid namespace of its own: what it mounts and starts ends with it."""
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
    return subprocess.call([*words, "-m", "tests.machines", *sys.argv[1:]], env=os.environ | {INSIDE: "1"})


Make = Callable[[str], int]
"""Runs `make` with this target on the machine; its exit code."""


def _timed(machine: str, what: str, make: Make) -> int:
    print(f"-- {machine}: make {what}", flush=True)
    began = time.monotonic()
    code = make(what)
    print(f"-- {machine}: make {what} exited {code} after {time.monotonic() - began:.0f} s", flush=True)
    return code


def clone(target: Path) -> Path:
    """A fresh clone of the commit that is checked out here."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", REPOSITORY, target], check=True)
    return target


# -- Debian 13 --------------------------------------------------------------------------------------------------------


def debian13(folder: Path) -> Make:
    """A Debian 13 in a chroot, bootstrapped from the mirror that this machine's own apt uses."""
    system, done = folder / "system", folder / "bootstrapped"
    if not done.exists():
        shutil.rmtree(system, ignore_errors=True)
        words = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(system), _mirror()]
        subprocess.run(words, check=True)
        done.touch()
    _reach_packages(system)
    _mount(system)
    clone(system / "root" / "llama-release")
    shutil.rmtree(system / "root" / ".cache", ignore_errors=True)

    def make(what: str) -> int:
        words = ["chroot", str(system), "/usr/bin/env", "--chdir=/root/llama-release", "make", what]
        return subprocess.call(words, env=CLEAN | {"HOME": "/root"})

    return make


def _mirror() -> str:
    """Where this machine's apt has the packages of its own release from."""
    release = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return next(uri for line in release.splitlines() for name, uri in [line.split()] if name == "main")


def _reach_packages(system: Path) -> None:
    """pip finds there what it finds here: its settings, and the files and folders that they name."""
    pip_settings.write(system / "etc" / "pip.conf")
    for path in (Path("/etc/resolv.conf"), Path("/etc/hosts"), *pip_settings.paths()):
        there = system / path.relative_to("/")
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", "-o", "ro", path, there], check=True)
        else:
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there)


def _mount(system: Path) -> None:
    for words in (["-t", "proc", "proc", "proc"], ["--rbind", "/sys", "sys"], ["--rbind", "/dev", "dev"]):
        subprocess.run(["mount", *words[:-1], system / words[-1]], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", system / "tmp"], check=True)


# -- a plain user -----------------------------------------------------------------------------------------------------


def plain(folder: Path) -> Make:
    """A user who is not root and has nothing yet, in a folder whose name has a space."""
    user = _user()
    home = folder / "home of plain"
    shutil.rmtree(home, ignore_errors=True)
    pip_settings.write(home / ".config" / "pip" / "pip.conf")
    checkout = clone(home / "llama release")
    _own(home, user)
    env = CLEAN | {"HOME": str(home), "USER": USER, "LANG": "C", "PYTHON": "/usr/bin/python3"}

    def make(what: str) -> int:
        return subprocess.call(
            ["make", what], cwd=checkout, env=env, user=user.pw_uid, group=user.pw_gid, extra_groups=(), umask=0o077
        )

    return make


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER], check=True)
        return pwd.getpwnam(USER)


def _own(folder: Path, user: pwd.struct_passwd) -> None:
    paths: Sequence[Path] = (folder, *folder.rglob("*"))
    for path in paths:
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)


MACHINES: dict[str, Callable[[Path], Make]] = {"debian13": debian13, "plain": plain}

if __name__ == "__main__":
    sys.exit(main())
