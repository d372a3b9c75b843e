"""What the tests of the local platform see of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.endpoint import Client
from tasks.platforms.local import LocalPlatform
from tasks.platforms.local.control import Status
from tasks.release import Endpoint, Release

KEY_ENV = "LLAMA_RELEASE_TEST_KEY"


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
        return self.platform.deploy("staging", release, lambda endpoint: None)

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
