"""What the tools are called on each system."""

from __future__ import annotations

import pytest

from tasks.doctor.packages import SYSTEMS, Kind, NotInstalled, system_of

ALL: tuple[Kind, ...] = ("compiler", "git")
RELEASES = {
    "Debian 13": ({"ID": "debian"}, "`apt-get install g++ git`"),
    "Linux Mint 22": ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "`apt-get install g++ git`"),
    "Fedora 43": ({"ID": "fedora"}, "`dnf install gcc-c++ git`"),
    "Rocky Linux 9": ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "`dnf install gcc-c++ git`"),
    "openSUSE Tumbleweed": ({"ID": "opensuse-tumbleweed", "ID_LIKE": "opensuse suse"}, "`zypper install gcc-c++ git`"),
    "Manjaro": ({"ID": "manjaro", "ID_LIKE": "arch"}, "`pacman -S gcc git`"),
    "Alpine": ({"ID": "alpine"}, "`apk add g++ musl-dev linux-headers git`"),
}
"""The os-release files of these systems, as far as it matters here."""


@pytest.mark.parametrize("name", RELEASES)
def test_one_command_installs_all_in_the_systems_own_words(name: str) -> None:
    release, command = RELEASES[name]
    assert system_of(release).install(ALL) == command


def test_an_unknown_system_is_told_what_to_install_and_no_command() -> None:
    said = system_of({"ID": "nixos"}).install(ALL)
    assert said == "install a C++ compiler with its standard library's headers (g++ or clang) and git"
    assert system_of({}).install(["git"]) == "install git"


def test_a_package_is_named_once_and_a_mac_needs_one_command_without_names() -> None:
    assert SYSTEMS["arch"].install(["git", "git"]) == "`pacman -S git`"
    assert SYSTEMS["Darwin"].install(ALL) == "`xcode-select --install`"


def test_what_is_not_installed_says_how_to_install_it() -> None:
    assert "git" in NotInstalled("git is not on this machine", packages=("git",)).todo
