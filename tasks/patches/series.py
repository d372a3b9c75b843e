"""The patch series as files: what a patch says of itself, and what it changes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tasks.release import BadInput

SERIES = "series"
NO_FILE = "/dev/null"


class Broken(Exception):
    """A file is not a patch that may be trusted: what is wrong with it, in one line."""


@dataclass(frozen=True)
class Hunk:
    """One hunk of a diff."""

    header: str
    """The whole `@@` line."""
    start: int
    """Its first line in the file before the patch, from 1."""
    new_start: int
    """Its first line in the file after the patch, from 1."""
    heading: str
    """What git put behind the second `@@`: the function it saw above the hunk."""
    lines: tuple[str, ...]
    """With their sign: ' ', '+', '-' (and '\\' where the file has no last line end)."""

    @property
    def before(self) -> list[str]:
        """The lines that the file must have, without their sign."""
        return [line[1:] for line in self.lines if line[0] in " -"]

    @property
    def text(self) -> str:
        return "\n".join([self.header, *self.lines])


@dataclass(frozen=True)
class FileDiff:
    """What a diff does to one file."""

    old: str | None
    """Path before; None for a new file."""
    new: str | None
    """Path after; None for a deleted file."""
    old_blob: str = ""
    """Full git blob id before, where the diff says it."""
    hunks: tuple[Hunk, ...] = ()

    @property
    def path(self) -> str:
        return self.new or self.old or ""


def positions(files: tuple[FileDiff, ...]) -> set[tuple[str, str, int, str]]:
    """The changed lines of a diff as (path, sign, line number on its side, text), however much context it shows."""
    found = set()
    for file in files:
        for hunk in file.hunks:
            at = {"-": hunk.start, "+": hunk.new_start}
            for line in hunk.lines:
                for sign in {" ": "-+", "-": "-", "+": "+"}.get(line[0], ""):
                    if line[0] != " ":
                        found.add((file.path, sign, at[sign], line[1:]))
                    at[sign] += 1
    return found


@dataclass(frozen=True)
class Patch:
    """One file of the series."""

    path: Path
    title: str
    trailers: dict[str, str]
    files: tuple[FileDiff, ...] = ()
    broken: str = field(default="", compare=False)
    """Why the file is not a patch that may be trusted; empty when it is one."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def exported_on(self) -> int | None:
        """The upstream build it was last exported on."""
        match = re.fullmatch(r"b?(\d+)", self.trailers.get("Exported-on", ""))
        return int(match[1]) if match else None


def read_series(folder: Path) -> list[Patch]:
    """The patches that `series` names, in order; what is wrong inside one stands in its `broken`.

    Raises BadInput when there is no series, or when it names a file twice or one that is not in the folder.
    """
    names = series_names(folder)
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise BadInput(
                f"the series names {name}, which is not a file in {folder}", todo="add the file or remove the line"
            )
        if names.count(name) > 1:
            raise BadInput(f"the series names {name} twice", todo=f"remove one of the lines in {folder / SERIES}")
    return [read_patch(folder / name) for name in names]


def series_names(folder: Path) -> list[str]:
    """The file names in `series`, in order. Raises BadInput when there is no series, or none that can be read."""
    series = folder / SERIES
    try:
        lines = series.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        todo = "set `patches` to the folder that holds it"
        raise BadInput(f"there is no patch series at {series}", todo=todo) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{series} cannot be read", evidence=str(error), todo="mend that, or set `patches`") from error
    names = (line.split("#")[0].strip() for line in lines)
    return [name for name in names if name]


def select(patches: list[Patch], which: str) -> Patch:
    """The patch of this file name, stem or number (1 for 0001-...). Raises BadInput that names what there is."""
    for patch in patches:
        number = re.match(r"\d+", patch.name)
        same_number = which.isdigit() and number and int(number[0]) == int(which)
        if same_number or Path(which).name in (patch.name, patch.path.stem):
            return patch
    raise BadInput(
        f"the series has no patch {which}",
        evidence="it has " + (", ".join(p.name for p in patches) or "none"),
        todo="give a file name of the series, or its number",
    )


def read_patch(path: Path) -> Patch:
    """What a patch file says of itself and what it changes."""
    raw = path.read_bytes()
    text = raw.decode("utf-8", errors="replace")
    header = re.split(r"^(?:---|diff --git .*)$", text.replace("\r\n", "\n"), maxsplit=1, flags=re.MULTILINE)[0]
    subject = re.search(r"^Subject: (?:\[PATCH[^\]]*\] )?(.+(?:\n[ \t].+)*)", header, re.MULTILINE)
    trailers = dict(re.findall(r"^([A-Z][A-Za-z-]+): (.+)$", header.split("\n\n", 1)[-1], re.MULTILINE))
    title = re.sub(r"\s+", " ", subject[1]) if subject else path.name
    try:
        _check_expression(trailers.get("Evidence", ""))
        return Patch(path, title, trailers, files=_trusted(text))
    except Broken as error:
        return Patch(path, title, trailers, broken=str(error))


def _check_expression(evidence: str) -> None:
    _, separator, expression = evidence.partition(" :: ")
    try:
        re.compile(expression)
    except re.error as error:
        raise Broken(f"its Evidence trailer is no regular expression: {error}") from error
    if evidence and not separator:
        raise Broken("its Evidence trailer is not `<glob> :: <regular expression>`")


def _trusted(text: str) -> tuple[FileDiff, ...]:
    """The diffs of a patch file. Raises Broken for what git would take wrongly, in part, or not at all."""
    if re.search(r"^(?:diff --git|---|\+\+\+|@@|From|Subject:) ?.*\r$", text, re.MULTILINE):
        raise Broken("it has CRLF line ends: something on its way rewrote them; export it again as bytes")
    if "\ufffd" in text:
        raise Broken("it is not UTF-8 text")
    files = read_diff(text)
    if not files:
        raise Broken("there is no diff in it")
    for file in files:
        for path in filter(None, (file.old, file.new)):
            parts = PurePosixPath(path).parts
            if path.startswith("/") or ".." in parts or ".git" in parts:
                raise Broken(f"it leaves the source tree: {path}")
        if not file.hunks:
            raise Broken(f"its diff of {file.path} has no hunk: renames, modes and empty files are not supported")
    return files


def read_diff(text: str) -> tuple[FileDiff, ...]:
    """The files of a `git diff`. Raises Broken where it is binary, cut off or miscounted."""
    lines = text.split("\n")
    found: list[FileDiff] = []
    at = next((n for n, line in enumerate(lines) if line.startswith("diff --git ")), len(lines))
    while at < len(lines) and lines[at].startswith("diff --git "):
        file, at = _read_file(lines, at + 1)
        found.append(file)
    if rest := [line for line in lines[at:] if line.strip() and not re.fullmatch(r"-- |\d[\w.]+", line)]:
        raise Broken(f"a line belongs to no hunk: {rest[0][:80]!r}")
    return tuple(found)


_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)")


def _read_file(lines: list[str], at: int) -> tuple[FileDiff, int]:
    old = new = None
    blob = ""
    named = False
    while at < len(lines) and not lines[at].startswith(("@@ ", "diff --git ")):
        line = lines[at]
        if line.startswith(("GIT binary patch", "Binary files ")):
            raise Broken("it is a binary patch, which nobody can review or prove line by line")
        if line.startswith(("rename ", "copy ")):
            raise Broken("it renames or copies a file: export it with --no-renames")
        if re.search(r"^(?:new|old|new file|deleted file) mode (?:12|16)0000$|^index .* (?:12|16)0000$", line):
            raise Broken("it makes or changes a link or a submodule, which may lead out of the source tree")
        if match := re.match(r"index ([0-9a-f]{40,64})\.\.", line):
            blob = match[1]
        if line.startswith("--- ") and at + 1 < len(lines) and lines[at + 1].startswith("+++ "):
            old, new = _path(line), _path(lines[at + 1])
            named = True
        at += 1
    hunks: list[Hunk] = []
    while at < len(lines) and lines[at].startswith("@@ "):
        hunk, at = _read_hunk(lines, at)
        hunks.append(hunk)
    if hunks and not named:
        raise Broken("a hunk does not say which file it is for")
    if not hunks and at >= len(lines):
        raise Broken("it is cut off: the last diff has no hunk")
    return FileDiff(old, new, blob, tuple(hunks)), at


def _path(line: str) -> str | None:
    name = line[4:].split("\t")[0]
    if name.startswith('"'):
        raise Broken(f"the path {name} needs quoting, which is not supported")
    return None if name == NO_FILE else name.split("/", 1)[-1] if name[:2] in ("a/", "b/") else name


def _read_hunk(lines: list[str], at: int) -> tuple[Hunk, int]:
    header = lines[at]
    match = _HUNK.match(header)
    if not match:
        raise Broken(f"this is no hunk header: {header[:80]}")
    left, right = int(match[2] or 1), int(match[4] or 1)
    body: list[str] = []
    at += 1
    while left > 0 or right > 0 or (at < len(lines) and lines[at].startswith("\\")):
        line = lines[at] if at < len(lines) else ""
        if at >= len(lines) or line[:1] not in (" ", "+", "-", "\\"):
            raise Broken(f"it is cut off or edited by hand: {header} promises {left} and {right} more lines")
        left -= line[0] in " -"
        right -= line[0] in " +"
        body.append(line)
        at += 1
    if left or right:
        raise Broken(f"{header} does not count its own lines rightly")
    return Hunk(header, int(match[1]), int(match[3]), match[5], tuple(body)), at
