"""Secrets planted wherever a machine may have one, and code of upstream's that looks for all of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

AT_HOME = (
    ".ssh/id_ed25519", ".aws/credentials", ".netrc", ".modal.toml", ".config/gh/hosts.yml", ".config/gcloud/key.json",
    ".docker/config.json", ".git-credentials", ".pypirc", ".cache/huggingface/token", ".prefect/profiles.toml",
    "notes/passwords.txt",
)  # fmt: skip
IN_THE_STORE = ("prefect/password", "prefect/prefect.db", "run/production/snapshots/r/images/pages-1.img")
BESIDE_IT = (".env", "llama-release.toml")
NAMES = (
    "GITHUB_TOKEN", "SLACK_BOT_TOKEN", "LLAMA_RELEASE_API_KEY", "LLAMA_API_KEY", "MODAL_TOKEN_SECRET", "HF_TOKEN",
    "PREFECT_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY", "SOMETHING_OF_OURS",
)  # fmt: skip
CANARY = re.compile(r"canary-[\w.-]+-4711")

# Looks for canaries in its environment, arguments and open files, in those of every process, and in every file that it
# may know of; and for the network. What it finds goes to a file, one JSON line a run: nobody reads what it prints.
SPY = """\
import glob, json, os, re, socket, sys
def read(path):
    try:
        if os.path.isfile(path):
            with open(path, 'rb') as file:
                return file.read(1 << 20).decode(errors='replace')
    except OSError:
        pass
    return ''
def files():
    yield from glob.glob('/proc/[0-9]*/environ')
    yield from glob.glob('/proc/[0-9]*/cmdline')
    yield from glob.glob('/proc/self/fd/*')
    for root in @PLACES@:
        yield root
        for folder, _, names in os.walk(root):
            yield from (os.path.join(folder, name) for name in names)
    for pid in glob.glob('/proc/[0-9]*'):
        yield from (pid + '/root' + root + '/' + name for root in @PLACES@ for name in @NAMES@)
found = {}
for path in files():
    for canary in re.findall(r'canary-[\\w.-]+-4711', read(path)):
        found.setdefault(canary, path)
for name, value in os.environ.items():
    for canary in re.findall(r'canary-[\\w.-]+-4711', value):
        found.setdefault(canary, '$' + name)
try:
    socket.create_connection(('127.0.0.1', @PORT@), 5).close()
    network = True
except OSError:
    network = False
with open(@FOUND@, 'a') as out:
    out.write(json.dumps({'found': found, 'network': network}) + '\\n')
"""

SERVER = """\
from http.server import BaseHTTPRequestHandler, HTTPServer
if '--port' not in sys.argv:
    print('version: 11434 (ttttttttt)')
    sys.exit()
class Well(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{}')
    def log_message(self, *_): pass
HTTPServer(('127.0.0.1', int(sys.argv[sys.argv.index('--port') + 1])), Well).serve_forever()
"""
"""A llama-server that is up, after it has spied."""


@dataclass(frozen=True)
class Planted:
    """Where the canaries are."""

    home: Path
    project: Path
    store: Path
    report: Path
    port: int

    def spy(self) -> str:
        """Python that looks for them all."""
        places = [str(place) for place in (self.home, self.project, self.store, self.home.parent / "key.json")]
        names = [*AT_HOME, *BESIDE_IT, *IN_THE_STORE]
        given = {"@PLACES@": places, "@NAMES@": names, "@PORT@": self.port, "@FOUND@": str(self.report)}
        text = SPY
        for mark, value in given.items():
            text = text.replace(mark, repr(value))
        return text

    def server(self, path: Path) -> Path:
        """A llama-server that looks for them all."""
        path.write_text(f"#!{sys.executable}\n{self.spy()}{SERVER}")
        path.chmod(0o755)
        return path

    def seen(self) -> list[tuple[dict[str, str], bool]]:
        """(canary -> where it was found, whether there was a network) of each run of the spy."""
        lines = self.report.read_text().splitlines() if self.report.exists() else []
        return [(said["found"], said["network"]) for said in map(json.loads, lines)]


@contextmanager
def planted_in(folder: Path, store: Path) -> Iterator[Planted]:
    """Canaries in the environment, in a home, in the current folder, in this store, in an open file that children could
    inherit and in another process."""
    home, project = folder / "home", folder / "project"
    files = [*(home / name for name in AT_HOME), *(project / name for name in BESIDE_IT)]
    for path in (*files, *(store / name for name in IN_THE_STORE), folder / "key.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if path.suffix == ".toml" else f"canary-{path.name}-4711")
    (project / "llama-release.toml").write_text("# canary-settings-4711")
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        patch.chdir(project)
        patch.setenv("HOME", str(home))
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "key.json"))
        patch.setenv("HTTPS_PROXY", "http://ada:canary-proxy-4711@127.0.0.1:9")
        for name in NAMES:
            patch.setenv(name, f"canary-{name}-4711")
        other = subprocess.Popen(["sleep", "600"], env={"PATH": "/usr/bin:/bin", "OTHER": "canary-other-4711"})
        try:
            with open(home / ".netrc") as file:
                os.set_inheritable(file.fileno(), True)  # a Python opens none that way (PEP 446)
                yield Planted(home, project, store, folder / "found.jsonl", listener.getsockname()[1])
        finally:
            other.kill()
            other.wait()


def python() -> str:
    """A Python that is not of our own environment, as upstream's build has it."""
    return shutil.which("python3", path="/usr/bin:/bin") or sys.executable
