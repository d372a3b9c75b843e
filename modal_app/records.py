"""Documents of the store as they are read by hand: from the Volume, without the models that tasks/ has of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import modal


class Records:
    """The documents on a store's Volume."""

    def __init__(self, volume: modal.Volume, name: str) -> None:
        self._volume, self._name = volume, name

    def document(self, path: str) -> dict[str, Any] | None:
        """What a file holds as JSON, or None when it is not there."""
        try:
            found: dict[str, Any] = json.loads(b"".join(self._volume.read_file(path)))
        except (FileNotFoundError, modal.exception.NotFoundError):
            return None
        return found

    def listed(self, folder: str) -> list[str]:
        """The names in a folder, sorted; none when it is not there."""
        try:
            return sorted(entry.path.rpartition("/")[2] for entry in self._volume.listdir(folder))
        except (FileNotFoundError, modal.exception.NotFoundError):
            return []

    def served(self) -> str:
        """The build in production, or else on staging. Exits when there is none."""
        for stage in ("production", "staging"):
            pointer = self.document(f"stages/{stage}.json") or {}
            if release := self.document(f"releases/{pointer.get('release')}.json"):
                return str(release["build"])
        raise SystemExit("no stage serves a build; name one with --digest (`::status` shows those that are there)")

    def order(self, digest: str) -> dict[str, Any]:
        """What the builder was told for a build. Exits when that is not known."""
        if (order := self.document(f"orders/{digest}.json")) is None:
            raise SystemExit(
                f"the Volume {self._name} has no order of a build {digest}: `llama-release upgrade` orders"
            )
        return order


def called(manifest: Mapping[str, Any]) -> str:
    """A build in words, by its manifest."""
    source = manifest["source"]
    return f"b{source['upstream']['build']} of {manifest['built_at'][:16]}, tree {source['tree'][:9]}"


def differing(known: Mapping[str, str], seen: Mapping[str, str]) -> list[str]:
    """The names of files that are not in both, or not the same."""
    return sorted(name for name in known.keys() | seen.keys() if known.get(name) != seen.get(name))
