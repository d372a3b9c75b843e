"""What the tests of the local platform see of the machine."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.endpoint import Client
from tasks.platforms import Progress
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.control import Status
from tasks.release import Build, Endpoint, Recipe, Release, SourceTree, now
from tasks.sources import Sources

LISTENS = "0A"
KEY_ENV = "LLAMA_RELEASE_TEST_KEY"


class Counting(LocalPlatform):
    """The local platform, which counts its trials."""

    trials = 0

    @contextmanager
    def trial(self, release: Release, *, wait: bool = True) -> Iterator[Endpoint]:
        self.trials += 1
        with super().trial(release, wait=wait) as endpoint:
            yield endpoint


class Uncompiled(LocalPlatform):
    """The local platform, whose builds hold the sources as they are: what a `binary` proof reads needs no compiler."""

    def build(self, source: SourceTree, recipe: Recipe, progress: Progress) -> Build:  # noqa: ARG002 - the protocol's
        sources, digest = Sources(self.settings.cache), Build.identity(source, recipe, {})
        folder = self.store.build_dir(digest)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sources.files(source.tree, "**/*"):
            (folder / path.replace("/", "-")).write_text(sources.read(source.tree, path))
        return Build(
            digest=digest, source=source, recipe=recipe, toolchain={}, version="", files={}, seconds=0, objects=0,
            cache_hits=0, built_at=now(),
        )  # fmt: skip


def command_lines() -> dict[int, list[str]]:
    """argv of every process on this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            found[int(folder.name)] = words
    return found


def listens_on(pid: int) -> set[str]:
    """The IP addresses on which a process accepts TCP connections, by the kernel's own tables (proc(5))."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENS and words[9] in sockets:
                host = bytes.fromhex(words[1].split(":")[0])
                found.add(socket.inet_ntop(socket.AF_INET if len(host) == 4 else socket.AF_INET6, _network_order(host)))
    return found


def _network_order(host: bytes) -> bytes:
    """From the words of 32 bits, in the machine's own order, of which /proc/net/tcp makes an address."""
    return b"".join(struct.pack("!I", word) for (word,) in struct.iter_unpack("=I", host))


def until(true: Callable[[], bool], limit_s: float = 60.0, every_s: float = 0.05) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(every_s)
    return False


@dataclass(frozen=True)
class Stand:
    platform: LocalPlatform
    first: Release
    second: Release
    key: str

    def servers(self) -> list[int]:
        """Pids of the llama-servers of this store."""
        mine = str(self.platform.store.build_dir(""))
        return [pid for pid, words in command_lines().items() if words[0].startswith(mine)]

    def serve(self, release: Release) -> Endpoint:
        return self.platform.deploy("staging", release, lambda _: None)

    def status(self) -> Status:
        found = self.platform.status("staging")
        assert found is not None
        return found

    def direct(self) -> Endpoint:
        """Past the activator to its server."""
        return Endpoint(base_url=self.status().server_url or "", api_key=self.key)

    def say(self, max_tokens: int = 2) -> str:
        """The alias of the release that answers a request to the stage."""
        with Client(self.platform.endpoint("staging")) as client:
            answer = client.chat("Hello", max_tokens=max_tokens)
        assert answer.status == 200, answer.body
        return str(answer.body["model"])
