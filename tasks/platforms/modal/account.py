"""Modal's SDK and command: reached in seconds or not at all, and their errors said as ours."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import modal
import modal.config
from modal.exception import (
    AuthError,
    ConflictError,
    Error,
    FunctionTimeoutError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)

from modal_app import child
from tasks.console import console
from tasks.process import Output, run
from tasks.release import BadInput, Problem, ToolingError

REACH_LIMIT_S = 5.0
REACHED_FOR_S = 20.0
COMMAND_LIMIT_S = 120.0
TELL_S = 10.0
VOLUME_LIMIT_S = 45.0
"""How long a document of the store may take to be read or written."""
SLOWEST_BYTES_PER_S = 200_000
"""Of an upload, beside that: what a poor line still manages."""

T = TypeVar("T")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_REPOSITORY = Path(__file__).parents[3]

_reached_at: dict[str, float] = {}


def reach() -> None:
    """Nothing when Modal's control plane takes connections (asked again now and then). Raises ToolingError, in seconds.

    The SDK by itself tries for most of a minute. It has several addresses, with commas between them, and takes the next
    one where one fails (modal 1.6.4, config.py).
    """
    urls = str(modal.config.config["server_url"])
    if time.monotonic() - _reached_at.get(urls, -REACHED_FOR_S) < REACHED_FOR_S or any(map(os.environ.get, _PROXIES)):
        return
    why: dict[str, str] = {}
    for url in map(str.strip, urls.split(",")):
        why[url] = _unreachable(url)
        if not why[url]:
            _reached_at[urls] = time.monotonic()
            return
    raise ToolingError(
        f"Modal cannot be reached at {' or '.join(why)}",
        evidence="; ".join(dict.fromkeys(why.values())),
        todo="look at the network and at status.modal.com, then run it again: nothing was changed",
    )


def _unreachable(url: str) -> str:
    """Why nothing takes connections there; '' when something does."""
    at = urlsplit(url)
    try:
        socket.create_connection((at.hostname or "", at.port or 443), timeout=REACH_LIMIT_S).close()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Around calls of the SDK: its errors become ours, with what to do. `doing` ends the sentence "Modal ...".

    A missing object stays NotFoundError or FileNotFoundError where the caller must tell; catch it inside.
    """
    reach()
    try:
        yield
    except Error as error:
        _reached_at.clear()
        raise problem(error, doing) from error


def within(limit_s: float, doing: str, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a call of the SDK in its asynchronous form comes to: its errors are ours, as with `told`.

    When it takes longer than that it is cancelled: by itself the SDK goes on trying to reach a Volume's blocks for
    minutes, without a word. What is waited for is said again and again, forty times at most. FileNotFoundError and
    NotFoundError stay what they are.
    """
    reach()
    asked: Future[T] = Future()

    def run() -> None:
        try:
            asked.set_result(asyncio.run(asyncio.wait_for(ask(), limit_s)))
        except BaseException as error:
            asked.set_exception(error)

    Thread(target=run, daemon=True).start()
    began, every_s = time.monotonic(), max(TELL_S, limit_s / 40)
    while (waited := time.monotonic() - began) < limit_s + TELL_S and not wait([asked], every_s).done:
        console.print(f"  waiting for Modal's Volume: {doing}, {waited + every_s:.0f} s of at most {limit_s:.0f} s")
    if not asked.done() or isinstance(asked.exception(), TimeoutError):
        raise ToolingError(
            f"Modal's Volume does not answer: {doing}",
            evidence=f"nothing came of it in {limit_s:.0f} s",
            todo="look at status.modal.com and run it again: whether a write took effect is not known until then",
        )
    try:
        return asked.result()
    except (FileNotFoundError, NotFoundError):
        raise
    except Error as error:
        _reached_at.clear()
        raise problem(error, doing) from error
    except (aiohttp.ClientError, OSError) as error:
        raise ToolingError(
            f"Modal's Volume failed: {doing}",
            evidence=f"{type(error).__name__}: {error}",
            todo="look at status.modal.com and run it again: nothing is lost",
        ) from error


def problem(error: Exception, doing: str) -> Problem:
    """An error of the SDK as one of ours."""
    words = str(error) or repr(error)
    if isinstance(error, AuthError):
        return BadInput(
            "Modal does not know this token",
            evidence=words,
            todo="`modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET",
        )
    if isinstance(error, PermissionDeniedError):
        return BadInput(f"Modal does not allow it: {doing}", evidence=words, todo="use a token that may, or ask for it")
    if isinstance(error, ResourceExhaustedError):
        return ToolingError(
            f"a limit of the Modal workspace was met: {doing}",
            evidence=words,
            todo="look at Modal's usage page; raise the limit or the budget, or wait, and run it again",
        )
    if isinstance(error, FunctionTimeoutError):
        return ToolingError(
            f"Modal ended it for taking too long: {doing}",
            evidence=words,
            todo="raise modal.build_timeout_s; what was compiled is in the compiler cache, so the next try is shorter",
        )
    if isinstance(error, ConflictError):  # also an InvalidError, so it is asked first
        return ToolingError(f"somebody else changed it at the same time: {doing}", evidence=words, todo="run it again")
    if isinstance(error, NotFoundError):
        return _missing(words, doing)
    return ToolingError(
        f"Modal failed: {doing}", evidence=f"{type(error).__name__}: {words}", todo="run it again: nothing is lost"
    )


def _missing(words: str, doing: str) -> BadInput:
    if "Secret" in words:
        return BadInput(
            "the Modal Secret with the API key is not there",
            evidence=words,
            todo="`modal secret create NAME LLAMA_API_KEY=...`, with the name that modal.secret says",
        )
    if "Environment" in words or "environment" in words:
        return BadInput(
            "there is no such Modal environment",
            evidence=words,
            todo="`modal environment list`; then set modal.environment, or `modal environment create NAME`",
        )
    return BadInput(f"Modal does not find it: {doing}", evidence=words, todo="check the names in [modal]")


# The command prints its errors for people; these are the words it has for the ones that we know more about.
_SAID = (
    (r"[Tt]oken (missing|ID|is malformed|validation)|[Cc]ould not authenticate|credentials|UNAUTHENTICATED", AuthError),
    (r"[Ii]mage build .*failed|[Ii]mage build .*terminated", None),
    (r"limit|quota|exhausted|budget", ResourceExhaustedError),
    (r"[Nn]ot found|[Nn]o such", NotFoundError),
)


def command(
    *words: str, environment: str | None = None, env: Mapping[str, str] | None = None, limit_s: float
) -> Output:
    """Run the `modal` command. Raises BadInput or ToolingError with its own words when it fails."""
    reach()
    named: list[str] = ["--env", environment] if environment else []
    output = run(
        [sys.executable, "-m", "modal", *words, *named],
        timeout_s=limit_s,
        env={
            **child.environment(child.PYTHON, child.MODAL, child.PROXY, child.TLS),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_REPOSITORY), os.environ.get("PYTHONPATH")))),
            **(env or {}),
        },
        check=False,
    )
    if output.code:
        raise command_problem(f"modal {words[0]} {words[1] if len(words) > 1 else ''}".strip(), output)
    return output


def command_problem(doing: str, output: Output) -> Problem:
    """What the `modal` command said, as one of our errors."""
    words = "\n".join(line for line in output.text.splitlines() if line.strip())[-1800:]
    for pattern, kind in _SAID:
        if re.search(pattern, words):
            if kind is not None:
                return problem(kind(words), doing)
            return ToolingError(
                "Modal could not build the image",
                evidence=words,
                todo="read the last lines; a package or image that is gone must be pinned anew (modal_app/images.py)",
            )
    return ToolingError(f"`{doing}` failed", evidence=words, todo="run it again: nothing is lost")
