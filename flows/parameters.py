"""What a person may give a flow: typed so that anything else is refused before a run exists."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_TAG = r"^(b?\d+|v\d+\.\d+\.\d+)$"
_RELEASE = r"^(b?\d+|v\d+\.\d+\.\d+|[0-9a-f]{4,12})$"


def _check_tag(word: str) -> str:
    if not re.fullmatch(_TAG, word):
        raise ValueError(f"{word!r} is no tag of upstream's: b11434, 11434 and v0.6.0 are")
    return word


def _check_release(word: str) -> str:
    if not re.fullmatch(_RELEASE, word):
        raise ValueError(f"{word!r} names no release: its tag does (b11434, v0.6.0), or its id, or 4 characters of it")
    return word


# Prefect's page checks a form against the schema, which a validator is not in
Tag = Annotated[
    str,
    AfterValidator(_check_tag),
    Field(json_schema_extra={"pattern": _TAG}, examples=["b11434", "v0.6.0"]),
]
"""An upstream build or stable release."""

ReleaseName = Annotated[
    str,
    AfterValidator(_check_release),
    Field(json_schema_extra={"pattern": _RELEASE}, examples=["b11434", "0a1b2c3d4e5f"]),
]
"""What people call a release: as `llama-release status` shows it, or a part of that."""

Words = Annotated[str, Field(pattern=r"\S", max_length=500)]
"""A name or a reason: not empty, not blank."""
