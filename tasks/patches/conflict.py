"""What a person needs to settle a patch in one sitting, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from tasks.patches.evidence import Place, Reader, occurrences
from tasks.patches.series import Patch
from tasks.patches.trees import Merge
from tasks.release import Change, ReleaseNotes, UpstreamRelease

LINES_SHOWN = 60
CHANGES_SHOWN = 8
_SAYS_NOTHING = frozenset(
    ("common", "init", "params", "this", "get", "set", "impl", "the", "and", "for", "new", "server")
)


def report(patch: Patch, release: UpstreamRelease, homes: list[str], now: str, notes: ReleaseNotes | str) -> str:
    """The hunks, what upstream has there now, which of its changes may have done it, and how to go on."""
    hunks = [f"{file.path}\n{hunk.text}" for file in patch.files for hunk in file.hunks]
    return "\n\n".join(
        [
            f"### The patch: {patch.title}",
            fenced("\n".join(hunks), "diff"),
            f"### What {release.tag} has there now",
            *(["The functions it changes: " + "; ".join(homes)] if homes else []),
            now,
            "### Which upstream changes may have touched it",
            _suspects(patch, release, notes),
            "### How to go on",
            fenced(
                f"llama-release patches edit {patch.name} --to {release.tag}   # a work folder, the patch merged in\n"
                "llama-release patches edit --continue   # export what you made of it as the patch\n"
                "llama-release patches edit --abort      # or leave everything as it was",
                "",
            ),
        ]
    )


def upstream_now(reader: Reader, patch: Patch, tree: str, moved: list[Place], merged: Merge | None) -> str:
    """What a tree has where the patch belongs: git's merge of both, the functions that moved, or the lines near by."""
    if merged and merged.conflicts:
        return "\n\n".join(f"{path}:\n{fenced(_merged(reader, merged.tree, path), '')}" for path in merged.conflicts)
    if moved:
        texts = ((place, "\n".join(place.lines)) for place in moved)
        return "\n\n".join(f"{place}:\n{fenced(shortened(text), 'cpp')}" for place, text in texts)
    return "\n\n".join(_near(reader, patch, tree)) or "every hunk fits by its text, but not where it belongs"


def _merged(reader: Reader, tree: str, path: str) -> str:
    text = reader.text(tree, path) or ""
    blocks = re.findall(r"^<{7} .*?(?:^>{7} [^\n]*|\Z)", text, re.MULTILINE | re.DOTALL)
    named = "\n...\n".join(blocks)
    for sign, side in (("<", "upstream"), ("|", "where the patch was made"), (">", "the patch")):
        named = re.sub(rf"^{re.escape(sign)}{{7}} .*", f"{sign * 7} {side}", named, flags=re.MULTILINE)
    return shortened(named)


def _near(reader: Reader, patch: Patch, tree: str) -> list[str]:
    """For each hunk that does not fit: the lines around the one line of it that upstream has only once."""
    found = []
    for file in patch.files:
        text = reader.text(tree, file.old) if file.old else None
        if text is None:
            found.append(f"{file.path}: there is no such file")
            continue
        lines = text.split("\n")
        for hunk in file.hunks:
            if occurrences(text, hunk) == 1:
                continue
            known = [n for line in hunk.before if line.strip() and lines.count(line) == 1 for n in [lines.index(line)]]
            at = known[0] if known else min(hunk.start, len(lines)) - 1
            shown = "\n".join(lines[max(0, at - 5) : at + len(hunk.lines) + 5])
            found.append(f"{file.path}:{max(1, at - 4)}:\n{fenced(shortened(shown), 'cpp')}")
    return found


def _suspects(patch: Patch, release: UpstreamRelease, notes: ReleaseNotes | str) -> str:
    since = patch.exported_on
    if isinstance(notes, str):
        return f"Not known: {notes}."
    changes = notes.changes
    if not changes:
        return f"Not known: the notes at hand, which end with b{notes.until}, tell nothing of these builds."
    words = _words(patch)
    known = f"{len(changes)} changes between b{since} and {release.tag}"
    likely = [change for change in ranked(patch, changes) if _score(change, words)][:CHANGES_SHOWN]
    unread = f" The notes end with b{notes.until}." if notes.until < notes.high else ""
    if not likely:
        return f"None of {known} names these files or functions.{unread}"
    head = f"A guess by the words of their titles, out of {known}.{unread}"
    return "\n".join([head, "", *(f"- {change}" for change in likely)])


def ranked(patch: Patch, changes: Sequence[Change]) -> list[Change]:
    """Upstream's changes, those first whose titles have most words in common with a patch."""
    words = _words(patch)
    folders = {part.lower() for file in patch.files for part in PurePosixPath(file.path).with_suffix("").parts}
    return sorted(changes, key=lambda change: (-_score(change, words), not _prefix(change) & folders))


def _words(patch: Patch) -> set[str]:
    texts = [PurePosixPath(file.path).stem for file in patch.files]
    texts += [hunk.heading for file in patch.files for hunk in file.hunks] + [patch.title.partition(" : ")[2]]
    found = {word.lower() for text in texts for word in re.findall(r"[A-Za-z0-9]{3,}", text.replace("_", " "))}
    return found - _SAYS_NOTHING


def _score(change: Change, words: set[str]) -> int:
    title = re.sub(r"\bgemma\s+(?=\d)", "gemma", change.title.lower())
    return len(words & set(re.findall(r"[a-z0-9]{3,}", title)))


def _prefix(change: Change) -> set[str]:
    """The words before a title's colon: upstream puts the folder or the part there."""
    return set(re.findall(r"\w+", change.title.lower().partition(":")[0]))


def shortened(text: str) -> str:
    """The first LINES_SHOWN lines of a text, and how many more there are."""
    lines = text.split("\n")
    more = [f"... {len(lines) - LINES_SHOWN} more lines"] if len(lines) > LINES_SHOWN else []
    return "\n".join(lines[:LINES_SHOWN] + more)


def fenced(text: str, language: str) -> str:
    """A text as a block of code in Markdown."""
    return f"````{language}\n{text}\n````"
