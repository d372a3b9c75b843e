"""What is secret, and text without it: the one place that knows. Used in containers and on a machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote

T = TypeVar("T")

SHORTEST = 6
"""Characters. What is shorter is no secret, and hiding it would spoil every text that happens to hold it."""
LONG = 16
"""Characters. A user of a URL without a password is a token if it has as many."""

_VARIABLE = re.compile(
    r"(?i)(KEY|TOKEN|TOKEN_ID|SECRET|PASS|PASSWORD|PASSWD|CREDENTIALS?|AUTH|AUTH_STRING|CONNECTION_URL|WEBHOOK|DSN)$"
)
_CREDENTIALS = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<who>[^\s/@?#'\"`<>]+)@", re.IGNORECASE)
_PARAMETER = re.compile(r"(?i)(?P<name>[?&][\w-]*(?:key|token|secret|password|signature)[\w-]*=)[^&\s'\"`<>]+")
_FLAG = re.compile(r"--?[\w-]*(api-key|token|password|secret)")
_named: set[str] = set()


def also(*names: str) -> None:
    """From now on these environment variables are secret too, whatever they are called."""
    _named.update(names)


def is_secret(name: str, value: str) -> bool:
    """Whether an environment variable holds a secret: by its name, or because its value is a URL with credentials."""
    if _CREDENTIALS.search(value):
        return True
    path = value.startswith(("/", "~", "./"))  # of a file that holds it
    return name in _named or (bool(_VARIABLE.search(name)) and not path and len(value) >= SHORTEST)


def harmless(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without its secrets: for processes that run upstream's code."""
    return {name: value for name, value in environment.items() if not is_secret(name, value)}


def redact(value: T, *more: str | None) -> T:
    """A text, or every text in dicts and lists, without the secrets of this process's environment.

    Hidden are also credentials in URLs, and what is given in `more`.
    """
    hidden = _secrets(os.environ) | {secret: "[key]" for secret in more if secret}
    return _without(value, sorted(hidden.items(), key=lambda each: len(each[0]), reverse=True))  # type: ignore[no-any-return]


def _secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Secret -> what stands for it."""
    held = {name: value for name, value in environment.items() if is_secret(name, value)}
    words = [(word, name) for name, value in held.items() for word in _words(value)]
    return {each: f"[{name}]" for word, name in words for each in (word, unquote(word)) if len(each) >= SHORTEST}


def _words(value: str) -> Iterator[str]:
    """What of a secret variable's value is secret: of a URL the password, or a user as long as a token."""
    urls = list(_CREDENTIALS.finditer(value))
    if not urls:
        yield value
    for url in urls:
        user, _, password = url["who"].partition(":")
        if password or len(user) >= LONG:
            yield password or user


def _without(value: Any, hidden: Sequence[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for secret, name in hidden:
            value = value.replace(secret, name)
        return _PARAMETER.sub(r"\g<name>[hidden]", _CREDENTIALS.sub(r"\g<scheme>[hidden]@", value))
    if isinstance(value, dict):
        return {_without(key, hidden): _without(each, hidden) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without(each, hidden) for each in value]
    return value


def redacted(argv: Sequence[str]) -> str:
    """An argv for a log: what follows a flag for a secret is not shown."""
    words, hide = [], False
    for word in argv:
        flag, sign, _ = word.partition("=")
        secret = bool(_FLAG.match(flag))
        words.append("***" if hide else f"{flag}=***" if secret and sign else word)
        hide = secret and not sign
    return redact(" ".join(words))
