"""What we use of upstream, read from the code that uses it, and how a change would name it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tasks import gguf_header, preflight
from tasks.contracts.promises import CONTRACTS
from tasks.patches.series import read_series
from tasks.platforms.local.compile import definitions
from tasks.platforms.local.server import inherited
from tasks.preflight.argv import spelled
from tasks.preflight.uses import Words, words_of
from tasks.settings import Settings

PROJECT = ("llama",)
"""Architectures that upstream calls as it calls itself: each title of its own would name them."""


@dataclass(frozen=True)
class Ours:
    """What we use of upstream, and the words or files by which a change would name it."""

    words: dict[str, re.Pattern[str]] = field(default_factory=dict)
    """What it is -> how a text names it."""
    files: dict[str, str] = field(default_factory=dict)
    """Path in upstream's tree -> what of ours changes it."""
    architecture: str = ""
    """Of the model, as its GGUF says; '' when it cannot be known."""
    backend: str = "cpu"
    """Of the recipe."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Flag that our argv has, in any spelling of upstream's history -> our setting."""
    options: Mapping[str, str] = field(default_factory=dict)
    """CMake option that the recipe sets -> its value."""
    variables: frozenset[str] = frozenset()
    """Names of the environment that servers see here."""
    promises: Mapping[str, str] = field(default_factory=dict)
    """Route, or field of a request -> the subjects of contracts that ask for it."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """Key of an answer -> the subjects of contracts that read it."""
    pre_tokenizer: str = ""
    """Of the model, as its GGUF says; '' when it cannot be known."""

    def serves(self, text: str) -> bool:
        """Whether a text names the architecture that we serve: by its enum or builder, or as a word that means nothing
        else. `llama` is the project's own name."""
        parts = re.findall(r"[a-z]+|\d+", self.architecture)
        if not parts:
            return False
        word = "" if self.architecture in PROJECT else rf"|\b{'[ _-]?'.join(parts)}(?!\d)"
        by_name = rf"\bLLM_ARCH_{'_?'.join(parts)}\b|\bmodels/{re.escape(self.architecture)}\.cpp{word}"
        return bool(re.search(by_name, text, re.IGNORECASE))

    def named(self, text: str) -> list[str]:
        found = [what for what, pattern in self.words.items() if pattern.search(text)]
        return found + ([f"model architecture {self.architecture}"] if self.serves(text) else [])

    def holding(self, paths: Iterable[str]) -> list[str]:
        return [f"{self.files[path]} ({path})" for path in paths if path in self.files]


def used_by(settings: Settings) -> Ours:
    """What these settings use: flags, build options, patched code, promised routes and fields, the architecture.

    All of it is read from the code that uses it. Raises BadInput when there is no patch series.
    """
    words: dict[str, re.Pattern[str]] = {}
    files: dict[str, str] = {}
    for want in preflight.wants(settings.server):
        for flag in {word for spelling in want.spellings for word in spelling if word.startswith("--")}:
            words[f"setting {want.setting} ({flag})"] = _flag(flag, want.setting)
    for option in definitions(settings.recipe):
        words[f"build option {option}"] = re.compile(rf"\b{option}\b")
    for patch in read_series(settings.patches):
        for diff in patch.files:
            files[diff.path] = f"patch {patch.name}"
            for hunk in diff.hunks:
                if function := re.search(r"(\w+)\(", hunk.heading):
                    words[f"patch {patch.name} ({function[1]})"] = re.compile(rf"\b{function[1]}\b")
    asked = promised()
    for name, subjects in sorted(asked.items()):
        kind = "route" if name.startswith("/") else "field"
        words[f"contracts {', '.join(sorted(subjects))} ({kind} {name})"] = _name(name)
    return Ours(
        words,
        files,
        architecture_of(settings.server.model),
        settings.recipe.backend,
        flags={flag: want.setting for flag, want in spelled(settings.server).items()},
        options=definitions(settings.recipe),
        variables=frozenset(inherited() if settings.platform == "local" else ()),
        promises={name: ", ".join(sorted(subjects)) for name, subjects in asked.items()},
        answers={name: ", ".join(sorted(subjects)) for name, subjects in read_of_answers().items()},
        pre_tokenizer=pre_tokenizer_of(settings.server.model),
    )


def _flag(flag: str, setting: str) -> re.Pattern[str]:
    # a title may say `flash attention` or `n_gpu_layers`: names of two words and more are told by their words, too
    names = [re.split("[-_]", name.strip("-")) for name in (flag, setting)]
    spoken = "|".join("[ _-]".join(words) for words in names if len(words) > 1)
    bare = rf"|(?<![a-z])({spoken})(?![\w-])" if spoken else ""
    return re.compile(rf"(?<![\w-]){flag}(?![\w-]){bare}", re.IGNORECASE)


def _name(name: str) -> re.Pattern[str]:
    if name.startswith("/"):
        return re.compile(rf"(?<![\w./]){re.escape(name)}(?![\w/-])")
    return re.compile(rf"\b{name}\b" if "_" in name else rf"[`\"']{name}[`\"']")


def promised() -> dict[str, set[str]]:
    """Route, or name of a field of a request, -> the subjects of contracts that ask for it, read from their code."""
    return _subjects(lambda words: words.routes | set(filter(str.isidentifier, words.sent)))


def read_of_answers() -> dict[str, set[str]]:
    """Key of an answer -> the subjects of contracts that look for it, read from their code."""
    return _subjects(lambda words: set(filter(str.isidentifier, words.strings)))


def _subjects(names: Callable[[Words], Iterable[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for full, contract in CONTRACTS.items():
        for name in names(words_of(contract.check)):
            found.setdefault(name, set()).add(full.split(".")[1])
    return found


def pre_tokenizer_of(model: Path | None) -> str:
    """`tokenizer.ggml.pre` of a GGUF; '' when the file is not here or says none."""
    return str(gguf_header.value_of(model, "tokenizer.ggml.pre")) if model else ""


def architecture_of(model: Path | None) -> str:
    """`general.architecture` of a GGUF; '' when the file is not here or says none."""
    return str(gguf_header.value_of(model, "general.architecture")) if model else ""
