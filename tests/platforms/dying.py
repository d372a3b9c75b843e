"""Real processes that listen like llama-server and die as they are told, built by the machine's own compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tasks.release import Build, Release
from tasks.store import Store, sha256_of
from tests.test_release import a_release
from tests.test_store import a_build

SOURCE = Path(__file__).with_name("dying.c")
MAY_LOG = ("SEGV", "ILL")
"""The signals of which the kernel writes a line, ten in five seconds at most."""


def build_in(store: Store) -> Build:
    """The program as a build of this store; some MB less than a real one, and made in a second."""
    built = a_build()
    folder = store.build_dir(built.digest)
    if not folder.exists():
        folder.mkdir(parents=True)
        subprocess.run(["cc", "-D_GNU_SOURCE", "-O1", "-o", folder / "llama-server", SOURCE], check=True)
    built = built.model_copy(update={"files": {"llama-server": sha256_of(folder / "llama-server")}})
    store.save_build(built)
    return built


def dying(store: Store, by: str = "", when: str = "", alias: str = "m", says: str = "") -> Release:
    """A release whose server dies of this signal (or `EXIT`, with 7) at this moment: load, asked, answered, resumed.

    Without a signal it lives. It says `says` while it loads.
    """
    built = build_in(store)
    release = a_release(build=built.digest, files={}, alias=alias)
    fingerprint = f"{release.upstream.tag}-{release.tree[:9]}"
    argv = ("--dies", by, "--when", when, "--alias", alias, "--fingerprint", fingerprint, "--says", says)
    release = release.model_copy(update={"argv": argv})
    store.save_release(release)
    return release
