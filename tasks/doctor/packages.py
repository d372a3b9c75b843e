"""What the tools that a release needs are called by the package manager of this system."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.release import ToolingError

Kind = Literal["compiler", "git"]


@dataclass(frozen=True)
class System:
    """How one family of systems installs what we need."""

    command: str
    """What stands before the names; '' where there is no such command."""
    names: Mapping[Kind, str]

    def install(self, kinds: Iterable[Kind]) -> str:
        """What to do so that these are there, all at once."""
        names = dict.fromkeys(filter(None, (self.names[kind] for kind in kinds)))
        return f"`{' '.join((self.command, *names))}`" if self.command else f"install {' and '.join(names)}"


_GCC_CXX: dict[Kind, str] = {"compiler": "gcc-c++", "git": "git"}
_GXX: dict[Kind, str] = {"compiler": "g++", "git": "git"}

SYSTEMS = {
    "debian": System("apt-get install", _GXX),
    "ubuntu": System("apt-get install", _GXX),
    "fedora": System("dnf install", _GCC_CXX),
    "rhel": System("dnf install", _GCC_CXX),
    "suse": System("zypper install", _GCC_CXX),
    "opensuse": System("zypper install", _GCC_CXX),
    "arch": System("pacman -S", {"compiler": "gcc", "git": "git"}),
    "alpine": System("apk add", {"compiler": "g++ musl-dev linux-headers", "git": "git"}),
    "Darwin": System("xcode-select --install", {"compiler": "", "git": ""}),
}
"""By a word of ID or ID_LIKE in /etc/os-release (os-release(5)), or by what Python calls the system."""
UNKNOWN = System("", {"compiler": "a C++ compiler with its standard library's headers (g++ or clang)", "git": "git"})


def system() -> System:
    """This one; UNKNOWN when neither it nor what it descends from is in the table."""
    return SYSTEMS.get(platform.system()) or system_of(_os_release())


def system_of(release: Mapping[str, str]) -> System:
    """The system of an os-release file: by its own name, else by the nearest ancestor that it names."""
    words = (release.get("ID", ""), *release.get("ID_LIKE", "").split())
    return next((SYSTEMS[word] for word in words if word in SYSTEMS), UNKNOWN)


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


class NotInstalled(ToolingError):
    """A tool is not there, or does not work, and a package of this system would bring it."""

    def __init__(self, what: str, *, evidence: str = "", todo: str = "", packages: tuple[Kind, ...] = ()) -> None:
        super().__init__(what, evidence=evidence, todo=todo or system().install(packages))
        self.packages = packages
