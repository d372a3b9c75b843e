"""Taking over: a launch becomes llama-release.toml, and what llama-server is told before and after is held together."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.adoption.document import keeping_key, merged, render, says_the_same
from tasks.adoption.launch import Launch
from tasks.adoption.settle import NotTaken, Settled, alike, is_path, settle
from tasks.adoption.variables import read_text
from tasks.flags.table import Table
from tasks.flags.words import Said, read
from tasks.preflight.argv import shown, variables
from tasks.release import BadInput
from tasks.settings import SETTINGS_FILE, LocalSettings, ServerSettings, Settings
from tasks.store import write_atomic

KEY_SHOWN = "***"


@dataclass(frozen=True)
class Pair:
    """One option, as it was said and as it will be."""

    theirs: str
    ours: str
    difference: str = ""


@dataclass(frozen=True)
class Adopted:
    """What a launch comes to, and the file that says it."""

    settled: Settled
    path: Path
    old: str | None
    """What stands in the file; None where there is none."""
    text: str
    """What is to stand there."""
    pairs: tuple[Pair, ...]
    missing: tuple[Path, ...]
    """Files that it names and that are not here."""
    unseen: tuple[Path, ...] = ()
    """Files that it names and that this user can't look for."""

    @property
    def changes(self) -> bool:
        """Whether the file would say something else."""
        return self.old is None or not says_the_same(self.settled, self.old)

    @property
    def difference(self) -> str:
        """What would change in the file, as a diff."""
        lines = ((self.old or "").splitlines(), self.text.splitlines())
        return "\n".join(difflib.unified_diff(*lines, SETTINGS_FILE, f"{SETTINGS_FILE} (new)", n=1, lineterm=""))


def adopt(launch: Launch, table: Table, here: Path) -> Adopted:
    """What a launch comes to in a folder. Nothing is written: see `write`.

    Raises one BadInput that names all of its options which can't be taken over, with the nearest spelling or with
    upstream's replacement.
    """
    try:
        settled = settle(launch, table)
    except NotTaken as error:
        count = len(error.refused)
        raise BadInput(
            f"{count} thing{'s' * (count != 1)} of this can't be taken over",
            evidence="\n".join(map(str, error.refused)),
            todo="take them out of what you give to import, or say them as above; nothing was written",
        ) from error
    path = here / SETTINGS_FILE
    old = read_text(path) if path.is_file() else None
    settled = keeping_key(settled, old or "")
    text = merged(settled, old) if old is not None else render(settled)
    return Adopted(settled, path, old, text, tuple(_pairs(settled, table)), *_missing(settled))


def write(adopted: Adopted, force: bool) -> bool:
    """Write the file; whether it says something else now. Raises BadInput for one that would change, unless forced."""
    if not adopted.changes:
        return False
    if adopted.old is not None and not force:
        raise BadInput(
            f"there is a {SETTINGS_FILE} that says something else",
            evidence=adopted.difference,
            todo="--force replaces what differs; its other sections stay",
        )
    write_atomic(adopted.path, adopted.text)
    return True


def argv(settled: Settled) -> tuple[str, ...]:
    """The words that llama-server would be run with, as `plan --argv` prints them."""
    server = ServerSettings.model_validate(settled.server)
    local = LocalSettings.model_validate(settled.section("local"))
    return shown(Settings.model_construct(server=server, local=local))


def theirs(launch: Launch) -> str:
    """A launch on one line, without a secret."""
    words = [word.text for word in launch.words]
    said = [f"{each.name}={each.value}" for each in launch.variables]
    keys = [f"{each.said.partition(' ')[0]} {KEY_SHOWN}" for each in launch.secrets]
    return " ".join((shlex.join((*said, "llama-server", *words)), *keys))


def _pairs(settled: Settled, table: Table) -> Iterator[Pair]:
    """Each option as it was said, beside ours: ours in their order, then what was dropped."""
    said: dict[str, list[Said]] = {}
    for each in settled.reading.effective:
        said.setdefault(each.main, []).append(each)
    ours: dict[str, list[Said]] = {}
    for each in read(argv(settled), table).effective:
        ours.setdefault(each.main, []).append(each)
    for main, mine in ours.items():
        their = said.pop(main, [])
        pair = Pair(", ".join(each.said for each in their), ", ".join(" ".join(each.words) for each in mine))
        moved = settled.launch.ports is not None and main in ("--host", "--port")
        difference = "as the container publishes it" if moved else _difference(their, mine)
        yield Pair(pair.theirs, pair.ours, difference)
    for secret in settled.launch.secrets:
        yield Pair(f"{secret.said.partition(' ')[0]} {KEY_SHOWN}", "", "from the environment")
    for name, value in variables(ServerSettings.model_validate(settled.server)).items():
        yield Pair(f"{name}={settled.launch.value(name) or ''}", f"{name}={value}")
    for main, their in said.items():
        yield Pair(", ".join(each.said for each in their), "", _GONE.get(main, "llama-server's own default"))


_GONE = {
    "--sleep-idle-seconds": "local.idle_s",
    "--reuse-port": "dropped", "--model": "--hf-repo wins",
}  # fmt: skip


def _difference(theirs: list[Said], ours: list[Said]) -> str:
    """In what two sayings of one option differ; '' when llama-server is told the same."""
    if not theirs:
        return "llama-server's own, said"
    before, after = (",".join(each.value for each in found) for found in (theirs, ours))
    if alike(after, before):
        return ""
    if is_path(ours[0].flag):
        return "the same as this machine has it"
    return f"{before} is {after} now"


def _missing(settled: Settled) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(files that are not there, files that can't be looked for)."""
    server = settled.server
    named = [server.get(key) for key in ("model", "mmproj", "chat_template", "draft_model", "api_key_file")]
    missing, unseen = [], []
    for path in filter(None, (*named, *server.get("lora", ()))):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(Path(path))
        except (OSError, ValueError):  # a folder that may not be entered, a name that can't be one
            unseen.append(Path(path))
    return tuple(missing), tuple(unseen)
