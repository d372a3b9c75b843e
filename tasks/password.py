"""The password of the Prefect servers that a store's commands start, and how such a server shows that it has it."""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

import httpx

from tasks.release import BadInput

NAME = "password"
"""Of the file in that folder."""
_USER = "llama-release:"
SHOW = "/shows/"
"""Path below which a server shows it: what follows is the question."""
_ASK_S = 5.0


def folder(store: Path) -> Path:
    """Where the Prefect servers of a store's commands have their data and their password."""
    return store.absolute() / "prefect"


def keep(home: Path) -> str:
    """`user:password` for the servers of this Prefect folder, made when there is none: the same for each of them, since
    a run that waits on one is answered from beside another.

    Raises BadInput when the file there is no such thing, or somebody else's.
    """
    file = home / NAME
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)  # Prefect's database holds all that a run has said, and was as the umask had it
        if not file.exists():
            _make(file)
        made = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{file} can't be had", evidence=str(error), todo="run it as the user whose store this is"
        ) from error
    if not ours(made):
        raise BadInput(f"{file} holds no password", evidence=f"it does not begin with {_USER}", todo="delete it")
    return made


def _make(file: Path) -> None:
    """Whole or not at all, and never two: of those who make it at the same time the first has made it."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as out:
            out.write(_USER + secrets.token_urlsafe(24) + "\n")
        with suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        temporary.unlink()


def ours(password: str) -> bool:
    """Whether it is of a store; else it is of a server that somebody runs himself."""
    return password.startswith(_USER) and len(password) > len(_USER)


def proof(password: str, page: str, question: str) -> str:
    """What the server at this address answers. The address is in it: nobody else can hand the question on to it."""
    return hmac.new(password.encode(), f"{page} {question}".encode(), "sha256").hexdigest()


def shows(page: str, password: str) -> bool:
    """Whether the server at this address has the password. Any user of the machine may have taken the port of one that
    has ended: without this he would be told the password, and could answer for it.
    """
    question = secrets.token_hex(16)
    try:
        answer = httpx.get(f"{page}{SHOW}{question}", timeout=_ASK_S, trust_env=False).content
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return hmac.compare_digest(answer, proof(password, page, question).encode())
