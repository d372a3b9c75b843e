"""What a person may give a flow: typed so that anything else is refused before a run exists."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_TAG = r"^(b?\d+|v\d+\.\d+\.\d+)$"
_RELEASE = r"^(b?\d+|v\d+\.\d+\.\d+|[0-9a-f]{4,12})$"


def _only(pattern: str, else_told: str) -> AfterValidator:
    """Refuses what does not match in words that say what would. Prefect's page checks a form by the schema, in which a
    validator is not: the pattern has to stand there, too."""

    def check(word: str) -> str:
        if not re.fullmatch(pattern, word):
            raise ValueError(f"{word!r} {else_told}")
        return word

    return AfterValidator(check)


Tag = Annotated[
    str,
    _only(_TAG, "is no tag of upstream's: b11434, 11434 and v0.6.0 are"),
    Field(json_schema_extra={"pattern": _TAG}, examples=["b11434", "v0.6.0"]),
]
"""An upstream build or stable release."""

ReleaseName = Annotated[
    str,
    _only(_RELEASE, "names no release: its tag does (b11434, v0.6.0), or its id, or 4 characters of it"),
    Field(json_schema_extra={"pattern": _RELEASE}, examples=["b11434", "0a1b2c3d4e5f"]),
]
"""What people call a release: as `llama-release status` shows it, or a part of that."""

Words = Annotated[str, Field(pattern=r"\S", max_length=500)]
"""A name or a reason: not empty, not blank."""
