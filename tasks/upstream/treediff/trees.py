"""Two of upstream's trees, as far as they differ in what we read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from tasks.preflight.surface import README
from tasks.sources import WHOLE, Sources, fits
from tasks.upstream.treediff import answers, chat, cmake, defaults, flags, formats, http, models, refusals
from tasks.upstream.treediff import variables as environment
from tasks.upstream.treediff.facts import Files

ALWAYS = (flags.ARGUMENTS, flags.PASSED_ON, *defaults.HEADERS, *http.SERVER)
"""Read although they are the same in both: what is asked of them is whether something is still anywhere in them."""
SPOKEN = ("common/*.cpp", *http.SERVER)
"""What llama-server does itself: a parameter that nothing in it reads is another program's."""
READ = (
    *ALWAYS, *answers.ANSWERING, *refusals.SERVED, *refusals.CUDA, *cmake.LISTS, *environment.READING, *formats.HOLDING,
    models.NAMES, models.BUILDERS, *chat.PARSING, chat.CARRIED, README,
)  # fmt: skip


@dataclass(frozen=True)
class Tree:
    """One tree."""

    blobs: Mapping[str, str]
    """Path -> git object."""
    files: Files
    spoken: Mapping[str, str]
    """Path -> text of what llama-server does itself."""

    def reads(self, parameter: str) -> bool:
        """Whether llama-server reads a parameter, beside taking it from its argv."""
        return parameter in self._words

    @cached_property
    def _words(self) -> frozenset[str]:
        own = (text for path, text in self.spoken.items() if path != flags.ARGUMENTS)
        return frozenset(word for text in own for word in re.findall(r"\w+", text))

    @cached_property
    def is_lean(self) -> bool:
        """Whether its archive holds only a part of upstream's files (of the package's: b9246 to b9702 and more)."""
        return WHOLE not in self.blobs

    @cached_property
    def _kept(self) -> frozenset[tuple[str, str]]:
        return frozenset(_class_of(path) for path in self.blobs)

    def lacks(self, path: str) -> bool:
        """Whether the archive may have left out this file: nothing of its kind is in its folder."""
        return self.is_lean and path not in self.blobs and _class_of(path) not in self._kept


def _class_of(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name.rpartition(".")[2]


def read(sources: Sources, old: str, new: str) -> tuple[Tree, Tree]:
    """Both trees, with the texts of the files that we read and that differ between them."""
    before, after = sources.blobs(old), sources.blobs(new)
    differing = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    spoken = _fitting(before.keys() | after.keys(), SPOKEN)
    read = _fitting(differing, READ) | _fitting(before.keys() | after.keys(), ALWAYS)
    texts = sources.texts(blobs[path] for path in sorted(read | spoken) for blobs in (before, after) if path in blobs)

    def tree(blobs: Mapping[str, str]) -> Tree:
        files, says = ({path: texts[blobs[path]] for path in group if path in blobs} for group in (read, spoken))
        return Tree(blobs, Files(files), says)

    return tree(before), tree(after)


def _fitting(paths: Iterable[str], globs: Iterable[str]) -> set[str]:
    return {path for path in paths if any(fits(path, glob) for glob in globs)}
