"""What is secret, and text without it: the one place that knows. Used in containers and on a machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar
from urllib.parse import quote, unquote

T = TypeVar("T")

SHORTEST = 6
"""Characters. What is shorter is no secret, and hiding it would spoil every text that happens to hold it."""
LONG = 16
"""Characters. A user of a URL without a password is a token if it has as many."""

_VARIABLE = re.compile(
    r"(?i)(KEY|TOKEN|TOKEN_ID|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|(?<![A-Z])PAT|_PWD|CREDENTIALS?|AUTH|AUTH_STRING"
    r"|CONNECTION_URL|WEBHOOK|DSN)$"
)
# A password may have an @ in it and, where it is no port, a slash: no RFC allows either, people write both.
_CREDENTIALS = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,30}://)"
    r"(?P<who>[^\s/?#'\"`<>]+|[^\s/@:?#'\"`<>\[]+:(?!\d+[/?#])[^\s@'\"`<>]{1,200})@",
    re.IGNORECASE,
)
_PARAMETER = re.compile(
    r"(?i)(?P<name>[?&#;](?:[\w-]*(?:key|token|secret|password|passwd|signature|credential)[\w-]*"
    r"|(?:[\w-]*[_-])?(?:pat|pwd|pass|auth|sig))=)[^&\s'\"`<>]+"
)
_LIKELY = r"(?=[^\s'\"`<>,;]*\d|[^\s'\"`<>,;]{16})[^\s'\"`<>,;]{6,}"
"""A word that may be a credential: it has a digit, or is longer than nearly all words of a sentence."""
_HEADER = re.compile(
    r"(?i)(?P<name>\b(?:(?:proxy-)?authorization|(?:x-)?api-key)['\"]?\s*(?:[:=]|(?<=['\"]),)\s*b?['\"]?)"
    rf"(?:(?P<scheme>(?:bearer|basic|digest|token)\s+)[^\s'\"`<>,;]+|(?:[a-z][\w-]*\s+)?{_LIKELY})"
)
_BEARER = re.compile(rf"(?i)(?P<scheme>\bbearer\s+){_LIKELY}")
_FLAG = re.compile(r"--?[\w-]*(api-key|token|password|secret)")
_named: set[str] = set()
_hidden: set[str] = set()


def also(*names: str) -> None:
    """From now on these environment variables are secret too, whatever they are called."""
    _named.update(names)


def hide(secret: str | None) -> None:
    """From now on this is hidden too: a key that this process has, in a variable or not."""
    if secret and len(secret) >= SHORTEST:
        _hidden.add(secret)


def is_secret(name: str, value: str) -> bool:
    """Whether an environment variable holds a secret: by its name, or because its value is a URL with credentials."""
    if _CREDENTIALS.search(value):
        return True
    path = value.startswith(("/", "~", "./"))  # of a file that holds it
    return name in _named or (bool(_VARIABLE.search(name)) and not path and len(value) >= SHORTEST)


def redact(value: T, *more: str | None) -> T:
    """A text, or every text in dicts and lists, without the secrets of this process: those of its environment, those
    that it was told to `hide`, and what is given in `more`.

    Hidden are also credentials in addresses and in the headers of a request, whoever's they are.
    """
    hidden = _keys(_hidden) | _secrets(os.environ) | _keys(filter(None, more))
    return _without(value, sorted(hidden.items(), key=lambda each: len(each[0]), reverse=True))  # type: ignore[no-any-return]


def _keys(secrets: Iterable[str]) -> dict[str, str]:
    return {each: "[key]" for secret in secrets for each in _spellings(secret)}


def _secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Secret -> what stands for it."""
    held = {name: value for name, value in environment.items() if is_secret(name, value)}
    words = [(word, name) for name, value in held.items() for word in _words(value)]
    return {each: f"[{name}]" for word, name in words for each in _spellings(word) if len(each) >= SHORTEST}


@cache
def _spellings(secret: str) -> frozenset[str]:
    """A secret as it may stand in a text: as it is, without the line break that it was pasted with, in an address, in
    JSON, and as Python shows bytes (h11 says `Illegal header value b'Bearer ...\\n'`)."""
    bare = secret.strip()
    there = bare.encode(errors="surrogateescape")  # a variable's bytes, which need not be UTF-8 (PEP 383)
    found = {secret, bare, unquote(bare), quote(there, safe=""), json.dumps(bare)[1:-1], repr(there)[2:-1]}
    return frozenset(each for each in found if each)


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
        value = _CREDENTIALS.sub(r"\g<scheme>[hidden]@", value)
        value = _PARAMETER.sub(r"\g<name>[hidden]", value)
        value = _HEADER.sub(lambda found: f"{found['name']}{found['scheme'] or ''}[hidden]", value)
        return _BEARER.sub(r"\g<scheme>[hidden]", value)
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
