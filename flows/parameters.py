"""What a person may give a flow: typed so that Prefect refuses anything else before a run exists."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Tag = Annotated[str, Field(pattern=r"^(b?\d+|v\d+\.\d+\.\d+)$", examples=["b11434", "v0.6.0"])]
"""An upstream build or stable release."""

ReleaseId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$", examples=["0a1b2c3d4e5f"])]
"""The id of a release, as `llama-release status` shows it."""

Words = Annotated[str, Field(pattern=r"\S", max_length=500)]
"""A name or a reason: not empty, not blank."""
