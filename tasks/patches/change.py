"""Changes of the series itself: a patch comes in, goes out, moves, or becomes one with its neighbour.

Each change is tried first: the new series is placed on a release, and the files are written only when every patch that
was built with still is. The series file is written last.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from tasks.patches import place_series
from tasks.patches.classify import Placed
from tasks.patches.export import export, rewritten
from tasks.patches.series import (
    PROOF,
    SERIES,
    WAIVER,
    Broken,
    Patch,
    header_of,
    in_two,
    line_ends,
    read_patch,
    read_series,
    series_names,
)
from tasks.process import run
from tasks.release import BadInput, ReleaseFailed, UpstreamRelease
from tasks.sources import Sources
from tasks.store import write_atomic
from tasks.upstream import Upstream

GIT_TIMEOUT_S = 60
# What a person's settings may change of the two; that they stay in force otherwise lets git read the repository at all.
AS_GIT_WRITES = ("--binary", "--full-index", "-M", "-U3", "--no-color", "--no-ext-diff", "--no-textconv")
MAIL = (
    "--stdout", "--zero-commit", "--no-attach", "--no-cover-letter", "--no-signoff", "--no-base", "--no-signature",
    "--no-notes", "--no-thread", "--subject-prefix=PATCH",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A series and the release that its changes are tried on."""

    sources: Sources
    folder: Path
    release: UpstreamRelease
    upstream: Upstream
    upstream_tree: str
    propose: Callable[[Patch], str]
    """A proof that could see a patch, as a person would give it; raises BadInput for a proof that is none."""

    def place(self, some: list[Patch], chosen: Sequence[str] | None = None) -> list[Placed]:
        """Patches on the release: all of a series, or those `chosen` by name, in that order."""
        return place_series(self.sources, some, self.release, self.upstream_tree, self.upstream, chosen)

    def placed(self) -> list[Placed]:
        return self.place(read_series(self.folder))

    def before(self, placed: Sequence[Placed], at: int) -> str:
        """The tree that a patch of the series is made on."""
        return placed[at - 1].tree if at else self.upstream_tree

    def text(self, placed: Sequence[Placed], at: int) -> str:
        """A patch of the series as it stands on the release."""
        one = placed[at]
        return export(self.sources.git, one.patch.path, self.before(placed, at), one.tree, self.release)

    def write(self, names: Sequence[str]) -> None:
        """Write the series file with these names in place of the old ones; its comments stay, above or behind them."""
        path = self.folder / SERIES
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        comments = [line for line in lines if line.strip().startswith("#")]
        known = {line.split("#")[0].strip(): line for line in lines}
        write_atomic(path, "".join(f"{line}\n" for line in [*comments, *(known.get(name, name) for name in names)]))


def draft(text: str, *, title: str = "", why: str = "", proved_by: str = "", waiver: str = "") -> str:
    """A diff or a mail as the file of a patch: with an author, a date, a title, and the reasons that it lacks.

    A waiver in the text is nobody's here, and is left out; so is its proof where another, or a waiver, is given. Raises
    BadInput when there is no title to be had, or when the waiver does not say who and why.
    """
    if waiver and not WAIVER.fullmatch(waiver):
        raise BadInput("a waiver says who gives it and why, in one line", todo="say so with --by and --waive")
    with suppress(Broken):  # which is told of the patch that it becomes
        text = line_ends(text)
    head, diff = in_two(text)
    diff = re.sub(r"\A---\r?\n", "", diff)
    known = dict(re.findall(r"^([A-Z][A-Za-z-]+): (.+)$", head, re.MULTILINE))
    mail, _, body = head.partition("\n\n") if "Subject" in known else ("", "", head)
    title = title or next((line.strip() for line in body.split("\n") if line.strip()), "") if not mail else title
    if not mail and not title:
        raise BadInput("the patch has no title", todo="give it one with --title")
    if not mail:
        body = body.strip().removeprefix(title).strip()
        mail = f"From {'0' * 40} Mon Sep 17 00:00:00 2001\nFrom: {_author()}\nDate: {_now()}\nSubject: [PATCH] {title}"
    elif title:
        subject = f"Subject: [PATCH] {title}"
        mail = re.sub(r"^Subject: .*(?:\n[ \t].*)*", lambda _: subject, mail, flags=re.MULTILINE)
    trailers = {"Why": why, PROOF: proved_by, "Waiver": waiver}
    foreign = "|".join(["Waiver", *([PROOF] if proved_by or waiver else [])])
    body = re.sub(rf"^(?:{foreign}): .*\n?", "", body, flags=re.MULTILINE)
    lines = [f"{name}: {value}" for name, value in trailers.items() if value and not (name == "Why" and name in known)]
    body = body.strip("\n")
    gap = "" if body and re.match(r"[A-Z][A-Za-z-]+: ", body.rsplit("\n", 1)[-1]) else "\n"
    message = f"{body}\n{gap if body else ''}" + "\n".join(lines)
    return f"{mail}\n\n{message.strip(chr(10))}\n---\n\n{diff}"


def _author() -> str:
    said = run(["git", "var", "GIT_AUTHOR_IDENT"], timeout_s=GIT_TIMEOUT_S, check=False)
    match = re.match(r".*<.*>", said.stdout) if not said.code else None
    return match[0] if match else "llama-release <llama-release@localhost>"


def _now() -> str:
    return format_datetime(datetime.now(UTC))


def add(work: Work, some: Sequence[tuple[str, str]]) -> list[Placed]:
    """Put patches, each (file name or '', text), at the end of the series as they stand on the release; what became of
    them. All of them or none.

    Raises BadInput when one gives no reason or no proof, or has another's name, ReleaseFailed when one does not fit.
    """
    old = read_series(work.folder) if (work.folder / SERIES).exists() else []
    names = [patch.name for patch in old]
    with tempfile.TemporaryDirectory(prefix="patch-") as folder:
        new = []
        for name, text in some:
            patch = _drafted(work, Path(folder), names, name, text)
            names.append(patch.name)
            new.append(patch)
        placed = work.place([*old, *new])
        added = placed[len(old) :]
        for one in added:
            _refuse_unfit(work, one)
        texts = {one.patch.name: work.text(placed, at) for at, one in enumerate(added, len(old))}
    work.folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomic(work.folder / name, text)
    work.write(names)
    return added


def _drafted(work: Work, folder: Path, names: Sequence[str], name: str, text: str) -> Patch:
    """A new patch as a file that has the name it will have. Raises BadInput as `add` does."""
    path = folder / (name or "new.patch")
    path.write_text(text, encoding="utf-8")
    patch = read_patch(path)
    _refuse(work, patch)
    if name in names:
        raise BadInput(f"the series has a {name} already", todo="give the file another name")
    if name and (name == SERIES or (work.folder / name).exists()):
        raise BadInput(
            f"{work.folder / name} would be written over, which is no patch of the series",
            todo="move it elsewhere, or give the new file another name",
        )
    there = [*names, *(path.name for path in work.folder.glob("*"))]
    return patch if name else read_patch(path.rename(folder / _file_name(there, patch.title)))


def _refuse_unfit(work: Work, placed: Placed) -> None:
    if not placed.result.status.built_with:
        raise ReleaseFailed(
            f"{placed.patch.title} is {placed.result.status} on {work.release.tag}: nothing is added to the series",
            evidence=f"{placed.result.evidence}\n{placed.result.detail}".strip(),
            todo="name the build that it was made on with --to, and refresh the series to this one afterwards",
        )


def _refuse(work: Work, patch: Patch) -> None:
    if patch.broken:
        raise BadInput(f"this is no patch: {patch.broken}", todo="make it again with `git diff` or `git format-patch`")
    proposal = work.propose(patch)
    for trailer, word in (("Why", "--why"), (PROOF, "--proved-by")):
        if trailer not in patch.trailers and not (trailer == PROOF and "Waiver" in patch.trailers):
            raise BadInput(
                f"{patch.title} has no {trailer}",
                evidence=f"for its proof: {proposal}" if trailer == PROOF else "",
                todo=f"say it with {word}: a patch without it can't be judged when upstream changes",
            )


def _file_name(names: Sequence[str], title: str) -> str:
    number = max((int(match[0]) for name in names if (match := re.match(r"\d+", name))), default=0) + 1
    return f"{number:04}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')[:50] or 'patch'}.patch"


def drop(work: Work, patch: Patch) -> list[str]:
    """Take a patch out of the series, and its file away; the patches that stay.

    Raises ReleaseFailed when a later one is built on it.
    """
    known = {one.patch.name for one in work.placed() if one.result.status.built_with} - {patch.name}
    left = [name for name in series_names(work.folder) if name != patch.name]
    _rewrite(work, work.place(read_series(work.folder), left), known, patch.paths)
    work.write(left)
    (work.folder / patch.name).unlink(missing_ok=True)
    return left


def reorder(work: Work, patches: Sequence[Patch]) -> list[str]:
    """Put these patches first, in this order, and the others behind them as they were; the new order.

    Raises ReleaseFailed when one of them does not fit there, or the source tree would be another one.
    """
    old = work.placed()
    known = {one.patch.name for one in old if one.result.status.built_with}
    first = [patch.name for patch in patches]
    names = [*first, *(one.patch.name for one in old if one.patch.name not in first)]
    new = work.place(read_series(work.folder), names)
    if old and new[-1].tree != old[-1].tree:
        _check(work, new, known)
        raise ReleaseFailed("in that order the series makes another source tree", todo="leave the order as it is")
    _rewrite(work, new, known, {path for patch in patches for path in patch.paths})
    work.write(names)
    return names


def fold(work: Work, into: Patch, patch: Patch) -> str:
    """Make a patch part of the one before it, which keeps its name and reasons, and owes the proofs of both; the text
    of that one.

    Raises BadInput when they don't follow each other or are not proved alike, ReleaseFailed when one does not fit.
    """
    placed = work.placed()
    names = [one.patch.name for one in placed]
    at = names.index(into.name)
    if names[at + 1 : at + 2] != [patch.name]:
        raise BadInput(
            f"{patch.name} does not follow {into.name}", todo="bring them together with `llama-release patches reorder`"
        )
    if _standing(into) != _standing(patch):
        raise BadInput(
            f"{into.name} is {_standing(into)}, and {patch.name} is {_standing(patch)}",
            todo="give both a Proved-by, or both a Waiver: nothing is to lose its proof",
        )
    _check(work, placed, {into.name, patch.name})
    _texts(work, placed, into.paths | patch.paths)
    text = export(work.sources.git, into.path, work.before(placed, at), placed[at + 1].tree, work.release)
    text = _with_proofs(text, patch.trailers.get(PROOF, "").splitlines())
    write_atomic(into.path, text)
    work.write([name for name in names if name != patch.name])
    patch.path.unlink(missing_ok=True)
    return text


def _standing(patch: Patch) -> str:
    return "proved" if PROOF in patch.trailers else "waived" if "Waiver" in patch.trailers else "not proved"


def _with_proofs(text: str, more: Sequence[str]) -> str:
    """The text of a patch that owes these proofs too, behind its own."""
    own = list(re.finditer(rf"^{PROOF}: (.+)\n", header_of(text), re.MULTILINE))
    new = [proof for proof in more if proof not in (line[1] for line in own)]
    at = own[-1].end() if own else 0
    return text[:at] + "".join(f"{PROOF}: {proof}\n" for proof in new) + text[at:]


def _texts(work: Work, placed: Sequence[Placed], touched: set[str]) -> dict[Path, str]:
    """What `rewritten` writes. Raises ReleaseFailed for a patch that stays as it is but in files that are `touched`."""
    texts, kept = rewritten(work.sources, placed, work.upstream_tree, work.release)
    for one in placed:
        if one.result.status.built_with and one.patch.path in kept and one.patch.paths & touched:
            raise ReleaseFailed(
                f"{one.patch.name} is {kept[one.patch.path]}: nothing is changed",
                evidence=one.result.evidence,
                todo="`llama-release patches edit` it to what it is to keep, or name the build of its Exported-on",
            )
    return texts


def _check(work: Work, placed: Sequence[Placed], known: set[str]) -> None:
    for one in placed:
        if one.patch.name in known and not one.result.status.built_with:
            raise ReleaseFailed(
                f"{one.patch.name} would be {one.result.status} on {work.release.tag}: nothing is changed",
                evidence=one.result.evidence,
                todo="fold the two patches, or leave the series as it is",
            )


def _rewrite(work: Work, placed: Sequence[Placed], known: set[str], touched: set[str]) -> None:
    """Write the patches of a series as they stand on the release now, all of them: each is read as made on those
    before it. Nothing when one of them does not fit.
    """
    _check(work, placed, known)
    for path, text in _texts(work, placed, touched).items():
        if path.name in known:
            write_atomic(path, text)


def export_to(work: Work, folder: Path) -> list[str]:
    """Write the series as it stands on the release into another folder, as quilt and packagers read it; the files.

    Raises BadInput when the folder has something in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty", todo="name a folder that does not exist yet")
    placed = work.placed()
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for at, one in enumerate(placed):
        if one.result.status.built_with:
            write_atomic(folder / one.patch.name, work.text(placed, at))
            names.append(one.patch.name)
    write_atomic(folder / SERIES, "".join(f"{name}\n" for name in names))
    return names


# -- where a patch comes from ---------------------------------------------------------------------------


def of_work_tree(folder: Path) -> str:
    """The diff of what is changed in a git work tree: what `git add` took, else all changes of files that it knows.

    Raises BadInput when nothing is changed.
    """
    staged = _git(folder, "diff", *AS_GIT_WRITES, "--cached", "HEAD")
    text = staged or _git(folder, "diff", *AS_GIT_WRITES, "HEAD")
    if not text:
        raise BadInput(f"nothing is changed in {folder}", todo="change something there, and `git add` what is new")
    return text


def of_commits(repository: Path, what: str) -> list[str]:
    """A commit as a mail, or each commit of a range, oldest first; merges have none.

    Raises BadInput when that leaves nothing.
    """
    span = (what,) if ".." in what else ("-1", f"{what}^!")  # without ^! a merge is skipped for the commit before it
    said = _git(repository, "format-patch", *MAIL, *AS_GIT_WRITES, *span)
    parts = [part for part in re.split(r"^(?=From 0{40} Mon Sep 17)", said, flags=re.MULTILINE) if part.strip()]
    if not parts:
        raise BadInput(
            f"{what} of {repository} has no commit that changes something",
            todo="name a commit or a range; of a merge, take the branch that it brought: MERGE^1..MERGE^2",
        )
    return parts


def merges_of(repository: Path, span: str) -> int:
    """How many commits of a range are merges, which no mail tells of."""
    return int(_git(repository, "rev-list", "--count", "--merges", span))


def since(repository: Path, start: str) -> str:
    """The range of commits of the branch that is checked out since it left `start`."""
    return f"{_git(repository, 'merge-base', start, 'HEAD').strip()}..HEAD"


def of_folder(folder: Path) -> list[tuple[str, str]]:
    """(file name, text) of the patches in a folder: in the order of its `series`, which quilt has too, else by name.

    Raises BadInput when there are none, or when one of them is not there.
    """
    if (folder / SERIES).exists():  # quilt writes options such as -p1 behind a name
        names = [name.split()[0] for name in series_names(folder)]
    else:
        names = sorted(path.name for path in folder.glob("*") if path.suffix in (".patch", ".diff"))
    if lost := [name for name in names if not (folder / name).is_file()]:
        raise BadInput(f"{folder / SERIES} names {', '.join(lost)}, which is not there", todo="mend that file")
    if not names:
        raise BadInput(f"{folder} has no patches", todo="name a folder with *.patch files, or with a series")
    texts = ((folder / name).read_bytes().decode("utf-8", errors="replace") for name in names)
    return [(Path(name).name, text) for name, text in zip(names, texts, strict=True)]


def _git(folder: Path, *argv: str) -> str:
    said = run(["git", "-C", folder, *argv], timeout_s=GIT_TIMEOUT_S, check=False, exact=True)
    if said.code:
        raise BadInput(
            f"git can't read {folder}", evidence=said.text[-500:], todo="name a git repository, and a commit"
        )
    return said.stdout
