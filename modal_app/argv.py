"""A server argv as a log may show it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SECRET_FLAG = re.compile(r"--?[\w-]*(api-key|token|password|secret)")


def redacted(argv: Sequence[str]) -> str:
    """An argv for a log: what follows a flag for a secret is not shown."""
    words, hide = [], False
    for word in argv:
        flag, sign, _ = word.partition("=")
        secret = bool(_SECRET_FLAG.match(flag))
        words.append("***" if hide else f"{flag}=***" if secret and sign else word)
        hide = secret and not sign
    return " ".join(words)
