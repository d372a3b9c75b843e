"""The patch series as files: what a patch says of itself, and what it changes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from tasks.release import BadInput

SERIES = "series"
PROOF = "Proved-by"
"""The trailer that a patch may have more than one of: a line each."""
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
    def after(self) -> list[str]:
        """The lines that it leaves behind, without their sign."""
        return [line[1:] for line in self.lines if line[0] in " +"]

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
    """Git blob id before, where the diff says it: full, or cut as `git diff` cuts it."""
    hunks: tuple[Hunk, ...] = ()
    whole: str = ""
    """What it does to the file as a whole: git's own lines of a rename, a mode or a binary change."""

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
    diff: str = field(default="", compare=False)
    """What it changes as git writes it, with a/ and b/, whatever program wrote the file."""
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
    text = path.read_bytes().decode("utf-8", errors="replace")
    head = header_of(text)
    subject = re.search(r"^Subject: (?:\[PATCH[^\]]*\] )?(.+(?:\n[ \t].+)*)", head, re.MULTILINE)
    prose = next((line.strip() for line in head.split("\n") if line.strip()), path.name)
    said = re.findall(r"^([A-Z][A-Za-z-]+): (.+)$", head.split("\n\n", 1)[-1], re.MULTILINE)
    trailers = dict(said) | {name: "\n".join(t for n, t in said if n == name) for name, _ in said if name == PROOF}
    title = re.sub(r"\s+", " ", subject[1]) if subject else prose
    try:
        _check_expression(trailers.get("Evidence", ""))
        found = _trusted(text)
        return Patch(path, title, trailers, tuple(r.file for r in found), "".join(r.text for r in found))
    except Broken as error:
        return Patch(path, title, trailers, broken=str(error))


def header_of(text: str) -> str:
    """What stands above the first diff of a patch file: the mail's header and message, or a person's prose."""
    start = r"^(?:---|diff --git .*|diff -.*|Index: .*|--- .*)$"
    return re.split(start, text.replace("\r\n", "\n"), maxsplit=1, flags=re.MULTILINE)[0]


def _check_expression(evidence: str) -> None:
    _, separator, expression = evidence.partition(" :: ")
    try:
        re.compile(expression)
    except re.error as error:
        raise Broken(f"its Evidence trailer is no regular expression: {error}") from error
    if evidence and not separator:
        raise Broken("its Evidence trailer is not `<glob> :: <regular expression>`")


def _trusted(text: str) -> tuple[_Record, ...]:
    """The diffs of a patch file. Raises Broken for what git would take wrongly, in part, or not at all."""
    if "\ufffd" in text:
        raise Broken("it is not UTF-8 text")
    found = _named(_records(_line_ends(text).split("\n")))
    if not found:
        raise Broken("there is no diff in it")
    for record in found:
        for path in filter(None, (record.file.old, record.file.new)):
            parts = PurePosixPath(path).parts
            if path.startswith("/") or ".." in parts or ".git" in parts:
                raise Broken(f"it leaves the source tree: {path}")
            if re.search(r'["\\\n\t]', path):
                raise Broken(f"the path {path!r} needs quoting, which is not supported")
        if not record.file.hunks and not record.file.whole:
            raise Broken(f"its diff of {record.file.path} changes nothing")
    return found


_LINE_OF_GITS = re.compile(r"^(?:diff --git|---|\+\+\+|@@|index) .*$", re.MULTILINE)


def _line_ends(text: str) -> str:
    """The text with git's line ends: a mail or an editor may have written the whole file with CRLF.

    Where only lines of the sources end so, they are the sources' own. Raises Broken for a mixture.
    """
    ends = {line.endswith("\r") for line in _LINE_OF_GITS.findall(text)}
    if ends == {True, False}:
        raise Broken("some of its line ends are CRLF: something on its way rewrote them; export it again as bytes")
    return text.replace("\r\n", "\n") if ends == {True} else text


def read_diff(text: str) -> tuple[FileDiff, ...]:
    """The files of a diff. Raises Broken where it is cut off or miscounted."""
    return tuple(record.file for record in _named(_records(text.split("\n"))))


@dataclass(frozen=True)
class _Record:
    """One file of a diff as it was written."""

    header: str
    """The two names of `diff --git`; empty where another program wrote it."""
    extended: tuple[str, ...]
    minus: str
    plus: str
    hunks: tuple[Hunk, ...]
    binary: tuple[str, ...]
    file: FileDiff = FileDiff(None, None)

    def said(self, word: str) -> str:
        return next((line[len(word) + 1 :] for line in self.extended if line.startswith(f"{word} ")), "")

    @property
    def text(self) -> str:
        """The same as git writes it."""
        a, b = (path or self.file.path for path in (self.file.old, self.file.new))
        lines = [f"diff --git a/{a} b/{b}", *self.extended]
        if not self.header and self.file.old is None:
            lines.append("new file mode 100644")
        if not self.header and self.file.new is None:
            lines.append("deleted file mode 100644")
        if self.hunks:
            lines += [f"--- {f'a/{a}' if self.file.old else NO_FILE}", f"+++ {f'b/{b}' if self.file.new else NO_FILE}"]
        lines += [hunk.text for hunk in self.hunks]
        return "\n".join([*lines, *self.binary, ""])


_MAIL = re.compile(r"From [0-9a-f]{7,64}\b")
_BETWEEN = re.compile(r"-- ?|\d[\w.]+|diff -.*|Only in .*|Index: .*|={9,}|\s*")
_EXTENDED = re.compile(
    r"(?:old mode|new mode|deleted file mode|new file mode|copy from|copy to|rename from|rename to|similarity index"
    r"|dissimilarity index|index) "
)


def _records(lines: list[str]) -> list[_Record]:
    """The files of a diff. What is no line of it may stand above the first file, and in the head of another mail."""
    found: list[_Record] = []
    at, prose = 0, True
    while at < len(lines):
        if _starts_file(lines, at):
            record, at = _read_file(lines, at)
            found.append(record)
            prose = False
            continue
        prose = prose or bool(_MAIL.match(lines[at]))
        if not prose and not _BETWEEN.fullmatch(lines[at]):
            raise Broken(f"a line belongs to no hunk: {lines[at][:80]!r}")
        at += 1
    return found


def _starts_file(lines: list[str], at: int) -> bool:
    return lines[at].startswith("diff --git ") or (
        lines[at].startswith("--- ")
        and at + 2 < len(lines)
        and lines[at + 1].startswith("+++ ")
        and lines[at + 2].startswith("@@ ")
    )


_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)")


def _read_file(lines: list[str], at: int) -> tuple[_Record, int]:
    header = ""
    extended: list[str] = []
    if lines[at].startswith("diff --git "):
        header = lines[at].removeprefix("diff --git ")
        at += 1
        while at < len(lines) and _EXTENDED.match(lines[at]):
            extended.append(lines[at])
            at += 1
    if any(re.search(r"mode (?:12|16)0000$|^index .* (?:12|16)0000$", line) for line in extended):
        raise Broken("it makes or changes a link or a submodule, which may lead out of the source tree")
    minus = plus = ""
    if at + 1 < len(lines) and lines[at].startswith("--- ") and lines[at + 1].startswith("+++ "):
        minus, plus = _written(lines[at]), _written(lines[at + 1])
        at += 2
    hunks: list[Hunk] = []
    while at < len(lines) and lines[at].startswith("@@ "):
        hunk, at = _read_hunk(lines, at)
        hunks.append(hunk)
    if hunks and not minus:
        raise Broken("a hunk does not say which file it is for")
    if minus and not hunks:
        raise Broken("it is cut off: a diff has no hunk")
    binary, at = _read_binary(lines, at)
    if not hunks and not binary and not any(re.match("old mode|new file|deleted|rename|copy", e) for e in extended):
        raise Broken("it is cut off: the last diff has no hunk")
    return _Record(header, tuple(extended), minus, plus, tuple(hunks), tuple(binary)), at


def _read_binary(lines: list[str], at: int) -> tuple[list[str], int]:
    """The lines of a binary change, which git alone reads (git-diff's `--binary`): one block a direction."""
    if at < len(lines) and lines[at].startswith("Binary files "):
        raise Broken("it says no more than that a binary file differs: export it with --binary")
    if at >= len(lines) or lines[at] != "GIT binary patch":
        return [], at
    found = [lines[at]]
    at += 1
    while at < len(lines) and re.match(r"(?:literal|delta) \d+$", lines[at]):
        end = next((n for n in range(at, len(lines)) if not lines[n]), len(lines))
        if end == len(lines) or end == at + 1:
            raise Broken("it is cut off: a binary change has no end")
        found += lines[at : end + 1]
        at = end + 1
    if len(found) == 1:
        raise Broken("it is cut off: a binary change has no content")
    return found, at


def _written(line: str) -> str:
    """The name behind `---` or `+++`, without the time that `diff -u` writes after a tab."""
    return _unquoted(line[4:].split("\t")[0].rstrip())


def _unquoted(name: str) -> str:
    """A name that git quoted as C does (`core.quotePath`): `"a/na\\303\\257ve"`."""
    if not (name.startswith('"') and name.endswith('"')):
        return name
    try:
        return name[1:-1].encode("ascii").decode("unicode_escape").encode("latin-1").decode("utf-8")
    except UnicodeError as error:
        raise Broken(f"the path {name} can't be read") from error


def _named(records: list[_Record]) -> tuple[_Record, ...]:
    """The records with the paths of their files: without the first folder where the names of a diff have two of them
    (a/ and b/; `git diff` can leave them out, or write i/ and w/; `diff -u` has whatever folders were compared).
    """
    pairs = [_pair(record) for record in records]
    prefixed = any(old != new and _rest(old) == _rest(new) for old, new in pairs if old and new)
    return tuple(
        replace(record, file=_file(record, *_stripped(old, new, prefixed)))
        for record, (old, new) in zip(records, pairs, strict=True)
    )


def _rest(name: str) -> str:
    return name.split("/", 1)[-1] if "/" in name else ""


def _pair(record: _Record) -> tuple[str, str]:
    """The names as they are written; '' for no file."""
    old, new = (record.minus, record.plus) if record.minus else _halves(record.header)
    first = record.hunks[0].header if record.hunks and not record.header else ""
    made = record.said("new file mode") or first.startswith("@@ -0,0 ")  # without git's lines the hunk tells
    gone = record.said("deleted file mode") or "+0,0 @@" in first
    return "" if made or old == NO_FILE else old, "" if gone or new == NO_FILE else new


def _halves(header: str) -> tuple[str, str]:
    """The two names of `diff --git`, which are the same but for their first folder, or are quoted."""
    if match := re.fullmatch(r'("(?:\\.|[^"\\])*") ("(?:\\.|[^"\\])*")', header):
        return _unquoted(match[1]), _unquoted(match[2])
    for space in (n for n, letter in enumerate(header) if letter == " "):
        old, new = header[:space], header[space + 1 :]
        if old == new or (_rest(old) and _rest(old) == _rest(new)):
            return old, new
    old, _, new = header.partition(" ")
    return old, new


def _stripped(old: str, new: str, prefixed: bool) -> tuple[str, str]:
    if old and new:
        if old == new:
            return old, new
        if _rest(old) and _rest(old) == _rest(new):
            return _rest(old), _rest(new)
        if old in (f"{new}.orig", f"{new}~"):
            return new, new
        prefixed = old.startswith("a/") and new.startswith("b/")
    only = not (old and new) and (old or new).split("/")[0] in ("a", "b")
    return (_rest(old), _rest(new)) if prefixed or only else (old, new)


def _file(record: _Record, old: str, new: str) -> FileDiff:
    if moved := record.said("rename from") or record.said("copy from"):
        old, new = _unquoted(moved), _unquoted(record.said("rename to") or record.said("copy to"))
    blob = re.match(r"index ([0-9a-f]{4,64})\.\.", next((e for e in record.extended if e.startswith("index ")), ""))
    whole = [line for line in record.extended if re.match(r"old mode|new mode|rename|copy", line)]
    whole += ["a binary change"] if record.binary else []
    if not record.hunks and not whole:
        whole = ["a file without a line"]
    return FileDiff(old or None, new or None, blob[1] if blob else "", record.hunks, ", ".join(whole))


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
        if line in ("", "\r") and at < len(lines) - 1:
            line = " " + line  # GNU diff and editors leave out the blank of an empty line; git and patch take that too
        if at >= len(lines) or line[:1] not in (" ", "+", "-", "\\"):
            raise Broken(f"it is cut off or edited by hand: {header} promises {left} and {right} more lines")
        left -= line[0] in " -"
        right -= line[0] in " +"
        body.append(line)
        at += 1
    if left or right:
        raise Broken(f"{header} does not count its own lines rightly")
    return Hunk(header, int(match[1]), int(match[3]), match[5], tuple(body)), at
