"""The two ends of the bounds in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.versions import PROJECT, NoLowerBound, oldest, requirements

BOUNDS = """
[project]
dependencies = ["prefect>=3.9.0", "sqlalchemy[asyncio]>=2.0.16,<3", "backports.tarfile>=1; python_version < '3.11'"]
[project.optional-dependencies]
test = ["pytest>=8.0.0"]
"""


def test_the_oldest_end_is_every_lower_bound_and_no_extra(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(BOUNDS)
    assert oldest(requirements(project)) == [
        "prefect==3.9.0",
        "sqlalchemy==2.0.16",
        "backports.tarfile==1",
        "pytest==8.0.0",
    ]


@pytest.mark.parametrize("text", ["prefect", "prefect<4", "prefect>3.9", "modal==1.6.4"])
def test_a_requirement_without_a_lower_bound_has_no_oldest_end(text: str) -> None:
    with pytest.raises(NoLowerBound, match="no single lower bound"):
        oldest([Requirement(text)])


def test_every_requirement_of_this_project_has_a_lower_bound() -> None:
    assert len(oldest(requirements(PROJECT))) > 20
