"""pip's settings on this machine, for another one that is to reach the same packages. Nothing of it is written down."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path


def write(file: Path) -> None:
    """pip's settings here, files and PIP_* variables in one, as a file."""
    parser = configparser.RawConfigParser()
    for (section, name), value in sorted(_settings().items()):
        if not parser.has_section(section):
            parser.add_section(section)
        parser.set(section, name, value.replace("\n", "\n    "))
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as out:
        parser.write(out)


def paths() -> list[Path]:
    """The files and folders of this machine that its settings name; of an index in a folder the one above it, where
    the files lie that it links to."""
    words = [word for value in _settings().values() for word in value.split()]
    found = (Path(word.removeprefix("file://")).parent if word.startswith("file:") else Path(word) for word in words)
    return [path for path in dict.fromkeys(found) if path.is_absolute() and path.exists() and path != Path("/")]


def _settings() -> dict[tuple[str, str], str]:
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout  # pip puts the variables, which win, last or first by their name: they are taken last here
    found = re.findall(r"^(:env:|[\w-]+)\.([\w-]+)=(.*)$", said, re.MULTILINE)
    ordered = sorted(found, key=lambda each: each[0] == ":env:")
    return {("global" if section == ":env:" else section, name): ast.literal_eval(v) for section, name, v in ordered}
