"""A PostgreSQL of one test: the Debian package's binaries, a folder of its own, a free port, an unprivileged user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.platforms.local.proc import free_port
from tasks.process import die_with_parent
from tests.flows.operations import wait_for, words_of

USER = "postgres"
LIMIT_S = 120


def binaries() -> Path:
    """Where PostgreSQL's programs are, the newest version's; skips the test without them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not found:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    return found[-1].parent


@dataclass(frozen=True)
class Postgres:
    bin: Path
    folder: Path
    port: int

    def argv(self, name: str, *words: str) -> list[str]:
        """A program of PostgreSQL, as a user who may run its server: root may not."""
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.geteuid() == 0 else []
        return [*as_user, str(self.bin / name), *words]

    def run(self, name: str, *words: str) -> str:
        env = os.environ | {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER}
        argv = self.argv(name, *words)
        done = subprocess.run(
            argv, cwd=self.folder, env=env, text=True, errors="replace", timeout=LIMIT_S, capture_output=True
        )
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    @property
    def url(self) -> str:
        """What Prefect connects to."""
        return f"postgresql+asyncpg://prefect@127.0.0.1:{self.port}/prefect"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL with the database that the page has a person make."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, USER, USER)
    found = Postgres(binaries(), folder, free_port())
    data = str(folder / "data")
    process = None
    try:
        found.run("initdb", "--no-sync", "--auth=trust", f"--username={USER}", data)
        options = ("-c", "fsync=off", "-h", "127.0.0.1", "-p", str(found.port), "-k", str(folder))
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                found.argv("postgres", "-D", data, *options), cwd=folder, preexec_fn=die_with_parent,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_for(
            lambda: (
                subprocess.run(
                    found.argv("pg_isready", "-q", "-h", str(folder), "-p", str(found.port)), cwd=folder
                ).returncode
                == 0
            ),
            LIMIT_S,
        )
        for line in ("createuser prefect --pwprompt", "createdb prefect --owner prefect"):
            name, *words = words_of(f"sudo -u postgres {line}")[3:]
            found.run(name, *(word for word in words if word != "--pwprompt"))
        yield found
    finally:
        if process:
            process.terminate()
            process.wait(LIMIT_S)
        shutil.rmtree(folder)
