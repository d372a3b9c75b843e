"""A platform on which nothing comes up, and what a model file says: for tests of the contracts without a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gguf

from tasks.platforms.local import LocalPlatform
from tasks.release import Endpoint, Problem
from tasks.settings import Settings
from tasks.store import Store


class NothingComesUp(LocalPlatform):
    """A platform on which every trial ends with this error."""

    def __init__(self, store: Store, error: Problem) -> None:
        super().__init__(Settings(store=store.root))
        self.error = error

    @contextmanager
    def trial(self, *_: object, **__: object) -> Iterator[Endpoint]:
        raise self.error
        yield


def contents(reader: gguf.GGUFReader, name: str) -> object:
    """The value of a field that a GGUF has."""
    field = reader.get_field(name)
    assert field is not None, name
    return field.contents()
