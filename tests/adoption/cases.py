"""Set-ups as people write them, with what is true of each (cases.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from tasks.adoption.read import Source
from tasks.release import Model

FILE = Path(__file__).with_name("cases.toml")


class Case(Model):
    """One set-up; the head of cases.toml says what each field means."""

    id: str
    words_given: tuple[str, ...] = Field(alias="import")
    files: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    words: tuple[str, ...] | None = None
    variables: dict[str, str] = Field(default_factory=dict)
    paths: dict[str, str] = Field(default_factory=dict)
    address: str | None = None
    secrets: tuple[str, ...] = ()
    refused: str | None = None

    def lay_out(self, folder: Path) -> Case:
        """The same with its files in a folder, which HERE stands for."""
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("HERE", str(folder)), encoding="utf-8")
        there = {"HERE": str(folder), "HOME": str(Path.home())}
        text = self.model_dump_json(by_alias=True, exclude={"files"})
        for name, place in there.items():
            text = text.replace(name + "/", place + "/")
        return Case.model_validate_json(text)

    @property
    def source(self) -> Source:
        """What is given, as the command line reads it."""
        first, *rest = self.words_given
        if first == "--":
            return Source(words=tuple(rest))
        said = dict(zip(self.words_given[::2], self.words_given[1::2], strict=True))
        return Source.model_validate({name.removeprefix("--"): value for name, value in said.items()})


def cases() -> Sequence[Case]:
    """Every labelled set-up."""
    return [Case.model_validate(each) for each in tomllib.loads(FILE.read_text(encoding="utf-8"))["case"]]
